"""python -m kquant.cli.ptq as users call it: what it writes, what it says, how it ends."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.cli import backends, export
from kquant.core.data import choose
from kquant.graph.model_files import load_model
from tests import models
from tflite_export import exporter
from tflite_export.file.c_array import to_c_source
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower
from tflite_export.proof.runtime import Runtime


@pytest.fixture
def quantize(invoke, files, tmp_path):
  """Returns a function that quantizes a model of `files`: -> (summary, stdout); the run must be silent."""

  def call(*args, model="m.h5", calibration="xy.npz"):
    code, out, err = invoke(f"--model={files.folder / model}", f"--calibration={files.folder / calibration}",
                            f"--output={tmp_path / 'm.tflite'}", f"--summary={tmp_path / 's.json'}", *args)
    assert code == 0 and not err, err
    return json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail), out

  return call


@pytest.fixture
def refused_run(refused, files, tmp_path):
  """Returns a function for a run that ends in one line and leaves no file."""

  def call(*args, words, model="m.h5", calibration="xy.npz"):
    refused(f"--model={files.folder / model}", f"--calibration={files.folder / calibration}",
            f"--output={tmp_path / 'refused.tflite'}", *args, words=words)
    assert not [name for name in os.listdir(tmp_path) if "refused" in name]

  return call


# --- what is written -------------------------------------------------------------------------------


def test_formats_of_models_give_the_same_file(quantize, tmp_path):
  contents = []
  for model in ("m.h5", "m.keras", "m"):
    quantize(model=model)
    contents.append((tmp_path / "m.tflite").read_bytes())
  assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("name", ["float.tflite", "exported"])
def test_models_of_other_makers_give_an_equal_network(name, quantize, files, tmp_path):
  model = load_model(files.h5)
  if name == "exported":
    module = tf.Module()
    module.run = tf.function(lambda image: {"classes": model(image)},
                             input_signature=[tf.TensorSpec((1, 12, 12, 3), name="image")])
    module.weights = model.weights
    tf.saved_model.save(module, tmp_path / name, signatures=module.run)
  else:
    (tmp_path / name).write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
  found, out = quantize(model=tmp_path / name)
  assert "float operators  none" in out
  made = from_bytes((tmp_path / "m.tflite").read_bytes())
  quantize()
  expected = from_bytes((tmp_path / "m.tflite").read_bytes())
  assert (made.input_names, made.output_names) == (["image"], ["classes"])
  assert made.operator_counts() == expected.operator_counts()


def test_a_run_over_an_old_output_replaces_it_and_leaves_nothing_else(quantize, tmp_path):
  (tmp_path / "m.tflite").write_text("old")
  summary, out = quantize()
  assert (tmp_path / "m.tflite").stat().st_size == summary["bytes"] > 1000
  assert sorted(os.listdir(tmp_path)) == ["m.tflite", "s.json"]
  assert str(tmp_path / "m.tflite") in out


def test_the_summary_holds_its_keys_with_their_types(quantize, files):
  found, _ = quantize(f"--eval={files.xy}", "--calibration_samples=16")
  seconds = found["seconds"]
  assert {"load", "rewrite", "calibrate", "export", "verify", "eval", "total"} <= set(seconds)
  assert all(isinstance(value, float) and value >= 0 for value in seconds.values())
  assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=0.01)
  assert isinstance(found["bytes"], int) and found["calibration_images"] == 16
  assert found["operators"] == {"CONV_2D": 1, "FULLY_CONNECTED": 1, "MEAN": 1, "SOFTMAX": 1}
  assert found["delegated_operators"] == 3  # SOFTMAX is none
  assert found["float_operators"] == [] and found["skipped"] == [] and found["narrow"] == []
  assert found["edits"] and all(set(row) == {"layer", "pass", "what"} for row in found["edits"])
  verify = found["verify"]
  assert verify["weights_equal"] is verify["biases_equal"] is verify["encodings_equal"] is True
  assert verify["max_lsb"] in (0, 1) and isinstance(verify["output_max_lsb"], int)
  judged = found["eval"]
  assert set(judged) == {"images", "classes", "constant", "float", "quantized", "agreement", "sqnr_db",
                          "tied"}
  assert judged["images"] == 32 and isinstance(judged["tied"], int)
  for value in (judged["float"]["top1"], judged["quantized"]["top1"], judged["agreement"]):
    assert isinstance(value, float) and 0 <= value <= 1
  assert isinstance(judged["sqnr_db"], float)


def test_what_could_not_be_done_is_told(quantize, files):
  models.build("lone_batch_norm").save(files.folder / "lone.h5")
  found, out = quantize(model="lone.h5")
  assert found["skipped"]
  for row in found["skipped"]:
    assert set(row) == {"layer", "pass", "reason"} and all(isinstance(v, str) and v for v in row.values())
    assert row["layer"] in out and row["reason"] in out


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_io_is_the_type_of_the_files_border(quantize, tmp_path, io):
  found, _ = quantize(f"--io={io}")
  runtime = Runtime(tmp_path / "m.tflite")
  assert [detail["dtype"] for detail in (*runtime.inputs, *runtime.outputs)] == [np.dtype(io)] * 2
  assert not found["float_operators"]


def test_encodings_and_qmodel_can_be_read_back(quantize, files, tmp_path):
  quantize(f"--encodings={tmp_path / 'e.json'}", f"--save_qmodel={tmp_path / 'q.keras'}")
  encodings = kq.Encodings.load(tmp_path / "e.json")
  assert encodings == kq.quantize(load_model(files.h5), files.x).encodings
  _, again = kq.finalize(keras.models.load_model(tmp_path / "q.keras"))
  assert again == encodings


def test_a_saved_final_model_and_encodings_export_to_the_same_file(quantize, invoke, files, tmp_path):
  quantize(f"--encodings={tmp_path / 'e.json'}", f"--save_model={tmp_path / 'f.keras'}",
           f"--c_array={tmp_path / 'net.cc'}")
  code, out, err = invoke(f"--model={tmp_path / 'f.keras'}", f"--encodings={tmp_path / 'e.json'}",
                          f"--output={tmp_path / 'again.tflite'}", main=export.main)
  assert code == 0, err
  data = (tmp_path / "m.tflite").read_bytes()
  assert (tmp_path / "again.tflite").read_bytes() == data
  assert (tmp_path / "net.cc").read_text() == to_c_source(data, "net")


def test_tflm_preset_has_one_scale_in_dense_layers_alone(quantize, tmp_path):
  quantize("--preset=int8_tflm")
  tensors = from_bytes((tmp_path / "m.tflite").read_bytes()).tensors
  assert tensors["classes/kernel"].scale.size == 1 and tensors["conv/kernel"].scale.size == 8


def test_the_converters_file_stands_in_place_of_ours_where_it_computes_the_same(quantize, invoke, tmp_path):
  files_made = [f"--encodings={tmp_path / 'e.json'}", f"--save_model={tmp_path / 'f.keras'}"]
  quantize("--preset=int8_tflm", *files_made)
  ours = (tmp_path / "m.tflite").read_bytes()
  found, out = quantize("--preset=int8_tflm", "--backend=converter")
  data = (tmp_path / "m.tflite").read_bytes()
  assert found["bytes"] == len(data) and data != ours
  assert "equal to our own file's on the xnnpack kernels" in out and "on the reference kernels" in out
  code, again, err = invoke(f"--model={tmp_path / 'f.keras'}", f"--encodings={tmp_path / 'e.json'}",
                            f"--output={tmp_path / 'again.tflite'}", "--backend=converter", main=export.main)
  assert code == 0 and "equal to our own file's" in again, err
  inputs = [np.random.default_rng(0).integers(-128, 128, (4, 12, 12, 3)).astype(np.int8)]
  first, *others = [Runtime(content).run_many(inputs)[0]
                    for content in (ours, data, (tmp_path / "again.tflite").read_bytes())]
  for other in others:
    np.testing.assert_array_equal(other, first)


def test_the_converters_file_must_compute_the_same(invoke, files, tmp_path, monkeypatch):
  monkeypatch.setattr(backends, "differences", lambda *args: [3])
  code, _, err = invoke(f"--model={files.h5}", f"--calibration={files.xy}", "--preset=int8_tflm",
                        f"--output={tmp_path / 'm.tflite'}", "--backend=converter")
  assert code == 1 and "3 other output elements than ours on the xnnpack kernels" in err
  assert not os.listdir(tmp_path)


def test_what_the_converter_does_not_go_with(refused_run):
  refused_run("--backend=converter", words=["'classes' (Dense)", "the preset int8_tflm"])
  for flag in ("--io=uint8", "--preprocess=tf", "--certificate=c.json"):
    refused_run("--backend=converter", flag, words=[flag.split("=")[0], "--backend=converter"])


def test_preprocess_is_told_in_the_file(quantize, tmp_path):
  quantize("--preprocess=unit")
  assert "TFLITE_METADATA" in from_bytes((tmp_path / "m.tflite").read_bytes()).metadata


def test_methods_are_named_in_the_summary(quantize):
  found, _ = quantize("--preset=int8_per_tensor")
  assert {"equalize", "bias_correction"} <= set(found["seconds"])
  assert any("(joint)" in edit["what"] for edit in found["edits"])
  found, _ = quantize("--preset=int8_per_tensor", "--equalize=none", "--bias=none")
  assert "equalize" not in found["seconds"]


def test_a_preset_reaches_the_weights(quantize, tmp_path):
  quantize("--preset=w4a8", f"--encodings={tmp_path / 'e.json'}")
  assert np.abs(kq.Encodings.load(tmp_path / "e.json").integers["conv/kernel"]).max() == 7


# --- which images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("args, indices", [
    ([], range(48)), (["--calibration_samples=999"], range(48)),
    (["--calibration_samples=5", "--calibration_order=first"], range(5)),
    (["--calibration_samples=5"], choose(48, 5, seed=0)),
    (["--calibration_samples=5", "--seed=3"], choose(48, 5, seed=3))],
    ids=["all", "more", "first", "random", "seed"])
def test_calibration_takes_a_seeded_sample_or_the_first(quantize, files, tmp_path, args, indices):
  found, out = quantize(f"--encodings={tmp_path / 'e.json'}", *args)
  assert found["calibration_images"] == len(indices)
  assert f"{len(indices)} images" in out
  expected = kq.quantize(load_model(files.h5), files.x[list(indices)]).encodings
  assert kq.Encodings.load(tmp_path / "e.json") == expected


@pytest.mark.parametrize("spelling", ["same", "relative", "symlink", "hard_link"])
def test_images_that_calibrate_do_not_judge(quantize, files, tmp_path, monkeypatch, spelling):
  monkeypatch.chdir(files.folder)
  path = {"same": files.xy, "relative": os.path.join("..", files.folder.name, "xy.npz")}.get(
      spelling, tmp_path / "xy.npz")
  if spelling == "symlink":
    path.symlink_to(files.xy)
  elif spelling == "hard_link":
    os.link(files.xy, path)
  found, out = quantize(f"--eval={path}", "--calibration_samples=20", "--seed=1")
  assert "its 20 calibration images are left out" in out
  rest = np.setdiff1d(np.arange(48), choose(48, 20, seed=1))
  assert found["eval"]["images"] == len(rest) == 28
  classes = load_model(files.h5).predict(files.x[rest], verbose=0).argmax(-1)
  assert found["eval"]["float"]["top1"] == np.mean(classes == files.y[rest])


def test_other_images_all_judge(quantize, files, tmp_path):
  np.savez(tmp_path / "copy.npz", x=files.x, y=files.y)
  found, out = quantize(f"--eval={tmp_path / 'copy.npz'}", "--calibration_samples=20")
  assert found["eval"]["images"] == 48 and "left out" not in out
  # Every fourth label was moved away from the float model's class.
  assert found["eval"]["float"]["top1"] == 0.75


def test_figures_are_those_of_the_file_that_was_written(quantize, files, tmp_path):
  found, _ = quantize(f"--eval={files.xy}", "--calibration_samples=20", f"--encodings={tmp_path / 'e.json'}",
                      "--preset=w2a8")
  model = load_model(files.h5)
  rest = np.setdiff1d(np.arange(48), choose(48, 20))
  result = kq.quantize(model, files.x[choose(48, 20)], config="w2a8")
  program = lower(result.model, result.encodings)
  assert (tmp_path / "m.tflite").read_bytes() == to_bytes(program)
  integers = result.encodings["image"].quantize(files.x[rest]).astype(np.int8)
  scores = Runtime(to_bytes(program.with_outputs(["classes"]))).run_many([integers])[0]
  final = Runtime(tmp_path / "m.tflite").run_many([integers])[0]
  largest, judged = scores.argmax(-1), found["eval"]
  assert judged["quantized"]["top1"] == np.mean(largest == files.y[rest])
  assert judged["agreement"] == np.mean(largest == model.predict(files.x[rest], verbose=0).argmax(-1))
  assert judged["tied"] == sum(row[-1] == row[-2] for row in np.sort(final))


def test_no_image_left_to_judge_by(refused_run, files):
  refused_run(f"--eval={files.xy}", words=["all 48 samples were used", "lower --calibration_samples"])


def test_a_model_of_several_inputs(quantize, files):
  rng = np.random.default_rng(0)
  np.savez(files.folder / "two.npz", vector=rng.normal(size=(20, 5)), image=rng.normal(size=(20, 12, 12, 3)),
           y=np.eye(3)[rng.integers(0, 3, 20)])
  found, _ = quantize(f"--eval={files.folder / 'two.npz'}", "--calibration_samples=8", model="two.h5",
                      calibration="two.npz")
  assert found["eval"]["images"] == 12 and found["eval"]["quantized"]["top1"] is not None


def test_a_model_that_does_not_classify(quantize, files):
  found, out = quantize(f"--eval={files.xy}", "--calibration_samples=8", model="maps.h5")
  assert found["eval"]["agreement"] is None and found["eval"]["sqnr_db"] > 20
  assert "not [batch, classes]" in out


def test_data_without_labels(quantize, files):
  found, out = quantize(f"--eval={files.folder / 'x.npz'}")
  assert found["eval"]["float"]["top1"] is None and found["eval"]["agreement"] is not None
  assert "no labels" in out


def test_a_folder_of_images_and_an_open_shape(quantize, tmp_path):
  folder = tmp_path / "images"
  folder.mkdir()
  lines = ["file,label"]
  for index in range(10):
    array = np.random.default_rng(index).integers(0, 256, (9 + index, 30 - index, 3)).astype(np.uint8)
    PIL.Image.fromarray(array).convert("L" if index % 2 else "RGB").save(folder / f"{index}.png")
    lines.append(f"{index}.png,{index % 4}")
  (folder / "labels.csv").write_text("\n".join(lines))
  found, out = quantize(f"--eval={folder}", "--calibration_samples=6", "--preprocess=tf",
                        "--input_shape=14,10,3", model="open.h5", calibration=folder)
  assert found["eval"]["images"] == 4 and "left out" in out
  assert Runtime(tmp_path / "m.tflite").inputs[0]["shape"].tolist() == [1, 14, 10, 3]


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, words", [
    ({"model": "open.h5"}, ["'image'", "open shape", "give --input_shape=H,W,3"]),
    ({"model": "odd.h5"}, ["'odd'", "GRU"]),
    ({"model": "none.h5"}, ["There is no model", "none.h5"]),
    ({"model": "xy.npz"}, ["no .keras model", "expected .h5, .keras, .tflite or a SavedModel"]),
    ({"calibration": "none.npz"}, ["no file or folder", "none.npz"]),
    ({"calibration": "m"}, ["found none"]),
    ({"calibration": "m.h5"}, ["expected an .npz or .npy file"]),
    ({"model": "two.h5"}, ["['image', 'vector']", "['x', 'y']"])])
def test_what_does_not_fit_costs_one_line(refused_run, change, words):
  refused_run(**change, words=words)


@pytest.mark.parametrize("args, words", [
    (["--input_shape=8,8,3"], ["(8, 8, 3)", "(12, 12, 3)"]),
    (["--input_shape="], ["expected positive whole numbers", "''"]),
    (["--preset=w4a4"], ["activations of 8 or 16 bits"]),
    (["--eval=none.npz"], ["no file or folder none.npz"]),
    (["--summary=no/folder/s.json"], ["--summary=no/folder/s.json", "make it first"])])
def test_flags_that_do_not_fit_cost_one_line(refused_run, args, words):
  refused_run(*args, words=words)


def test_labels_that_do_not_fit_are_told_before_the_work(refused_run, files, tmp_path):
  np.savez(tmp_path / "y.npz", x=files.x, y=files.y + 1)
  refused_run(f"--eval={tmp_path / 'y.npz'}", words=["run from 1 to 4", "classes from 0 to 3"])
  np.savez(tmp_path / "y.npz", x=files.x, y=files.y[:7])
  refused_run(f"--eval={tmp_path / 'y.npz'}", words=["class index of each of 48 samples", "(7,)"])


def test_missing_flags_and_files_in_each_others_way(refused, files):
  refused(f"--model={files.h5}", words=["--calibration is missing"])
  refused(f"--model={files.h5}", f"--calibration={files.xy}", words=["--output is missing"])
  refused(f"--model={files.h5}", f"--calibration={files.xy}", f"--output={files.h5}",
          words=["would replace", "--model names"])


def test_a_subclassed_model_comes_in(quantize, files):
  class Own(keras.Model):
    """Has no graph of layers in its file."""

    def __init__(self):
      super().__init__()
      self.conv, self.dense = keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Dense(3)

    def call(self, x):
      return self.dense(tf.reduce_mean(self.conv(x), [1, 2]))

  model = Own()
  model(files.x[:1])
  model.save(files.folder / "own", save_format="tf")
  found, _ = quantize(model="own")
  assert found["operators"] == {"CONV_2D": 1, "FULLY_CONNECTED": 1, "MEAN": 1}


# --- a file that does not verify -------------------------------------------------------------------


def test_a_planted_fault_is_exit_code_1_and_no_file(invoke, files, tmp_path, monkeypatch):
  def with_fault(program):
    kernel = program.tensors["conv/kernel"]
    kernel.data = kernel.data.copy()
    kernel.data.flat[5] ^= 1
    return to_bytes(program)

  monkeypatch.setattr(exporter, "to_bytes", with_fault)
  args = [f"--model={files.h5}", f"--calibration={files.xy}", f"--output={tmp_path / 'm.tflite'}",
          f"--summary={tmp_path / 's.json'}", f"--encodings={tmp_path / 'e.json'}"]
  code, out, err = invoke(*args)
  assert code == 1 and not out and not os.listdir(tmp_path)
  assert err.startswith("error: Verification failed: ") and err.count("\n") == 1
  assert "conv/kernel" in err and "not written" in err
  (tmp_path / "m.tflite").write_text("of an earlier run")
  assert invoke(*args)[0] == 1
  assert (tmp_path / "m.tflite").read_text() == "of an earlier run" and os.listdir(tmp_path) == ["m.tflite"]


# --- as a process ----------------------------------------------------------------------------------


def run(*args) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, "-m", "kquant.cli.ptq", *map(str, args)], text=True,
                        capture_output=True, timeout=120, cwd=pathlib.Path(__file__).parents[2])


def test_a_run_says_nothing_but_its_own_words(files, tmp_path):
  done = run(f"--model={files.h5}", f"--calibration={files.xy}", f"--output={tmp_path / 'm.tflite'}",
             f"--eval={files.xy}", "--calibration_samples=8")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.startswith("--eval names the calibration data") and "operators" in done.stdout
  assert (tmp_path / "m.tflite").exists()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
  done = run("--model=none.h5", "--calibration=none.npz", f"--output={tmp_path / 'm.tflite'}")
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr == "error: --model=none.h5: there is no such file or folder; check the path.\n"


def test_help_shows_our_flags():
  done = run("--help")
  assert done.returncode in (0, 1) and not done.stderr
  for flag in ("model", "calibration", "calibration_samples", "calibration_order", "preprocess", "preset",
               "equalize", "bias", "batch", "io", "eval", "input_shape", "output", "summary", "encodings",
               "save_qmodel", "seed",
               "save_model", "c_array", "certificate"):
    assert f"  --{flag}: " in done.stdout, flag


@pytest.mark.slow
def test_real_photographs(shared_data, invoke, tmp_path):
  code, out, err = invoke(f"--model={shared_data / 'models' / 'mobilenet_v1_0.25_224.h5'}", "--preprocess=tf",
                          f"--calibration={shared_data / 'imagenet'}", f"--eval={shared_data / 'imagenet'}",
                          f"--output={tmp_path / 'm.tflite'}", f"--summary={tmp_path / 's.json'}")
  assert code == 0 and not err and "its 128 calibration images are left out" in out
  found = json.loads((tmp_path / "s.json").read_text())["eval"]
  assert found["agreement"] > 0.88 and found["float"]["top1"] - found["quantized"]["top1"] < 0.03


# --- columns of one tensor that differ in size -----------------------------------------------------


def test_joined_outputs_that_differ_in_size_are_named_and_split(invoke, files, tmp_path):
  image = keras.Input(np.load(files.folder / "xy.npz")["x"].shape[1:])
  x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="relu")(image))
  parts = [layers.Dense(4)(1e4 * x), layers.Dense(3)(x)]
  keras.Model(image, layers.Concatenate(name="joined")(parts)).save(files.folder / "joined.h5")
  arguments = [f"--model={files.folder / 'joined.h5'}", f"--calibration={files.folder / 'xy.npz'}",
               f"--output={tmp_path / 'm.tflite'}", f"--summary={tmp_path / 's.json'}"]
  code, out, err = invoke(*arguments)
  assert code == 0 and "3 of 7 columns (4, 5, 6) have fewer than 8 steps" in out and "--split_outputs" in out
  (narrow,) = json.loads((tmp_path / "s.json").read_text())["narrow"]
  assert narrow["tensor"] == "joined" and [column["column"] for column in narrow["columns"]] == [4, 5, 6]
  code, out, err = invoke(*arguments, "--split_outputs")
  assert (code, err) == (0, "") and "steps" not in out
  assert json.loads((tmp_path / "s.json").read_text())["narrow"] == []
  assert len(Runtime(tmp_path / "m.tflite").outputs) == 2


# --- how close the file is -------------------------------------------------------------------------


def test_a_run_without_eval_says_how_far_the_file_is_from_the_float_model(quantize):
  found, out = quantize("--calibration_samples=16")
  close = found["calibration_closeness"]
  assert close["images"] == 16 and close["sqnr_db"] > 10 and close["float"]["top1"] is None
  assert f"output SQNR {close['sqnr_db']:.1f} dB" in out and "(of 16 calibration images)" in out
  assert "answer otherwise" not in out and "eval" not in found


def test_a_file_that_answers_otherwise_is_told(quantize, monkeypatch):
  from kquant.cli import evaluation
  whole = evaluation.evaluate
  far = {"sqnr_db": 1.4, "agreement": 0.5}
  monkeypatch.setattr(evaluation, "evaluate", lambda *args: {**whole(*args), **far})
  found, out = quantize()
  assert "they answer otherwise than the float model. Most of the noise comes from the " in out
  assert "--preset=int16x8" in out
  assert len(found["noisiest"]) == 4 and 0 < found["noisiest"][0]["share"] <= 1
  assert f"of {found['noisiest'][0]['name']!r} (" in out


@pytest.mark.parametrize("classes, top1, told", [(10, 0.12, True), (10, 0.4, False), (1000, 0.0, True)])
def test_a_float_model_that_guesses_is_told(quantize, monkeypatch, classes, top1, told):
  from kquant.cli import evaluation
  whole = evaluation.evaluate
  guess = {"float": {"top1": top1}, "classes": classes, "images": 64}
  monkeypatch.setattr(evaluation, "evaluate", lambda *args: {**whole(*args), **guess})
  _, out = quantize()
  assert ("as guessing is: is --preprocess=none what it was trained with" in out) == told


@pytest.mark.parametrize("constant", [0.0, None])
def test_images_that_are_all_the_same_are_told_in_place_of_a_hint(invoke, files, tmp_path, caplog,
                                                                           constant):
  x = np.repeat(files.x[:1], 32, axis=0) if constant is None else np.full_like(files.x[:32], constant)
  np.savez(tmp_path / "same.npz", x=x)
  flags = [f"--model={files.h5}", f"--output={tmp_path / 'm.tflite'}", f"--summary={tmp_path / 's.json'}"]
  code, out, err = invoke(*flags, f"--calibration={tmp_path / 'same.npz'}", "--tolerance=200")
  assert code == 0, err
  assert caplog.text.count("the 32 calibration samples are all the same") == 1
  assert ("(every value is 0)" in caplog.text) == (constant == 0) and "answer otherwise" not in out
  assert "32 calibration images that are all the same and say nothing of others" in out
  found = json.loads((tmp_path / "s.json").read_text())
  assert found["closeness"]["constant"] and found["calibration_closeness"]["constant"] and not found["trials"]
  code, out, err = invoke(*flags, f"--calibration={files.xy}", f"--eval={tmp_path / 'same.npz'}")
  assert (code, err) == (0, "") and "32 that are all the same and say nothing of others" in out
  found = json.loads((tmp_path / "s.json").read_text())
  assert not found["closeness"]["constant"] and found["eval"]["constant"]


def test_a_file_less_alike_than_asked_is_told(quantize):
  found, out = quantize("--tolerance=200")
  assert found["closeness"]["good"] is False and found["noisiest"] and "Most of the noise" in out
  assert found["seconds"]["analyze"] > 0 and ", analyze " in out


def test_a_run_that_fails_late_leaves_nothing(refused_run, files, tmp_path):
  """Images are read again after the file is written: one of them is broken."""
  folder = tmp_path / "images"
  folder.mkdir()
  for number in range(6):
    PIL.Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
  (folder / "4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
  for name in ("encodings", "summary"):
    refused_run(f"--eval={folder}", f"--{name}={tmp_path / 'refused.json'}",
                words=["4.png", "cannot be read"])
  assert sorted(os.listdir(tmp_path)) == ["images"]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.C"])
def test_a_c_array_is_a_c_file(refused_run, name, tmp_path):
  refused_run(f"--c_array={tmp_path / name}", words=["--c_array", ".cc or .cpp"])


# --- the page --------------------------------------------------------------------------------------

def test_a_page_and_node_data_are_written(quantize, files, tmp_path):
  summary, out = quantize(f"--report={tmp_path / 'r.html'}", f"--node_data={tmp_path / 'n.json'}",
                          f"--eval={files.xy}", "--calibration_samples=24")
  page = (tmp_path / "r.html").read_text()
  for words in (f"{100 * summary['eval']['float']['top1']:.1f} %", f"{summary['bytes']:,} bytes",
                "Where the noise comes from", "Activations with the most noise", ">load<"):
    assert words in page
  assert {"analyze", "report"} <= summary["seconds"].keys() and "report " in out
  program = from_bytes((tmp_path / "m.tflite").read_bytes())
  assert json.loads((tmp_path / "n.json").read_text())["main"]["results"].keys() <= program.tensors.keys()


def test_pages_that_cannot_be_written_are_told_before_the_work(refused_run, tmp_path):
  refused_run(f"--report={tmp_path / 'no' / 'r.html'}", words=["--report", "there is no folder"])
  refused_run(f"--report={tmp_path / 'r.pdf'}", words=["--report", "ends in .html"])
  refused_run(f"--node_data={tmp_path / 'refused.json'}", "--calibration_samples=1", "--effort=none",
              f"--report={tmp_path / 'refused.html'}", words=["--node_data", "2 images or more"])
