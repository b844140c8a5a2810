"""MovingAverageQuantizer: the range by hand, weights, frozen ranges, inference."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.quantizers import MovingAverageQuantizer
from tests.quantizers.test_lsq import built


def range_of(variables):
  return [float(variables[end][0]) for end in ("min", "max")]


def test_range_follows_the_extrema_of_batches_by_hand():
  quantizer = MovingAverageQuantizer(momentum=0.75)
  variables = built(quantizer, (None, 2), -1.0, 1.0)
  quantizer(tf.constant([[0.0, 5.0]]), True, variables)
  assert range_of(variables) == [-0.75, 5.0]  # narrower: the average; wider: at once
  quantizer(tf.constant([[-2.75, 2.0], [1.0, 0.0]]), True, variables)
  assert range_of(variables) == [-2.75, 4.25]


def test_a_batch_is_quantized_on_the_range_that_it_has_moved():
  quantizer = MovingAverageQuantizer(momentum=0.5, bits=2)
  variables = built(quantizer, (None, 1), 0.0, 3.0)
  x = tf.constant([[9.0], [4.0], [0.0]])  # steps of 3, not of 1
  assert quantizer(x, True, variables).numpy().tolist() == [[9.0], [3.0], [0.0]]


@pytest.mark.parametrize("training", [False, None])
def test_range_stays_outside_of_training(training):
  quantizer = MovingAverageQuantizer()
  variables = built(quantizer, (None, 1), -1.0, 1.0)
  quantizer(tf.constant([[9.0]]), training, variables)
  assert range_of(variables) == [-1.0, 1.0]


def test_frozen_range_stays_and_moves_again_without_a_new_trace():
  quantizer = MovingAverageQuantizer(momentum=0.5)
  variables = built(quantizer, (None, 1), 0.0, 1.0)
  traces = []

  @tf.function
  def step(x):
    traces.append(1)
    return quantizer(x, True, variables)

  quantizer.freeze(variables)
  assert step(tf.constant([[9.0]])).numpy().max() == 1.0
  assert range_of(variables) == [0.0, 1.0]
  quantizer.freeze(variables, False)
  step(tf.constant([[9.0]]))
  assert range_of(variables)[1] == 9.0 and len(traces) == 1


def test_range_of_weights_is_that_of_the_weights_and_symmetric():
  quantizer = MovingAverageQuantizer(symmetric=True, narrow=True, axis=(1,), bits=4)
  variables = built(quantizer, (2, 2), -100.0, 100.0)
  x = tf.constant([[0.5, -3.0], [-0.25, 1.0]])
  quantizer(x, True, variables)
  assert variables["min"].numpy().tolist() == [-0.5, -3.0]
  assert variables["max"].numpy().tolist() == [0.5, 3.0]
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = quantizer(x, True, variables)
  assert tape.gradient(y, x).numpy().tolist() == [[1, 1], [1, 1]]  # the largest weights go on learning


def test_range_of_a_frozen_layer_stays():
  layer = QuantizeActivation(MovingAverageQuantizer(momentum=0.5), name="grid")
  layer.build((None, 1))
  layer.set_range(0.0, 1.0)
  layer.trainable = False
  layer(tf.constant([[9.0]]), training=True)
  assert range_of(layer.range_variables) == [0.0, 1.0]
  layer.trainable = True
  layer(tf.constant([[9.0]]), training=True)
  assert range_of(layer.range_variables) == [4.5, 9.0]


def test_nothing_is_trainable_and_momentum_is_checked():
  layer = keras.layers.Layer(name="holder")
  MovingAverageQuantizer().build((None, 3), "tensor", layer)
  assert not layer.trainable_weights
  with pytest.raises(ValueError, match="momentum must be at least 0 and below 1, got 1.0"):
    MovingAverageQuantizer(momentum=1.0)
  assert MovingAverageQuantizer(momentum=0.9).get_config()["momentum"] == 0.9


def test_average_does_not_depend_on_where_zero_is():
  rng = np.random.default_rng(0)
  quantizer = MovingAverageQuantizer(momentum=0.9)
  variables = built(quantizer, (None, 8), 0.0, 0.0)
  expected = np.zeros(2)
  for _ in range(20):
    x = rng.normal(3.0, 1.0, (4, 8)).astype(np.float32)
    quantizer(tf.constant(x), True, variables)
    average = 0.9 * expected + 0.1 * np.array([x.min(), x.max()])
    expected = np.array([min(average[0], x.min()), max(average[1], x.max())])
  np.testing.assert_allclose(range_of(variables), expected, rtol=1e-5)
