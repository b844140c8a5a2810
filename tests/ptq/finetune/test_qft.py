"""A student computes what its quantized model does, and gives back what it has learnt to the bit."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from kquant.ptq.finetune.qft import student_of, write_back
from kquant.ptq.finetune.tuned_layers import DEGREES, TunedActivation, TunedLinear
from tests import models


def calibrated(name, preset="w4a8", images=16):
  model = models.build(name)
  inputs = models.sample_inputs(model, images)
  folded = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  return kq.calibrate(kq.insert_quantizers(folded, preset), inputs), folded, inputs


def outputs(model, inputs):
  return tf.nest.flatten(model(tf.nest.pack_sequence_as(model.input, inputs)))


def moved(student, seed=0, steps=1.0):
  """Moves what the student trains by random steps, in place."""
  rng = np.random.default_rng(seed)
  for variable in student.trainable_variables:
    variable.assign_add(steps * rng.normal(size=variable.shape))
  return student


@pytest.mark.parametrize("name, preset", [
    ("mobile_block", "w4a8"), ("convolutions", "w2a4"), ("nested_shared", "w4a8"), ("branches", "int8"),
    ("two_inputs", "int8_per_tensor"), ("conv_bn_relu", "int16x8")])
def test_a_student_starts_as_the_quantized_model(name, preset):
  qmodel, folded, inputs = calibrated(name, preset)
  student = student_of(qmodel, folded, DEGREES)
  for mine, theirs in zip(outputs(student, inputs), outputs(qmodel, inputs), strict=True):
    np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


def test_it_trains_what_was_asked_for():
  qmodel, folded, _ = calibrated("conv_bn_relu")
  names = {degree: {v.name.split("/")[-1] for v in student_of(qmodel, folded, (degree,)).trainable_variables}
           for degree in DEGREES}
  assert names == {"weights": {"kernel_steps:0"}, "biases": {"bias_steps:0"},
                   "weight_scales": {"scale_steps:0"}, "activation_ranges": {"range_steps:0"},
                   "cross_layer_factors": {"factor_steps:0"}}


@pytest.mark.parametrize("network", ["mobile_block", "convolutions"])
@pytest.mark.parametrize("scale", [1.0, 0.97, 1.03])
def test_integers_that_a_layer_holds_are_kept(scale, network):
  """Kernels on their grid, and kernels elsewhere between two integers."""
  qmodel, folded, inputs = calibrated(network)
  for layer in qmodel.layers:
    for name, grid in getattr(layer, "weight_encodings", dict)().items():
      kernel = getattr(layer.layer, name)
      kernel.assign(scale * grid.dequantize(grid.quantize(kernel.numpy())))
  before = kq.finalize(qmodel)[1]
  write_back(student_of(qmodel, folded, DEGREES), qmodel)
  after = kq.finalize(qmodel)[1]
  for key in before.integers:
    if key.endswith("kernel"):
      np.testing.assert_array_equal(after.integers[key], before.integers[key])


@pytest.mark.parametrize("degree, network", [
    *((degree, "mobile_block") for degree in DEGREES if degree != "cross_layer_factors"),
    *((degree, "convolutions") for degree in DEGREES)])
def test_only_what_was_learnt_is_written_back(degree, network):
  qmodel, folded, _ = calibrated(network)
  before = {v.name: v.numpy() for v in qmodel.weights}
  write_back(moved(student_of(qmodel, folded, (degree,))), qmodel)
  changed = {v.name for v in qmodel.weights if not np.array_equal(v, before[v.name])}
  endings = {"weights": ("kernel:0",), "biases": ("bias:0",), "activation_ranges": ("min:0", "max:0"),
             "weight_scales": ("kernel:0", "kernel_min:0", "kernel_max:0"),
             "cross_layer_factors": ("kernel:0", "bias:0", "kernel_min:0", "kernel_max:0")}[degree]
  assert changed and all(name.endswith(endings) for name in changed), changed


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name, preset", [
    ("mobile_block", "w4a8"), ("nested_shared", "w3a4"), ("conv_bn_relu", "int8_per_tensor"),
    ("convolutions", "w4a8"), ("conv_bn_relu", "int16x8")])
def test_the_quantized_model_computes_what_the_student_learnt(name, preset, seed):
  qmodel, folded, inputs = calibrated(name, preset)
  student = moved(student_of(qmodel, folded, DEGREES), seed)
  before = outputs(qmodel, inputs)
  write_back(student, qmodel)
  for mine, theirs, start in zip(outputs(student, inputs), outputs(qmodel, inputs), before):
    step = np.abs(theirs).max() / 2**12
    assert (np.abs(mine - theirs) < step).mean() > 0.95  # but for ties
    assert (np.abs(start - theirs) > step).mean() > 0.3


@pytest.mark.parametrize("name", ["mobile_block", "convolutions"])
def test_the_kernels_that_come_back_are_the_integers_of_the_student(name):
  qmodel, folded, _ = calibrated(name)
  student = moved(student_of(qmodel, folded, DEGREES), steps=3.0)
  write_back(student, qmodel)
  encodings = kq.finalize(qmodel)[1]
  for layer in student.layers:
    if isinstance(layer, TunedLinear):
      np.testing.assert_array_equal(encodings.integers[f"{layer.name}/kernel"], layer.integers())


def test_real_zero_stays_on_the_grid_however_far_a_range_moves():
  qmodel, folded, _ = calibrated("branches")
  student = student_of(qmodel, folded, ("activation_ranges",))
  for layer in student.layers:
    if isinstance(layer, TunedActivation) and layer.learns:
      layer.range_steps.assign([9e9, -9e9])
      np.testing.assert_allclose(layer.limits(), layer.range_ends * [16, 1 / 16], rtol=1e-4)
  write_back(student, qmodel)
  kq.finalize(qmodel)


def test_a_model_without_ranges_is_refused():
  folded = kq.rewrite(models.build("conv_bn_relu"), [kq.standardize, kq.fold_batch_norm])
  with pytest.raises(ValueError, match="kq.calibrate"):
    student_of(kq.insert_quantizers(folded), folded, DEGREES)


def test_what_is_not_written_back_does_not_learn():
  x = keras.Input((6, 6, 3))
  y = keras.layers.PReLU(shared_axes=(1, 2), name="prelu", alpha_initializer="glorot_uniform")(
      keras.layers.Conv2D(4, 3, name="conv")(x))
  model = keras.Model(x, keras.layers.Dense(3, name="dense")(keras.layers.Flatten()(y)))
  qmodel = kq.calibrate(kq.insert_quantizers(model), np.random.default_rng(0).normal(size=(8, 6, 6, 3)))
  student = student_of(qmodel, model, ["weights", "biases"])
  assert not student.get_layer("prelu").trainable_weights
  assert {name.split("/")[0] for name in (weight.name for weight in student.trainable_weights)} == {
      "conv", "dense"}
