"""LSQQuantizer: gradients by hand, the paper's scale, positivity, start on the min-max grid."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.quantizers import LSQQuantizer, MinMaxQuantizer


def built(quantizer, shape, low, high):
  variables = quantizer.build(shape, "tensor", keras.layers.Layer(name="holder"))
  quantizer.set_range(variables, low, high)
  return variables


def gradients(quantizer, variables, x, upstream):
  """Returns (output, gradient of x, {variable: gradient}) of sum(upstream * y)."""
  x = tf.constant(np.float32(x))
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = quantizer(x, True, variables)
    loss = tf.reduce_sum(y * tf.constant(np.float32(upstream)))
  trained = {name: v for name, v in variables.items() if v.trainable}
  of_x, of_variables = tape.gradient(loss, (x, trained))
  return y.numpy(), of_x.numpy(), {name: g.numpy() for name, g in of_variables.items() if g is not None}


# --- worked by hand --------------------------------------------------------------------------------


def test_gradients_of_three_bit_weights_by_hand():
  # step 0.5, p = 3, N = 5, g = 1 / sqrt(15); dy/dstep: n, round(v) - v inside, p.
  quantizer = LSQQuantizer(bits=3, symmetric=True, narrow=True)
  variables = built(quantizer, (5,), -1.5, 1.5)
  y, of_x, of_variables = gradients(
      quantizer, variables, [-2.0, -0.6, 0.125, 0.4, 7.0], [1.0, 10.0, 100.0, 1000.0, 10000.0])
  assert y.tolist() == [-1.5, -0.5, 0.0, 0.5, 1.5]
  assert of_x.tolist() == [0, 10, 100, 1000, 0]
  of_step = -3 * 1 + 0.2 * 10 - 0.25 * 100 + 0.2 * 1000 + 3 * 10000
  np.testing.assert_allclose(of_variables["log_step"], [of_step / np.sqrt(15) / 0.5], rtol=1e-5)


def test_gradients_of_two_bit_activations_by_hand():
  # [-1, 2]: step 1, zero point -1, v from -1 to 2; 3 steps; N = 3 elements a sample, whatever the batch.
  quantizer = LSQQuantizer(bits=2)
  variables = built(quantizer, (None, 3), -1.0, 2.0)
  y, of_x, of_variables = gradients(quantizer, variables, [[-4.0, -0.25, 0.25], [1.75, 3.0, 2.0]],
                                    [[1.0, 10.0, 100.0], [1000.0, 10000.0, 1e5]])
  assert y.tolist() == [[-1, 0, 0], [2, 2, 2]]
  assert of_x.tolist() == [[0, 10, 100], [1000, 0, 1e5]]
  of_step = -1 * 1 + 0.25 * 10 - 0.25 * 100 + 0.25 * 1000 + 2 * 10000
  np.testing.assert_allclose(of_variables["log_step"], [of_step / 3], rtol=1e-5)


def test_gradient_of_each_channel_is_its_own():
  quantizer = LSQQuantizer(bits=2, symmetric=True, narrow=True, axis=(1,))
  variables = built(quantizer, (2, 2), [-1.0, -2.0], [1.0, 2.0])
  _, _, of_variables = gradients(quantizer, variables, [[0.25, 5.0], [3.0, -1.5]], np.ones((2, 2)))
  of_step = np.array([-0.25 + 1, 1 - 0.25])  # v = 0.25, 3 and 2.5, -0.75
  step, g = np.array([1.0, 2.0]), 1 / np.sqrt(2 * 1)
  np.testing.assert_allclose(of_variables["log_step"], g * of_step * step / 2.5, rtol=1e-6)


@pytest.mark.parametrize("axis", [(2, 3), (3,), (2,), (1,), None])
def test_gradients_are_the_papers_for_any_channel_axes(axis):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)
  upstream = rng.normal(size=x.shape)
  quantizer = LSQQuantizer(bits=3, symmetric=True, narrow=True, axis=axis)
  channels = quantizer._channels(x.shape)
  variables = built(quantizer, x.shape, -np.linspace(1, 2, channels), np.linspace(1, 2, channels))
  _, of_x, of_variables = gradients(quantizer, variables, x, upstream)
  encoding = quantizer.encoding(variables)
  step = encoding.scale.astype(np.float64)
  v = x / numerics.along(step, x.shape, axis)
  each = upstream * np.where(np.abs(v) <= 3, np.rint(v) - v, 3 * np.sign(v))
  taps = tuple(i for i in range(4) if i not in (axis or ()))
  g = 1 / np.sqrt(x.size / channels * 3)
  expected = g * each.sum(axis=taps).reshape(-1) * step / np.mean(step ** 2)
  np.testing.assert_allclose(of_variables["log_step"], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(of_x, np.where(np.abs(v) <= 3, np.float32(upstream), 0))


# --- what the parametrization promises -------------------------------------------------------------


def test_sgd_moves_the_step_as_if_it_were_trained_itself():
  quantizer = LSQQuantizer(bits=4, symmetric=True, narrow=True)
  x = np.random.default_rng(0).normal(size=(50,)).astype(np.float32)
  variables = built(quantizer, x.shape, -1.0, 1.0)
  before = float(quantizer.encoding(variables).scale[0])
  _, _, of_variables = gradients(quantizer, variables, x, np.ones(50))
  v = x / before
  of_step = np.where(np.abs(v) <= 7, np.rint(v) - v, 7 * np.sign(v)).sum() / np.sqrt(50 * 7)
  rate = 1e-5
  keras.optimizers.SGD(rate).apply_gradients([(tf.constant(of_variables["log_step"]), variables["log_step"])])
  moved = float(quantizer.encoding(variables).scale[0]) - before
  np.testing.assert_allclose(moved, -rate * of_step, rtol=2e-2)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("options", [{"symmetric": True, "narrow": True, "axis": (1,)}, {},
                                     {"symmetric": True}])
def test_untrained_it_has_exactly_the_grid_of_min_max(bits, options):
  low, high = np.float64([-1.1, -0.3, -7.7]), np.float64([0.7, 2.9, 1e-5])
  if "axis" not in options:
    low, high = low.min(), high.max()
  mine, theirs = LSQQuantizer(bits=bits, **options), MinMaxQuantizer(bits=bits, **options)
  x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
  states = [built(quantizer, x.shape, low, high) for quantizer in (mine, theirs)]
  assert mine.encoding(states[0]) == theirs.encoding(states[1])
  x = tf.constant(x)
  np.testing.assert_array_equal(mine(x, False, states[0]), theirs(x, False, states[1]))


@pytest.mark.parametrize("log_step", [-80.0, -3.0, 0.3, 5.0])
def test_step_is_positive_and_stored_whatever_was_learned(log_step):
  quantizer = LSQQuantizer(bits=8, symmetric=True, narrow=True, axis=(1,))
  x = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
  variables = built(quantizer, x.shape, -1.0, 1.0)
  variables["log_step"].assign([log_step, 0.01])
  encoding = quantizer.encoding(variables)
  assert (encoding.scale > 0).all()
  result = quantizer(tf.constant(x), True, variables)
  np.testing.assert_array_equal(result, encoding.dequantize(encoding.quantize(x)))


def test_dead_channel_gets_no_gradient_that_drowns_the_others():
  quantizer = LSQQuantizer(bits=4, symmetric=True, narrow=True, axis=(1,))
  variables = built(quantizer, (2, 2), [-1.0, 0.0], [1.0, 0.0])
  _, _, of_variables = gradients(quantizer, variables, [[0.3, 0.01], [-0.9, 0.0]], np.ones((2, 2)))
  first, dead = np.abs(of_variables["log_step"])
  assert np.isfinite(dead) and dead < 1e-5 * first


def test_open_shapes_count_the_elements_of_one_sample():
  quantizer = LSQQuantizer(bits=4)
  variables = built(quantizer, (None, None, 2), 0.0, 1.0)
  x = np.random.default_rng(0).uniform(0, 2, (3, 5, 2)).astype(np.float32)

  @tf.function(input_signature=[tf.TensorSpec((None, None, 2))])
  def step(values):
    with tf.GradientTape() as tape:
      loss = tf.reduce_sum(quantizer(values, True, variables))
    return tape.gradient(loss, variables["log_step"])

  _, _, expected = gradients(quantizer, variables, x, np.ones(x.shape))
  np.testing.assert_allclose(step(x), expected["log_step"], rtol=1e-5)


def test_learning_the_step_lowers_the_error_of_clipped_data():
  x = tf.constant(np.random.default_rng(0).normal(size=(2000,)).astype(np.float32))
  quantizer = LSQQuantizer(bits=3, symmetric=True, narrow=True)
  variables = built(quantizer, x.shape, -6.0, 6.0)
  error = lambda: tf.reduce_mean(tf.square(quantizer(x, True, variables) - x))
  before, optimizer = float(error()), keras.optimizers.Adam(0.02)
  for _ in range(100):
    optimizer.minimize(error, [variables["log_step"]])
  best = min(np.square(np.clip(np.rint(x / s), -3, 3) * s - x).mean() for s in np.linspace(0.3, 2, 100))
  assert float(error()) < 1.02 * best < 0.5 * before


# --- in a layer ------------------------------------------------------------------------------------


def test_step_is_a_trainable_variable_and_the_rest_is_not():
  layer = keras.layers.Layer(name="holder")
  LSQQuantizer().build((None, 3), "tensor", layer)
  assert [v.name for v in layer.trainable_weights] == ["tensor_log_step:0"]
  assert sorted(v.name for v in layer.non_trainable_weights) == ["tensor_start:0", "tensor_zero_point:0"]
  layer.trainable = False
  assert not layer.trainable_weights
