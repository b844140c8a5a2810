"""Two unrelated producers, one result: the converter's file of the same encodings gives the same integers."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

import kquant as kq
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.model_files import load_model
from tests import models
from tflite_export.file.reader import float_operators, from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower
from tflite_export.proof.converter import convert, differences

# {model: preset}: one scale a channel wherever the converter can do it.
EQUAL = {"conv_bn_relu": "int8_tflm", "mobile_block": "int8_tflm", "convolutions": "int8_per_tensor",
         "sequence": "int8_per_tensor", "operators": "int8", "lone_batch_norm": "int8_tflm",
         "nested_shared": "int8", "two_inputs": "int8_tflm", "rearranged": "int8"}
NO_REFERENCE = {"rearranged": "DEPTH_TO_SPACE' version '2'"}
"""What the converter writes and the reference kernels do not have."""
NOT_COVERED = {
    "branches": "same scale constraint",  # it forces the inputs of a concatenation to one scale
    "functions": "float: ELU, EXP, ADD, LOG, CONV_2D, MINIMUM, RELU, DEPTHWISE_CONV_2D"}


def quantized(name, preset):
  model = models.build(name)
  return kq.quantize(model, models.sample_inputs(model), config=preset, effort=None)


def random_inputs(program, images=64):
  rng = np.random.default_rng(0)
  return [rng.integers(-128, 128, (images, *program.tensors[name].shape[1:])).astype(np.int8)
          for name in program.inputs]


def test_every_model_of_the_zoo_is_named_once():
  assert sorted([*EQUAL, *NOT_COVERED]) == sorted(models.ZOO)


@pytest.mark.parametrize("name", EQUAL)
def test_outputs_are_the_same_integers(name):
  result = quantized(name, EQUAL[name])
  program, data = lower(result.model, result.encodings), convert(result.model, result.encodings)
  stored, inputs = from_bytes(data), random_inputs(program)
  assert not float_operators(stored)
  assert [list(names) for names in stored.signature] == [list(names) for names in program.signature]
  assert differences(data, to_bytes(program), inputs, "xnnpack") == [0] * len(program.outputs)
  if name in NO_REFERENCE:
    with pytest.raises(ValueError, match=NO_REFERENCE[name]):
      differences(data, to_bytes(program), inputs, "reference")
  else:
    assert differences(data, to_bytes(program), inputs, "reference") == [0] * len(program.outputs)


@pytest.mark.parametrize("name", NOT_COVERED)
def test_what_the_converter_cannot_do_is_named(name):
  result = quantized(name, "int8_per_tensor")
  with pytest.raises(ValueError, match=NOT_COVERED[name]):
    convert(result.model, result.encodings)


@pytest.mark.parametrize("name, preset, words", [
    ("conv_bn_relu", "int8", "'dense' .*the preset int8_tflm"),
    ("sequence", "int8_tflm", "'causal' .*the preset int8_per_tensor"),
    ("convolutions", "int8_tflm", "'transposed' .*the preset int8_per_tensor")])
def test_layers_that_need_one_scale_are_named(name, preset, words):
  result = quantized(name, preset)
  with pytest.raises(UnsupportedLayerError, match=words):
    convert(result.model, result.encodings)


def test_a_kernel_that_the_converter_scales_anew_is_refused():
  result = quantized("nested_shared", "w4a8")
  with pytest.raises(ValueError, match="none of the chosen kernels"):
    convert(result.model, result.encodings)


def test_one_unit_of_one_bias_is_seen():
  result = quantized("nested_shared", "int8")
  data, program = convert(result.model, result.encodings), lower(result.model, result.encodings)
  bias = program.tensors["stem/bias"]
  step = int(np.ceil(program.tensors["stem"].scale[0] / bias.scale.max()))
  program.tensors["stem/bias"] = dataclasses.replace(bias, data=bias.data + step)
  assert differences(data, to_bytes(program), random_inputs(program), "xnnpack")[0] > 0


@pytest.mark.parametrize("preset, dtype, kernel_sets", [
    ("w4a8_unpacked", "int8", ["xnnpack", "reference"]),
    ("w4a8", "int4", ["reference"])])  # the default kernels round otherwise over INT4 than over int8
def test_weights_of_4_bits_give_what_they_give_in_the_converters_int8(preset, dtype, kernel_sets):
  result = quantized("operators", preset)
  data, program = convert(result.model, result.encodings), lower(result.model, result.encodings)
  kernels = [tensor for name, tensor in program.tensors.items() if name.endswith("/kernel")]
  assert {tensor.dtype for tensor in kernels} == {dtype}
  assert max(np.abs(tensor.data).max() for tensor in kernels) == 7
  assert {tensor.dtype for tensor in from_bytes(data).tensors.values()} == {"int8", "int32"}
  for kernels in kernel_sets:
    assert differences(data, to_bytes(program), random_inputs(program), kernels) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("name, size, kernel_sets", [
    ("mobilenet_v2_1.0_224", 224, ["xnnpack"]),  # the reference SOFTMAX may end the process on 1000 classes
    ("mobilenet_v1_0.25_224", 224, ["xnnpack"]), ("resnet8_cifar10", 32, ["xnnpack", "reference"])])
def test_real_models(shared_data, name, size, kernel_sets):
  model = load_model(shared_data / "models" / f"{name}.h5")
  calibration = np.random.default_rng(1).uniform(-1, 1, (8, size, size, 3)).astype(np.float32)
  result = kq.quantize(model, calibration, config="int8_tflm", effort=None)
  data, program = convert(result.model, result.encodings), lower(result.model, result.encodings)
  for kernels in kernel_sets:
    assert differences(data, to_bytes(program), random_inputs(program, images=8), kernels) == [0]


def test_a_failure_without_a_message_is_named_by_its_class(monkeypatch):
  def fail():
    raise RuntimeError

  result = quantized("conv_bn_relu", "int8_tflm")
  monkeypatch.setattr(tf.lite.TFLiteConverter, "from_concrete_functions",
                      lambda *_: types.SimpleNamespace(convert=fail))
  with pytest.raises(ValueError, match="The converter failed: RuntimeError"):
    convert(result.model, result.encodings)
