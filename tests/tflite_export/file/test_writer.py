"""The file: LiteRT loads it, it is aligned and deterministic; nonsense is refused."""

import copy
import dataclasses

import numpy as np
import pytest
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

from tests.tflite_export import random_recurrent
from tests.tflite_export.random_draws import Draw
from tflite_export.file import reader, writer
from tflite_export.operators.check import check
from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.runtime import Runtime

NONE = {"fused_activation_function": "NONE"}
STRIDES = {"padding": "SAME", "stride_h": 2, "stride_w": 1, **NONE}
SHAPE = (1, 4, 6, 8)
GRID = ([0.05], [-3])
SIGMOID_GRID = ([1 / 256], [-128])


@dataclasses.dataclass
class Case:
  """One operator alone: graph inputs x0, x1, ...; constants c0, c1, ...; outputs y0, y1, ..."""

  version: int
  inputs: str = "x0"
  y: tuple = (SHAPE,)
  options: dict = dataclasses.field(default_factory=dict)
  x: tuple = (SHAPE, SHAPE)
  constants: tuple = ()
  y_grid: tuple = GRID
  y_dtype: str = "int8"

  def program(self, kind: str) -> IntProgram:
    program = IntProgram(description=f"{kind} alone")
    for i, shape in enumerate(self.x[:self.inputs.count("x")]):
      program.inputs.append(program.add_tensor(IntTensor(f"x{i}", shape, "int8", *GRID)))
    for i, data in enumerate(self.constants):
      dtype, grid = {"PRELU": ("int8", ([0.01], [0])), "SELECT_V2": ("bool", (None, None))}.get(
          kind, ("int32", (None, None)))
      program.add_tensor(IntTensor(f"c{i}", np.shape(data), dtype, *grid, data=data))
    for i, shape in enumerate(self.y):
      grid = (None, None) if self.y_dtype in ("float32", "int32") else self.y_grid
      program.outputs.append(program.add_tensor(IntTensor(f"y{i}", shape, self.y_dtype, *grid)))
    program.ops.append(IntOp(kind, self.inputs.split(), list(program.outputs), self.options,
                             self.version, source="layer"))
    return program


@dataclasses.dataclass
class WeightedCase:
  """One operator with an int8 kernel in the layout of the file, per output channel."""

  version: int
  kernel: tuple
  y: tuple
  options: dict
  x: tuple = SHAPE
  axis: int = 0
  output_shape: bool = False

  def program(self, kind: str) -> IntProgram:
    rng = np.random.default_rng(0)
    channels = self.kernel[self.axis]
    scale = rng.uniform(0.001, 0.01, channels).astype(np.float32)
    zeros = np.zeros(channels)
    program = IntProgram(description=f"{kind} alone", inputs=["x0"], outputs=["y0"])
    add = program.add_tensor
    add(IntTensor("x0", self.x, "int8", *GRID))
    add(IntTensor("kernel", self.kernel, "int8", scale, zeros, self.axis,
                  rng.integers(-127, 128, self.kernel)))
    add(IntTensor("bias", (channels,), "int32", np.float32(GRID[0][0]) * scale, zeros, 0,
                  rng.integers(-999, 999, channels)))
    add(IntTensor("y0", self.y[0], "int8", [0.1], [5]))
    names = ["x0", "kernel", "bias"]
    if self.output_shape:
      names = [add(IntTensor("shape", (4,), "int32", data=self.y[0])), "kernel", "x0", "bias"]
    program.ops.append(IntOp(kind, names, ["y0"], self.options, self.version, source="layer"))
    return program


class RecurrentCase:
  """A recurrent operator, and the two that set its state."""

  def program(self, kind: str) -> IntProgram:
    program = random_recurrent.recurrent(Draw(np.random.default_rng(11))).program
    self.y = [program.tensors[name].shape for name in program.outputs]
    return program


CASES = {
    "ADD": Case(2, "x0 x1", options={"fused_activation_function": "RELU"}, y_grid=([0.1], [-128])),
    "AVERAGE_POOL_2D": Case(2, y=((1, 1, 3, 8),), options={
        "padding": "VALID", "stride_h": 2, "stride_w": 2, "filter_height": 3, "filter_width": 2,
        **NONE}),
    "BATCH_MATMUL": Case(2, "x0 x1", x=((1, 4, 6), (1, 6, 5)), y=((1, 4, 5),),
                         options={"adj_x": False, "adj_y": False}, y_grid=([1.0], [0])),
    "CAST": Case(1, y_dtype="int32"),
    "CONCATENATION": Case(2, "x0 x1", y=((1, 4, 12, 8),), options={"axis": 2, **NONE}),
    "CONV_2D": WeightedCase(3, (5, 3, 3, 8), ((1, 2, 6, 5),), {
        **STRIDES, "dilation_h_factor": 1, "dilation_w_factor": 1}),
    "DEPTHWISE_CONV_2D": WeightedCase(3, (1, 3, 3, 16), ((1, 2, 6, 16),), {
        **STRIDES, "depth_multiplier": 2, "dilation_h_factor": 1, "dilation_w_factor": 1}, axis=3),
    "DEPTH_TO_SPACE": Case(1, y=((1, 8, 12, 2),), options={"block_size": 2}),
    "DEQUANTIZE": Case(2, y_dtype="float32"),
    "FILL": RecurrentCase(),
    "FULLY_CONNECTED": WeightedCase(5, (5, 8), ((1, 5),), {
        "fused_activation_function": "RELU6", "keep_num_dims": False}, x=(1, 8)),
    "GATHER": Case(1, "x0 c0", y=((1, 2, 6, 8),), options={"axis": 1}, constants=([2, 0],)),
    "HARD_SWISH": Case(1),
    "LEAKY_RELU": Case(2, options={"alpha": 0.25}),
    "LOGISTIC": Case(2, y_grid=SIGMOID_GRID),
    "MAXIMUM": Case(2, "x0 x1"),
    "MAX_POOL_2D": Case(2, y=((1, 2, 6, 8),), options={
        **STRIDES, "filter_height": 3, "filter_width": 2}),
    "MEAN": Case(2, "x0 c0", y=((1, 8),), options={"keep_dims": False}, constants=([1, 2],)),
    "MINIMUM": Case(2, "x0 x1"),
    "MIRROR_PAD": Case(2, "x0 c0", options={"mode": "SYMMETRIC"}, y=((1, 5, 9, 8),),
                       constants=([[0, 0], [1, 0], [1, 2], [0, 0]],)),
    "MUL": Case(2, "x0 x1", options=NONE, x=(SHAPE, (1, 1, 1, 8))),
    "PAD": Case(2, "x0 c0", y=((1, 5, 9, 8),), constants=([[0, 0], [1, 0], [1, 2], [0, 0]],)),
    "PRELU": Case(1, "x0 c0", constants=(np.full((1, 1, 8), 25),)),
    "QUANTIZE": Case(2, y_grid=([0.06], [7])),
    "REDUCE_MAX": Case(2, "x0 c0", y=((1, 8),), options={"keep_dims": False}, constants=([1, 2],)),
    "REDUCE_MIN": Case(2, "x0 c0", y=((1, 8),), options={"keep_dims": False}, constants=([1, 2],)),
    "RELU": Case(2),
    "RELU6": Case(2),
    "RESHAPE": Case(1, "x0 c0", y=((1, 192),), options={"new_shape": [1, 192]},
                    constants=([1, 192],)),
    "RESIZE_BILINEAR": Case(3, "x0 c0", y=((1, 8, 9, 8),), constants=([8, 9],), options={
        "align_corners": False, "half_pixel_centers": True}),
    "RESIZE_NEAREST_NEIGHBOR": Case(3, "x0 c0", y=((1, 8, 9, 8),), constants=([8, 9],), options={
        "align_corners": False, "half_pixel_centers": True}),
    "SELECT_V2": Case(1, "c0 x0 x1", constants=(np.eye(6, 8) > 0,)),
    "SOFTMAX": Case(2, x=((1, 8),), y=((1, 8),), options={"beta": 1.0}, y_grid=SIGMOID_GRID),
    "SPACE_TO_DEPTH": Case(1, y=((1, 2, 3, 32),), options={"block_size": 2}),
    "SPLIT": Case(1, "c0 x0", y=((1, 4, 6, 4), (1, 4, 6, 4)), options={"num_splits": 2},
                  constants=(3,)),
    "STRIDED_SLICE": Case(
        1, "x0 c0 c1 c2", y=((1, 3, 2, 8),), constants=([0, 1, 0, 0], [1, 4, 4, 8], [1, 1, 2, 1]),
        options=dict.fromkeys(("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask",
                               "shrink_axis_mask"), 0)),
    "SUB": Case(2, "x0 x1", options={"pot_scale_int16": False, **NONE}, y_grid=([0.1], [0])),
    "TANH": Case(2, y_grid=([1 / 128], [0])),
    "TRANSPOSE": Case(2, "x0 c0", y=((1, 6, 8, 4),), constants=([0, 2, 3, 1],)),
    "TRANSPOSE_CONV": WeightedCase(3, (5, 3, 3, 8), ((1, 8, 6, 5),), STRIDES, output_shape=True),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": RecurrentCase(),
}


def test_cases_cover_every_operator_of_the_writer():
  assert set(CASES) == set(OPERATORS)


@pytest.mark.parametrize("kind", CASES)
def test_each_operator_loads_and_keeps_its_shape(kind):
  program = CASES[kind].program(kind)
  check(program)
  data = writer.to_bytes(program)
  rng = np.random.default_rng(1)
  inputs = [rng.integers(-128, 128, program.tensors[name].shape).astype(np.int8)
            for name in program.inputs]
  results = {}
  for kernels in ("xnnpack", "reference"):
    results[kernels] = Runtime(data, kernels=kernels).run(inputs)
    shapes = [result.shape for result in results[kernels]]
    assert shapes == [tuple(shape) for shape in CASES[kind].y], kernels
  for default, reference in zip(*results.values()):
    assert len(np.unique(default)) > 1
    assert np.max(np.abs(default.astype(np.float64) - reference)) <= 1


@pytest.mark.parametrize("kind", CASES)
def test_each_operator_reads_back(kind):
  program = CASES[kind].program(kind)
  back = reader.from_bytes(writer.to_bytes(program))
  assert [t.difference(back.tensors[n]) for n, t in program.tensors.items()] == [None] * len(
      program.tensors)
  assert kind in {op.kind for op in back.ops}
  for op, read in zip(program.ops, back.ops, strict=True):
    assert read.options.items() >= op.options.items()
    assert dataclasses.replace(read, options=op.options, source=op.source) == op


@pytest.mark.parametrize("kernels", ["xnnpack", "reference", "builtin"])
def test_conv_by_hand(kernels):
  # x - z = [[2, 3], [4, 5]]; sums 2*1 - 3*1 + 4*2 + 5*3 = 22 and 3*5 - 4*2 + 5*1 = 12;
  # with the biases 24 and 8; times s_x s_w / s_y = 1/4 and 1/2: 6 and 4; plus z_y = 10.
  program = IntProgram(inputs=["x"], outputs=["y"])
  program.add_tensor(IntTensor("x", (1, 2, 2, 1), "int8", [0.5], [-1]))
  program.add_tensor(IntTensor("w", (2, 2, 2, 1), "int8", [0.25, 0.5], [0, 0], 0,
                               [1, -1, 2, 3, 0, 5, -2, 1]))
  program.add_tensor(IntTensor("b", (2,), "int32", [0.125, 0.25], [0, 0], 0, [2, -4]))
  program.add_tensor(IntTensor("y", (1, 1, 1, 2), "int8", [0.5], [10]))
  options = {"padding": "VALID", "stride_h": 1, "stride_w": 1, **NONE}
  program.ops.append(IntOp("CONV_2D", ["x", "w", "b"], ["y"], options, 3, "conv"))
  x = np.array([1, 2, 3, 4], np.int8).reshape(1, 2, 2, 1)
  (y,) = Runtime(writer.to_bytes(program), kernels=kernels).run([x])
  assert y.tolist() == [[[[16, 14]]]]


@pytest.mark.parametrize("kernels", ["xnnpack", "reference", "builtin"])
def test_dense_by_hand(kernels):
  # 1*4 - 2*2 - 3*6 + 6 = -12 and 1 - 2 + 3 + 3 = 5; times 1/2 and 1: -6 and 5; plus z_y = -3.
  # With RELU the first is clamped to z_y.
  program = IntProgram(inputs=["x"], outputs=["y"])
  program.add_tensor(IntTensor("x", (1, 3), "int8", [0.25], [0]))
  program.add_tensor(IntTensor("w", (2, 3), "int8", [0.5, 1.0], [0, 0], 0, [4, 2, -6, 1, 1, 1]))
  program.add_tensor(IntTensor("b", (2,), "int32", [0.125, 0.25], [0, 0], 0, [6, 3]))
  program.add_tensor(IntTensor("y", (1, 2), "int8", [0.25], [-3]))
  program.ops.append(IntOp("FULLY_CONNECTED", ["x", "w", "b"], ["y"], dict(NONE), 5, "dense"))
  x = np.array([[1, -2, 3]], np.int8)
  assert Runtime(writer.to_bytes(program), kernels=kernels).run([x])[0].tolist() == [[-9, 2]]
  program.ops[0].options["fused_activation_function"] = "RELU"
  assert Runtime(writer.to_bytes(program), kernels=kernels).run([x])[0].tolist() == [[-3, 2]]


@pytest.mark.parametrize("border", ["int8", "uint8", "float32"])
def test_borders_agree(border):
  # relu over an int8 grid of scale 1/4 and zero point 0, between the border's QUANTIZE operators.
  quarter = ([0.25], [0])
  outer = {"int8": quarter, "uint8": ([0.25], [128]), "float32": (None, None)}[border]
  program = IntProgram(inputs=["in"], outputs=["out"])
  for name, dtype, grid in (("in", border, outer), ("x", "int8", quarter), ("y", "int8", quarter),
                            ("out", border, outer)):
    program.add_tensor(IntTensor(name, (1, 4), dtype, *grid))
  last = ("DEQUANTIZE", 2) if border == "float32" else ("QUANTIZE", 2)
  program.ops = [IntOp("QUANTIZE", ["in"], ["x"], version=1 if border == "float32" else 2),
                 IntOp("RELU", ["x"], ["y"], version=2, source="relu"),
                 IntOp(last[0], ["y"], ["out"], version=last[1])]
  q = np.array([[-8, -1, 0, 5]])
  x = {"int8": q.astype(np.int8), "uint8": (q + 128).astype(np.uint8),
       "float32": (q * 0.25).astype(np.float32)}[border]
  for kernels in ("xnnpack", "reference"):
    (y,) = Runtime(writer.to_bytes(program), kernels=kernels).run([x])
    expected = {"int8": [0, 0, 0, 5], "uint8": [128, 128, 128, 133], "float32": [0, 0, 0, 1.25]}
    assert y.tolist() == [expected[border]]


def network() -> IntProgram:
  """conv 3x3/2 (5 channels) -> max pool -> add(pool, pool) -> reshape -> dense (3)."""
  rng = np.random.default_rng(3)
  program = IntProgram(inputs=["image"], outputs=["logits"], description="small network")
  add = program.add_tensor
  grid = ([0.1], [-20])

  def weights(name, kernel_shape, x_scale):
    n = kernel_shape[0]
    scale = rng.uniform(0.001, 0.01, n).astype(np.float32)
    kernel = IntTensor(f"{name}/kernel", kernel_shape, "int8", scale, np.zeros(n), 0,
                       rng.integers(-127, 128, kernel_shape))
    bias = IntTensor(f"{name}/bias", (n,), "int32", np.float32(x_scale) * scale, np.zeros(n), 0,
                     rng.integers(-999, 999, n))
    return [add(kernel), add(bias)]

  add(IntTensor("image", (1, 8, 8, 3), "int8", [0.02], [-1]))
  for name, shape in (("conv", (1, 4, 4, 5)), ("pool", (1, 2, 2, 5))):
    add(IntTensor(name, shape, "int8", *grid))
  add(IntTensor("sum", (1, 2, 2, 5), "int8", [0.2], [-20]))
  add(IntTensor("flat", (1, 20), "int8", [0.2], [-20]))
  add(IntTensor("flat/shape", (2,), "int32", data=[1, 20]))
  add(IntTensor("logits", (1, 3), "int8", [0.3], [4]))
  strides = {"padding": "SAME", "stride_h": 2, "stride_w": 2}
  program.ops = [
      IntOp("CONV_2D", ["image", *weights("conv", (5, 3, 3, 3), 0.02)], ["conv"],
            {**strides, "fused_activation_function": "RELU6"}, 3, "conv"),
      IntOp("MAX_POOL_2D", ["conv"], ["pool"],
            {**strides, "filter_height": 2, "filter_width": 2, **NONE}, 2, "pool"),
      IntOp("ADD", ["pool", "pool"], ["sum"], dict(NONE), 2, "sum"),
      IntOp("RESHAPE", ["sum", "flat/shape"], ["flat"], {"new_shape": [1, 20]}, 1, "flat"),
      IntOp("FULLY_CONNECTED", ["flat", *weights("dense", (3, 20), 0.2)], ["logits"],
            dict(NONE), 5, "dense")]
  return program


def test_network_runs_and_every_tensor_can_be_looked_at():
  program = network()
  names = [op.outputs[0] for op in program.ops]
  image = np.random.default_rng(0).integers(-128, 128, (1, 8, 8, 3)).astype(np.int8)
  for kernels in ("xnnpack", "reference"):
    (logits,) = Runtime(writer.to_bytes(program), kernels=kernels).run([image])
    conv, pool, total, flat, seen = Runtime(
        writer.to_bytes(program.with_outputs(names)), kernels=kernels).run([image])
    assert np.array_equal(seen, logits)
    assert np.array_equal(pool, conv.reshape(1, 2, 2, 2, 2, 5).max((2, 4)))
    assert np.array_equal(flat, total.reshape(1, 20))
    assert np.array_equal(total, pool)  # 2x on a grid of twice the step


@pytest.mark.parametrize("name", ["", "n", "nn", "nnn", "a longer name of the first tensor"])
def test_constants_are_aligned(name):
  program = network()
  program.description = name  # moves everything behind it
  data = writer.to_bytes(program)
  start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
  model = schema.Model.GetRootAs(data, 0)
  constants = [model.Buffers(i) for i in range(1, model.BuffersLength())]
  offsets = [b.DataAsNumpy().__array_interface__["data"][0] - start for b in constants]
  assert len(offsets) == 5 and len(set(offsets)) == 5
  assert [offset % 16 for offset in offsets] == [0] * 5


def two_sums() -> IntProgram:
  """Two ADD of equal options; x and y have one grid, z another."""
  program = IntProgram(description="x", inputs=["x"], outputs=["z"])
  for name, scale in (("x", 0.5), ("y", 0.5), ("z", 1.0)):
    program.add_tensor(IntTensor(name, (1, 4), "int8", [scale], [3]))
  program.ops = [IntOp("ADD", [source, source], [target], dict(NONE), 2) for source, target in ("xy", "yz")]
  return program


def test_equal_tables_are_written_once():
  program = two_sums()
  data = writer.to_bytes(program)
  graph = schema.Model.GetRootAs(data, 0).Subgraphs(0)
  x, y, z = (graph.Tensors(i) for i in range(3))
  grids = [tensor.Quantization()._tab.Pos for tensor in (x, y, z)]
  assert grids[0] == grids[1] != grids[2]
  shapes = {tensor.ShapeAsNumpy().__array_interface__["data"][0] for tensor in (x, y, z)}
  zero_points = {t.Quantization().ZeroPointAsNumpy().__array_interface__["data"][0] for t in (x, y, z)}
  assert len(shapes) == len(zero_points) == 1
  first, second = (graph.Operators(i).BuiltinOptions().Pos for i in range(2))
  assert first == second
  assert data.count(b"x\0") == 1  # tensor, signature and description
  program.ops[1].options["fused_activation_function"] = "RELU"
  graph = schema.Model.GetRootAs(writer.to_bytes(program), 0).Subgraphs(0)
  assert len({graph.Operators(i).BuiltinOptions().Pos for i in range(2)}) == 2
  ops = reader.from_bytes(writer.to_bytes(program)).ops
  assert [op.options["fused_activation_function"] for op in ops] == ["NONE", "RELU"]


def test_shared_tables_read_back_and_run():
  program = two_sums()
  data = writer.to_bytes(program)
  back = reader.from_bytes(data)
  assert [t.difference(program.tensors[name]) for name, t in back.tensors.items()] == [None] * 3
  assert [t.name for t in schema.ModelT.InitFromPackedBuf(data).subgraphs[0].tensors] == [b"x", b"y", b"z"]
  for kernels in ("xnnpack", "reference"):
    (z,) = Runtime(data, kernels=kernels).run([np.array([[3, 5, -9, 100]], np.int8)])
    assert z.tolist() == [[3, 7, -21, 127]]


def test_skeleton():
  data = writer.to_bytes(network())
  model = schema.Model.GetRootAs(data, 0)
  assert data[4:8] == b"TFL3" and model.Version() == 3 and model.SubgraphsLength() == 1
  assert model.Description() == b"small network"
  assert model.Buffers(0).DataIsNone()
  graph = model.Subgraphs(0)
  tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
  assert all(t.HasRank() for t in tensors)
  used = [t.Buffer() for t in tensors if t.Buffer()]
  assert sorted(used) == list(range(1, model.BuffersLength()))
  codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
  assert [(c.BuiltinCode(), c.DeprecatedBuiltinCode(), c.Version()) for c in codes] == [
      (3, 3, 3), (17, 17, 2), (0, 0, 2), (22, 22, 1), (9, 9, 5)]


def test_operator_codes_are_unique_on_kind_and_version():
  program = network()
  again = copy.deepcopy(program.ops[2])
  again.inputs, again.outputs = ["sum", "sum"], ["sum2"]
  program.add_tensor(IntTensor("sum2", (1, 2, 2, 5), "int8", [0.4], [-20]))
  program.ops.insert(3, again)
  assert schema.Model.GetRootAs(writer.to_bytes(program), 0).OperatorCodesLength() == 5
  again.version = 1
  assert schema.Model.GetRootAs(writer.to_bytes(program), 0).OperatorCodesLength() == 6


def test_bytes_are_deterministic():
  program = network()
  assert writer.to_bytes(program) == writer.to_bytes(program)
  assert writer.to_bytes(program) == writer.to_bytes(copy.deepcopy(program))
  assert writer.to_bytes(program) == writer.to_bytes(network())
  program.tensors["conv/kernel"].data = program.tensors["conv/kernel"].data.copy()
  program.tensors["conv/kernel"].data[0, 0, 0, 0] ^= 1
  assert writer.to_bytes(program) != writer.to_bytes(network())


def test_constants_that_are_not_contiguous():
  program = network()
  kernel = program.tensors["dense/kernel"]
  kernel.data = np.asfortranarray(kernel.data)
  assert writer.to_bytes(program) == writer.to_bytes(network())


def test_signature_runner():
  program = network().with_outputs(["logits", "pool"])
  data = writer.to_bytes(program)
  interpreter = litert.Interpreter(model_content=data)
  assert interpreter.get_signature_list() == {
      "serving_default": {"inputs": ["image"], "outputs": ["logits", "pool"]}}
  image = np.random.default_rng(0).integers(-128, 128, (1, 8, 8, 3)).astype(np.int8)
  results = interpreter.get_signature_runner("serving_default")(image=image)
  logits, pool = Runtime(data).run([image])
  assert np.array_equal(results["logits"], logits) and np.array_equal(results["pool"], pool)


@pytest.mark.parametrize("kind, options, message", [
    ("CONV_3D", {}, "'pool': expected an operator the writer knows, got 'CONV_3D'"),
    ("MAX_POOL_2D", {"dilation": 2}, "only options that Pool2DOptions has, got 'dilation'"),
    ("TANH", {"beta": 2}, "an operator without options has, got 'beta'"),
    ("MAX_POOL_2D", {"padding": "FULL"}, "one of SAME, VALID for option 'padding', got 'FULL'"),
    ("MAX_POOL_2D", {"padding": 0}, "one of SAME, VALID"),
    ("MAX_POOL_2D", {"fused_activation_function": "SWISH"}, "one of NONE, RELU, RELU6"),
    ("MAX_POOL_2D", {"stride_h": 1.5}, "int32 integers for option 'stride_h', got 1.5"),
    ("MEAN", {"keep_dims": 1}, "True or False"),
    ("LEAKY_RELU", {"alpha": 0.1}, "a float32 number"),
    ("RESHAPE", {"new_shape": [1, 2.5]}, "int32 integers"),
])
def test_refuses(kind, options, message):
  program = network()
  program.ops[1].kind, program.ops[1].options = kind, options
  with pytest.raises(ValueError, match="pool") as error:
    writer.to_bytes(program)
  assert message in str(error.value)


def test_refuses_unknown_tensor_type():
  program = network()
  program.add_tensor(IntTensor("strange", (1,), "float16"))
  with pytest.raises(ValueError, match="'strange': expected a dtype of .* got 'float16'"):
    writer.to_bytes(program)


@pytest.mark.parametrize("change, message", [
    (lambda p: p.inputs.append("lost"), "Graph inputs: expected tensors of the pro.* got 'lost'"),
    (lambda p: p.outputs.append("lost"), "Graph outputs: "),
    (lambda p: p.ops[2].inputs.append("lost"), "ADD of layer 'sum': .* got 'lost'"),
    (lambda p: p.ops[2].outputs.append("lost"), "ADD of layer 'sum': .* got 'lost'"),
])
def test_refuses_names_without_a_tensor(change, message):
  program = network()
  change(program)
  with pytest.raises(ValueError, match=message):
    writer.to_bytes(program)


def test_a_program_read_back_is_written_again():
  """Nothing a file lacks (layer names, reasons) is needed; an absent input stays absent."""
  program = network()
  program.ops[4].inputs[2] = ""
  program.tensors["requantized"] = IntTensor("requantized", (1, 3), "int8", [0.5], [1])
  program.ops.append(IntOp("QUANTIZE", ["logits"], ["requantized"], version=2, reason="planned"))
  data = writer.to_bytes(program)
  back = reader.from_bytes(data)
  assert back.ops[4].inputs[2] == "" and back.ops[5].reason == ""
  assert writer.to_bytes(back) == data


def test_deprecated_code_field():
  """An operator past code 127 writes the placeholder in the old field, others their code."""
  code = writer._operator_code("GELU", 2)
  assert (code.builtinCode, code.deprecatedBuiltinCode, code.version) == (150, 127, 2)
  code = writer._operator_code("HARD_SWISH", 1)
  assert (code.builtinCode, code.deprecatedBuiltinCode) == (117, 117)
