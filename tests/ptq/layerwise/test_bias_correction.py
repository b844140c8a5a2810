"""The shift that rounding makes, by hand and measured; what is left of it after correction."""

import numpy as np
import pytest

import kquant as kq
from kquant.graph.kinds.table import LAYERS
from kquant.ptq.layerwise.bias_correction import output_shift
from tests import models


def test_shift_of_a_dense_kernel_by_hand():
  error = np.array([[0.1, 0.0], [-0.2, 0.5]])  # [in, out]
  np.testing.assert_allclose(output_shift(error, np.array([1.0, 2.0]), LAYERS["Dense"].kernel), [-0.3, 1.0])


def test_shift_of_a_depthwise_kernel_keeps_the_order_of_its_outputs():
  error = np.zeros((1, 2, 2, 2))
  error[0, :, 1, 0] = [0.25, 0.5]  # input 1, multiplier 0: output 2
  np.testing.assert_allclose(output_shift(error, np.array([3.0, 2.0]), LAYERS["DepthwiseConv2D"].kernel),
                             [0, 0, 1.5, 0])


def test_shift_of_a_grouped_kernel_takes_the_inputs_of_its_group():
  error = np.ones((1, 1, 1, 4))  # one input a group, two outputs a group
  np.testing.assert_allclose(output_shift(error, np.array([5.0, 7.0]), LAYERS["Conv2D"].kernel), [5, 5, 7, 7])


@pytest.mark.parametrize("seed", range(3))
def test_shift_is_the_measured_mean_error_of_an_unpadded_convolution(seed):
  import tensorflow as tf
  rng = np.random.default_rng(seed)
  error, x = rng.normal(size=(1, 1, 5, 7)), rng.normal(1.0, 1.0, size=(4, 6, 6, 5))
  measured = tf.nn.conv2d(x, error, 1, "VALID").numpy().mean((0, 1, 2))
  np.testing.assert_allclose(output_shift(error, x.mean((0, 1, 2)), LAYERS["Conv2D"].kernel), measured,
                             atol=1e-12)


def mean_error(model, encodings_of, x):
  final, _ = encodings_of
  return np.abs((final.predict(x, verbose=0) - model.predict(x, verbose=0)).mean(0))


def test_correction_removes_the_mean_error_of_the_output():
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model, images=64)
  rewritten = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  qmodel = kq.calibrate(kq.insert_quantizers(rewritten, "w3a8"), x)
  before = mean_error(model, kq.finalize(qmodel), x)
  kq.correct_bias(qmodel, rewritten, x)
  after = mean_error(model, kq.finalize(qmodel), x)
  assert after.sum() < 0.5 * before.sum()


def test_a_second_correction_changes_nothing_and_kernels_never_change():
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model)
  rewritten = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  qmodel = kq.calibrate(kq.insert_quantizers(rewritten), x)
  first = kq.finalize(kq.correct_bias(qmodel, rewritten, x))[1]
  models.assert_same_encodings(kq.finalize(kq.correct_bias(qmodel, rewritten, x))[1], first)
  uncorrected = kq.finalize(kq.calibrate(kq.insert_quantizers(rewritten), x))[1]
  for key, integers in uncorrected.integers.items():
    assert np.array_equal(first.integers[key], integers) != key.endswith("/bias")


def test_exactly_representable_kernels_leave_the_biases_alone():
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model)
  rewritten = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  qmodel = kq.calibrate(kq.insert_quantizers(rewritten), x)
  exact, _ = kq.finalize(qmodel)
  again = kq.calibrate(kq.insert_quantizers(exact), x)
  bias = again.get_layer("conv").layer.bias.numpy()
  kq.correct_bias(again, exact, x)
  np.testing.assert_allclose(again.get_layer("conv").layer.bias.numpy(), bias, atol=1e-7)


def test_errors_name_the_method_and_the_missing_layer():
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model)
  qmodel = kq.insert_quantizers(kq.rewrite(model, [kq.standardize, kq.fold_batch_norm]))
  with pytest.raises(ValueError, match="'local'.*'total'"):
    kq.correct_bias(qmodel, model, x, method="total")
  with pytest.raises(ValueError, match="no layer 'conv'"):
    kq.correct_bias(qmodel, models.build("sequence"), x)
