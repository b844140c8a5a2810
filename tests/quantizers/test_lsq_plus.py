"""LSQPlusQuantizer: the offset's gradient by hand, a whole zero point, zero on the grid."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kquant.quantizers import LSQPlusQuantizer, LSQQuantizer
from tests.quantizers.test_lsq import built, gradients


def test_gradient_of_the_offset_by_hand():
  # [-1, 2] in 2 bits: step 1, zero point -1, width 3; d/dzero_point = -step for each clipped element.
  quantizer = LSQPlusQuantizer(bits=2)
  variables = built(quantizer, (None, 4), -1.0, 2.0)
  y, of_x, of_variables = gradients(quantizer, variables, [[-4.0, -0.25, 1.75, 3.0]],
                                    [[1.0, 10.0, 100.0, 1000.0]])
  assert y.tolist() == [[-1, 0, 2, 2]] and of_x.tolist() == [[0, 10, 100, 0]]
  of_zero_point = -1.0 * (1 + 1000)
  g = 1 / np.sqrt(4 * 3)
  np.testing.assert_allclose(of_variables["shift"], [g * of_zero_point * 3 / 9], rtol=1e-6)
  _, _, plain = gradients(LSQQuantizer(bits=2), variables, [[-4.0, -0.25, 1.75, 3.0]],
                          [[1.0, 10.0, 100.0, 1000.0]])
  np.testing.assert_allclose(of_variables["log_step"], plain["log_step"])


def test_sgd_moves_the_offset_as_if_it_were_trained_itself():
  quantizer = LSQPlusQuantizer(bits=8)
  x = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32) * 3
  variables = built(quantizer, (None, 50), -1.0, 2.0)
  scale = float(quantizer.encoding(variables).scale[0])
  _, of_x, of_variables = gradients(quantizer, variables, x, np.ones(x.shape))
  of_offset = (of_x == 0).sum() / np.sqrt(50 * 255)  # dy/dbeta is 1 where clipped
  moved = -scale * 255 * -of_variables["shift"][0]  # beta = -scale * zero_point, by SGD of rate 1
  np.testing.assert_allclose(moved, -of_offset, rtol=1e-4)


@pytest.mark.parametrize("shift", [-3.0, -0.3, 0.001, 0.37, 2.0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_point_is_whole_and_on_the_grid_whatever_was_learned(bits, shift):
  quantizer = LSQPlusQuantizer(bits=bits)
  variables = built(quantizer, (None, 500), -1.0, 2.0)
  variables["shift"].assign([shift])
  encoding = quantizer.encoding(variables)
  qmin, qmax = encoding.limits
  assert qmin <= encoding.zero_point[0] <= qmax
  assert not quantizer(tf.zeros((1, 500)), True, variables).numpy().any()
  x = np.random.default_rng(0).uniform(-4, 4, (9, 500)).astype(np.float32)
  result = quantizer(tf.constant(x), True, variables).numpy()
  steps = np.abs(result - encoding.dequantize(encoding.quantize(x))) / encoding.scale
  assert (steps < 1e-3).mean() > 0.99 and steps.max() < 1.001  # but for ties


def test_learning_the_offset_finds_data_that_the_range_missed():
  x = tf.constant(np.random.default_rng(0).uniform(-3.0, 1.0, (1, 4000)).astype(np.float32))
  errors = {}
  for cls in (LSQQuantizer, LSQPlusQuantizer):
    quantizer = cls(bits=4)
    variables = built(quantizer, (None, 4000), -1.0, 3.0)
    error = lambda: tf.reduce_mean(tf.square(quantizer(x, True, variables) - x))  # noqa: B023
    optimizer = keras.optimizers.Adam(0.01)
    for _ in range(150):
      optimizer.minimize(error, [v for v in variables.values() if v.trainable])
    errors[cls] = float(error())
  assert errors[LSQPlusQuantizer] < 2 * (4 / 15) ** 2 / 12 < 0.5 * errors[LSQQuantizer]


def test_symmetric_grid_has_no_offset():
  layer = keras.layers.Layer(name="holder")
  variables = LSQPlusQuantizer(symmetric=True, narrow=True, axis=(1,)).build((4, 3), "tensor", layer)
  assert sorted(variables) == ["log_step", "start"]


def test_step_and_offset_are_trainable():
  layer = keras.layers.Layer(name="holder")
  LSQPlusQuantizer().build((None, 3), "tensor", layer)
  assert sorted(v.name for v in layer.trainable_weights) == ["tensor_log_step:0", "tensor_shift:0"]
