"""What follows from sizes alone becomes a constant; what depends on the batch size is refused by name."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from tests import models
from tests.rewrites.standardize.test_standardize import kinds, last, stack, standardized

IMAGE = (6, 8, 4)
GRID = np.random.default_rng(3).uniform(-1, 1, (1, 6, 8, 2)).astype(np.float32)

FOLDED = {
    "ones of a tensor": lambda x: x + 3 * tf.ones_like(x),
    "zeros of a tensor": lambda x: x * (tf.zeros_like(x) + 2.0),
    "ones as the Keras backend writes them": lambda x: x - keras.backend.ones_like(x),
    "ones as of version 1": lambda x: tf.compat.v1.ones_like(x) - x,
    "zeros of a shape": lambda x: x + tf.zeros([tf.shape(x)[0], 6, 8, 4]),
    "ones of a whole shape": lambda x: x + tf.ones(tf.shape(x)),
    "filled": lambda x: x * tf.fill(tf.shape(x), 0.5),
    "a size in a product": lambda x: x / tf.cast(tf.shape(x)[1], tf.float32),
    "a rank": lambda x: x * tf.cast(tf.rank(x), tf.float32),
    "a count of channels": lambda x: x + tf.cast(tf.range(tf.shape(x)[3]), tf.float32),
    "a layer of a tensor and a constant": lambda x: layers.Multiply()([np.ones((1, 1, 1, 4), np.float32), x]),
    "layers of two tensors": lambda x: layers.Subtract()([tf.ones_like(x), x]),
}


@pytest.mark.parametrize("name", FOLDED)
def test_one_affine_layer_is_left(name):
  assert kinds(standardized(stack(FOLDED[name], shape=IMAGE))) == ["BatchNormalization"]


def test_a_constant_that_differs_by_position_is_an_operand():
  tiled = lambda x: tf.tile(GRID, [tf.shape(x)[0], 1, 1, 2])
  graph = standardized(stack(lambda x: layers.Add()([x, tiled(x)]), shape=IMAGE))
  assert kinds(graph) == ["tf.math.add"]
  np.testing.assert_array_equal(last(graph).args[1], np.tile(GRID, [1, 1, 1, 2]))


@pytest.mark.parametrize("function", [
    lambda x: tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1] * tf.shape(x)[2], 4]),
    lambda x: tf.reshape(x, tf.concat([tf.shape(x)[:1], [48, 4]], axis=0))])
def test_a_reshape_to_sizes_that_were_asked_for(function):
  assert kinds(standardized(stack(function, shape=IMAGE), exact=True)) == ["Reshape"]


def test_a_resize_to_sizes_that_were_asked_for():
  graph = standardized(stack(lambda x: tf.image.resize(x, 2 * tf.shape(x)[1:3]), shape=IMAGE), exact=True)
  assert kinds(graph) == ["Resizing:bilinear"] and last(graph).shapes == [(None, 12, 16, 4)]


JOINED = {
    "ones": lambda x: tf.concat([x, tf.ones_like(x[..., :1])], axis=-1),
    "coordinates": lambda x: tf.concat([x, tf.tile(GRID, [tf.shape(x)[0], 1, 1, 1])], axis=-1),
    "coordinates broadcast": lambda x: layers.Concatenate()([
        tf.broadcast_to(GRID, [tf.shape(x)[0], 6, 8, 2]), x]),
    "of another rank": lambda x: tf.concat([x[:, 0], tf.tile(GRID[:, 0], [tf.shape(x)[0], 1, 2])], axis=1),
    "ones alone": lambda x: layers.Dense(3)(tf.ones_like(x)) + layers.Dense(3)(x),
}


@pytest.mark.parametrize("name", JOINED)
def test_a_constant_that_no_operator_takes_is_computed_for_each_image(name, tmp_path):
  model = stack(layers.Conv2D(4, 3, padding="same"), JOINED[name], shape=IMAGE)
  standardized(model)
  (x,) = models.sample_inputs(model, images=16)
  result = kq.quantize(model, x, effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=x[:3], certify=True)
  assert written.verification.ok and written.certificate["exact"]
  signal, error = model(x).numpy(), result.model(x).numpy() - model(x).numpy()
  assert np.square(error).mean() < 0.01 * np.square(signal).mean()


REFUSED = {
    r"'tf.compat.v1.shape\w*' .*batch": lambda x: x / tf.cast(tf.shape(x)[0], tf.float32),
    r"'tf.compat.v1.shape\w*'": lambda x: x + tf.random.normal(tf.shape(x)),
    "widens the batch axis": lambda x: x + np.ones((2, 1, 1, 4), np.float32),
    "widens the batch": lambda x: x * np.ones((3, 6, 8, 4), np.float32),
    "not one number": lambda x: tf.maximum(x, np.arange(4, dtype=np.float32)),
    "takes a constant beside": lambda x: tf.concat([x, GRID], axis=-1),
    "takes a constant.*tf.zeros_like": lambda x: layers.Concatenate()([GRID, x]),
    "'maximum.* takes a constant": lambda x: layers.Maximum()([x, GRID[..., :1]]),
    "multiplies by a constant matrix": lambda x: tf.matmul(x, np.ones((6, 4, 3), np.float32)),
    "pow.* not one number": lambda x: tf.pow(tf.abs(x), [1.0, 2.0, 1.0, 2.0]),
    "'average.* takes a constant": lambda x: layers.Average()([x, GRID[..., :1], x]),
    "'add.* takes a constant": lambda x: layers.Add()([x, GRID[..., :1], x]),
    "'multiply.* widens the batch": lambda x: layers.Multiply()([x, np.ones((2, 1, 1, 4), np.float32)]),
    r"pads with 7\.0; write it as": lambda x: tf.pad(x, np.eye(4, 2, dtype=int)[::-1], constant_values=7.0)}


@pytest.mark.parametrize("message", REFUSED)
def test_it_is_refused_in_one_line(message):
  x = np.zeros((4, *IMAGE), np.float32)
  with pytest.raises(kq.UnsupportedLayerError, match=message) as error:
    kq.quantize(stack(layers.Conv2D(4, 3, padding="same"), REFUSED[message], shape=IMAGE), x, effort=None)
  assert "\n" not in str(error.value)


def test_sizes_that_are_open_are_refused():
  model = stack(lambda x: x / tf.cast(tf.shape(x)[1], tf.float32), shape=(None, None, 4))
  with pytest.raises(kq.UnsupportedLayerError, match=r"'tf.compat.v1.shape\w*' .*open"):
    kq.quantize(model, np.zeros((4, *IMAGE), np.float32), effort=None)


# --- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats, axis, kind", [
    (2, 1, "Reshape"), (3, -1, "Reshape"), ([1, 2, 1, 0, 3, 1], 1, "Concatenate"), (1, 2, None)])
def test_repeated_elements_are_copies(repeats, axis, kind, tmp_path):
  function = lambda x: tf.repeat(x, repeats, axis=axis)
  found = kinds(standardized(stack(layers.ReLU(), function, shape=IMAGE), exact=True))
  assert found[-1] == (kind or "ReLU") and "tf.repeat" not in found
  model = stack(layers.Conv2D(4, 3, padding="same"), function, shape=IMAGE)
  (x,) = models.sample_inputs(model, images=8)
  assert kq.export(kq.quantize(model, x, effort=None), tmp_path / "m.tflite", verify=x[:3]).verification.ok


# --- padding in front of a max pool ----------------------------------------------------------------


def pooled(pads, pool, stride, size=(8, 8), value=-np.inf, before=layers.ReLU):
  paddings = [[0, 0], *pads, [0, 0]]
  return stack(before(), lambda x: tf.pad(x, paddings, constant_values=value),
               layers.MaxPooling2D(pool, stride), shape=(*size, 4))


@pytest.mark.parametrize("value", [-np.inf, tf.float32.min])
@pytest.mark.parametrize("pads, pool, stride, size, before, expected", [
    ([[0, 1], [0, 1]], 3, 2, (8, 8), layers.LeakyReLU, ["MaxPooling2D"]),
    ([[1, 1], [1, 1]], 3, 2, (8, 8), layers.ReLU, ["tf.compat.v1.pad", "MaxPooling2D"]),
    ([[1, 1], [1, 1]], 3, 2, (8, 8), layers.LeakyReLU, ["tf.compat.v1.pad", "MaxPooling2D"]),
    ([[1, 0], [2, 1]], 4, 3, (7, 9), layers.LeakyReLU, ["tf.compat.v1.pad", "MaxPooling2D"])])
def test_the_lowest_value_beside_the_image_is_no_maximum(value, pads, pool, stride, size, before, expected,
                                                         tmp_path):
  model = pooled(pads, pool, stride, size, value, before)
  assert kinds(standardized(model, exact=True))[1:] == expected
  (x,) = models.sample_inputs(model, images=8)
  assert kq.export(kq.quantize(model, x, effort=None), tmp_path / "m.tflite", verify=x[:3]).verification.ok


@pytest.mark.parametrize("model", [
    lambda: pooled([[2, 2], [2, 2]], 3, 2, before=layers.LeakyReLU),
    lambda: stack(layers.LeakyReLU(), lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0]], constant_values=-np.inf),
                  shape=(8, 4))])
def test_the_lowest_value_elsewhere_is_refused(model):
  model = model()
  with pytest.raises(kq.UnsupportedLayerError, match="pads with -inf; .*max pool"):
    kq.quantize(model, np.zeros((4, *model.input_shape[1:]), np.float32), effort=None)
