"""Models with quantizers from disk: the same numbers, the same weights, the same training."""

import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from kquant.graph.graph import Graph
from tests import models
from tests.qmodel.test_training import PAIRS, calibrated, config_of

FORMATS = ("m.keras", "m.h5", "saved_model")


def trained(pair, name="conv_bn_relu"):
  """Returns (qmodel, inputs, targets) after two steps of Adam."""
  _, qmodel, x = calibrated(name, config_of(*pair))
  y = np.random.default_rng(2).normal(size=qmodel.predict(x, verbose=0).shape).astype(np.float32)
  qmodel.compile(keras.optimizers.Adam(0.01), "mse")
  qmodel.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
  return qmodel, x, y


def assert_same_weights(mine, theirs):
  tails = [[w.name.rsplit("/", 1)[-1] for w in model.weights] for model in (mine, theirs)]
  assert tails[0] == tails[1]
  for name, a, b in zip(tails[0], mine.get_weights(), theirs.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("pair, file", [
    *((pair, "m.h5") for pair in PAIRS), (("lsq_plus",) * 2, "m.keras"), (("lsq_plus",) * 2, "saved_model")])
def test_trained_model_comes_back_exactly(pair, file, tmp_path):
  qmodel, x, _ = trained(pair)
  qmodel.save(tmp_path / file)
  loaded = kq.load_model(tmp_path / file)
  assert_same_weights(loaded, qmodel)
  np.testing.assert_array_equal(loaded(x).numpy(), qmodel(x).numpy())
  assert kq.finalize(loaded)[1] == kq.finalize(qmodel)[1]


@pytest.fixture(scope="module")
def files_of_a_trained_model(tmp_path_factory):
  """A folder with a trained model in every format, two inputs and its outputs."""
  folder = tmp_path_factory.mktemp("trained")
  qmodel, x, _ = trained(("lsq_plus", "lsq_plus"))
  np.savez(folder / "d.npz", x=x[:2], y=qmodel(x[:2]).numpy())
  for file in FORMATS:
    qmodel.save(folder / file)
  return folder


@pytest.mark.parametrize("imports, first, load", [
    ("import kquant, tf_keras", 0, "tf_keras.models"), ("import tf_keras, kquant", 1, "tf_keras.models"),
    ("import kquant.graph.graph, tf_keras", 2, "tf_keras.models"), ("import kquant, tf_keras", 1, "kquant"),
    ("import kquant; kquant.rewrite; import tf_keras", 0, "tf_keras.models"),
    ("import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'; import kquant, tensorflow, tf_keras", 2,
     "tf_keras.models"),
    ("import kquant, tensorflow_model_optimization, tf_keras", 2, "kquant")])
def test_another_process_needs_nothing_but_kquant(imports, first, load, files_of_a_trained_model):
  """The first load, of each format by each function, is what finds nothing registered yet."""
  code = (f"{imports}\n"
          "import sys, numpy\n"
          "data = numpy.load(sys.argv[1] + '/d.npz')\n"
          "def check(load):\n"
          "  for file in sys.argv[2:]:\n"
          "    found = load(sys.argv[1] + '/' + file)(data['x']).numpy()\n"
          "    assert not numpy.abs(found - data['y']).max(), file\n"
          f"check({load}.load_model)\n"
          "check(tf_keras.models.load_model)\n"
          "check(kquant.load_model)\n")
  files = [*FORMATS[first:], *FORMATS[:first]]
  done = subprocess.run([sys.executable, "-c", code, str(files_of_a_trained_model), *files],
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


def test_layers_are_found_by_name_wherever_their_module_lies(tmp_path):
  """Files of before a module was split name it as it was."""
  qmodel, x, _ = trained(("lsq_plus", "lsq_plus"))
  qmodel.save(tmp_path / "m.keras")
  with zipfile.ZipFile(tmp_path / "m.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
    for name in new.namelist():
      content = new.read(name)
      if name == "config.json":
        content, count = re.subn(rb"kquant\.qmodel\.quantize_\w+", b"kquant.qmodel.layers", content)
        assert count
      old.writestr(name, content)
  np.testing.assert_array_equal(kq.load_model(tmp_path / "old.keras")(x).numpy(), qmodel(x).numpy())


def test_importing_kquant_imports_neither_tensorflow_nor_keras():
  code = "import sys, kquant\nassert not {'tensorflow', 'tf_keras', 'numpy'} & set(sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("pair, how", zip(PAIRS, ("m.keras", "checkpoint", "m.h5", "m.keras", "checkpoint")))
def test_training_resumes_bit_for_bit(pair, how, tmp_path):
  qmodel, x, y = trained(pair)
  fit = lambda model: model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
  if how == "checkpoint":
    tf.train.Checkpoint(model=qmodel, optimizer=qmodel.optimizer).write(str(tmp_path / "c"))
    resumed = keras.models.clone_model(qmodel)
    resumed.compile(keras.optimizers.Adam(0.01), "mse")
    tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer).read(str(tmp_path / "c"))
  else:
    qmodel.save(tmp_path / how)
    resumed = kq.load_model(tmp_path / how, compile=True)
  fit(qmodel)
  fit(resumed)
  assert_same_weights(resumed, qmodel)
  for mine, theirs in zip(resumed.optimizer.variables, qmodel.optimizer.variables, strict=True):
    np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


@pytest.mark.parametrize("pair", [("lsq_plus", "lsq_plus"), ("dorefa", "pact")])
def test_frozen_model_has_no_trainable_weights_and_keeps_their_order(pair, tmp_path):
  qmodel, x, _ = trained(pair)
  names, expected = [w.name for w in qmodel.weights], qmodel(x).numpy()
  wrapper = [w.name for w in qmodel.get_layer("conv").weights]
  qmodel.save_weights(tmp_path / "w.h5")
  qmodel.trainable = False
  assert not qmodel.trainable_weights and [w.name for w in qmodel.weights] == names
  assert [w.name for w in qmodel.get_layer("conv").weights] == wrapper
  for weight in qmodel.weights:
    if weight.dtype.is_floating:
      weight.assign(tf.ones_like(weight))
  qmodel.load_weights(tmp_path / "w.h5")
  np.testing.assert_array_equal(qmodel(x).numpy(), expected)


def test_best_weights_and_backup_callbacks_work(tmp_path):
  qmodel, x, y = trained(("lsq", "lsq"))
  best = keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), monitor="loss", save_best_only=True)
  stop = keras.callbacks.EarlyStopping(monitor="loss", patience=1, restore_best_weights=True)
  backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
  history = qmodel.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[best, stop, backup])
  loaded = kq.load_model(tmp_path / "best.keras", compile=True)
  np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), qmodel.evaluate(x, y, verbose=0), rtol=1e-5)
  assert len(history.history["loss"]) == 3


def test_missing_file_is_one_line_that_names_it(tmp_path):
  with pytest.raises(FileNotFoundError, match="There is no model .*nothing.keras; check the path"):
    kq.load_model(tmp_path / "nothing.keras")


def test_float_models_load_too(tmp_path):
  model = models.build("conv_bn_relu")
  model.save(tmp_path / "m.h5")
  (x,) = models.sample_inputs(model, images=2)
  np.testing.assert_array_equal(kq.load_model(tmp_path / "m.h5")(x).numpy(), model(x).numpy())


@pytest.mark.parametrize("how", FORMATS)
def test_a_loaded_model_knows_what_batch_norms_knew_and_the_names_of_its_outputs(how, tmp_path):
  model = models.build("two_inputs")
  x = keras.layers.BatchNormalization(name="bn")(model.get_layer("conv").output)
  outputs = [keras.layers.Dense(2, name="two")(keras.layers.Flatten()(keras.layers.ReLU(name="relu")(x))),
             model.output["score"]]
  model = models.randomized(keras.Model(model.input, outputs))
  known = kq.InputRange(-1, 1)
  qmodel = kq.insert_quantizers(model)
  qmodel.save(tmp_path / how)
  loaded = kq.load_model(tmp_path / how)
  for either in (qmodel, loaded):
    kq.calibrate(either, models.sample_inputs(model))
    kq.correct_bias(either, model, known, method="analytic")  # from the moments of the batch norm
  first, second = kq.finalize(qmodel)[1], kq.finalize(loaded)[1]
  models.assert_same_encodings(first, second)
  assert first.output_names == second.output_names == model.output_names
  assert Graph.from_model(loaded).notes() == Graph.from_model(qmodel).notes()
  assert Graph.from_model(loaded).notes()["output_moments"].keys() == {"conv", "bn"}
