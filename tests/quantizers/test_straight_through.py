"""onto_grid: both ways of splitting the gradient, the switch, the ends of a range."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.core import numerics
from kquant.core.fake_quantization import GridTensors
from kquant.quantizers.straight_through import onto_grid, round_through, scale_gradient, switched


def grid(scale, zero_point, bits, narrow, axis=None):
  return GridTensors(tf.constant(np.float32(scale)), tf.constant(np.float32(zero_point)), bits, narrow, axis)


def gradients(x, grid, upstream, **options):
  """Returns (y, gradients of sum(upstream * y) by x, scale and zero point)."""
  x = tf.constant(np.float32(x))
  tensors = [x, grid.scale, grid.zero_point]
  with tf.GradientTape() as tape:
    tape.watch(tensors)
    y = onto_grid(x, grid, **options)
    loss = tf.reduce_sum(y * tf.constant(np.float32(upstream)))
  return [y.numpy(), *(g.numpy() for g in tape.gradient(loss, tensors))]


@pytest.mark.parametrize("rounding_gradient", [True, False])
@pytest.mark.parametrize("bits, narrow, zero_point", [(2, False, 1), (3, True, 0), (8, False, -128),
                                                      (8, True, 0), (16, False, 0)])
def test_one_grid_and_one_channel_have_the_same_gradients(bits, narrow, zero_point, rounding_gradient):
  rng = np.random.default_rng(0)
  qmin, qmax = numerics.grid_limits(bits, narrow=narrow)
  scale = np.float32(3.0 / (qmax - qmin))
  x, upstream = rng.normal(size=(50, 1)) * 2, rng.normal(size=(50, 1))
  one, channel = (gradients(x, grid([scale], [zero_point], bits, narrow, axis), upstream,
                            rounding_gradient=rounding_gradient) for axis in (None, (1,)))
  for mine, theirs in zip(one, channel):
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
  v = np.float64(x) / scale
  q = np.clip(np.rint(v) + zero_point, qmin, qmax) - zero_point
  inside = (v >= qmin - zero_point) & (v <= qmax - zero_point)
  assert 0.2 < inside.mean() < 1.0
  np.testing.assert_array_equal(one[1], np.where(inside, np.float32(upstream), 0))
  np.testing.assert_allclose(one[2], [np.sum(upstream * np.where(inside, rounding_gradient * (q - v), q))],
                             rtol=1e-3, atol=2e-3 * np.abs(q).max())
  np.testing.assert_allclose(one[3], [np.sum(np.where(inside, 0, -scale * upstream))], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [None, (1,)])
def test_switched_off_values_and_gradients_pass(axis):
  x, upstream = [[0.25, -9.0, np.inf]], [[1.0, 2.0, 3.0]]
  count = 3 if axis else 1
  ternary = grid([1.0] * count, [0.0] * count, 2, True, axis)
  y, of_x, of_scale, of_zero_point = gradients(x, ternary, upstream, on=tf.constant(False))
  assert y.tolist() == x and of_x.tolist() == upstream
  assert not of_zero_point.any() and not of_scale.any()
  y, of_x, *_ = gradients(x, ternary, upstream, on=tf.constant(True))
  assert y.tolist() == [[0, -1, 1]] and of_x.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("axis", [None, (1,)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_element_that_set_the_range_lies_inside(sign, axis):
  for high in np.random.default_rng(0).uniform(0.1, 10, 200).astype(np.float32):
    scale = numerics.symmetric_grid(high, 8)
    _, of_x, *_ = gradients([[sign * high]], grid(scale, [0.0], 8, True, axis), [[1.0]])
    assert of_x.tolist() == [[1.0]]


def test_small_rules_by_hand():
  x = tf.constant([0.4, 1.5, 2.5])
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(x)
    rounded, scaled = round_through(x), scale_gradient(x, tf.constant(0.5))
  assert rounded.numpy().tolist() == [0, 2, 2] and tape.gradient(rounded, x).numpy().tolist() == [1, 1, 1]
  np.testing.assert_array_equal(scaled, x)
  assert tape.gradient(scaled, x).numpy().tolist() == [0.5, 0.5, 0.5]
  assert switched(None, x, -x) is x
  np.testing.assert_array_equal(switched(tf.constant(False), x, -x), -x)
