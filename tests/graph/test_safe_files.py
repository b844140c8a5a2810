"""Files of strangers: nothing in them runs, nothing grows, nothing outside of them is read or written."""

import io
import json
import pathlib
import pickle
import re
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from tests import old_files

ROOT = pathlib.Path(__file__).parents[2]
FORMATS = ["m.h5", "m.keras", "m"]


def refused(path, *words, **options):
  """The model is refused in one line that holds its path and the words."""
  with pytest.raises(ValueError) as error:
    kq.load_model(path, **options)
  message = str(error.value)
  assert str(path) in message and "\n" not in message and len(message) < 1000, message
  for word in words:
    assert word in message, message


def small():
  return keras.Sequential([layers.Dense(4, input_shape=(3,), name="first"), layers.ReLU(), layers.Dense(2)])


def with_function(function, name="own"):
  image = keras.Input((3,))
  return keras.Model(image, layers.Dense(2)(layers.Lambda(function, name=name)(image)))


def archive_with(config, tmp_path):
  """A .keras archive with the weights of `small` and another config."""
  small().save(tmp_path / "good.keras")
  with zipfile.ZipFile(tmp_path / "good.keras") as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  old_files.write_archive(tmp_path / "m.keras", {**parts, "config.json": json.dumps(config)})
  return tmp_path / "m.keras"


def with_layer(layer):
  """A functional config whose second layer is `layer`."""
  return {"module": "tf_keras.src.engine.functional", "class_name": "Functional", "config": {
      "name": "m", "trainable": True, "input_layers": [["x", 0, 0]], "output_layers": [["own", 0, 0]],
      "layers": [
          {"module": "keras.layers", "class_name": "InputLayer", "registered_name": None, "name": "x",
           "config": {"batch_input_shape": [None, 3], "dtype": "float32", "name": "x"}, "inbound_nodes": []},
          {"registered_name": None, "name": "own", "inbound_nodes": [[["x", 0, 0, {}]]], **layer}]}}


# --- code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_lambda_runs_in_a_trusted_file_only(name, tmp_path):
  marker = str(tmp_path / "marker")
  model = with_function(lambda x, path=marker: [x * 2.0, open(path, "w").close()][0])
  model.save(tmp_path / name)
  pathlib.Path(marker).unlink(missing_ok=True)
  refused(tmp_path / name, "layer 'own' is a Lambda", "--trust_model", "trusted=True")
  assert not pathlib.Path(marker).exists()
  kq.load_model(tmp_path / name, trusted=True)
  assert pathlib.Path(marker).exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_trusted_lambda_becomes_operations(name, tmp_path):
  model = with_function(lambda x, factor=3.0: np.float32(factor) * keras.backend.relu(x - 0.5))
  model.save(tmp_path / name)
  loaded = kq.load_model(tmp_path / name, trusted=True)
  x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
  assert "Lambda" not in [type(layer).__name__ for layer in loaded.layers]
  assert kq.quantize(loaded, x).model is not None


def test_lambdas_of_several_tensors_and_calls_become_operations(tmp_path):
  a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
  double = layers.Lambda(lambda x: x + x)
  both = layers.Lambda(lambda pair: [pair[0] + pair[1], pair[0] * pair[1]])([double(a), double(b)])
  model = keras.Model([a, b], layers.Dense(2)(layers.Add()(both)))
  model.save(tmp_path / "m.h5")
  loaded = kq.load_model(tmp_path / "m.h5", trusted=True)
  x = list(np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32))
  np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
  assert "Lambda" not in [type(layer).__name__ for layer in loaded.layers]


def test_a_trusted_lambda_that_cannot_be_traced_stays(tmp_path):
  with_function(lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x)).save(tmp_path / "m.h5")
  loaded = kq.load_model(tmp_path / "m.h5", trusted=True)
  with pytest.raises(kq.UnsupportedLayerError):
    kq.quantize(loaded, np.ones((4, 3), np.float32))


def test_names_that_code_of_keras_is_written_with_are_known(tmp_path):
  function = eval("lambda x: K.relu(tf.identity(x))", {"K": keras.backend, "tf": tf, "__name__": "nowhere"})
  with_function(function).save(tmp_path / "m.h5")
  assert kq.load_model(tmp_path / "m.h5", trusted=True)(np.zeros((1, 3))).shape == (1, 2)


@pytest.mark.parametrize("code", ["", "4wAAAA==", "YWJj"])
def test_bytecode_that_this_python_does_not_read_is_one_line(code, tmp_path):
  with_function(lambda x: x).save(tmp_path / "m.h5")
  with h5py.File(tmp_path / "m.h5", "r+") as file:
    config = json.loads(file.attrs["model_config"])
    function = {"class_name": "__tuple__", "items": [code, None, None]}
    config["config"]["layers"][1]["config"]["function"] = function
    file.attrs["model_config"] = json.dumps(config)
  refused(tmp_path / "m.h5", "code of its Lambda", "another Python", trusted=True)


CALL = {"module": "tf_keras.src.layers.core.tf_op_layer", "class_name": "TFOpLambda"}
DENSE = {"module": "keras.layers", "class_name": "Dense"}
ATTACKS = {
    "a module": {"module": "evil_module", "class_name": "Evil", "config": {}},
    "a module of Python": {"module": "os", "class_name": "system", "config": {}},
    "a function as a layer": {"module": "keras.utils", "class_name": "get_file", "config": {}},
    "a function of Keras as a layer": {"module": "keras.models", "class_name": "load_model", "config": {}},
    "an activation of Python": {**DENSE, "config": {"units": 2, "name": "own", "activation": {
        "module": "builtins", "class_name": "function", "config": "exec", "registered_name": "function"}}},
    "an activation of a module": {**DENSE, "config": {"units": 2, "name": "own", "activation": {
        "module": "evil_module", "class_name": "function", "config": "run", "registered_name": "run"}}},
    "bytecode in an activation": {**DENSE, "config": {"units": 2, "name": "own", "activation": {
        "class_name": "__lambda__", "config": {"value": ["4wAAAA==", None, None]}}}},
    "a Lambda in a tuple": {**DENSE, "config": {"units": 2, "name": "own", "activation": {
        "class_name": "__tuple__", "items": [{"class_name": "Lambda", "config": {"name": "own"}}]}}},
    "a file to write": {**CALL, "config": {"name": "own", "function": "io.write_file"}},
    "a folder to remove": {**CALL, "config": {"name": "own", "function": "io.gfile.rmtree"}},
    "a raw operation": {**CALL, "config": {"name": "own", "function": "raw_ops.WriteFile"}},
    "a Python function": {**CALL, "config": {"name": "own", "function": "py_function"}},
    "a library": {**CALL, "config": {"name": "own", "function": "load_op_library"}},
    "an old operation": {**CALL, "class_name": "TensorFlowOpLayer", "config": {
        "name": "own", "node_def": {"name": "w", "op": "WriteFile"}, "constants": {}}},
    "a type": {**DENSE, "config": {"units": 2, "name": "own", "activation": {
        "class_name": "__typespec__", "spec_name": "Evil", "module": "evil_module", "registered_name": None,
        "config": []}}},
    "words of a file": {"module": "keras.layers", "class_name": "StringLookup", "config": {
        "name": "own", "vocabulary": "/etc/hostname"}},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_config_names_is_imported_called_or_read(attack, tmp_path, monkeypatch):
  (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Evil: pass\n"
                                           "def run(x): return x\n")
  monkeypatch.syspath_prepend(tmp_path)
  path = archive_with(with_layer(ATTACKS[attack]), tmp_path)
  with pytest.raises(ValueError) as error:
    kq.load_model(path)
  assert re.search("Unknown layer or function|no function of tensors|is a Lambda|would read the file|"
                   "holds the operation 'WriteFile'",
                   str(error.value)), error.value
  assert not (tmp_path / "marker").exists() and "evil_module" not in sys.modules


def test_what_such_a_config_would_have_done_is_what_the_check_prevents(tmp_path, monkeypatch):
  (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
  monkeypatch.syspath_prepend(tmp_path)
  path = archive_with(ATTACKS["a module"], tmp_path)
  refused(path, "Unknown layer or function 'Evil' of evil_module")
  assert not (tmp_path / "marker").exists()
  with pytest.raises(TypeError):
    keras.models.load_model(path)
  assert (tmp_path / "marker").exists()


def test_what_a_file_is_compiled_with_is_checked_where_it_is_compiled(tmp_path, monkeypatch):
  (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
  monkeypatch.syspath_prepend(tmp_path)
  model = small()
  model.compile("adam", "mse")
  model.save(tmp_path / "m.h5")
  with h5py.File(tmp_path / "m.h5", "r+") as file:
    config = json.loads(file.attrs["training_config"])
    config["optimizer_config"] = ATTACKS["a module"]
    file.attrs["training_config"] = json.dumps(config)
  refused(tmp_path / "m.h5", "'Evil' of evil_module", compile=True)
  kq.load_model(tmp_path / "m.h5")
  model.save(tmp_path / "m", save_format="tf")
  refused(tmp_path / "m", "compile=True is for .h5 and .keras files", compile=True)
  assert not (tmp_path / "marker").exists()


def test_functions_of_tensors_are_no_danger(tmp_path):
  image = keras.Input((4, 3))
  x = keras.activations.gelu(layers.Dense(3)(image))
  x = keras.backend.relu(x) + keras.layers.Activation("swish")(x)
  model = keras.Model(image, keras.backend.mean(x[:, 1:], axis=1) * 2.0)
  for name in FORMATS:
    model.save(tmp_path / name)
    assert kq.load_model(tmp_path / name).output_shape == (None, 3)


@pytest.mark.parametrize("place", [["own", 0, 0, {}], ["x", 0, 0, {"axis": ["own", 3, 0]}]])
@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_reads_what_no_layer_makes_does_not_keep_keras_busy_forever(place, nested, tmp_path):
  config = with_layer({"module": "keras.layers", "class_name": "ReLU", "config": {"name": "own"}})
  layer = config["config"]["layers"][1]
  layer["inbound_nodes"] = [[place]]
  if nested:
    config = with_layer({"module": config["module"], "class_name": "Functional", "config": config["config"]})
  refused(archive_with(config, tmp_path), "a layer reads a tensor that no layer makes")


# --- bombs and damage ------------------------------------------------------------------------------


def config_bomb(folder):
  path = folder / "m.keras"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("metadata.json", '{"keras_version": "2.15.0"}')
    with archive.open("config.json", "w") as file:
      for _ in range(64):
        file.write(b" " * (1 << 20))
  return path


def weights_bomb(folder):
  path = folder / "m.keras"
  small().save(folder / "good.keras")
  with zipfile.ZipFile(folder / "good.keras") as good, zipfile.ZipFile(
      path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name in ("metadata.json", "config.json"):
      archive.writestr(name, good.read(name))
    with archive.open("model.weights.h5", "w") as file:
      for _ in range(1200):
        file.write(bytes(1 << 20))
  return path


def dataset_bomb(folder, **options):
  small().save(folder / "m.h5")
  with h5py.File(folder / "m.h5", "r+") as file:
    name = "model_weights/first/first/kernel:0"
    del file[name]
    dataset = file.create_dataset(name, (1 << 14, 1 << 15), "f4", **options)
    if options.get("compression"):
      dataset[:64] = 1.0
  return folder / "m.h5"


def config_of_many_weights(folder):
  config = with_layer({**DENSE, "config": {"units": 1 << 30, "name": "own"}})
  return archive_with(config, folder)


def deep_config(folder):
  archive_with({}, folder)
  with zipfile.ZipFile(folder / "good.keras") as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  old_files.write_archive(folder / "m.keras", {**parts, "config.json": "[" * 100_000})
  return folder / "m.keras"


def outside(folder):
  old_files.write_archive(folder / "m.keras", {"metadata.json": "{}", "config.json": "{}", "../../evil": "x"})
  return folder / "m.keras"


def linked(folder):
  small().save(folder / "m.h5")
  with h5py.File(folder / "m.h5", "r+") as file:
    file["model_weights/elsewhere"] = h5py.ExternalLink(str(folder / "other.h5"), "/x")
  return folder / "m.h5"


def external_data(folder):
  small().save(folder / "m.h5")
  (folder / "secret").write_bytes(bytes(48))
  with h5py.File(folder / "m.h5", "r+") as file:
    name = "model_weights/first/first/kernel:0"
    del file[name]
    file.create_dataset(name, (3, 4), "f4", external=[(folder / "secret", 0, 48)])
  return folder / "m.h5"


def pickled(folder):
  class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
      return open, (str(folder / "marker"), "w")

  (folder / "m.h5").write_bytes(pickle.dumps(Evil()))
  return folder / "m.h5"


def pickled_arrays(folder):
  buffer = io.BytesIO()
  np.savez(buffer, x=np.array([{}], object))
  old_files.write_archive(folder / "m.keras", {"metadata.json": "{}", "config.json": "{}",
                                               "model.weights.npz": buffer.getvalue()})
  return folder / "m.keras"


BOMBS = {
    config_bomb: "config.json has 67,108,864 bytes", weights_bomb: "model.weights.h5 would grow",
    dataset_bomb: "would grow from 0 to 2,147,483,648 bytes", config_of_many_weights: "asks for at least",
    deep_config: "config.json is no JSON text", outside: "'../../evil' would be written outside",
    linked: "is a link to elsewhere", external_data: "lies in another file", pickled: "is no model file",
    pickled_arrays: "has no model.weights.h5"}


@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_bombs_and_disguises_are_refused_in_one_line(make, tmp_path):
  refused(make(tmp_path), BOMBS[make])
  assert not (tmp_path / "marker").exists()


def test_a_compressed_dataset_does_not_grow(tmp_path):
  refused(dataset_bomb(tmp_path, compression="gzip", chunks=(64, 1 << 15)), "would grow")


@pytest.mark.parametrize("number, size", [(0, 0), (1, 2**64 - 16)])
def test_a_heap_that_the_library_reads_for_ever_is_refused(number, size, tmp_path):
  small().save(tmp_path / "m.h5")
  content = bytearray((tmp_path / "m.h5").read_bytes())
  first = content.index(b"GCOL") + 16
  content[first:first + 2] = number.to_bytes(2, "little")
  content[first + 8:first + 16] = size.to_bytes(8, "little")
  (tmp_path / "m.h5").write_bytes(content)
  refused(tmp_path / "m.h5", "it is damaged (the heap at byte", "has an object of")


def test_no_bomb_takes_a_gigabyte(tmp_path):
  paths = []
  for make in (config_bomb, weights_bomb, dataset_bomb, config_of_many_weights):
    folder = tmp_path / make.__name__
    folder.mkdir()
    paths.append(str(make(folder)))
  code = """
import resource, sys
import kquant
from kquant.graph.model_files import load_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
  try:
    load_model(path)
  except ValueError:
    continue
  sys.exit(f"{path} was loaded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
  done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr[-1000:]
  assert int(done.stdout) < 300_000  # kilobytes
