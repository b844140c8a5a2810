"""Cuts along the batch, backwards slices and other paddings are refused before any image is read."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from kquant.graph.graph import Graph
from kquant.graph.kinds.slicing import slice_parts

layers = keras.layers
SHAPE = (4, 6, 3)

REFUSED = {
    "slices the batch": lambda x: x[:1],
    "slices backwards": lambda x: x[:, ::-1],
    "pads the batch axis": lambda x: tf.pad(x, [[1, 0], [0, 0], [0, 0]]),
    r"pads with 2\.5": lambda x: tf.pad(x, [[0, 0], [1, 0], [0, 0]], constant_values=2.5),
    "works along the batch axis": lambda x: tf.reduce_mean(x, axis=0, keepdims=True),
    "along the batch axis": lambda x: tf.split(x, 2, axis=0)[0],
    "Layer 'tf.math.reduce_max' .*works along": lambda x: tf.reduce_max(x),
    "Layer 'tf.unstack' .*works along": lambda x: tf.unstack(x, axis=0)[0],
    "makes a new batch axis": lambda x: tf.stack([x, x], axis=0),
    "concatenates along the batch": lambda x: layers.Concatenate(axis=0)([x, x]),
}


def model_of(function, batch=None):
  x = keras.Input(SHAPE[1:], batch_size=batch)
  return keras.Model(x, function(layers.Dense(3)(x)))


@pytest.mark.parametrize("message", REFUSED)
def test_it_is_refused_at_the_start(message):
  def images():
    raise AssertionError("an image was read")
    yield

  with pytest.raises(kq.UnsupportedLayerError, match=message) as error:
    kq.quantize(model_of(REFUSED[message], batch=4), images, effort=None)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("batch", [None, 4])
def test_a_batch_that_is_merged_with_other_axes_is_refused(batch):
  x = np.zeros((8, 6, 3), np.float32)
  with pytest.raises(kq.UnsupportedLayerError, match="'tf.reshape.* mixes the batch with other axes"):
    kq.quantize(model_of(lambda y: layers.Dense(2)(tf.reshape(y, [-1, 3])), batch=batch), x)


def test_the_whole_batch_is_no_cut(tmp_path):
  x = np.random.default_rng(0).normal(size=(8, 6, 3)).astype(np.float32)
  for index, cut in enumerate((lambda y: y[:, 1:5], lambda y: y[0:4, ..., 1:], lambda y: y[::1, None, 2])):
    result = kq.quantize(model_of(cut, batch=4), x, effort=None)
    assert kq.export(result, tmp_path / f"{index}.tflite", verify=x[:2]).verification.ok


@pytest.mark.parametrize("cut", [
    lambda x: x[:, 1:5:2], lambda x: x[..., -1], lambda x: x[:, -3], lambda x: x[:, None, :, ::2],
    lambda x: x[:, 7:2], lambda x: x])
def test_parts_are_those_that_numpy_takes(cut):
  node = Graph.from_model(model_of(cut)).nodes[-1]
  if node.kind != "tf.__operators__.getitem":
    return
  values = np.arange(4 * 6 * 3).reshape(4, 6, 3)
  parts = slice_parts(node, values.shape)
  np.testing.assert_array_equal(values[np.ix_(*parts)].reshape(-1), cut(values).reshape(-1))
