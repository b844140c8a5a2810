"""PACTQuantizer: alpha's gradient by hand, both signs, decay, what is stored."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kquant.quantizers import PACTQuantizer
from tests.quantizers.test_lsq import built, gradients


def test_gradients_by_hand():
  # Behind a ReLU: [0, 3] in 2 bits, steps of 1; dy/dalpha = 1 where x > alpha, 0 elsewhere.
  quantizer = PACTQuantizer(bits=2)
  variables = built(quantizer, (None, 5), 0.0, 3.0)
  assert variables["alpha"].numpy().tolist() == [3.0]
  y, of_x, of_variables = gradients(quantizer, variables, [[-1.0, 0.4, 2.6, 3.5, 9.0]],
                                    [[1.0, 10.0, 100.0, 1000.0, 1e4]])
  assert y.tolist() == [[0, 0, 3, 3, 3]] and of_x.tolist() == [[0, 10, 100, 0, 0]]
  np.testing.assert_allclose(of_variables["alpha"], [1000 + 1e4])


def test_both_ends_of_a_tensor_of_both_signs_move_in_proportion():
  # [-1, 2]: zero point -1, steps of 1; dy/dalpha = 1 above and -1/2 below.
  quantizer = PACTQuantizer(bits=2)
  variables = built(quantizer, (None, 3), -1.0, 2.0)
  _, of_x, of_variables = gradients(quantizer, variables, [[-4.0, 0.3, 5.0]], [[10.0, 7.0, 1000.0]])
  assert of_x.tolist() == [[0, 7, 0]]
  np.testing.assert_allclose(of_variables["alpha"], [1000 - 5])
  variables["alpha"].assign([4.0])
  (low,), (high,) = quantizer.encoding(variables).range
  assert (low, high) == (-2.0, 4.0)


@pytest.mark.parametrize("low, high", [(0.0, 6.0), (-3.0, 1.0), (-2.0, 0.0), (-1.0, 1.0)])
@pytest.mark.parametrize("alpha", [-1.0, 0.37, 11.0])
def test_the_grid_of_any_alpha_is_the_stored_one_and_holds_zero(low, high, alpha):
  quantizer = PACTQuantizer(bits=4)
  variables = built(quantizer, (None, 500), low, high)
  np.testing.assert_allclose(variables["alpha"], [max(-low, high)], rtol=0.15)
  variables["alpha"].assign([alpha])
  encoding = quantizer.encoding(variables)
  assert encoding.scale[0] > 0
  if alpha > 0:
    np.testing.assert_allclose(np.abs(encoding.range).max(), alpha, rtol=1e-6)
  x = np.random.default_rng(0).uniform(-12, 12, (9, 500)).astype(np.float32)
  x[0, 0] = 0.0
  result = quantizer(tf.constant(x), True, variables).numpy()
  assert result[0, 0] == 0.0
  steps = np.abs(result - encoding.dequantize(encoding.quantize(x))) / encoding.scale
  assert (steps < 1e-3).mean() > 0.99 and steps.max() < 1.001  # but for ties


def test_decay_is_a_loss_of_the_layer_and_survives_saving():
  quantizer = PACTQuantizer(decay=0.5)
  layer = keras.layers.Layer(name="holder")
  variables = quantizer.build((None, 3), "tensor", layer)
  assert [v.name for v in layer.trainable_weights] == ["tensor_alpha:0"]
  quantizer.set_range(variables, 0.0, 3.0)
  assert float(tf.add_n(layer.losses)) == pytest.approx(0.5 * 9.0)
  assert PACTQuantizer(**quantizer.get_config()).decay == 0.5
  plain = keras.layers.Layer(name="plain")
  PACTQuantizer().build((None, 3), "tensor", plain)
  assert not plain.losses


def test_learning_alpha_under_decay_clips_outliers():
  x = np.abs(np.random.default_rng(0).normal(size=(1, 4000))).astype(np.float32)
  x[0, :4] = 20.0
  quantizer = PACTQuantizer(bits=3)
  variables = built(quantizer, (None, 4000), 0.0, 20.0)
  error = lambda: tf.reduce_mean(tf.square(quantizer(tf.constant(x), True, variables) - tf.constant(x)))
  before, optimizer = float(error()), keras.optimizers.Adam(0.1)
  for _ in range(170):
    optimizer.minimize(lambda: error() + 0.005 * tf.reduce_sum(variables["alpha"] ** 2), [variables["alpha"]])
  assert 2.0 < float(variables["alpha"][0]) < 10.0 and float(error()) < 0.6 * before
