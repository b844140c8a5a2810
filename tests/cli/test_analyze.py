"""kquant.cli.analyze: the table, the JSON file, and its errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.cli import analyze
from kquant.graph.model_files import load_model


@pytest.fixture
def run(invoke, files, tmp_path):
  """Returns a function that analyzes and gives (stdout, the JSON file's contents)."""

  def call(*args, model=files.h5, calibration=files.xy):
    path = tmp_path / "analysis.json"
    code, out, err = invoke(f"--model={model}", f"--calibration={calibration}", f"--output={path}", *args,
                            main=analyze.main)
    assert code == 0, err
    return out, json.loads(path.read_text())

  return call


def test_a_float_model(run):
  out, body = run("--calibration_samples=32", "--images=12", "--preset=w4a8")
  assert body["images"] == 12 and body["seconds"].keys() == {"load", "quantize", "analyze"}
  assert {(r["name"], r["bits"]) for r in body["layers"]} == {("conv", 4), ("classes", 4)}
  assert body["rows"][0]["name"] in out.splitlines()[4] and "QNSR" in out.splitlines()[0]
  assert body["top1"][0] == pytest.approx(0.75, abs=0.25) and body["rows"][0]["top1_drop"] is not None


def test_it_is_what_the_call_finds(run, files):
  _, body = run("--calibration_samples=48", "--effort=fast")
  result = kq.quantize(load_model(files.h5), files.x, effort="fast")
  assert body["images"] == 48  # none are left, so it looks at those that it calibrates on
  assert body["whole"] == pytest.approx(kq.analyze(result, files.x).whole, rel=1e-3)


def test_eval_names_the_images_to_look_at(run, files, tmp_path):
  x, y = np.load(files.xy)["x"], np.load(files.xy)["y"]
  np.savez(tmp_path / "other.npz", x=np.tanh(x[:20]), y=y[:20])
  _, body = run("--effort=fast", f"--eval={tmp_path / 'other.npz'}")
  result = kq.quantize(load_model(files.h5), files.x, effort="fast")
  assert body["images"] == 20 and body["top1"] is not None
  assert body["whole"] == pytest.approx(kq.analyze(result, np.tanh(files.x[:20])).whole, rel=1e-3)


def test_methods_are_those_of_ptq(run, files):
  _, body = run("--effort=fast", "--rounding=closed_form", "--equalize=joint")
  recipe = kq.Recipe(rounding="closed_form", equalize="joint")
  result = kq.quantize(load_model(files.h5), files.x, effort="fast", recipe=recipe)
  assert body["whole"] == pytest.approx(kq.analyze(result, files.x).whole, rel=1e-3)


def test_activations_of_few_bits_are_simulated(run):
  assert run("--preset=w4a4")[1]["rows"][0]["bits"] == 4


def test_a_model_with_quantizers(run, files, tmp_path, refused):
  qmodel = kq.calibrate(kq.insert_quantizers(load_model(files.h5), "w4a8"), files.x)
  qmodel.save(tmp_path / "q.keras")
  _, body = run("--images=8", model=tmp_path / "q.keras")
  assert {r["bits"] for r in body["layers"]} == {4} and body["notes"] == []
  refused(f"--model={tmp_path / 'q.keras'}", f"--calibration={files.xy}", f"--output={tmp_path / 'a.json'}",
          "--preset=w4a8", words=["--preset", "has its quantizers", "leave it out"], main=analyze.main)


def test_a_page_and_node_data(run, tmp_path):
  out, body = run("--calibration_samples=32", f"--report={tmp_path / 'r.html'}",
                  f"--node_data={tmp_path / 'n.json'}")
  page = (tmp_path / "r.html").read_text()
  assert "Where the noise comes from" in page and "No file was checked" in page
  assert "classes/kernel" in json.loads((tmp_path / "n.json").read_text())["main"]["results"]
  assert "report" in body["seconds"] and "report " in out


def test_models_come_in_as_in_other_scripts(files, tmp_path):
  """In a process of its own: here the flags are those of whichever script was imported first."""
  image = keras.Input((None, None, 3))
  x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
  keras.Model(image, layers.Dense(3)(x)).save(tmp_path / "open.h5")
  np.save(tmp_path / "x.npy", files.x)
  subprocess.run([sys.executable, "-m", "kquant.cli.analyze", f"--model={tmp_path / 'open.h5'}",
                  f"--calibration={tmp_path / 'x.npy'}", "--input_shape=12,12,3", "--effort=none",
                  f"--output={tmp_path / 'a.json'}"], check=True, capture_output=True)
  assert json.loads((tmp_path / "a.json").read_text())["rows"]


@pytest.fixture
def weak(tmp_path):
  """A classifier of two convolutions, the second with one weight 30 times as large, and its images."""
  keras.utils.set_random_seed(0)
  image = keras.Input((12, 12, 3), name="image")
  x = layers.Conv2D(8, 3, activation="relu", name="first")(image)
  x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
  model = keras.Model(image, layers.Dense(4, name="classes")(layers.GlobalAveragePooling2D()(x)))
  kernel = model.get_layer("second").kernel.numpy()
  kernel[1, 1, 5, 7] = 30 * np.abs(kernel).max()
  model.get_layer("second").kernel.assign(kernel)
  model.save(tmp_path / "weak.h5")
  np.save(tmp_path / "weak.npy", np.random.default_rng(0).normal(size=(96, 12, 12, 3)).astype(np.float32))
  return [f"--model={tmp_path / 'weak.h5'}", f"--calibration={tmp_path / 'weak.npy'}", "--fix",
          "--effort=none"]


def test_fix_writes_the_mended_file_and_says_what_was_done(invoke, weak, tmp_path):
  paths = [f"--output={tmp_path / 'm.tflite'}", f"--summary={tmp_path / 's.json'}",
           f"--certificate={tmp_path / 'c.json'}", f"--report={tmp_path / 'r.html'}"]
  code, out, err = invoke(*weak, *paths, "--preset=w2a8", "--calibration_samples=48", main=analyze.main)
  assert code == 0, err
  body = json.loads((tmp_path / "s.json").read_text())
  assert json.loads((tmp_path / "c.json").read_text())["exact"] and (tmp_path / "m.tflite").stat().st_size
  assert body["rows"] and body["trial"]["kept"] and body["sqnr_db"][1] > body["sqnr_db"][0] + 3
  assert body["bytes"][1] > 0 and "together: " in out and "weights of 8 bits" in out
  page = (tmp_path / "r.html").read_text()
  assert f"Output SQNR {body['eval']['sqnr_db']:.1f} dB." in page and "weights of 8 bits" in page
  assert "before the remedies" in page and "Certificate" in page
  assert kq.QuantConfig.from_json(body["config"]).rules[0].match.startswith("^")
  assert body["eval"]["images"] == 48 and f"{body['eval']['sqnr_db']:.1f} dB" in out.split("images judged")[1]


def test_fix_is_judged_by_eval_and_says_where_it_is_far_off(invoke, weak, tmp_path):
  np.save(tmp_path / "other.npy", np.random.default_rng(1).normal(size=(24, 12, 12, 3)).astype(np.float32))
  code, out, err = invoke(*weak, f"--eval={tmp_path / 'other.npy'}", f"--output={tmp_path / 'm.tflite'}",
                          f"--report={tmp_path / 'r.html'}", "--tolerance=90", "--rounding=closed_form",
                          f"--summary={tmp_path / 's.json'}", main=analyze.main)
  assert code == 0, err
  body, page = json.loads((tmp_path / "s.json").read_text()), (tmp_path / "r.html").read_text()
  assert body["eval"]["images"] == 24 and body["trial"]["images"] == 24
  assert "NOT near the float model" in page and "90 dB asked" in page
  assert kq.QuantConfig.from_json(body["config"]).recipe.rounding == "closed_form"


def test_fix_judges_the_float_model_by_more_labelled_images_than_it_looks_at(invoke, weak, tmp_path):
  """A rare error of the float model is not seen by a few: half of the labels are others here."""
  x = np.random.default_rng(1).normal(size=(200, 12, 12, 3)).astype(np.float32)
  y = keras.models.load_model(tmp_path / "weak.h5").predict(x, verbose=0).argmax(-1)
  np.savez(tmp_path / "other.npz", x=x, y=np.where(np.arange(200) < 100, y, (y + 1) % 4))
  paths = [f"--output={tmp_path / 'm.tflite'}", f"--summary={tmp_path / 's.json'}",
           f"--report={tmp_path / 'r.html'}"]
  code, _, err = invoke(*weak, *paths, f"--eval={tmp_path / 'other.npz'}", "--images=16", main=analyze.main)
  assert code == 0, err
  body = json.loads((tmp_path / "s.json").read_text())
  assert body["eval"]["images"] == 200 and body["eval"]["float"]["top1"] == 0.5
  assert body["trial"] is None or body["trial"]["images"] == 16


@pytest.mark.parametrize("given, words", [
    (["--output=m.json"], ["m.json", "ends in .tflite"]),
    (["--output=m.tflite", "--summary=no/s.json"], ["no folder"]),
    (["--output=m.tflite", "--effort=best"], ["effort", "auto"]),
    (["--output=m.tflite", "--finetune=qft"], ["finetune", "qft"]),
    (["--output=m.tflite", "--eval=no.npz"], ["no.npz"]),
])
def test_mistakes_with_fix_are_one_line(refused, weak, tmp_path, monkeypatch, given, words):
  monkeypatch.chdir(tmp_path)
  refused(*weak, *given, words=words, main=analyze.main)
  assert not list(tmp_path.glob("m.*"))


@pytest.mark.parametrize("given, words", [
    (["--model={h5}", "--calibration={xy}", "--output=a.json", "--latency"], ["--latency is for --fix"]),
    (["--output=a.json"], ["--model is missing"]),
    (["--model=no.h5", "--calibration=no", "--output=a.json"], ["no.h5"]),
    (["--model={h5}", "--calibration={xy}", "--output=m.tflite"], ["m.tflite", "ends in .json"]),
    (["--model={h5}", "--calibration={xy}", "--output=no/a.json"], ["no folder"]),
    (["--model={h5}", "--calibration={xy}", "--output=a.json", "--preset=int3"], ["int3"]),
    (["--model={h5}", "--calibration={xy}", "--output=m.tflite", "--fix", "--preset=w4a4"], ["8 or 16 bits"]),
    (["--model={h5}", "--calibration={xy}", "--output=a.json", "--images=1"], ["images", "2"]),
])
def test_mistakes_are_one_line(refused, files, tmp_path, monkeypatch, given, words):
  monkeypatch.chdir(tmp_path)
  refused(*(flag.format(h5=files.h5, xy=files.xy) for flag in given), words=words, main=analyze.main)
  assert not list(tmp_path.iterdir())


def test_labels_that_are_no_classes_are_refused_before_the_work(refused, files, tmp_path):
  np.savez(tmp_path / "odd.npz", x=files.x, y=np.full(len(files.x), 9))
  refused(f"--model={files.h5}", f"--calibration={tmp_path / 'odd.npz'}", f"--output={tmp_path / 'a.json'}",
          words=["labels of --calibration"], main=analyze.main)
