"""IntProgram -> the bytes of a .tflite file, with the official schema classes.

The file: identifier TFL3, schema version 3, one subgraph, one buffer a constant (buffer 0 is
empty) or metadata entry, one signature "serving_default" with the names that the program gives its
inputs and outputs. Equal strings, vectors, grids and options are written once. The writer writes what it
gets and never changes an integer: whether a program obeys the rules of the runtimes is the question of
`operators.check.check`, asked before. What it writes, `reader` reads back with code of its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kquant.core.numerics import packed_int4
from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import ACTIVATIONS, RECURRENT_ACTIVATION, IntOp, IntProgram, IntTensor

SCHEMA_VERSION = 3
FILE_IDENTIFIER = b"TFL3"
SIGNATURE_KEY = "serving_default"
CONSTANT_ALIGNMENT = 16
"""Bytes. Microcontrollers read constants in place with vector loads, which fault otherwise."""

_LAST_DEPRECATED_CODE = 127
_TABLE_BYTES = 1024
"""Room for the tables of one tensor or operator; more than they need."""

_TENSOR_TYPES = {
    "bool": schema.TensorType.BOOL,
    "float32": schema.TensorType.FLOAT32,
    "int4": schema.TensorType.INT4,
    "int8": schema.TensorType.INT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "uint8": schema.TensorType.UINT8,
}

# Option fields that the program holds by name.
_ENUMS = {
    "mode": {"REFLECT": schema.MirrorPadMode.REFLECT, "SYMMETRIC": schema.MirrorPadMode.SYMMETRIC},
    "padding": {"SAME": schema.Padding.SAME, "VALID": schema.Padding.VALID},
    "fused_activation_function": {
        name: getattr(schema.ActivationFunctionType, name) for name in (*ACTIVATIONS, RECURRENT_ACTIVATION)},
}


def to_bytes(program: IntProgram) -> bytes:
  """Returns `program` as a .tflite file; equal programs give equal bytes.

  Tensors and operators keep their order; constants start at multiples of 16 bytes; an input "" is
  written as absent. Export calls `operators.check.check` first: this function takes any program, so
  that one read back from a file, or one that breaks a rule on purpose, can be written too.

  Raises:
    ValueError: an operator, option or tensor type that this writer does not know, or a name that is
      no tensor of the program.
  """
  model = _model(program)
  builder = _SharingBuilder(_expected_size(program))
  builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
  return bytes(memoryview(builder.Bytes)[builder.Head():])


class _SharingBuilder(flatbuffers.Builder):
  """Writes equal content once; all that hold it point there, as the format allows.

  Constants are left alone: a buffer of its own has each, at its own alignment.
  """

  def __init__(self, size: int):
    super().__init__(size)
    self._offsets: dict[tuple, int] = {}

  def once(self, key: tuple, write: Callable[[], int]) -> int:
    """Returns the offset of what `write` writes; calls it for the first of equal keys only."""
    if key not in self._offsets:
      self._offsets[key] = write()
    return self._offsets[key]

  def CreateString(self, s, *args):
    """Writes a string."""
    return self.once(("string", s), functools.partial(super().CreateString, s, *args))

  def CreateNumpyVector(self, x):
    """Writes a vector of numbers; the bytes of a constant are no candidates."""
    write = functools.partial(super().CreateNumpyVector, x)
    return write() if x.dtype == np.uint8 else self.once((x.dtype.str, x.tobytes()), write)


class _Shared:
  """A table of the schema that the file holds once, however many tensors or operators have an equal one."""

  def __init__(self, table: Any):
    self._table = table

  def Pack(self, builder: _SharingBuilder) -> int:
    """Returns the offset of the table."""
    fields = ((name, value.tobytes() if isinstance(value, np.ndarray) else value)
              for name, value in vars(self._table).items())
    return builder.once((type(self._table), *fields), lambda: self._table.Pack(builder))


def _expected_size(program: IntProgram) -> int:
  """Returns about how many bytes the file has; growing the builder later would copy it all."""
  arrays = [array for tensor in program.tensors.values()
            for array in (tensor.data, tensor.scale, tensor.zero_point) if array is not None]
  tables = len(program.tensors) + len(program.ops) + 1
  return sum(array.nbytes for array in arrays) + tables * _TABLE_BYTES


def _model(program: IntProgram) -> schema.ModelT:
  """Returns the whole file as schema objects."""
  index = {name: i for i, name in enumerate(program.tensors)}
  codes: dict[tuple[str, int], int] = {}
  buffers = [schema.BufferT()]
  tensors = [_tensor(tensor, buffers) for tensor in program.tensors.values()]
  operators = [_operator(op, index, codes) for op in program.ops]
  subgraph = schema.SubGraphT(
      tensors=tensors, inputs=_indices(program.inputs, index, where="Graph inputs"),
      outputs=_indices(program.outputs, index, where="Graph outputs"), operators=operators,
      name="main")
  metadata = [_metadata(name, content, buffers) for name, content in program.metadata.items()]
  return schema.ModelT(
      version=SCHEMA_VERSION, operatorCodes=[_operator_code(*code) for code in codes],
      subgraphs=[subgraph], description=program.description, buffers=buffers,
      signatureDefs=[_signature(program, index)], metadata=metadata or None)


def _indices(names: list[str], index: dict[str, int], *, where: str) -> np.ndarray:
  """Returns the tensor indices of `names`, int32; -1 for "", an input that is absent."""
  for name in names:
    if name and name not in index:
      raise ValueError(f"{where}: expected tensors of the program, got {name!r}.")
  return np.array([index[name] if name else -1 for name in names], np.int32)


def _signature(program: IntProgram, index: dict[str, int]) -> schema.SignatureDefT:
  """Returns the signature: each graph input and output under its name."""
  inputs, outputs = ([schema.TensorMapT(name=name, tensorIndex=index[tensor])
                      for name, tensor in names.items()] for names in program.signature)
  return schema.SignatureDefT(inputs=inputs, outputs=outputs, signatureKey=SIGNATURE_KEY, subgraphIndex=0)


def _metadata(name: str, content: bytes, buffers: list[schema.BufferT]) -> schema.MetadataT:
  """Returns the metadata entry; appends its buffer to `buffers`."""
  buffers.append(_ConstantBufferT(data=np.frombuffer(content, np.uint8)))
  return schema.MetadataT(name=name, buffer=len(buffers) - 1)


class _ConstantBufferT(schema.BufferT):
  """A buffer whose data starts at a multiple of CONSTANT_ALIGNMENT bytes of the file."""

  def Pack(self, builder):
    """Writes padding (a flatbuffer grows backwards), then the buffer as the schema does."""
    builder.Prep(CONSTANT_ALIGNMENT, self.data.nbytes)
    return super().Pack(builder)


def _tensor(tensor: IntTensor, buffers: list[schema.BufferT]) -> schema.TensorT:
  """Returns the schema tensor; appends the buffer of a constant to `buffers`."""
  if tensor.dtype not in _TENSOR_TYPES:
    raise ValueError(f"Tensor {tensor.name!r}: expected a dtype of {', '.join(_TENSOR_TYPES)}, "
                     f"got {tensor.dtype!r}.")
  buffer = 0
  if tensor.data is not None:
    buffer = len(buffers)
    data = _packed(tensor) if tensor.dtype == "int4" else np.ascontiguousarray(tensor.data).reshape(-1)
    buffers.append(_ConstantBufferT(data=data.view(np.uint8)))
  signature = np.array([-1, *tensor.shape[1:]], np.int32) if tensor.open_batch else None
  return schema.TensorT(
      shape=np.array(tensor.shape, np.int32), shapeSignature=signature, hasRank=True,
      type=_TENSOR_TYPES[tensor.dtype], buffer=buffer, name=tensor.name, isVariable=tensor.variable,
      quantization=_quantization(tensor))


def _packed(tensor: IntTensor) -> np.ndarray:
  """Returns int4 values as `packed_int4` has them; raises ValueError for others."""
  values = tensor.data.reshape(-1)
  if values.size and (values.min() < -8 or values.max() > 7):
    raise ValueError(f"Tensor {tensor.name!r}: expected int4 values in [-8, 7], got "
                     f"[{values.min()}, {values.max()}].")
  return packed_int4(values)


def _quantization(tensor: IntTensor) -> _Shared | None:
  """Returns scale (float32 [n]), zero_point (int64 [n]) and channel axis; None if not quantized."""
  if tensor.scale is None:
    return None
  return _Shared(schema.QuantizationParametersT(
      scale=tensor.scale, zeroPoint=tensor.zero_point, quantizedDimension=tensor.axis or 0))


def _operator(op: IntOp, index: dict[str, int], codes: dict) -> schema.OperatorT:
  """Returns the schema operator; enters its (kind, version) in `codes`, {code: position}."""
  if op.kind not in OPERATORS:
    raise ValueError(f"Layer {op.source!r}: expected an operator the writer knows, got "
                     f"{op.kind!r}; known are {', '.join(sorted(OPERATORS))}.")
  where = f"{op.kind} of layer {op.source!r}"
  options_name = OPERATORS[op.kind].options
  options_type = getattr(schema.BuiltinOptions, options_name or "NONE")
  return schema.OperatorT(
      opcodeIndex=codes.setdefault((op.kind, op.version), len(codes)),
      inputs=_indices(op.inputs, index, where=where),
      outputs=_indices(op.outputs, index, where=where),
      intermediates=_indices(op.intermediates, index, where=where) if op.intermediates else None,
      builtinOptionsType=options_type, builtinOptions=_options_table(op, options_name))


def _operator_code(kind: str, version: int) -> schema.OperatorCodeT:
  """Returns the operator code; old readers look at the deprecated field, which holds up to 127."""
  code = getattr(schema.BuiltinOperator, kind)
  return schema.OperatorCodeT(builtinCode=code, version=version,
                              deprecatedBuiltinCode=min(code, _LAST_DEPRECATED_CODE))


def _options_table(op: IntOp, options_name: str | None) -> _Shared | None:
  """Returns the options object of `op`: the fields that op.options names, defaults elsewhere."""
  table = getattr(schema, options_name + "T")() if options_name else None
  fields = vars(table) if table else {}
  for name, value in op.options.items():
    first, *others = name.split("_")
    field = first + "".join(part.capitalize() for part in others)
    if field not in fields:
      raise ValueError(f"{op.kind} of layer {op.source!r}: expected only options that "
                       f"{options_name or 'an operator without options'} has, got {name!r}.")
    setattr(table, field, _option_value(op, name, value, default=fields[field]))
  return _Shared(table) if table else None


def _option_value(op: IntOp, name: str, value: Any, *, default: Any) -> Any:
  """Returns `value` as the schema holds it; refuses what the file could not give back unchanged."""
  if name in _ENUMS:
    choices = _ENUMS[name]
    fits, expected = isinstance(value, str) and value in choices, "one of " + ", ".join(choices)
  elif isinstance(default, bool):
    fits, expected = isinstance(value, (bool, np.bool_)), "True or False"
  elif isinstance(default, float):
    fits, expected = float(np.float32(value)) == value, "a float32 number, float(np.float32(x)),"
  else:
    fits, expected = np.array_equal(np.asarray(value, np.int32), value), "int32 integers"
  if not fits:
    raise ValueError(f"{op.kind} of layer {op.source!r}: expected {expected} for option {name!r}, "
                     f"got {value!r}.")
  if name in _ENUMS:
    return choices[value]
  return np.asarray(value, np.int32) if default is None else type(default)(value)
