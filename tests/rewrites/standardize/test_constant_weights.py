"""Products with constants become layers with these weights; the outputs stay."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
import tflite_export

MATRIX = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
KERNEL = np.random.default_rng(2).normal(size=(3, 3, 4, 6)).astype(np.float32)
ROW = np.random.default_rng(3).normal(size=(3, 4, 6)).astype(np.float32)

CASES = {
    "matmul": (lambda x: tf.matmul(x, MATRIX), "Dense"),
    "matmul, transposed": (lambda x: tf.matmul(x, MATRIX.T, transpose_b=True), "Dense"),
    "matmul, a variable": (lambda x: tf.matmul(x, tf.Variable(MATRIX)), "Dense"),
    "@": (lambda x: x @ MATRIX, "Dense"),
    "tensordot, 1": (lambda x: tf.tensordot(x, MATRIX, 1), "Dense"),
    "tensordot, axes": (lambda x: tf.tensordot(x, MATRIX.T, [[-1], [1]]), "Dense"),
    "tensordot, numbers": (lambda x: tf.tensordot(x, MATRIX, axes=(3, 0)), "Dense"),
    "einsum": (lambda x: tf.einsum("bhwc,cd->bhwd", x, MATRIX), "Dense"),
    "einsum, transposed": (lambda x: tf.einsum("b h w c, d c -> b h w d", x, MATRIX.T), "Dense"),
    "conv2d": (lambda x: tf.nn.conv2d(x, KERNEL, 1, "SAME"), "Conv2D"),
    "conv2d, strides": (lambda x: tf.nn.conv2d(x, KERNEL, [1, 2, 1, 1], "VALID"), "Conv2D"),
    "conv2d, dilated": (lambda x: tf.nn.conv2d(x, KERNEL, 1, "VALID", dilations=2), "Conv2D"),
    "conv2d, grouped": (lambda x: tf.nn.conv2d(x, KERNEL[:, :, :2], strides=1, padding="SAME"), "Conv2D"),
    "convolution": (lambda x: tf.nn.convolution(x, KERNEL, padding="SAME", strides=2), "Conv2D"),
    "depthwise": (lambda x: tf.nn.depthwise_conv2d(x, KERNEL, [1, 2, 2, 1], "SAME"), "DepthwiseConv2D"),
    "conv1d": (lambda x: tf.nn.conv1d(tf.reshape(x, [-1, 64, 4]), ROW, 2, "SAME"), "Conv1D")}


def model_of(function):
  image = keras.Input((8, 8, 4))
  return keras.Model(image, function(image))


@pytest.mark.parametrize("case", CASES)
def test_a_product_with_a_constant_becomes_a_layer(case):
  function, kind = CASES[case]
  model, x = model_of(function), np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)
  standard = kq.standardize(model)
  made = [layer for layer in standard.layers if type(layer).__name__ == kind]
  assert len(made) == 1 and made[0].trainable_weights
  np.testing.assert_allclose(standard(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["matmul", "einsum", "conv2d, grouped", "conv1d"])
def test_it_ends_in_a_file(case, tmp_path):
  model, x = model_of(CASES[case][0]), np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype(np.float32)
  exported = tflite_export.export(kq.quantize(model, x, effort=None), tmp_path / "m.tflite", verify=x[:2])
  assert exported.path.exists()


@pytest.mark.parametrize("function", [
    lambda x: tf.matmul(x, np.ones((8, 4, 6), np.float32)),
    lambda x: tf.matmul(MATRIX.T, x, transpose_b=True),
    lambda x: tf.tensordot(x, np.ones((8, 4), np.float32), [[1], [0]]),
    lambda x: tf.nn.conv2d(x, KERNEL, 1, [[0, 0], [1, 0], [1, 0], [0, 0]])])
def test_what_no_layer_does_is_refused_by_name(function):
  x = np.random.default_rng(0).normal(size=(8, 8, 8, 4)).astype(np.float32)
  with pytest.raises(kq.UnsupportedLayerError, match="tf"):
    kq.quantize(model_of(function), x, effort=None)
