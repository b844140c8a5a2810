"""Model files: what tf_keras saved comes back to the bit; all else is refused with the remedy."""

import subprocess
import sys
import zipfile

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from kquant.graph.capped_relu import CappedReLU
from kquant.graph.functions import ShiftedPower
from kquant.graph.model_files import load_model, load_weights, with_input_shape
from tests import models


def refused(path, *words):
  """The model at path is refused with a message of one line that holds the path and the words."""
  with pytest.raises(ValueError) as error:
    load_model(path)
  message = str(error.value)
  assert str(path) in message and "\n" not in message
  for word in words:
    assert word in message, message


def keras_3_model():
  return keras3.Sequential([keras3.Input((4,)), keras3.layers.Dense(2)])


def open_model():
  image = keras.Input((None, None, 3), name="image")
  x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(image)
  return keras.Model(image, layers.GlobalAveragePooling2D()(x), name="open")


# --- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "m.keras", "m", "a.folder"])
def test_what_tf_keras_saved_comes_back_to_the_bit(name, tmp_path):
  model = models.build("nested_shared")
  model.compile("adam", "mse")
  (x,) = models.sample_inputs(model, images=4)
  path = tmp_path / name
  model.save(path)
  assert path.is_dir() == ("." not in name or "folder" in name)
  loaded = load_model(path)
  np.testing.assert_array_equal(loaded(x), model(x))
  np.testing.assert_array_equal(load_model(str(path))(x), model(x))
  assert loaded.name == model.name


def test_layers_that_rewrites_leave_are_known_to_a_fresh_process(tmp_path):
  x = image = keras.Input((4, 4, 2))
  for layer in (keras.layers.Conv2D(2, 1), CappedReLU(), ShiftedPower(offset=1.0, exponent=-0.5)):
    x = layer(x)
  keras.Model(image, x).save(tmp_path / "m.keras")
  code = f"from kquant.graph.model_files import load_model; load_model({str(tmp_path / 'm.keras')!r})"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_h5_file_may_bear_the_name_keras(tmp_path):
  model = models.build("conv_bn_relu")
  model.save(tmp_path / "m.h5")
  (tmp_path / "m.h5").rename(tmp_path / "m.keras")
  (x,) = models.sample_inputs(model, images=4)
  np.testing.assert_array_equal(load_model(tmp_path / "m.keras")(x), model(x))


@keras.utils.register_keras_serializable("test_model_files")
class Registered(layers.Layer):
  """Known to Keras by name."""

  def call(self, x):
    return x + 1.0


@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
def test_a_registered_layer_is_loaded(name, tmp_path):
  image = keras.Input((4,))
  keras.Model(image, Registered()(image)).save(tmp_path / name)
  assert load_model(tmp_path / name)(np.zeros((1, 4))).numpy().tolist() == [[1.0] * 4]


# --- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.h5", "m.keras", "folder"])
def test_a_missing_file_is_said_to_be_missing(name, tmp_path):
  with pytest.raises(FileNotFoundError, match="There is no model .*check the path"):
    load_model(tmp_path / name)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_keras_3_file_becomes_a_tf_keras_model(name, tmp_path):
  model = keras_3_model()
  model.save(tmp_path / name)
  made = load_model(tmp_path / name)
  x = np.ones((2, *model.input_shape[1:]), np.float32)
  np.testing.assert_allclose(made(x), np.asarray(model(x)), rtol=1e-5)


@pytest.mark.parametrize("make", [keras_3_model, open_model])
def test_a_file_of_weights_alone_is_refused(make, tmp_path):
  make().save_weights(tmp_path / "m.weights.h5")
  refused(tmp_path / "m.weights.h5", "holds weights but no model", "model.save(path)")


@pytest.mark.parametrize("name", ["m.h5", "m.keras", "m.txt"])
@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x89HDF\r\n", b"PK\x03\x04", bytes(2000)])
def test_a_file_of_something_else_is_refused(name, content, tmp_path):
  (tmp_path / name).write_bytes(content)
  refused(tmp_path / name, "is no model file", "expected .h5, .keras, .tflite or a SavedModel")


def test_an_archive_of_something_else_is_refused(tmp_path):
  np.savez(tmp_path / "m.npz", x=np.zeros(3))
  refused(tmp_path / "m.npz", "is a zip file but no .keras model")


@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_cut_short_is_refused(name, share, tmp_path):
  models.build("conv_bn_relu").save(tmp_path / name)
  whole = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(whole[:int(len(whole) * share)])
  refused(tmp_path / name)


def test_a_folder_without_a_model_is_refused(tmp_path):
  refused(tmp_path, "is a folder without a saved_model.pb")


def test_a_saved_model_without_a_signature_is_refused(tmp_path):
  tf.saved_model.save(tf.Module(), str(tmp_path / "m"))
  refused(tmp_path / "m", "has no signature", "signatures=module.function")


@pytest.mark.parametrize("name", ["m.h5", "m.keras"])
def test_an_unknown_layer_is_named_with_the_remedy(name, tmp_path):
  class Mystery(layers.Layer):
    """Known to nobody."""

    def __init__(self, units=3, **kwargs):
      super().__init__(**kwargs)
      self.units = units

    def call(self, x):
      return x

    def get_config(self):
      return {**super().get_config(), "units": self.units}

  image = keras.Input((4,))
  keras.Model(image, Mystery()(image)).save(tmp_path / name)
  refused(tmp_path / name, "cannot be loaded", "Mystery", "kquant.quantize(model, images)")


# --- input shape -----------------------------------------------------------------------------------


def test_an_open_shape_is_fixed_and_the_outputs_stay(tmp_path):
  model = models.randomized(open_model())
  model.save(tmp_path / "m.h5")
  fixed = load_model(tmp_path / "m.h5", input_shape=(9, 12, 3))
  assert fixed.input_shape == (None, 9, 12, 3) and fixed.get_layer("conv").output_shape == (None, 5, 6, 4)
  assert fixed.input_names == ["image"] and fixed.name == "open"
  x = np.random.default_rng(0).normal(size=(2, 9, 12, 3)).astype(np.float32)
  np.testing.assert_array_equal(fixed(x), model(x))
  assert model.input_shape == (None, None, None, 3)


def test_a_shape_that_is_the_models_own_is_taken():
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model, images=2)
  np.testing.assert_array_equal(with_input_shape(model, models.IMAGE)(x), model(x))


@pytest.mark.parametrize("shape", [(9, 12), (9, 12, 4), (1, 9, 12, 3), ()])
def test_a_shape_that_does_not_fit_is_refused_with_both(shape):
  with pytest.raises(ValueError, match="does not fit the model's") as error:
    with_input_shape(open_model(), shape)
  assert str(shape) in str(error.value) and "(None, None, 3)" in str(error.value)


def test_a_shape_for_several_inputs_is_given_by_name():
  with pytest.raises(ValueError, match="'two_inputs' has 2 inputs; give a shape for each of .* by name"):
    with_input_shape(models.build("two_inputs"), (12, 12, 3))
  image, rows = keras.Input((None, 8, 3), name="image"), keras.Input((None, 2), name="rows")
  pooled = [layers.GlobalAveragePooling2D()(image), layers.GlobalAveragePooling1D()(rows)]
  model = keras.Model([image, rows], layers.Dense(2)(layers.Concatenate()(pooled)))
  fixed = with_input_shape(model, {"rows": (5, 2), "image": (6, 8, 3)})
  assert fixed.input_shape == [(None, 6, 8, 3), (None, 5, 2)]
  assert with_input_shape(model, {"rows": (5, 2)}).input_shape == [(None, None, 8, 3), (None, 5, 2)]
  with pytest.raises(ValueError, match="is for 'lines'; the inputs of the model are image, rows"):
    with_input_shape(model, {"lines": (5, 2)})


@pytest.mark.parametrize("shape, sizes", [
    ((None, 40), (49, 40)), ((None,), (7,)), ((None, None, 4, 1), (3, 4, 4, 1))])
def test_an_open_shape_of_any_rank_is_fixed(shape, sizes):
  image = keras.Input(shape)
  assert with_input_shape(keras.Model(image, layers.ReLU()(image)), sizes).output_shape == (None, *sizes)


# --- configs and weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["w.h5", "w.weights.h5", "whole.h5", "whole.keras", "whole"])
@pytest.mark.parametrize("config", ["to_json", "config.json"])
def test_a_config_and_a_file_of_weights_are_a_model(config, weights, tmp_path):
  model = models.build("nested_shared")
  if weights.startswith("w."):
    model.save_weights(tmp_path / weights)
  else:
    model.save(tmp_path / weights)
  text = model.to_json()
  if config == "config.json":
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
      text = archive.read("config.json").decode()
  (tmp_path / "m.json").write_text(text)
  (x,) = models.sample_inputs(model, images=4)
  np.testing.assert_array_equal(load_model(tmp_path / "m.json", weights=tmp_path / weights)(x), model(x))


def test_a_config_of_keras_3_and_its_weights_are_a_model(tmp_path):
  model = keras_3_model()
  (tmp_path / "m.json").write_text(model.to_json())
  model.save_weights(tmp_path / "m.weights.h5")
  made = load_model(tmp_path / "m.json", weights=tmp_path / "m.weights.h5")
  x = np.ones((2, 4), np.float32)
  np.testing.assert_allclose(made(x), np.asarray(model(x)), rtol=1e-5)


@pytest.mark.parametrize("make", [keras_3_model, lambda: models.build("conv_bn_relu")], ids=["3", "2"])
def test_the_parts_of_an_archive_in_a_folder_are_a_model(make, tmp_path):
  model = make()
  model.save(tmp_path / "m.keras")
  with zipfile.ZipFile(tmp_path / "m.keras") as archive:
    archive.extractall(tmp_path / "folder")
  x = np.ones((2, *model.input_shape[1:]), np.float32)
  np.testing.assert_allclose(load_model(tmp_path / "folder")(x), np.asarray(model(x)), rtol=1e-5)
  (tmp_path / "folder" / "model.weights.h5").unlink()
  refused(tmp_path / "folder", "has no model.weights.h5")


def test_a_config_alone_and_weights_of_another_model_are_refused(tmp_path):
  (tmp_path / "m.json").write_text(open_model().to_json())
  refused(tmp_path / "m.json", "holds no weights", "--weights=FILE")
  models.build("conv_bn_relu").save_weights(tmp_path / "w.h5")
  with pytest.raises(ValueError, match="m.json cannot be loaded: Layer count mismatch"):
    load_model(tmp_path / "m.json", weights=tmp_path / "w.h5")
  (tmp_path / "m.json").write_text('{"a": 1}')
  refused(tmp_path / "m.json", "is no config of a model")


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5", "m.keras"])
def test_weights_go_into_a_model_that_the_user_built(name, tmp_path):
  model = models.randomized(open_model())
  (model.save if name == "m.keras" else model.save_weights)(tmp_path / name)
  other = open_model()
  load_weights(other, tmp_path / name)
  for mine, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
    np.testing.assert_array_equal(mine, theirs)
  with pytest.raises(ValueError, match=f"The weights of .*{name} do not fit model 'conv_bn_relu'"):
    load_weights(models.build("conv_bn_relu"), tmp_path / name)


def test_a_fixed_batch_stays():
  image = keras.Input(batch_shape=(2, None, 3))
  model = keras.Model(image, layers.Conv1D(2, 3)(image))
  assert with_input_shape(model, (7, 3)).input_shape == (2, 7, 3)
