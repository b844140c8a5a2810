"""The certificate of every model of the zoo: zero mismatching elements; planted faults are found."""

import json

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from tests import models
from tests.tflite_export import faults
from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.certificate import accumulator_bound, inexact_operators
from tflite_export.proof.errors import VerificationError


def exported(name, path, **options):
  model = models.build(name)
  inputs = models.sample_inputs(model)
  return tflite_export.export(kq.quantize(model, inputs,
                                          effort=None), path, verify=[x[:3] for x in inputs], **options)


@pytest.mark.parametrize("name", models.ZOO)
def test_every_tensor_of_the_zoo_is_exact_on_both_sets_of_kernels(name, tmp_path):
  certificate = exported(name, tmp_path / "m.tflite", certify=True).certificate
  assert certificate["exact"] and certificate["accumulators"]["proved"]
  assert set(certificate["kernel_sets"]) == {"xnnpack", "reference"}
  for result in certificate["kernel_sets"].values():
    assert not result["not_simulated"] and sum(row["elements"] for row in result["operators"].values()) > 100
    for kind, row in result["operators"].items():
      assert row["max_lsb"] <= (kind == "SOFTMAX"), (kind, row)
    weighted = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}.intersection(result["operators"])
    assert weighted <= result["ties"]["operators"].keys() and not result["ties"]["left_out"]
    for kind, row in result["ties"]["operators"].items():
      assert row["elements"] and row["mismatching"] == 0, (kind, row)
  assert certificate["inputs"] == {"real": 3, "random": 2}
  json.dumps(certificate)


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_borders_are_certified_too(io, tmp_path):
  certificate = exported("mobile_block", tmp_path / "m.tflite", certify=True, io=io).certificate
  assert certificate["exact"]
  assert "QUANTIZE" in certificate["kernel_sets"]["xnnpack"]["operators"]


def test_a_kernel_that_differs_by_one_is_found_and_no_file_is_left(tmp_path, monkeypatch):
  faults.plant(monkeypatch, "ADD", faults.off_by_one)
  with pytest.raises(VerificationError, match="xnnpack kernels: ADD differs in .* by up to 1 LSB"):
    exported("mobile_block", tmp_path / "m.tflite", certify=True)
  assert not list(tmp_path.iterdir())


def test_accumulator_bound_by_hand():
  kernel = np.array([[3, -4], [100, 27]], np.int8)  # [out, in]
  bias = np.array([-10, 5], np.int32)
  program = IntProgram(inputs=["x"], outputs=["y"])
  for tensor in (IntTensor("x", (1, 2), "int8", 0.1, -100),
                 IntTensor("k", (2, 2), "int8", [0.5, 0.5], [0, 0], 0, kernel),
                 IntTensor("b", (2,), "int32", [0.05, 0.05], [0, 0], 0, bias),
                 IntTensor("y", (1, 2), "int8", 1.0, 0)):
    program.add_tensor(tensor)
  program.ops.append(IntOp("FULLY_CONNECTED", ["x", "k", "b"], ["y"], {}, 5, "dense"))
  # max|q - z| = max(127 + 100, 128 - 100) = 227; channels: 10 + 227 * 7 and 5 + 227 * 127
  assert accumulator_bound(program) == {"bound": 5 + 227 * 127, "layer": "y", "limit": 2**31, "proved": True}


def test_an_operator_that_is_not_simulated_is_named_never_silent(tmp_path, monkeypatch):
  written = exported("mobile_block", tmp_path / "m.tflite")
  monkeypatch.delitem(OPERATORS, "ADD")
  certificate = tflite_export.certify(written.path.read_bytes(), [np.zeros((1, 12, 12, 3), np.int8)])
  assert not certificate["exact"]
  assert not inexact_operators(certificate)
  assert "ADD of layer" in certificate["kernel_sets"]["xnnpack"]["not_simulated"][0]


def test_a_softmax_that_would_end_the_process_is_named_and_the_rest_compared(tmp_path):
  image = keras.Input((4, 4, 3), name="image")
  x = layers.Dense(1000, name="flat")(layers.GlobalAveragePooling2D()(image))
  model = keras.Model(image, layers.Softmax(name="classes")(x))
  x = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 3)).astype(np.float32)
  written = tflite_export.export(kq.quantize(model, x,
                                             effort=None), tmp_path / "m.tflite", verify=x, certify=True)
  default, reference = (written.certificate["kernel_sets"][name] for name in ("xnnpack", "reference"))
  assert not default["not_simulated"] and "SOFTMAX" in default["operators"]
  assert "ends the process" in reference["not_simulated"][0]
  assert set(reference["operators"]) == {"FULLY_CONNECTED", "MEAN"}
  assert not written.certificate["exact"]


def test_certify_without_inputs_is_an_error(tmp_path):
  model = models.build("conv_bn_relu")
  result = kq.quantize(model, models.sample_inputs(model), effort=None)
  with pytest.raises(ValueError, match="give verify=images"):
    tflite_export.export(result, tmp_path / "m.tflite", certify=True)


def test_a_file_without_its_inputs_is_refused(tmp_path):
  model = keras.Sequential([layers.Dense(2, name="dense", input_shape=(3,))])
  file = tflite_export.export(kq.quantize(model, np.ones((4, 3), np.float32),
                                          effort=None), tmp_path / "m.tflite").path
  with pytest.raises(ValueError, match=r"certify: expected 1 input arrays \(dense_input\), got 0"):
    tflite_export.certify(file.read_bytes(), [])
