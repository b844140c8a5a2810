"""The simulator runs free and agrees with LiteRT on every tensor of every model of the tiny zoo."""

import functools

import numpy as np
import pytest

import kquant as kq
from kquant.core import images
from kquant.graph.model_files import load_model
from tests import models
from tests.tflite_export.random_chains import random_chain
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower, with_border
from tflite_export.operators.check import check
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof import simulate as module
from tflite_export.proof.delegation import MODES
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.simulate import not_simulated, simulate, simulate_each

IMAGES = 5


@functools.cache
def zoo_program(name: str) -> tuple[IntProgram, tuple[np.ndarray, ...]]:
  """Returns (program with int8 borders, float images for each of its inputs)."""
  model = models.build(name)
  samples = models.sample_inputs(model, images=16)
  result = kq.quantize(model, samples, effort=None)
  program = lower(result.model, result.encodings)
  by_name = dict(zip(model.input_names, samples))
  return program, tuple(by_name[key][:IMAGES] for key in program.inputs)


def bordered(name: str, io: str) -> tuple[IntProgram, list[np.ndarray]]:
  """Returns (program, arrays for its inputs) with borders of type io."""
  inner, samples = zoo_program(name)
  program = with_border(inner, io)
  check(program)
  if io == "float32":
    return program, list(samples)
  arrays = []
  for key, image in zip(program.inputs, samples):
    tensor = program.tensors[key]
    limits = np.iinfo(tensor.dtype)
    integers = np.rint(image / tensor.scale[0]) + tensor.zero_point[0]
    arrays.append(np.clip(integers, limits.min, limits.max).astype(tensor.dtype))
  return program, arrays


def run(program: IntProgram, inputs: list[np.ndarray], *, mode: str,
        threads: int = 1) -> dict[str, np.ndarray]:
  """Returns what LiteRT computes of every tensor that an operator makes."""
  names = list(dict.fromkeys(name for op in program.ops for name in op.outputs))
  runtime = Runtime(to_bytes(program.with_outputs(names)), kernels=mode, threads=threads)
  return dict(zip(names, runtime.run_many(inputs)))


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
  for name, right in expected.items():
    assert found[name].dtype == right.dtype
    np.testing.assert_array_equal(found[name], right, err_msg=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("name", models.ZOO)
def test_every_tensor_of_the_zoo_is_exact(name, io, mode):
  program, inputs = bordered(name, io)
  assert not not_simulated(program, mode=mode)
  found = simulate(program, inputs, mode=mode)
  for threads in (1, 2):
    assert_equal(found, run(program, inputs, mode=mode, threads=threads))
  for key, array in zip(program.inputs, inputs):
    assert found[key] is array
  plain = Runtime(to_bytes(program), kernels=mode).run_many(inputs)
  for key, right in zip(program.outputs, plain):
    np.testing.assert_array_equal(found[key], right)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["mobile_block", "rearranged", "functions"])
def test_each_operator_fed_with_the_runtime_is_exact(name, mode):
  program, inputs = bordered(name, "int8")
  expected = run(program, inputs, mode=mode)
  given = {**dict(zip(program.inputs, inputs)), **expected}
  found = simulate_each(program, given, mode=mode)
  assert set(found) == set(expected)
  assert_equal(found, expected)


def test_each_operator_sees_the_given_tensors_and_not_the_computed_ones():
  program, inputs = bordered("conv_bn_relu", "int8")
  free = simulate(program, inputs)
  changed = dict(free)
  changed["relu"] = np.where(free["relu"] < 100, free["relu"] + 10, free["relu"]).astype(np.int8)
  found = simulate_each(program, changed)
  np.testing.assert_array_equal(found["relu"], free["relu"])
  assert not np.array_equal(found["pool"], free["pool"])
  np.testing.assert_array_equal(found["dense"], free["dense"])


@pytest.mark.parametrize("mode", MODES)
def test_images_do_not_touch_each_other(mode, monkeypatch):
  program, inputs = bordered("branches", "int8")
  together = simulate(program, inputs, mode=mode)
  for i in range(IMAGES):
    alone = simulate(program, [x[i:i + 1] for x in inputs], mode=mode)
    for name, array in together.items():
      np.testing.assert_array_equal(alone[name], array[i:i + 1])
  assert all(len(array) == 0 for array in simulate(program, [x[:0] for x in inputs], mode=mode).values())
  monkeypatch.setattr(module, "_ELEMENTS_AT_ONCE", 1000)
  assert_equal(simulate(program, inputs, mode=mode), together)


def test_inputs_are_left_as_they_are():
  program, inputs = bordered("mobile_block", "int8")
  before = [array.copy() for array in inputs]
  constants = {name: t.data.copy() for name, t in program.tensors.items() if t.data is not None}
  simulate(program, inputs)
  simulate(program, [np.asfortranarray(inputs[0])[::-1]], mode="reference")
  for left, right in zip(before, inputs):
    np.testing.assert_array_equal(left, right)
  for name, data in constants.items():
    np.testing.assert_array_equal(program.tensors[name].data, data)


def test_tensors_whose_first_axis_is_not_the_batch():
  program = IntProgram(inputs=["x"], outputs=["y"])
  program.add_tensor(IntTensor("x", (1, 2, 3), "int8", [0.5], [3]))
  program.add_tensor(IntTensor("shape", (2,), "int32", data=[2, 3]))
  program.add_tensor(IntTensor("y", (2, 3), "int8", [0.5], [3]))
  program.ops = [IntOp("RESHAPE", ["x", "shape"], ["y"], {"new_shape": [2, 3]}, source="rows")]
  x = np.arange(24, dtype=np.int8).reshape(4, 2, 3)
  np.testing.assert_array_equal(simulate(program, [x])["y"], x.reshape(8, 3))
  np.testing.assert_array_equal(simulate_each(program, {"x": x})["y"], x.reshape(8, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_1.0_224", "mobilenet_v1_0.25_224"])
def test_a_trained_network_is_exact(shared_data, name):
  labels = images.read_labels(shared_data / "imagenet")
  x = images.load_images(shared_data / "imagenet", images.ImageFormat(224, 224, preprocess="tf"),
                         names=sorted(labels, key=labels.get)[:20])
  result = kq.quantize(load_model(shared_data / "models" / f"{name}.h5"), x[:16], effort=None)
  program = lower(result.model, result.encodings)
  inputs = [result.encodings[program.inputs[0]].quantize(x[16:]).astype(np.int8)]
  for mode in MODES:
    simulate(program, [inputs[0][:1]], mode=mode)
    found = simulate(program, inputs, mode=mode)
    assert_equal(found, run(program, inputs, mode=mode, threads=2))


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, message", [
    (lambda x: [], r"Expected 1 input arrays \(image\), got 0"),
    (lambda x: [x.astype(np.float32)], "'image': expected int8 of shape .* got float32 of shape"),
    (lambda x: [x[:, :5]], r"'image': expected int8 of shape \(5, 12, 12, 3\), got .* \(5, 5, 12, 3\)"),
])
def test_wrong_inputs(change, message):
  program, (x,) = bordered("conv_bn_relu", "int8")
  with pytest.raises(ValueError, match=message):
    simulate(program, change(x))


def test_missing_tensor_and_unknown_mode():
  program, (x,) = bordered("conv_bn_relu", "int8")
  with pytest.raises(ValueError, match="every tensor that is read; 'relu' is missing"):
    simulate_each(program, {"image": x})
  for call in (simulate, not_simulated):
    arguments = (program, [x]) if call is simulate else (program,)
    with pytest.raises(ValueError, match="mode of xnnpack, reference, got 'builtin'"):
      call(*arguments, mode="builtin")


def one_op(kind: str, x: IntTensor, y: IntTensor, *others: IntTensor, **options) -> IntProgram:
  program = IntProgram(inputs=[x.name], outputs=[y.name])
  for tensor in (x, y, *others):
    program.add_tensor(tensor)
  program.ops = [IntOp(kind, [x.name, *[t.name for t in others]], [y.name], options, source="layer")]
  return program


def grid(name: str, shape=(1, 4), dtype: str = "int8", scale: float = 0.5) -> IntTensor:
  return IntTensor(name, shape, dtype, [scale], [0])


IMAGE = (1, 4, 4, 1)
SIZE = IntTensor("size", (2,), "int32", data=[8, 8])
INDEX = IntTensor("index", (1,), "int32", data=[0])
KERNEL = IntTensor("kernel", (4, 4), "int8", [0.5], [0], data=np.ones((4, 4)))
BIAS = IntTensor("bias", (4,), "int32", [0.25], [0], data=np.zeros(4))
VALUE = IntTensor("value", (), "int8", [0.5], [0], data=0)
FLOATS = IntTensor("x", (1, 4), "float32")


@pytest.mark.parametrize("program, reason", [
    (one_op("EXP", grid("x"), grid("y")), "EXP of layer 'layer': unknown operator"),
    (one_op("TANH", grid("x", dtype="int16"), grid("y")), "tensors of int8"),
    (one_op("FULLY_CONNECTED", grid("x", dtype="int16"), grid("y", dtype="int16"),
            IntTensor("w", (4, 4), "int4", [0.5], [0], data=np.ones((4, 4))),
            IntTensor("b", (4,), "int64", [0.25], [0], data=np.zeros(4))), "tensors of int4"),
    (one_op("RELU", grid("x", dtype="uint8"), grid("y", dtype="uint8")), "tensors of uint8"),
    (one_op("MUL", FLOATS, IntTensor("y", (1, 4), "float32")), "tensors of float32"),
    (one_op("RESIZE_BILINEAR", grid("x", IMAGE), grid("y", (1, 8, 8, 1)), SIZE), "half_pixel_centers False"),
    (one_op("RESIZE_BILINEAR", grid("x", IMAGE), grid("y", (1, 8, 8, 1)), SIZE, half_pixel_centers=True,
            align_corners=True), "align_corners True"),
    (one_op("MAX_POOL_2D", grid("x"), grid("y"), fused_activation_function="TANH"), "fused activation TANH"),
    (one_op("ADD", grid("x"), grid("y", scale=1e-6), grid("z")), "results reach 1.28e\\+08 steps"),
    (one_op("GATHER", grid("x"), grid("y"), INDEX), "the table is computed"),
    (one_op("TRANSPOSE", grid("x"), grid("y"), IntTensor("z", (2,), "int32")), "tensors of int32"),
    (one_op("FULLY_CONNECTED", grid("x"), grid("y")), "the kernel is missing"),
    (one_op("FULLY_CONNECTED", grid("x"), grid("y"), KERNEL), "the bias is missing"),
    (one_op("FULLY_CONNECTED", grid("x"), grid("y"), grid("z", (4, 4)), BIAS), "the kernel is computed"),
    (one_op("FULLY_CONNECTED", grid("x"), grid("y"), KERNEL, grid("z", (4,), "int32")),
     "the bias is computed"),
    (one_op("PRELU", grid("x"), grid("y"), grid("z")), "the slope is computed"),
    (one_op("FILL", IntTensor("x", (2,), "int32"), grid("y"), VALUE), "the shape is computed"),
    (one_op("FILL", grid("x", (1,)), grid("y"), VALUE), "the shape is computed"),
])
def test_what_is_not_simulated_says_why(program, reason):
  if "z" in program.tensors:
    program.inputs.append("z")
  (line,) = not_simulated(program)
  assert line.startswith(f"{program.ops[0].kind} of layer 'layer': ")
  x = [np.zeros(program.tensors[name].shape, program.tensors[name].dtype) for name in program.inputs]
  with pytest.raises(ValueError, match=reason):
    simulate(program, x)
  with pytest.raises(ValueError, match="Not simulated: "):
    simulate_each(program, dict(zip(program.inputs, x)))


def test_chains_of_many_images():
  case = random_chain(np.random.default_rng(0))
  x = np.random.default_rng(1).integers(-128, 128, (40, *case.inputs[0].shape[1:])).astype(np.int8)
  for mode in MODES:
    expected = Runtime(to_bytes(case.program), kernels=mode).run_many([x])
    assert_equal(simulate(case.program, [x], mode=mode), dict(zip(case.program.outputs, expected)))
