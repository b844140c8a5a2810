"""DoReFaQuantizer: odd integers by hand, the paper's one bit, scale, gradient, what is stored."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.quantizers import DoReFaQuantizer
from tests.quantizers.test_lsq import built

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32) * 0.2


def fitted(quantizer, kernel):
  variables = built(quantizer, kernel.shape, -1.0, 1.0)
  for name, value in quantizer.values_of(kernel).items():
    variables[name].assign(value)
  return variables


def test_two_bits_by_hand():
  # u M = 3 (tanh(w) / (2 max) + 1/2): 0, 0.75, 1.5 (a tie, to 2), 2.4, 3 -> q = -3, -1, 1, 1, 3.
  kernel = np.arctanh(np.float32([-0.5, -0.25, 0.0, 0.3, 0.5]))
  quantizer = DoReFaQuantizer(bits=2)
  variables = fitted(quantizer, kernel)
  scale = np.sum(kernel * [-3, -1, 1, 1, 3]) / 21
  np.testing.assert_allclose(variables["scale"], [scale], rtol=1e-6)
  np.testing.assert_allclose(quantizer.transform(kernel, variables), scale * np.array([-3, -1, 1, 1, 3]),
                             rtol=1e-6)
  encoding = quantizer.encoding(variables)
  assert (encoding.bits, encoding.narrow, encoding.zero_point.tolist()) == (3, True, [0])


@pytest.mark.parametrize("axis", [None, (3,)])
def test_one_bit_is_the_sign_times_the_mean_magnitude(axis):
  quantizer = DoReFaQuantizer(bits=1, axis=axis)
  variables = fitted(quantizer, KERNEL)
  mean = np.abs(KERNEL).mean(axis=None if axis is None else (0, 1, 2))
  np.testing.assert_allclose(quantizer.transform(KERNEL, variables), np.sign(KERNEL) * mean, rtol=1e-6)
  assert quantizer.encoding(variables).bits == 2


@pytest.mark.parametrize("axis", [None, (3,), (2, 3)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_are_odd_and_exactly_what_is_stored(bits, axis):
  quantizer = DoReFaQuantizer(bits=bits, axis=axis)
  variables = fitted(quantizer, KERNEL)
  encoding, values = quantizer.encoding(variables), quantizer.transform(KERNEL, variables)
  integers = encoding.quantize(values)
  assert (integers % 2 == 1).all() and np.abs(integers).max() == 2 ** bits - 1
  np.testing.assert_array_equal(encoding.dequantize(integers), values)
  simulated = tf.function(lambda kernel: quantizer(kernel, False, variables))(tf.constant(KERNEL))
  np.testing.assert_array_equal(simulated, values)


def test_scale_is_the_least_squares_one():
  quantizer = DoReFaQuantizer(bits=3, axis=(3,))
  variables = fitted(quantizer, KERNEL)
  best = variables["scale"].numpy()
  error = lambda scale: np.square(
      quantizer.transform(KERNEL, {"scale": tf.constant(np.float32(scale))}) - KERNEL).sum(axis=(0, 1, 2))
  assert (error(best) <= np.minimum(error(0.97 * best), error(1.03 * best))).all()


def test_scale_follows_the_kernel_in_training_and_stays_elsewhere():
  quantizer = DoReFaQuantizer(bits=4, axis=(3,))
  variables = fitted(quantizer, KERNEL)
  before = variables["scale"].numpy()
  quantizer(tf.constant(0.5 * KERNEL), False, variables)
  np.testing.assert_array_equal(variables["scale"], before)
  y = quantizer(tf.constant(0.5 * KERNEL), True, variables).numpy()
  np.testing.assert_allclose(variables["scale"], 0.5 * before, rtol=0.1)
  np.testing.assert_array_equal(y, quantizer.transform(0.5 * KERNEL, variables))
  assert not variables["scale"].trainable


def assert_gradient_is_of_the_unrounded(quantizer, steps):
  """The gradient is that of `steps` * scale * tanh(w) / max |tanh(w)|, of the maximum as well."""
  variables = fitted(quantizer, KERNEL)
  x, upstream = tf.constant(KERNEL), tf.constant(np.random.default_rng(1).normal(size=KERNEL.shape))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(x)
    y = tf.cast(quantizer(x, False, variables), tf.float64)
    bent = tf.tanh(tf.cast(x, tf.float64))
    smooth = steps * tf.cast(variables["scale"], tf.float64) * bent / tf.reduce_max(tf.abs(bent), [0, 1, 2])
    losses = [tf.reduce_sum(upstream * y), tf.reduce_sum(upstream * smooth)]
  mine, expected = (tape.gradient(loss, x).numpy() for loss in losses)
  np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def test_gradient_is_that_of_the_unrounded_function():
  assert_gradient_is_of_the_unrounded(DoReFaQuantizer(bits=4, axis=(3,)), 15)


def test_dead_channel_is_next_to_nothing():
  kernel = KERNEL.copy()
  kernel[..., 1] = 0.0
  quantizer = DoReFaQuantizer(bits=3, axis=(3,))
  variables = fitted(quantizer, kernel)
  values = quantizer.transform(kernel, variables)
  assert np.isfinite(values).all() and np.abs(values[..., 1]).max() < 1e-6


@pytest.mark.parametrize("options", [{"bits": 9}, {"bits": 0}, {"symmetric": False}, {"narrow": False}])
def test_it_is_for_weights(options):
  with pytest.raises(ValueError, match="weights, symmetric and narrow, of 1 to 8 bits"):
    DoReFaQuantizer(**options)
