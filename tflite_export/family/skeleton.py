"""Programs without their kernels and biases as JSON, what several of them have in common stored once."""

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from kquant.core.numerics import bias_scale
from tflite_export.family import biases
from tflite_export.program.program import IntOp, IntProgram, IntTensor, array_type


def _fields_but(kind: type, *names: str) -> tuple[str, ...]:
  return tuple(field.name for field in dataclasses.fields(kind) if field.name not in names)


_PROGRAM_FIELDS = _fields_but(IntProgram, "tensors", "ops", "metadata")
_TENSOR_FIELDS = _fields_but(IntTensor, "scale", "zero_point", "data")


class Pool:
  """Things that are stored once: JSON objects and the bytes of constants.

  Attributes:
    items: JSON objects, each unlike the others.
    constants: bytes.
  """

  def __init__(self, items: list[Any] | None = None, constants: bytes = b""):
    self.items = items or []
    self.constants = bytearray(constants)
    self._numbers: dict[str, int] = {}
    self._places: dict[bytes, int] = {}

  def add(self, item: Any) -> int:
    """Returns the number of an item."""
    text = json.dumps(item, default=lambda value: value.item())
    if text not in self._numbers:
      self._numbers[text] = len(self.items)
      self.items.append(json.loads(text))
    return self._numbers[text]

  def add_array(self, array: np.ndarray) -> list[Any]:
    """Returns where the values of an array are: [place, length in bytes, dtype]."""
    content = np.ascontiguousarray(array).tobytes()
    if content not in self._places:
      self._places[content] = len(self.constants)
      self.constants += content
    return [self._places[content], len(content), array.dtype.name]

  def array(self, where: list[Any]) -> np.ndarray:
    """Returns the values that `add_array` took, flat."""
    place, length, dtype = where
    if not 0 <= place <= place + length <= len(self.constants):
      raise ValueError("a constant lies outside of its section")
    return np.frombuffer(bytes(self.constants[place:place + length]), np.dtype(dtype))


def describe(program: IntProgram, pool: Pool, parts: dict[str, Any]) -> dict[str, Any]:
  """Returns a program as JSON.

  Args:
    program: the program.
    pool: takes what other programs have too.
    parts: {tensor: what stands in the place of its values and grid}, of kernels and biases.
  """
  grids, tensors = [], []
  for tensor in program.tensors.values():
    item = {**{name: getattr(tensor, name) for name in _TENSOR_FIELDS}, "part": parts.get(tensor.name)}
    if item["part"] is None and tensor.data is not None:
      item["data"] = pool.add_array(tensor.data)
    tensors.append(pool.add(item))
    if item["part"] is None and tensor.scale is not None and tensor.scale.size == 1:
      grids.append([float(tensor.scale[0]), int(tensor.zero_point[0])])
    elif item["part"] is None and tensor.scale is not None:
      grids.append([pool.add_array(tensor.scale), pool.add_array(tensor.zero_point)])
    else:
      grids.append(None)
  return {**{name: getattr(program, name) for name in _PROGRAM_FIELDS}, "tensors": tensors, "grids": grids,
          "ops": [pool.add(dataclasses.astuple(op)) for op in program.ops],
          "metadata": {name: base64.b64encode(value).decode() for name, value in program.metadata.items()}}


Part = tuple[np.ndarray, np.ndarray | tuple[str, str]]
"""Values and their scale; of a bias, differences and the two tensors whose scales make its own."""


def rebuild(fields: dict[str, Any], pool: Pool, part_of: Callable[[Any], Part],
            widest: dict[str, IntTensor]) -> IntProgram:
  """Returns the program that `describe` described.

  Args:
    fields: what it returned.
    pool: with what it took.
    part_of: returns what belongs in the place of a tensor's stand-in; of a bias, what `biases.differences`
      returned.
    widest: {name: bias} that it was given.
  """
  program = IntProgram(**{name: fields[name] for name in _PROGRAM_FIELDS})
  items = [pool.items[number] for number in fields["tensors"]]
  rows = {item["name"]: _values_and_grid(item, grid, pool, part_of)
          for item, grid in zip(items, fields["grids"], strict=True)}
  for item in items:
    data, scale, zero_point = rows[item["name"]]
    if isinstance(scale, tuple):
      source, kernel = (rows[name][1] for name in scale)
      scale = bias_scale(source, kernel)
      data = biases.restored(data, widest.get(item["name"]), scale)
      zero_point = np.zeros(scale.shape, np.int64)
    program.add_tensor(IntTensor(**{name: item[name] for name in _TENSOR_FIELDS}, scale=scale,
                                 zero_point=zero_point, data=data))
  program.ops = [IntOp(*pool.items[number]) for number in fields["ops"]]
  program.metadata = {name: base64.b64decode(value) for name, value in fields["metadata"].items()}
  return program


def _values_and_grid(item: dict[str, Any], grid: list[Any] | None, pool: Pool,
                     part_of: Callable[[Any], Part]) -> tuple[Any, Any, Any]:
  """Returns (values or None, scale or None or the names that make it, zero point or None) of a tensor."""
  if item["part"] is not None:
    data, scale = part_of(item["part"])
    return data, scale, np.zeros(np.shape(scale), np.int64)
  data = pool.array(item["data"]).astype(array_type(item["dtype"]), copy=False) if "data" in item else None
  if grid is None:
    return data, None, None
  return data, *(pool.array(end) if isinstance(end, list) else np.array([end]) for end in grid)
