"""FoldedConv: batch statistics, their correction, and what is left when they are frozen."""

import numpy as np
import pytest
import tensorflow as tf
from tf_keras import layers

from kquant.graph.keras_calls import call_with
from kquant.qmodel.configs import KernelQuantizeConfig
from kquant.qmodel.folded_conv import FoldedConv
from kquant.quantizers import MinMaxQuantizer
from tests.models import randomized

KINDS = {
    "conv": (lambda: layers.Conv2D(4, 3, padding="same", use_bias=False, name="linear"), (6, 6, 3), (3,)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="linear"),
                  (6, 6, 2), (2, 3)),
    "transposed": (lambda: layers.Conv2DTranspose(4, 3, strides=2, use_bias=False, name="linear"),
                   (5, 5, 3), (2,)),
    "dense": (lambda: layers.Dense(4, use_bias=False, name="linear"), (7,), (1,)),
}


def folded(kind="conv", *, bits=8, quantizing=True, **norm):
  """Returns (FoldedConv with its range set, inputs)."""
  build, shape, axis = KINDS[kind]
  quantizer = MinMaxQuantizer(bits=bits, symmetric=True, narrow=True, axis=axis)
  layer = FoldedConv(build(), KernelQuantizeConfig(quantizer),
                     layers.BatchNormalization(momentum=0.9, name="norm", **norm))
  x = np.random.default_rng(1).normal(size=(8, *shape)).astype(np.float32)
  layer(x)
  randomized(layer)
  kernel = layer.folded_kernel().numpy()
  high = np.abs(kernel).max(tuple(i for i in range(kernel.ndim) if i not in axis)).reshape(-1)
  quantizer.set_range(layer._quantized[0][2], -high, high)
  layer.quantizing.assign(quantizing)
  return layer, x


def reference(layer, x):
  """Returns (batch norm's input, mean, variance of the batch), float64."""
  outputs = layer.layer(x).numpy().astype(np.float64)
  over = tuple(range(outputs.ndim - 1))
  return outputs, outputs.mean(over), outputs.var(over)


@pytest.mark.parametrize("kind", KINDS)
def test_without_rounding_it_is_the_layer_and_its_batch_norm(kind):
  layer, x = folded(kind, quantizing=False)
  outputs, mean, variance = reference(layer, x)
  gamma, beta, old_mean, old_variance = (
      v.numpy() for v in (layer.batch_norm.gamma, layer.batch_norm.beta, layer.batch_norm.moving_mean,
                          layer.batch_norm.moving_variance))
  expected = (outputs - mean) / np.sqrt(variance + 1e-3) * gamma + beta
  at_inference = (outputs - old_mean) / np.sqrt(old_variance + 1e-3) * gamma + beta
  np.testing.assert_allclose(layer(x), at_inference, atol=1e-5)
  np.testing.assert_allclose(layer(x, training=True), expected, atol=1e-5)
  np.testing.assert_allclose(layer.batch_norm.moving_mean, 0.9 * old_mean + 0.1 * mean, atol=1e-6)
  np.testing.assert_allclose(layer.batch_norm.moving_variance, 0.9 * old_variance + 0.1 * variance, rtol=1e-5)
  np.testing.assert_allclose(layer.float_call(x), layer(x, training=False), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_training_multiplies_with_the_integers_of_the_moving_variance(kind):
  """y = conv(x, W_q) s / s_B + beta - gamma mean_B / s_B, worked out by hand."""
  layer, x = folded(kind, bits=3)
  _, mean, variance = reference(layer, x)
  quantized = layer.simulated_weights()
  conv = call_with(layer.layer, x, quantized).numpy().astype(np.float64)
  gamma, beta = layer.batch_norm.gamma.numpy(), layer.batch_norm.beta.numpy()
  moving = np.sqrt(layer.batch_norm.moving_variance.numpy() + 1e-3)
  batch = np.sqrt(variance + 1e-3)
  np.testing.assert_allclose(layer(x, training=True), conv * moving / batch + beta - gamma * mean / batch,
                             atol=1e-5)


def test_frozen_training_is_inference_and_moves_nothing():
  layer, x = folded(bits=4)
  layer(x, training=True)
  layer.freeze_statistics()
  before = [v.numpy() for v in layer.weights]
  with tf.GradientTape() as tape:
    outputs = layer(x, training=True)
    loss = tf.reduce_sum(outputs**2)
  np.testing.assert_allclose(outputs, layer(x), atol=1e-6)
  for value, variable in zip(before, layer.weights):
    np.testing.assert_array_equal(value, variable)
  assert all(np.abs(gradient).sum() > 0 for gradient in tape.gradient(loss, layer.trainable_weights))


def test_gradients_are_those_of_a_batch_norm():
  layer, x = folded(quantizing=False)
  norm = layers.BatchNormalization(momentum=0.9, fused=False)
  norm.build((None, 6, 6, 4))
  norm.set_weights(layer.batch_norm.get_weights())
  targets = np.random.default_rng(3).normal(size=(8, 6, 6, 4)).astype(np.float32)
  found = []
  for call, variables in ((lambda: layer(x, training=True),
                           [layer.layer.kernel, layer.batch_norm.gamma, layer.batch_norm.beta]),
                          (lambda: norm(layer.layer(x), training=True),
                           [layer.layer.kernel, norm.gamma, norm.beta])):
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean((call() - targets)**2)
    found.append(tape.gradient(loss, variables))
  for mine, theirs in zip(*found):
    np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_a_layer_that_is_not_trainable_runs_as_at_inference():
  layer, x = folded(bits=4)
  layer.trainable = False
  before = layer.batch_norm.moving_mean.numpy()
  np.testing.assert_array_equal(layer(x, training=True), layer(x))
  np.testing.assert_array_equal(layer.batch_norm.moving_mean, before)
  assert not layer.trainable_weights


def test_a_batch_norm_without_gamma_and_beta():
  layer, x = folded(quantizing=False, scale=False, center=False)
  outputs, mean, variance = reference(layer, x)
  np.testing.assert_allclose(layer(x, training=True), (outputs - mean) / np.sqrt(variance + 1e-3), atol=1e-5)


def test_plain_layer_and_graph_compute_the_same_integers():
  layer, x = folded(bits=4)
  config, params = layer.plain_layer()
  ((_, grid),) = layer.weight_encodings().items()
  traced = tf.function(layer.simulated_weights)()["kernel"].numpy()
  np.testing.assert_array_equal(grid.dequantize(grid.quantize(params["kernel"])), traced)
  plain = layers.Conv2D.from_config(config)
  plain.build(x.shape)
  plain.kernel.assign(traced)
  plain.bias.assign(params["bias"])
  np.testing.assert_allclose(plain(x), layer(x), atol=1e-6)
