"""int4 weights and 16-bit activations: packed bytes by hand, rules of single kernels, whole models."""

import numpy as np
import pytest

import kquant as kq
import tflite_export
from kquant.core.encodings import Encodings
from tests import models
from tests.tflite_export.operator_fuzz import delegates
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.delegation import MODES
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.simulate import simulate


def program_of(op: IntOp, *tensors: IntTensor) -> IntProgram:
  """One operator; the tensors without data that it reads are inputs."""
  program = IntProgram(outputs=list(op.outputs), ops=[op])
  for tensor in tensors:
    program.add_tensor(tensor)
  program.inputs = [name for name in op.inputs if program.tensors[name].data is None]
  return program


def dense(weights, bias, *, x_scale=1.0, w_scale=(1.0,), y_scale=1.0) -> IntProgram:
  weights = np.asarray(weights)
  outputs, depth = weights.shape
  w_scale = np.float32(w_scale)
  zeros = np.zeros(len(w_scale))
  return program_of(
      IntOp("FULLY_CONNECTED", ["x", "w", "b"], ["y"], {}, 5, "dense"),
      IntTensor("x", (1, depth), "int8", [x_scale], [0]),
      IntTensor("w", weights.shape, "int4", w_scale, zeros, 0, weights),
      IntTensor("b", (outputs,), "int32", np.float32(x_scale) * w_scale, zeros, 0, bias),
      IntTensor("y", (1, outputs), "int8", [y_scale], [0]))


def agreed(program: IntProgram, inputs, mode: str) -> np.ndarray:
  """What LiteRT and the simulator both give."""
  (expected,) = Runtime(to_bytes(program), kernels=mode).run_many(inputs)
  found = simulate(program, inputs, mode=mode)[program.outputs[0]]
  np.testing.assert_array_equal(found, expected)
  return expected


# --- packing ---------------------------------------------------------------------------------------


def test_nibbles_by_hand_the_earlier_one_is_low():
  program = dense([[1, -1, 7], [-7, 0, 3], [-8, 5, 2]], [0, 0, 0])
  data = to_bytes(program)
  assert bytes([0xF1, 0x97, 0x30, 0x58, 0x02]) in data  # 1 -1 | 7 -7 | 0 3 | -8 5 | 2
  stored = from_bytes(data).tensors["w"]
  assert stored.dtype == "int4" and stored.data.dtype == np.int8
  assert program.tensors["w"].difference(stored) is None


@pytest.mark.parametrize("value", [-9, 8])
def test_what_does_not_fit_4_bits_is_refused(value):
  with pytest.raises(ValueError, match=r"Tensor 'w': expected int4 values in \[-8, 7\], got \["):
    to_bytes(dense([[0, value]], [0]))


def test_a_buffer_of_another_length_is_refused():
  program = dense(np.ones((2, 3)), [0, 0])
  data = to_bytes(program)
  packed = bytes([0x11] * 3)
  assert data.count(packed) == 1
  longer = IntTensor("w", (2, 4), "int4", [1.0], [0], data=np.ones((2, 4)))
  program.tensors["w"] = longer
  program.tensors["w"].shape = (2, 3)
  with pytest.raises(ValueError, match="6 int4 values need 3 bytes, got 4"):
    from_bytes(to_bytes(program))


# --- kernels over int4 -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth, taken", [(4, True), (5, False)])
def test_the_delegate_takes_packed_dense_layers_of_even_depth(depth, taken):
  program = dense(np.ones((2, depth)), [3, -4], w_scale=(1.0, 0.5))
  assert delegates(Runtime(to_bytes(program))) == taken
  x = np.full((1, depth), 2, np.int8)
  assert agreed(program, [x], "xnnpack").tolist() == [[2 * depth + 3, depth - 2]]


def test_sums_of_packed_dense_layers_wrap_at_2_to_the_27_in_the_delegate():
  program = dense([[0, 0]], [2**27], y_scale=2.0**22)
  x = np.zeros((1, 2), np.int8)
  assert agreed(program, [x], "reference").tolist() == [[32]]
  assert agreed(program, [x], "xnnpack").tolist() == [[-32]]


def test_a_scale_of_the_whole_dense_kernel_is_multiplied_in_float32_by_built_in_kernels():
  x_scale, w_scale = np.float32(0.1), np.float32(0.2)
  y_scale = np.float32(x_scale * w_scale) * 2
  program = dense(np.eye(3), [0, 0, 0], x_scale=x_scale, w_scale=(w_scale,), y_scale=y_scale)
  x = np.arange(-99, 99).reshape(-1, 3).astype(np.int8)
  agreed(program, [x], "xnnpack")
  agreed(program, [x], "reference")


# --- kernels over int16 ----------------------------------------------------------------------------


def wide(name: str, shape, scale: float) -> IntTensor:
  return IntTensor(name, shape, "int16", [scale], [0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind, version", [("ADD", 2), ("SUB", 5)])
def test_int16_sums_round_differently_in_whole_vectors(kind, version, mode):
  program = program_of(IntOp(kind, ["a", "b"], ["y"], {"pot_scale_int16": False}, version, "sum"),
                       wide("a", (1, 37), 1e-3), wide("b", (1, 37), 1.7e-4), wide("y", (1, 37), 3.1e-5))
  rng = np.random.default_rng(0)
  inputs = [rng.integers(-60, 61, (400, 37)).astype(np.int16) for _ in range(2)]
  agreed(program, inputs, mode)


@pytest.mark.parametrize("mode", MODES)
def test_floats_become_int16_in_float32_vectors_and_float64_behind_them(mode):
  program = program_of(IntOp("QUANTIZE", ["x"], ["y"], {}, 1, "border"), IntTensor("x", (1, 21), "float32"),
                       wide("y", (1, 21), 0.0123))
  steps = np.random.default_rng(0).integers(-300, 300, (200, 21)) + 0.5
  agreed(program, [(steps * 0.0123).astype(np.float32)], mode)


@pytest.mark.parametrize("mode", MODES)
def test_int16_softmax_of_one_and_of_many_equal_elements(mode):
  for width, expected in ((1, 32767), (512, 64)):
    program = program_of(IntOp("SOFTMAX", ["x"], ["y"], {"beta": 1.0}, 3, "softmax"),
                         wide("x", (1, width), 1e-3), wide("y", (1, width), 1 / 32768))
    assert set(agreed(program, [np.zeros((1, width), np.int16)], mode).ravel()) == {expected}


# --- whole models ----------------------------------------------------------------------------------


def exported(name: str, preset: str, path, **options):
  model = models.build(name)
  inputs = models.sample_inputs(model)
  result = kq.quantize(model, inputs, config=preset, effort=None)
  return result, tflite_export.export(result, path, verify=[x[:3] for x in inputs], certify=True, **options)


@pytest.mark.parametrize("preset", ["w4a8", "int16x8"])
@pytest.mark.parametrize("name", models.ZOO)
def test_the_zoo_is_certified(name, preset, tmp_path):
  _, written = exported(name, preset, tmp_path / "m.tflite")
  assert written.certificate["exact"] and written.certificate["accumulators"]["proved"]
  for result in written.certificate["kernel_sets"].values():
    assert not result["not_simulated"] and not sum(row["mismatching"] for row in result["operators"].values())
  types = {tensor.dtype for tensor in written.program.tensors.values()}
  assert "int4" in types if preset == "w4a8" else {"int16", "int64"} <= types
  activations = {t.dtype for t in written.program.tensors.values() if t.data is None}
  assert ("int8" in activations) == (preset == "w4a8")


def test_int16_follows_the_float_model_better_than_int8():
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model)
  reference = model.predict(x, verbose=0)
  errors = {preset: np.square(kq.quantize(model, x, config=preset,
                                          effort=None).qmodel.predict(x, verbose=0) - reference)
            .mean() for preset in ("int8", "int16x8")}
  assert errors["int16x8"] < errors["int8"]


def test_a_transposed_convolution_keeps_int8_and_the_report_says_so(tmp_path):
  result, written = exported("convolutions", "w4a8", tmp_path / "m.tflite")
  kinds = {name: tensor.dtype for name, tensor in written.program.tensors.items() if name.endswith("/kernel")}
  assert [name for name, dtype in kinds.items() if dtype != "int4"] == ["transposed/kernel"]
  assert np.abs(result.encodings.integers["transposed/kernel"]).max() == 7
  (edit,) = [edit for edit in result.report.edits if "INT4" in edit.what]
  assert edit.layer == "transposed"
  assert edit.what == "kernel of 4 bits stored in int8: the operator of Conv2DTranspose takes no INT4 kernel"


def test_no_kernel_is_packed_over_16_bit_activations(tmp_path):
  model = models.build("convolutions")
  (x,) = models.sample_inputs(model)
  rule = kq.Rule(weights=kq.TensorSpec(bits=4, symmetric=True, per_channel=True),
                 activations=kq.TensorSpec(bits=16, symmetric=True))
  result = kq.quantize(model, x, config=kq.QuantConfig(rules=(rule,)), effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=[x[:3]], certify=True)
  assert written.certificate["exact"]
  stored = from_bytes((tmp_path / "m.tflite").read_bytes())
  assert {t.dtype for t in stored.tensors.values()} == {"int16", "int8", "int32", "int64"}
  kernels = [name for name in result.encodings.integers if name.endswith("/kernel")]
  assert {np.abs(result.encodings.integers[name]).max() for name in kernels} == {7}
  assert not any(result.encodings[name].packed for name in kernels)
  edits = {edit.layer: edit.what for edit in result.report.edits if "INT4" in edit.what}
  assert edits["transposed"].endswith("the operator of Conv2DTranspose takes no INT4 kernel")
  del edits["transposed"]
  assert {f"{name}/kernel" for name in edits} == {*kernels} - {"transposed/kernel"}
  assert set(edits.values()) == {
      "kernel of 4 bits stored in int8: an operator over 16-bit activations takes no INT4 kernel"}


def test_unpacked_files_hold_the_same_integers_in_int8(tmp_path):
  packed, small = exported("conv_bn_relu", "w3a8", tmp_path / "a.tflite")
  unpacked, large = exported("conv_bn_relu", "w3a8_unpacked", tmp_path / "b.tflite")
  for key, integers in packed.encodings.integers.items():
    np.testing.assert_array_equal(integers, unpacked.encodings.integers[key])
  assert {t.dtype for t in large.program.tensors.values()} == {"int8", "int32"} and small.bytes < large.bytes
  assert not [edit for edit in unpacked.report.edits if "INT4" in edit.what]


def test_packing_survives_the_encodings_file(tmp_path):
  result, _ = exported("conv_bn_relu", "w4a8", tmp_path / "m.tflite")
  result.encodings.save(tmp_path / "e.json")
  read = Encodings.load(tmp_path / "e.json")
  assert read == result.encodings and read["conv/kernel"].packed and not read["conv/bias"].packed


@pytest.mark.parametrize("preset, dtype", [("w5a8", "int8"), ("w4a8", "int4"), ("w2a8", "int4")])
def test_kernels_of_at_most_4_bits_are_packed(preset, dtype, tmp_path):
  _, written = exported("conv_bn_relu", preset, tmp_path / "m.tflite")
  assert {written.program.tensors[f"{name}/kernel"].dtype for name in ("conv", "dense")} == {dtype}


def test_fewer_than_8_bits_of_activations_are_simulated_but_not_exported(tmp_path):
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model)
  result = kq.quantize(model, x, config="w4a4", effort=None)
  assert np.isfinite(result.qmodel.predict(x, verbose=0)).all()
  with pytest.raises(ValueError, match="'image' has a 4-bit grid, which is for simulation only: a file"):
    tflite_export.export(result, tmp_path / "m.tflite")


def test_a_float_border_around_int16_and_no_uint8_one(tmp_path):
  result, written = exported("mobile_block", "int16x8", tmp_path / "m.tflite", io="float32")
  assert written.certificate["exact"] and written.program.tensors["image"].dtype == "int16"
  with pytest.raises(ValueError, match="io 'uint8': tensor 'image' has 16-bit activations"):
    tflite_export.export(result, tmp_path / "m.tflite", io="uint8")
