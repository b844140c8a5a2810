"""The gradients of the student's grids by hand, and its rounding against numerics."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.core import numerics
from kquant.ptq.finetune.tuned_layers import fake_quantize_range, round_steps


def gradients(function, *values, upstream):
  values = [tf.constant(value, tf.float32) for value in values]
  with tf.GradientTape() as tape:
    tape.watch(values)
    y = function(*values)
  return y.numpy(), [g.numpy() for g in tape.gradient(y, values, output_gradients=tf.constant(upstream))]


def test_steps_are_rounded_and_clipped():
  y, _ = gradients(lambda v: round_steps(v, 3), [-5.0, -0.6, 0.5, 1.5, 2.4, 9.0], upstream=[1.0] * 6)
  np.testing.assert_array_equal(y, [-3, -1, 0, 2, 2, 3])


def test_gradient_of_steps_passes_inside_and_back_to_the_grid():
  steps = [-4.0, -4.0, -3.0, 0.2, 3.0, 4.0, 4.0]
  _, (slope,) = gradients(lambda v: round_steps(v, 3), steps, upstream=[1.0, -1.0, 1.0, 2.0, -1.0, 1.0, -1.0])
  np.testing.assert_array_equal(slope, [0, -1, 1, 2, -1, 1, 0])


def test_gradients_of_a_range_by_hand():
  # 2 bits over [-1, 2]: s = 1, z = -1; the grid is -1, 0, 1, 2
  quantize = lambda x, low, high: fake_quantize_range(x, low, high, bits=2, symmetric=False)
  y, (of_x, of_low, of_high) = gradients(quantize, [-3.0, -0.75, 0.25, 5.0], -1.0, 2.0,
                                         upstream=[1.0, 2.0, 4.0, 8.0])
  np.testing.assert_array_equal(y, [-1, -1, 0, 2])
  np.testing.assert_array_equal(of_x, [0, 2, 4, 0])
  of_scale = 2 * -0.25 + 4 * -0.25
  np.testing.assert_allclose([of_low, of_high], [1 - of_scale / 3, 8 + of_scale / 3])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_range_is_the_grid_of_numerics(seed, symmetric):
  rng = np.random.default_rng(seed)
  x, low, high = rng.normal(size=(50, 4)).astype(np.float32), *np.float32(rng.uniform([-2, 0], [0, 2]))
  low = -high if symmetric else low
  scale, zero_point = ((numerics.symmetric_grid(high, 4), np.zeros(1, int)) if symmetric
                       else numerics.affine_grid(low, high, 4))
  expected = numerics.dequantize(numerics.quantize(x, scale, zero_point, bits=4), scale, zero_point)
  result = fake_quantize_range(x, low, high, bits=4, symmetric=symmetric)
  np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_range_descends(seed):
  """A short step against the slope of a smooth loss makes the rounding error of many values smaller."""
  x = np.random.default_rng(seed).normal(size=5000).astype(np.float32)
  loss = lambda low, high: tf.reduce_sum(tf.square(
      fake_quantize_range(tf.constant(x), low, high, bits=3, symmetric=False) - x))
  ends = [tf.constant(-4.0), tf.constant(4.0)]
  with tf.GradientTape() as tape:
    tape.watch(ends)
    value = loss(*ends)
  slopes = tape.gradient(value, ends)
  assert slopes[0] < 0 < slopes[1]
  assert loss(*[end - 1e-4 * slope for end, slope in zip(ends, slopes)]) < value


def test_a_range_that_starts_at_zero_stays_there():
  _, (_, of_low, _) = gradients(
      lambda x, low, high: fake_quantize_range(x, low * 0.0, high, bits=8, symmetric=False),
      [0.3, 1.7], -1.0, 1.0, upstream=[1.0, 1.0])
  assert of_low == 0
