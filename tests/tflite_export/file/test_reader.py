"""What was written comes back field by field; foreign and broken files."""

import flatbuffers
import hypothesis
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import strategies as st

from tflite_export.file import reader, writer
from tflite_export.program.program import IntOp, IntProgram, IntTensor

DTYPES = st.sampled_from(["int8", "int16", "int32", "int64", "uint8"])
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**32 - 1)


def differences(program: IntProgram, back: IntProgram) -> list[str]:
  """Returns what `back` does not hold as `program` does; options are compared where given."""
  lines = [f"{field} differs" for field in ("inputs", "outputs", "description")
           if getattr(program, field) != getattr(back, field)]
  if list(program.tensors) != list(back.tensors) or len(program.ops) != len(back.ops):
    return [*lines, "other tensors or operators"]
  for name, tensor in program.tensors.items():
    difference = tensor.difference(back.tensors[name])
    lines += [f"{name}: {difference}"] if difference else []
  for mine, theirs in zip(program.ops, back.ops):
    lines += [f"{mine.source}: {field} differs"
              for field in ("kind", "inputs", "outputs", "version")
              if getattr(mine, field) != getattr(theirs, field)]
    lines += [f"{mine.source}: option {name} differs" for name, value in mine.options.items()
              if theirs.options.get(name) != value]
  return lines


def random_network(seed: int) -> IntProgram:
  """Returns a chain of convolutions, reshapes and sums with random integers, grids and options."""
  rng = np.random.default_rng(seed)
  size, channels = rng.integers(1, 6, 2).tolist()
  program = IntProgram(inputs=["x"], description=f"seed {seed}")

  def activation(name, shape):
    return program.add_tensor(IntTensor(
        name, shape, "int8", rng.uniform(0.01, 0.1, 1), rng.integers(-128, 128, 1)))

  x = activation("x", (1, size, size, channels))
  for i in range(rng.integers(1, 6)):
    kind = rng.choice(["CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "LEAKY_RELU"])
    y = activation(f"y{i}", program.tensors["x"].shape)
    names, options = [x], {}
    if kind.endswith("CONV_2D"):
      first, axis = (channels, 0) if kind == "CONV_2D" else (1, 3)
      shape = (first, *rng.integers(1, 4, 2).tolist(), channels)
      scale = rng.uniform(1e-4, 1e-2, channels).astype(np.float32)
      axis = None if channels == 1 else axis
      program.add_tensor(IntTensor(f"w{i}", shape, "int8", scale, np.zeros(channels), axis,
                                   rng.integers(-127, 128, shape)))
      program.add_tensor(IntTensor(
          f"b{i}", (channels,), "int32", program.tensors[x].scale * scale, np.zeros(channels),
          None if axis is None else 0, rng.integers(-2**20, 2**20, channels)))
      names += [f"w{i}", f"b{i}"]
      options = {"padding": str(rng.choice(["SAME", "VALID"])), "stride_w": int(rng.integers(1, 9)),
                 "stride_h": int(rng.integers(1, 9)), "dilation_w_factor": int(rng.integers(1, 9)),
                 "fused_activation_function": str(rng.choice(["NONE", "RELU", "RELU6"]))}
    elif kind == "ADD":
      names.append("x")
      options = {"pot_scale_int16": bool(rng.integers(2))}
    else:
      options = {"alpha": float(np.float32(rng.uniform()))}
    program.ops.append(IntOp(str(kind), names, [y], options, int(rng.integers(1, 9)), f"layer {i}"))
    x = y
  program.outputs = [x]
  return program


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(SEEDS)
def test_networks_read_back(seed):
  program = random_network(seed)
  data = writer.to_bytes(program)
  back = reader.from_bytes(data)
  assert differences(program, back) == []
  assert writer.to_bytes(back) == data


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.dictionaries(NAMES, DTYPES, max_size=8), NAMES, SEEDS)
def test_tensors_read_back(dtypes, description, seed):
  """Constants of every type, rank and size (0 too), with and without grids, under any name."""
  rng = np.random.default_rng(seed)
  program = IntProgram(description=description)
  for name, dtype in dtypes.items():
    shape = tuple(rng.integers(0 if rng.integers(4) == 0 else 1, 6, rng.integers(0, 5)).tolist())
    info = np.iinfo(dtype)
    data = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    data = data if rng.integers(2) else None
    axis = int(rng.integers(len(shape))) if shape and rng.integers(2) else None
    n = 1 if axis is None else shape[axis]
    axis = axis if n > 1 else None
    scale = rng.uniform(1e-9, 9, max(n, 1)) if rng.integers(2) else None
    axis = None if scale is None else axis
    zero_point = None if scale is None else rng.integers(-2**40, 2**40, max(n, 1))
    program.add_tensor(IntTensor(name, shape, dtype, scale, zero_point, axis, data))
  assert differences(program, reader.from_bytes(writer.to_bytes(program))) == []


def test_constants_are_views_of_the_file():
  data = writer.to_bytes(random_network(0))
  constants = [t.data for t in reader.from_bytes(data).tensors.values() if t.data is not None]
  whole = np.frombuffer(data, np.uint8)
  assert constants and all(np.shares_memory(whole, constant) for constant in constants)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"PK\x03\x04" * 100, b"\x00" * 64])
def test_other_files_are_refused(data):
  with pytest.raises(ValueError, match="Expected a TFLite file"):
    reader.from_bytes(data)


def test_cut_files_are_refused():
  data = writer.to_bytes(random_network(7))
  for end in range(8, len(data) - 16, 7):
    with pytest.raises(ValueError, match="Expected a whole TFLite file"):
      reader.from_bytes(data[:end])


def _pack(model: schema.ModelT) -> bytes:
  """Returns the file of schema objects, as another producer may fill them."""
  builder = flatbuffers.Builder(0)
  builder.Finish(model.Pack(builder), b"TFL3")
  return bytes(builder.Output())


def _foreign(**changes) -> schema.ModelT:
  """A file of another producer: custom operator, absent input, missing grids, doubled names."""
  tensors = [
      schema.TensorT(name="x", shape=[1, 2], type=schema.TensorType.FLOAT32, buffer=1),
      schema.TensorT(name="x", shape=[2], type=schema.TensorType.FLOAT16, buffer=2,
                     quantization=schema.QuantizationParametersT(min=[0.0], max=[1.0])),
      schema.TensorT(shape=[], type=schema.TensorType.BOOL, buffer=0,
                     quantization=schema.QuantizationParametersT(scale=[0.5])),
      schema.TensorT(name="s", shape=[1], type=schema.TensorType.STRING, buffer=3),
      schema.TensorT(name="y", shape=[1, 2], type=schema.TensorType.FLOAT32, buffer=4)]
  buffers = [schema.BufferT(), schema.BufferT(),
             schema.BufferT(data=np.float16([1.5, -2]).view(np.uint8)),
             schema.BufferT(data=np.frombuffer(b"text", np.uint8)), schema.BufferT()]
  operators = [
      schema.OperatorT(opcodeIndex=0, inputs=[0, 1, -1], outputs=[4]),
      schema.OperatorT(opcodeIndex=1, inputs=[4], outputs=[2]),
      schema.OperatorT(opcodeIndex=2, inputs=[4], outputs=[]),
      schema.OperatorT(opcodeIndex=3, inputs=[4], outputs=[])]
  codes = [schema.OperatorCodeT(deprecatedBuiltinCode=9, version=2),
           schema.OperatorCodeT(deprecatedBuiltinCode=127, builtinCode=150),
           schema.OperatorCodeT(deprecatedBuiltinCode=32, builtinCode=32, customCode="FlexErf"),
           schema.OperatorCodeT(deprecatedBuiltinCode=127, builtinCode=5000)]
  graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[4], operators=operators)
  return schema.ModelT(**{"version": 3, "operatorCodes": codes, "subgraphs": [graph],
                          "buffers": buffers, **changes})


def test_foreign_file():
  program = reader.from_bytes(_pack(_foreign()))
  assert list(program.tensors) == ["x", "x#1", "tensor_2", "s", "y"]
  assert [t.dtype for t in program.tensors.values()] == [
      "float32", "float16", "bool", "string", "float32"]
  assert program.tensors["x"].data is None and program.tensors["s"].data is None
  assert program.tensors["x#1"].data.tolist() == [1.5, -2] and program.tensors["x#1"].scale is None
  scalar = program.tensors["tensor_2"]
  assert scalar.shape == () and scalar.scale.tolist() == [0.5] and scalar.zero_point.tolist() == [0]
  assert program.ops == [
      IntOp("FULLY_CONNECTED", ["x", "x#1", ""], ["y"], version=2),
      IntOp("GELU", ["y"], ["tensor_2"]),
      IntOp("CUSTOM", ["y"], [], {"custom_code": "FlexErf"}),
      IntOp("BUILTIN_5000", ["y"], [])]
  assert program.inputs == ["x"] and program.outputs == ["y"] and program.description == ""
  assert reader.float_operators(program) == ["FULLY_CONNECTED", "GELU", "CUSTOM", "BUILTIN_5000"]


@pytest.mark.parametrize("changes, message", [
    ({"version": 2}, "schema version 2"),
    ({"subgraphs": []}, "0 subgraphs"),
    ({"buffers": [schema.BufferT(data=[1, 2, 3, 4])] * 5}, "values"),
    ({"buffers": [schema.BufferT(offset=4096, size=8)] * 5}, "behind the tables"),
    ({"operatorCodes": []}, "cannot be read"),
])
def test_files_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    reader.from_bytes(_pack(_foreign(**changes)))


def _absent_graph_input(graph):
  graph.inputs = [-1]


def _absent_graph_output(graph):
  graph.outputs = [4, -1]


def _absent_output(graph):
  graph.operators[1].outputs = [-1]


def _negative_input(graph):
  graph.operators[0].inputs = [0, 1, -2]


@pytest.mark.parametrize("change, message", [
    (_absent_graph_input, "inputs hold tensor -1"), (_absent_graph_output, "outputs hold tensor -1"),
    (_absent_output, "outputs hold tensor -1"), (_negative_input, "inputs hold tensor -2")])
def test_tensors_that_there_cannot_be_are_refused(change, message):
  model = _foreign()
  change(model.subgraphs[0])
  with pytest.raises(ValueError, match=message):
    reader.from_bytes(_pack(model))


def test_options_of_another_table_are_refused():
  model = _foreign()
  model.subgraphs[0].operators[0].builtinOptionsType = schema.BuiltinOptions.AddOptions
  model.subgraphs[0].operators[0].builtinOptions = schema.AddOptionsT()
  with pytest.raises(ValueError, match="FULLY_CONNECTED has options of type"):
    reader.from_bytes(_pack(model))


def test_float_operators_leave_out_the_border():
  program = IntProgram(inputs=["x"], outputs=["y"])
  for name, dtype in (("x", "float32"), ("q", "int8"), ("r", "int8"), ("f", "float32"),
                      ("g", "float32"), ("s", "int8"), ("y", "float32")):
    program.add_tensor(IntTensor(name, (1,), dtype))
  chain = [("QUANTIZE", "x", "q"), ("RELU", "q", "r"), ("DEQUANTIZE", "r", "f"), ("EXP", "f", "g"),
           ("QUANTIZE", "g", "s"), ("DEQUANTIZE", "s", "y")]
  program.ops = [IntOp(kind, [a], [b]) for kind, a, b in chain]
  assert reader.float_operators(program) == ["DEQUANTIZE", "EXP", "QUANTIZE"]


def test_reads_a_file_of_the_tf_converter():
  tf = pytest.importorskip("tensorflow")
  kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 2, 4)), tf.float32)

  @tf.function(input_signature=[tf.TensorSpec((1, 6, 6, 2), tf.float32)])
  def network(x):
    return tf.math.erf(tf.nn.relu6(tf.nn.conv2d(x, kernel, 2, "VALID")))

  converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
  converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS,
                                         tf.lite.OpsSet.SELECT_TF_OPS]
  program = reader.from_bytes(converter.convert())
  assert [op.kind for op in program.ops] == ["CONV_2D", "CUSTOM"]
  assert program.ops[0].options["padding"] == "VALID" and program.ops[0].options["stride_h"] == 2
  assert program.ops[0].options["fused_activation_function"] == "RELU6"
  assert reader.float_operators(program) == ["CONV_2D", "CUSTOM"]
  stored = program.tensors[program.ops[0].inputs[1]].data
  assert np.array_equal(stored, kernel.numpy().transpose(3, 0, 1, 2))
