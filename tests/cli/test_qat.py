"""python -m kquant.cli.qat: trains, writes, judges, resumes; refuses what cannot be a file."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kquant.cli import qat
from kquant.cli.commands import qat as commands
from kquant.core.encodings import Encodings
from kquant.graph.model_files import load_model
from tflite_export.family.bundle import Bundle
from tflite_export.proof import certificate as proof


@pytest.fixture
def train(files):
  """The flags of a small training."""
  return ["--model", files.h5, "--train", files.xy, "--epochs=4", "--batch_size=8", "--learning_rate=0.003"]


def events(folder):
  """Returns {tag: values} of the event files in a folder."""
  found = {}
  for path in sorted(folder.rglob("events*")):
    for record in tf.data.TFRecordDataset(str(path)):
      for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
        found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
  return found


def test_trains_to_a_verified_file(invoke, train, files, tmp_path):
  paths = {name: tmp_path / file for name, file in
           {"output": "m.tflite", "summary": "s.json", "encodings": "e.json", "save_model": "f.keras",
            "save_qmodel": "q.keras", "log_dir": "logs", "report": "r.html"}.items()}
  code, out, err = invoke(*train, "--preset=w4a8", "--freeze_oscillations", f"--eval={files.xy}",
                          *(f"--{name}={path}" for name, path in paths.items()), main=qat.main)
  assert code == 0, err
  summary = json.loads(paths["summary"].read_text())
  losses = summary["history"]["loss"]
  assert len(losses) == 4 and losses[-1] < losses[0]
  assert summary["verify"]["max_lsb"] <= 1 and summary["bytes"] == paths["output"].stat().st_size
  assert summary["eval"]["quantized"]["top1"] == pytest.approx(summary["simulation"]["top1"], abs=0.05)
  assert f"{100 * summary['simulation']['top1']:.2f} %" in out and "frozen" in out
  logged = events(paths["log_dir"])
  np.testing.assert_allclose(logged["epoch_loss"], losses, rtol=1e-6)
  assert {"epoch_accuracy", "epoch_oscillating", "epoch_frozen"} <= logged.keys()
  assert len(load_model(paths["save_model"]).layers) < len(load_model(paths["save_qmodel"]).layers)
  page = paths["report"].read_text()
  assert "Where the noise comes from" in page and f"{100 * summary['eval']['agreement']:.1f} %" in page
  assert ">train<" in page and {"analyze", "report"} <= summary["seconds"].keys()
  grid = Encodings.load(paths["encodings"])["conv/kernel"]
  assert grid.bits == 4 and grid.packed


def test_activations_below_8_bits_are_simulation_only(invoke, refused, train, files, tmp_path):
  refused(*train, "--preset=w4a4", f"--output={tmp_path / 'm.tflite'}", main=qat.main,
          words=["--preset=w4a4", "simulation only", "Leave --output out"])
  code, out, err = invoke(*train, "--preset=w4a4", "--batch_norm=absorb", f"--eval={files.xy}", "--epochs=1",
                          main=qat.main)
  assert code == 0, err
  assert "simulation top-1" in out and "integer top-1" not in out


def test_quantized_gradients_train_to_a_verified_file(invoke, train, files, tmp_path):
  paths = {"output": tmp_path / "m.tflite", "summary": tmp_path / "s.json", "log_dir": tmp_path / "logs"}
  flags = ["--quantizer=in_hindsight", "--gradients=8", "--gradient_range=in_hindsight",
           "--batch_norm=absorb", *(f"--{name}={path}" for name, path in paths.items())]
  code, out, err = invoke(*train, *flags, main=qat.main)
  assert code == 0, err
  history = json.loads(paths["summary"].read_text())["history"]
  assert history["loss"][-1] < history["loss"][0] and len(history["gradient_drift"]) == 4
  assert "gradient_saturated" in out and "epoch_gradient_saturated" in events(paths["log_dir"])
  assert paths["output"].stat().st_size > 0


def test_distilling_adds_a_loss_that_falls(invoke, train, tmp_path):
  def losses(name, *flags):
    code, out, err = invoke(*train, "--preset=w4a8", f"--summary={tmp_path / name}", *flags, main=qat.main)
    assert code == 0, err
    return json.loads((tmp_path / name).read_text())["history"]["loss"]

  plain, distilled = losses("plain"), losses("distilled", "--distill")
  assert distilled[0] > plain[0] and distilled[-1] < distilled[0]


@pytest.mark.parametrize("flags", [(), ("--distill",)], ids=["labels", "distilled"])
def test_a_model_called_with_a_dict_is_trained_by_its_keys(flags, invoke, tmp_path):
  inputs = {"small": keras.Input((2,), name="z"), "large": keras.Input((3,), name="a")}
  joined = keras.layers.Concatenate()(list(inputs.values()))
  model = keras.Model(inputs, keras.layers.Dense(2, name="dense")(keras.layers.ReLU()(joined)))
  model.save(tmp_path / "m.keras")
  rng = np.random.default_rng(0)
  np.savez(tmp_path / "t.npz", z=rng.normal(size=(16, 2)), a=rng.normal(size=(16, 3)), y=np.arange(16) % 2)
  code, _, err = invoke(f"--model={tmp_path / 'm.keras'}", f"--train={tmp_path / 't.npz'}", "--epochs=1",
                        "--batch_size=8", *flags, main=qat.main)
  assert code == 0, err


@pytest.mark.parametrize("flags", [(), ("--distill", "--batch_norm=absorb")], ids=["labels", "distilled"])
def test_a_killed_training_goes_on_to_the_same_integers(flags, invoke, refused, train, tmp_path, monkeypatch):
  def run(folder, *more):
    return invoke(*train, "--preset=w4a8", f"--checkpoint={tmp_path / folder}",
                  f"--encodings={tmp_path / folder}.json", *flags, *more, main=qat.main)

  assert run("whole")[0] == 0
  kill = lambda self, epoch, logs=None: (_ for _ in ()).throw(KeyboardInterrupt()) if epoch == 2 else None
  with monkeypatch.context() as patched:
    patched.setattr(commands.EventLog, "on_epoch_end", kill)
    assert run("killed", f"--log_dir={tmp_path / 'logs'}")[0] == 130
  refused(*train, f"--checkpoint={tmp_path / 'killed'}", main=qat.main,
          words=["holds a training", "--resume"])
  code, out, err = run("killed", "--resume")
  assert code == 0, err
  assert "Epoch 3/4" in out and "Epoch 2/4" not in out
  assert Encodings.load(tmp_path / "killed.json") == Encodings.load(tmp_path / "whole.json")


def test_mistakes(refused, train, files, tmp_path):
  refused("--model", files.h5, main=qat.main, words=["--train is missing"])
  refused("--model", files.h5, "--train", files.folder / "x.npz", main=qat.main, words=["has no labels"])
  np.savez(tmp_path / "labels.npz", **{**np.load(files.xy), "y": np.full(48, 99)})
  refused("--model", files.h5, "--train", tmp_path / "labels.npz", main=qat.main,
          words=["labels of --train run from 99 to 99"])
  refused(*train, "--batch_size=99", main=qat.main, words=["48 samples", "--batch_size=99"])
  refused(*train, "--resume", main=qat.main, words=["no training to go on with"])
  refused(*train, "--preset=w9a8", main=qat.main, words=["Unknown preset"])
  refused(*train, "--gradient_range=in_hindsight", main=qat.main, words=["give their bits", "--gradients=8"])
  refused(*train, "--any_precision=2,8", "--gradients=8", main=qat.main, words=["--gradients is of"])
  refused(*train, f"--output={tmp_path}", main=qat.main, words=["expected the name of a file"])


# --- several widths --------------------------------------------------------------------------------


def test_several_widths_are_trained_to_one_bundle(invoke, train, files, tmp_path):
  bundle, summary = tmp_path / "m.kqf", tmp_path / "s.json"
  code, out, err = invoke(*train, "--any_precision=2,8", f"--bundle={bundle}", f"--eval={files.xy}",
                          f"--summary={summary}", f"--save_qmodel={tmp_path / 'any.keras'}", "--preset=int8",
                          main=qat.main)
  assert code == 0, err
  found = json.loads(summary.read_text())
  assert found["history"]["loss"][-1] < found["history"]["loss"][0]
  assert found["eval"].keys() == {"8", "2"} and found["eval"]["8"]["agreement"] > 0.5
  assert found["bundle"]["bytes"] == bundle.stat().st_size
  assert all(file["exact"] for file in found["bundle"]["files"].values())
  assert f"{100 * found['eval']['2']['top1']:.2f} %" in out and "m.kqf" in out
  assert Bundle(bundle).widths == (8, 2) == keras.models.load_model(tmp_path / "any.keras").widths
  assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_width_that_is_not_simulated_is_not_called_certified(invoke, train, tmp_path, monkeypatch):
  monkeypatch.setattr(proof, "not_simulated", lambda program, mode="": ["CONV_2D of layer 'conv': strange"])
  code, out, err = invoke(*train, "--any_precision=2", "--epochs=1", f"--bundle={tmp_path / 'm.kqf'}",
                          main=qat.main)
  assert code == 0, err
  assert "not simulated: CONV_2D of layer 'conv': strange" in out and " yes" not in out


def test_a_killed_training_of_several_widths_goes_on_to_the_same_bundle(invoke, train, tmp_path, monkeypatch):
  def run(name, *more):
    return invoke(*train, "--any_precision=2,8", f"--bundle={tmp_path / name}",
                  f"--checkpoint={tmp_path / name}.state", *more, main=qat.main)

  assert run("whole.kqf")[0] == 0
  begin = commands.Batches.on_epoch_begin

  def killed(self, epoch, logs=None):
    if epoch == 2:
      raise KeyboardInterrupt
    begin(self, epoch, logs)

  with monkeypatch.context() as patch:
    patch.setattr(commands.Batches, "on_epoch_begin", killed)
    assert run("broken.kqf")[0] == 130
  code, _, err = run("broken.kqf", "--resume")
  assert code == 0, err
  assert (tmp_path / "broken.kqf").read_bytes() == (tmp_path / "whole.kqf").read_bytes()


def test_flags_of_several_widths_that_do_not_go_together(refused, train, tmp_path):
  refused(*train, "--bundle=m.kqf", words=["--bundle=m.kqf", "--any_precision=2,4,8"], main=qat.main)
  refused(*train, "--any_precision=2,8", f"--output={tmp_path / 'm.tflite'}", main=qat.main,
          words=["--output is of one width", "--bundle=PATH.kqf"])
  for flag in ("--preset=w4a8", "--quantizer=minmax", "--batch_norm=absorb", "--distill",
               "--tile_squeeze_excite=auto"):
    name = flag.partition("=")[0]
    refused(*train, "--any_precision=2,8", flag, main=qat.main,
            words=[f"{name} is of the training of one width", "leave it out"])
  refused(*train, "--any_precision=2,x", words=["--any_precision=2,x", "1 to 8 bits"], main=qat.main)
  refused(*train, "--any_precision=2,16", words=["widths of 1 to 8 bits", "(2, 16)"], main=qat.main)
