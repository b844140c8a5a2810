"""Gradients on a grid: stochastic rounding, its noise, and ranges however small."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kquant.quantizers import QUANTIZERS
from kquant.quantizers.gradients import GradientQuantizer

GRADIENT_RANGES = ("in_hindsight", "current_minmax", "moving_average")


def built(name="in_hindsight", bits=8, symmetric=False, **options):
  quantizer = GradientQuantizer(QUANTIZERS[name](bits=bits, symmetric=symmetric), **options)
  return quantizer, quantizer.build(keras.layers.Layer(name="holder"))


def backward(quantizer, variables, upstream):
  x = tf.constant(np.zeros_like(upstream))
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = quantizer(x, variables)
  assert not y.numpy().any()
  return tape.gradient(y, x, output_gradients=tf.constant(upstream)).numpy()


def test_nearest_rounding_by_hand():
  quantizer, variables = built(bits=2, stochastic=False)
  upstream = np.float32([-1.0, 0.6, 0.4, 2.0])  # 3 steps of 1 from -1 to 2
  np.testing.assert_array_equal(backward(quantizer, variables, upstream), [-1.0, 1.0, 0.0, 2.0])
  np.testing.assert_array_equal(backward(quantizer, variables, 4 * upstream), [-1.0, 2.0, 2.0, 2.0])
  np.testing.assert_allclose([float(variables["min"][0]), float(variables["max"][0])], [-1.3, 2.6], rtol=1e-6)


@pytest.mark.parametrize("name", GRADIENT_RANGES)
def test_stochastic_rounding_is_unbiased(name):
  quantizer, variables = built(name, bits=4)
  upstream = np.float32([-1.0, 2.0, *np.full(20000, 0.13)])  # 15 steps of 0.2
  errors = backward(quantizer, variables, upstream)[2:] - np.float32(0.13)
  assert set(np.round(errors + np.float32(0.13), 3)) == {np.float32(0.0), np.float32(0.2)}
  assert abs(errors.mean()) < 3 * 0.2 * np.sqrt(0.65 * 0.35 / 20000)


def test_noise_differs_from_step_to_step_and_follows_from_seed_and_step():
  upstream = np.random.default_rng(0).normal(size=1000).astype(np.float32)
  quantizer, variables = built("current_minmax", bits=4, seed=5)
  first, second = (backward(quantizer, variables, upstream) for _ in range(2))
  assert (first != second).any()
  again, others = built("current_minmax", bits=4, seed=5)
  others["steps"].assign(1)
  np.testing.assert_array_equal(backward(again, others, upstream), second)
  other, variables = built("current_minmax", bits=4, seed=6)
  assert (backward(other, variables, upstream) != first).any()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [1e-20, 1e-7, 1e4])
def test_gradients_of_any_size_keep_their_precision(size, symmetric):
  quantizer, variables = built(symmetric=symmetric)
  upstream = size * np.random.default_rng(0).normal(size=2000).astype(np.float32)
  errors = backward(quantizer, variables, upstream) - upstream
  step = (upstream.max() - min(upstream.min(), 0)) / 255 if not symmetric else abs(upstream).max() / 127
  assert np.abs(errors).max() < 1.01 * step


def test_values_on_the_grid_stay_under_any_noise():
  quantizer, variables = built(bits=4)
  upstream = np.arange(-5, 11, dtype=np.float32)  # 15 steps of 1
  for _ in range(5):
    np.testing.assert_array_equal(backward(quantizer, variables, upstream), upstream)


def test_a_config_gives_the_same_quantizer():
  quantizer, _ = built(bits=4, stochastic=False, seed=7)
  again = GradientQuantizer(**quantizer.get_config())
  assert again.get_config() == quantizer.get_config()
  assert type(again.ranges) is type(quantizer.ranges)
