"""Ranges that are known before the tensor: worked by hand, and beside the ranges that are not."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kquant.quantizers import QUANTIZERS

STEPS = ([-1.0, 0.5, 3.0], [-3.0, 0.25, 2.0], [0.0, 0.5, 1.0])


class Trained:
  """A quantizer with its state; a call is a training step."""

  def __init__(self, name, **options):
    self.quantizer = QUANTIZERS[name](**options)
    self.layer = keras.layers.Layer(name="holder")
    self.variables = self.quantizer.build((3,), "tensor", self.layer)

  def __call__(self, values, training=True):
    return self.quantizer(tf.constant(values, tf.float32), training, self.variables).numpy()

  @property
  def range(self):
    return [float(self.variables[end][0]) for end in ("min", "max")]


def test_ranges_are_averages_of_the_steps_before():
  trained = Trained("in_hindsight")
  trained(STEPS[0])
  assert trained.range == [-1.0, 3.0]
  trained(STEPS[1])  # 0.1 * -3 + 0.9 * -1, 0.1 * 2 + 0.9 * 3
  np.testing.assert_allclose(trained.range, [-1.2, 2.9], rtol=1e-6)
  trained(STEPS[2])  # 0.9 * -1.2, 0.1 * 1 + 0.9 * 2.9
  np.testing.assert_allclose(trained.range, [-1.08, 2.71], rtol=1e-6)


def test_a_step_is_quantized_with_the_range_of_the_steps_before():
  trained = Trained("in_hindsight", bits=2)
  trained(STEPS[0])  # range -1 to 3: steps of 4/3, zero point counted from the first integer 1, steps of 1.5
  np.testing.assert_array_equal(trained([-9.0, 1.4, 9.0]), [-1.5, 1.5, 3.0])


def test_the_output_does_not_depend_on_the_extremes_of_its_own_step():
  outputs = []
  for outlier in (4.0, 400.0):
    trained = Trained("in_hindsight")
    trained(STEPS[0])
    outputs.append(trained([0.3, -0.7, outlier]))
  np.testing.assert_array_equal(*outputs)
  dynamic = Trained("current_minmax")
  dynamic(STEPS[0])
  assert abs(dynamic([0.3, -0.7, 400.0])[0] - 0.3) > 0.1  # one outlier takes the steps of all others


@pytest.mark.parametrize("name", ["in_hindsight", "moving_average"])
def test_the_first_step_is_that_of_dynamic_ranges(name):
  np.testing.assert_array_equal(Trained(name)(STEPS[0]), Trained("current_minmax")(STEPS[0]))


def test_constant_extrema_are_approached_at_the_rate_of_the_momentum():
  trained = Trained("in_hindsight", momentum=0.8)
  trained([-1.0, 0.0, 1.0])
  for step in range(1, 9):
    trained([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(trained.range, [-2 + 0.8**step, 3 - 2 * 0.8**step], rtol=1e-5)


def test_gradients_pass_inside_the_range_and_not_beyond():
  trained, x = Trained("in_hindsight"), tf.constant([-5.0, 0.5, 5.0])
  trained(STEPS[0])
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = trained.quantizer(x, True, trained.variables)
  assert tape.gradient(y, x).numpy().tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", ["in_hindsight", "current_minmax"])
def test_ranges_stay_outside_of_training_and_when_frozen(name):
  trained = Trained(name)
  trained(STEPS[0])
  trained([-9.0, 0.0, 9.0], training=False)
  assert trained.range == [-1.0, 3.0]
  trained.quantizer.freeze(trained.variables)
  np.testing.assert_allclose(trained([-9.0, 0.0, 9.0]), [-1.0, 0.0, 3.0], atol=0.02)
  assert trained.range == [-1.0, 3.0]


def test_dynamic_ranges_hold_all_of_a_step_and_leave_the_average_for_inference():
  trained = Trained("current_minmax")
  trained(STEPS[0])
  np.testing.assert_allclose(trained([-9.0, 0.0, 9.0]), [-9.0, 0.0, 9.0], atol=0.04)
  np.testing.assert_allclose(trained.range, [-1.8, 3.6], rtol=1e-6)
  np.testing.assert_allclose(trained([9.0], training=False), [3.6], atol=0.02)


def test_a_tensor_of_zeros_is_not_the_first_step():
  trained = Trained("in_hindsight")
  assert not trained([0.0, 0.0, 0.0]).any()
  np.testing.assert_allclose(trained(STEPS[0]), STEPS[0], atol=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_leave_the_range(value):
  trained = Trained("in_hindsight")
  trained(STEPS[0])
  trained([-1.0, 0.0, value])
  assert np.isfinite(trained.range).all()
