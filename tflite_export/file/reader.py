"""The bytes of a .tflite file -> IntProgram, with the schema's accessors and no code of the writer.

It also reads what other producers write: any tensor type, any operator. Their further content
(signatures after the first, subgraphs after the first, sparsity) is left out.
"""

import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.file.layout import ENUMS, FROM_FLOAT, LISTS, OPTIONS, TO_FLOAT
from tflite_export.program.program import IntOp, IntProgram, IntTensor

_IDENTIFIER = b"TFL3"
_VERSION = 3

_BUILTINS = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
_DTYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
_ARRAY_DTYPES = frozenset((
    "bool", "complex64", "complex128", "float16", "float32", "float64", "int8", "int16", "int32",
    "int64", "uint8", "uint16", "uint32", "uint64"))
"""Types whose constants are read, beside int4; others (string, bfloat16) come back without data."""


def from_bytes(data: bytes) -> IntProgram:
  """Returns the program of a .tflite file; its constants are views of `data`.

  Names: a tensor without one is called `tensor_<index>`, and `#<index>` is appended to one that
  is taken; an optional input that is absent is "". Options hold every field of the options table,
  defaults included. `source` and `reason` of operators are not in a file and stay empty.

  Raises:
    ValueError: `data` is not a TFLite file, is cut off, or keeps constants outside of its tables.
  """
  if len(data) < 8 or bytes(data[4:8]) != _IDENTIFIER:
    raise ValueError(f"Expected a TFLite file (bytes 4..7 are {_IDENTIFIER!r}), got "
                     f"{len(data)} bytes with {bytes(data[4:8])!r} there.")
  try:
    return _program(schema.Model.GetRootAs(data, 0))
  except (struct.error, IndexError, TypeError, AttributeError, OverflowError, ValueError) as error:
    raise ValueError(f"Expected a whole TFLite file, got {len(data)} bytes that cannot be read: "
                     f"{error}.") from error


def float_operators(program: IntProgram) -> list[str]:
  """Returns the kinds of the operators that touch a float32 tensor, in order, once an operator.

  A QUANTIZE of a graph input and a DEQUANTIZE to a graph output are not counted.
  """
  return [op.kind for op in program.ops
          if not _is_border(program, op)
          and any(name and program.tensors[name].dtype == "float32"
                  for name in (*op.inputs, *op.outputs))]


def _is_border(program: IntProgram, op: IntOp) -> bool:
  """Whether the operator converts a graph input from float or a graph output to float."""
  return (op.kind == FROM_FLOAT and set(op.inputs) <= set(program.inputs)
          or op.kind == TO_FLOAT and set(op.outputs) <= set(program.outputs))


def _program(model: schema.Model) -> IntProgram:
  """Returns the first subgraph of the file as a program."""
  if model.Version() != _VERSION or model.SubgraphsLength() < 1:
    raise ValueError(f"schema version {model.Version()} with {model.SubgraphsLength()} subgraphs, "
                     f"expected version {_VERSION} with at least 1")
  graph = model.Subgraphs(0)
  tensors: dict[str, IntTensor] = {}
  for i in range(graph.TensorsLength()):
    tensor = _tensor(model, graph.Tensors(i), i, taken=tensors)
    tensors[tensor.name] = tensor
  names = list(tensors)
  input_names, output_names = _signature(model, graph)
  return IntProgram(
      tensors=tensors,
      ops=[_operator(model, graph.Operators(i), names) for i in range(graph.OperatorsLength())],
      inputs=_named(graph, "Inputs", names), outputs=_named(graph, "Outputs", names),
      description=_text(model.Description()), input_names=input_names, output_names=output_names,
      metadata=_metadata(model))


def _signature(model: schema.Model, graph: schema.SubGraph) -> tuple[list[str], list[str]]:
  """Returns the names of the first signature in the order of the graph's inputs and outputs.

  [] where there is no signature, or one that does not name each of them.
  """
  if not model.SignatureDefsLength():
    return [], []
  signature = model.SignatureDefs(0)
  sides = []
  for side in ("Inputs", "Outputs"):
    entry, count = getattr(signature, side), getattr(signature, f"{side}Length")()
    names: dict[int, list[str]] = {}
    for named in map(entry, range(count)):
      names.setdefault(named.TensorIndex(), []).append(_text(named.Name()))
    tensors = _integers(graph, side)
    complete = all(len(names.get(index, [])) >= tensors.count(index) for index in tensors)
    sides.append([names[index].pop(0) for index in tensors] if complete else [])
  return sides[0], sides[1]


def _metadata(model: schema.Model) -> dict[str, bytes]:
  """Returns {name: content} of the metadata entries."""
  entries = (model.Metadata(i) for i in range(model.MetadataLength()))
  return {_text(entry.Name()): bytes(model.Buffers(entry.Buffer()).DataAsNumpy()) for entry in entries}


def _text(value: bytes | None) -> str:
  """Returns a string of the file; "" where there is none."""
  return (value or b"").decode("utf-8", "replace")


def _integers(table: Any, field: str) -> list[int]:
  """Returns the integer vector `field` of `table`; [] where there is none."""
  if getattr(table, field + "IsNone")():
    return []
  return getattr(table, field + "AsNumpy")().tolist()


def _named(table: Any, field: str, names: list[str], *, absent: bool = False) -> list[str]:
  """Returns the names of the tensors in `field`; where one may be absent, the file writes -1 and this ""."""
  indices = _integers(table, field)
  for index in indices:
    if not -int(absent) <= index < len(names):
      raise ValueError(f"{field.lower()} hold tensor {index} of {len(names)}")
  return [names[index] if index >= 0 else "" for index in indices]


def _tensor(model: schema.Model, tensor: schema.Tensor, index: int, *, taken: Any) -> IntTensor:
  """Returns tensor number `index` under a name that is not in `taken`."""
  name = _text(tensor.Name()) or f"tensor_{index}"
  while name in taken:
    name = f"{name}#{index}"
  dtype = _DTYPES.get(tensor.Type(), f"type_{tensor.Type()}")
  shape = tuple(_integers(tensor, "Shape"))
  scale, zero_point, axis = _grid(tensor.Quantization())
  data = _constant(model.Buffers(tensor.Buffer()), dtype, shape) if tensor.Buffer() else None
  if data is not None and data.size != np.prod(shape, dtype=np.int64):
    raise ValueError(f"tensor {name!r} of shape {shape} has {data.size} values")
  open_batch = _integers(tensor, "ShapeSignature")[:1] == [-1]
  return IntTensor(name, shape, dtype, scale, zero_point, axis, data, open_batch, tensor.IsVariable())


def _grid(quantization: schema.QuantizationParameters | None) -> tuple:
  """Returns (scale, zero_point, axis); axis is None for one scale, all are None without scales."""
  if quantization is None or quantization.ScaleLength() == 0:
    return None, None, None
  scale = quantization.ScaleAsNumpy()
  zero_point = np.zeros(scale.shape, np.int64)
  if quantization.ZeroPointLength():
    zero_point = quantization.ZeroPointAsNumpy()
  return scale, zero_point, quantization.QuantizedDimension() if scale.size > 1 else None


def _constant(buffer: schema.Buffer, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
  """Returns the flat values of a buffer; None if it is empty or its type has no array."""
  if buffer.Offset() > 1:
    raise ValueError("a constant lies behind the tables (a file made for more than 2 GB)")
  if not buffer.DataIsNone() and dtype == "int4":
    return _unpacked(buffer.DataAsNumpy(), int(np.prod(shape, dtype=np.int64)))
  if buffer.DataIsNone() or dtype not in _ARRAY_DTYPES:
    return None
  return buffer.DataAsNumpy().view(np.dtype(dtype))


def _unpacked(data: np.ndarray, count: int) -> np.ndarray:
  """Returns `count` int4 values as int8; a byte holds two, the earlier one in its low nibble."""
  if data.size != (count + 1) // 2:
    raise ValueError(f"{count} int4 values need {(count + 1) // 2} bytes, got {data.size}")
  low, high = data.view(np.int8) << 4 >> 4, data.view(np.int8) >> 4
  return np.stack([low, high], axis=1).reshape(-1)[:count]


def _operator(model: schema.Model, operator: schema.Operator, names: list[str]) -> IntOp:
  """Returns the operator; a custom one has the kind CUSTOM and its name as an option."""
  code = model.OperatorCodes(operator.OpcodeIndex())
  number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
  kind = _BUILTINS.get(number, f"BUILTIN_{number}")
  options = _options(kind, operator)
  if kind == "CUSTOM":
    options = {"custom_code": _text(code.CustomCode())}
  return IntOp(kind, _named(operator, "Inputs", names, absent=True), _named(operator, "Outputs", names),
               options, code.Version(), intermediates=_named(operator, "Intermediates", names, absent=True))


def _options(kind: str, operator: schema.Operator) -> dict[str, Any]:
  """Returns all fields of the operator's options in snake case; {} for kinds without a table."""
  union = operator.BuiltinOptions()
  accessor, fields = OPTIONS.get(kind, (None, ()))
  if accessor is None or union is None:
    return {}
  expected = getattr(schema.BuiltinOptions, accessor.__name__)
  if operator.BuiltinOptionsType() != expected:
    raise ValueError(f"{kind} has options of type {operator.BuiltinOptionsType()}, not {expected}")
  table = accessor()
  table.Init(union.Bytes, union.Pos)
  return {field: _option(table, field) for field in fields}


def _option(table: Any, field: str) -> Any:
  """Returns one field: a name for an enum, a list for a vector, else bool, int or float."""
  method = "".join(part.capitalize() for part in field.split("_"))
  if field in LISTS:
    return _integers(table, method)
  value = getattr(table, method)()
  return ENUMS[field][value] if field in ENUMS else value
