"""The bytes of a float .tflite file as plain records, checked: a file may come from anywhere."""

import dataclasses
import math
import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_IDENTIFIER = b"TFL3"
_KINDS = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
_DTYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
NUMBERS = {code: name for code, name in _DTYPES.items() if name in (
    "bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64")}
"""{TensorType of the schema: dtype of NumPy}, of those that NumPy has."""
MOST_ELEMENTS = 1 << 28
"""Of one tensor."""
_CONTROL = frozenset(("IF", "WHILE", "CALL", "CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"))
_GIVE_FLOAT = "give the float model: the one that it was made of, or its float .tflite file"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file.

  Attributes:
    name: as in the file.
    shape: None where it is open.
    dtype: of NumPy; float16 is read as float32.
    constant: its values; None if an operator or the user gives them.
  """

  name: str
  shape: tuple[int | None, ...]
  dtype: str
  constant: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Operator:
  """An operator of a file: inputs and outputs are numbers of tensors, -1 an input that is left out."""

  index: int
  kind: str
  options: Any
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]

  def option(self, field: str) -> Any:
    """Returns a field of its options; None where it has none."""
    return getattr(self.options, field, None)


@dataclasses.dataclass(frozen=True)
class File:
  """A float file: its operators in the order in which they run.

  Attributes:
    input_names, output_names: of its signature, where it has one; else of the tensors.
    is_half: tensors that are computed have float16.
  """

  tensors: list[Tensor]
  operators: list[Operator]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  input_names: list[str]
  output_names: list[str]
  is_half: bool


def read_file(data: bytes) -> File:
  """Returns the content of a float .tflite file.

  Raises:
    ValueError: it is none, is damaged, is quantized, or holds what has no form as a Keras model: several
      subgraphs, control flow, variables, custom operators. The message continues "FILE ".
  """
  if len(data) < 8 or bytes(data[4:8]) != _IDENTIFIER:
    raise ValueError("is no .tflite file; expected TFL3 in bytes 4 to 7")
  try:
    return _File(schema.ModelT.InitFromPackedBuf(data, 0)).read()
  except (struct.error, IndexError, TypeError, AttributeError, OverflowError, KeyError, MemoryError,
          UnicodeDecodeError) as error:
    raise ValueError("is damaged (its tables cannot be read); copy or convert it again") from error


class _File:
  """Reads and checks the one subgraph of a model."""

  def __init__(self, model: schema.ModelT):
    self._model = model

  def read(self) -> File:
    """Returns the file's records."""
    model = self._model
    if not model.subgraphs:
      raise ValueError("holds no graph; convert the model again")
    kinds = [self._kind(operator) for graph in model.subgraphs for operator in graph.operators or ()]
    control = [kind for kind in kinds if kind in _CONTROL]
    if control or len(model.subgraphs) > 1:
      with_what = f" ({', '.join(dict.fromkeys(control))})" if control else ""
      raise ValueError(f"holds control flow, variables or several graphs{with_what}, which no Keras model of "
                       "layers does; export one function without conditions, loops and state")
    (graph,) = model.subgraphs
    tensors = [self._tensor(tensor, index) for index, tensor in enumerate(graph.tensors or ())]
    operators = [self._operator(operator, index, len(tensors))
                 for index, operator in enumerate(graph.operators or ())]
    inputs, outputs = _indices(graph.inputs), _indices(graph.outputs)
    _check_order(tensors, operators, inputs, outputs)
    is_half = any(tensor.type == schema.TensorType.FLOAT16 and result.constant is None
                  for tensor, result in zip(graph.tensors or (), tensors))
    return File(tensors, operators, inputs, outputs, self._names("inputs", inputs, tensors),
                self._names("outputs", outputs, tensors), is_half)

  def _kind(self, operator: schema.OperatorT) -> str:
    code = self._model.operatorCodes[_index(operator.opcodeIndex, len(self._model.operatorCodes))]
    return _KINDS.get(max(code.builtinCode, code.deprecatedBuiltinCode), "an unknown operator")

  def _tensor(self, tensor: schema.TensorT, index: int) -> Tensor:
    name = _text(tensor.name) or f"tensor_{index}"
    dtype = _DTYPES.get(tensor.type, "an unknown type")
    scale = None if tensor.quantization is None else tensor.quantization.scale
    if scale is not None and len(scale) and "float" not in dtype:
      raise ValueError(f"is quantized already (tensor {name!r} is {dtype}); {_GIVE_FLOAT}")
    if tensor.sparsity is not None:
      raise ValueError(f"holds the sparse tensor {name!r}; {_GIVE_FLOAT}")
    shape = _indices(tensor.shapeSignature) or _indices(tensor.shape)
    if any(size < -1 for size in shape) or math.prod(max(size, 1) for size in shape) > MOST_ELEMENTS:
      raise ValueError(f"is damaged (tensor {name!r} has the shape {shape}); copy or convert it again")
    shape = tuple(None if size == -1 else size for size in shape)
    constant = self._constant(tensor, name, dtype)
    return Tensor(name, shape, "float32" if dtype == "float16" else dtype, constant)

  def _constant(self, tensor: schema.TensorT, name: str, dtype: str) -> np.ndarray | None:
    buffer = self._model.buffers[_index(tensor.buffer, len(self._model.buffers))]
    if buffer.offset > 1 or tensor.externalBuffer:
      raise ValueError("keeps constants outside of its tables, as files of more than 2 GB do; convert a "
                       "smaller model")
    if buffer.data is None or not tensor.buffer:
      return None
    shape = _indices(tensor.shape)
    values = np.asarray(buffer.data, np.uint8)
    if not values.size and 0 not in shape:
      return None
    if tensor.type not in NUMBERS:
      raise ValueError(f"holds the constant {name!r} of type {dtype}; {_GIVE_FLOAT}")
    if values.size != math.prod(shape) * np.dtype(dtype).itemsize:
      raise ValueError(f"is damaged (constant {name!r} of shape {shape} has {values.size} bytes); copy or "
                       "convert it again")
    values = values.view(dtype).reshape(shape)
    return values.astype(np.float32) if dtype == "float16" else values.copy()

  def _operator(self, operator: schema.OperatorT, index: int, tensors: int) -> Operator:
    kind = self._kind(operator)
    inputs, outputs = _indices(operator.inputs), _indices(operator.outputs)
    for number in inputs:
      _index(number + 1, tensors + 1)
    for number in outputs:
      _index(number, tensors)
    if kind == "CUSTOM":
      custom = _text(self._model.operatorCodes[operator.opcodeIndex].customCode)
      what = f"TensorFlow's {custom[4:]} (Flex)" if custom.startswith("Flex") else f"the custom {custom!r}"
      raise ValueError(f"has {what} as operator {index}, which no Keras layer computes; write that part "
                       "with TensorFlow Lite's own operators")
    return Operator(index, kind, operator.builtinOptions, inputs, outputs)

  def _names(self, side: str, numbers: tuple[int, ...], tensors: list[Tensor]) -> list[str]:
    """The names of the inputs or outputs: those of the one signature, else those of the tensors."""
    names: dict[int, list[str]] = {}
    for signature in (self._model.signatureDefs or ())[:1]:
      for entry in getattr(signature, side) or ():
        names.setdefault(entry.tensorIndex, []).append(_text(entry.name))
    return [names[number].pop(0) if names.get(number) else tensors[number].name for number in numbers]


def _indices(numbers: Any) -> tuple[int, ...]:
  return () if numbers is None else tuple(int(number) for number in numbers)


def _index(number: int, count: int) -> int:
  if not 0 <= number < count:
    raise IndexError(number)
  return number


def _text(value: bytes | str | None) -> str:
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _check_order(tensors: list[Tensor], operators: list[Operator], inputs: tuple[int, ...],
                 outputs: tuple[int, ...]) -> None:
  """Raises ValueError unless each tensor has its values before an operator reads it."""
  for number in (*inputs, *outputs):
    _index(number, len(tensors))
  if not inputs or not outputs:
    raise ValueError("has no input or no output; convert the model again")
  known = {number for number, tensor in enumerate(tensors) if tensor.constant is not None}
  if known.intersection(inputs):
    raise ValueError("is damaged (an input is a constant); copy or convert it again")
  known.update(inputs)
  for operator in operators:
    if missing := [number for number in operator.inputs if number >= 0 and number not in known]:
      raise ValueError(f"is damaged (operator {operator.index}, {operator.kind}, reads "
                       f"{tensors[missing[0]].name!r} before it is computed); copy or convert it again")
    if known.intersection(operator.outputs):
      raise ValueError(f"is damaged (operator {operator.index}, {operator.kind}, writes a tensor that has "
                       "its values already); copy or convert it again")
    known.update(operator.outputs)
  if missing := [number for number in outputs if number not in known]:
    raise ValueError(f"is damaged (output {tensors[missing[0]].name!r} is never computed); copy or convert "
                     "it again")
