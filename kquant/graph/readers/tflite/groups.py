"""Groups of operators that are one layer of Keras, found in the file before it is converted.

Integers need it: a softplus by parts rounds its exponential to 8 bits, and a normalization its variance.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tf_keras as keras

from kquant.graph.readers.tflite.call import Call
from kquant.graph.readers.tflite.file import File, Operator
from kquant.graph.readers.tflite.table import OPERATORS

Make = Callable[[Call, Any], Any]
_VALID = 1
_FROM_ZERO = (1, 3)
"""Padding and ActivationFunctionType of the schema: RELU and RELU6."""
_LOWEST = -1e30


@dataclasses.dataclass(frozen=True)
class Group:
  """What makes one tensor of another: `make` gives the layer for it."""

  source: int
  make: Make


class Links:
  """Which operator makes a tensor and which read it."""

  def __init__(self, file: File):
    self.file = file
    self.producers = {number: operator for operator in file.operators for number in operator.outputs}
    self._readers: dict[int, list[Operator]] = {}
    for operator in file.operators:
      for number in operator.inputs:
        self._readers.setdefault(number, []).append(operator)

  def readers(self, number: int) -> list[Operator]:
    """Returns the operators that read a tensor."""
    return self._readers.get(number, [])

  def producer(self, number: int, kind: str) -> Operator | None:
    """Returns the operator that makes a tensor if it is of that kind."""
    operator = self.producers.get(number)
    return operator if operator is not None and operator.kind == kind else None

  def with_scalar(self, operator: Operator) -> tuple[int, float] | None:
    """Returns (tensor, number) of an operator of a tensor and a constant of one element."""
    if len(operator.inputs) == 2 and not operator.option("fusedActivationFunction"):
      for tensor, other in (operator.inputs, operator.inputs[::-1]):
        constant = self.file.tensors[other].constant
        if constant is not None and constant.size == 1 and self.file.tensors[tensor].constant is None:
          return tensor, float(constant.reshape(()))
    return None


def find_functions(links: Links) -> dict[int, Group]:
  """Returns {tensor: group} of the functions of one element, and pools with a padding."""
  found: dict[int, Group] = {}
  for operator in links.file.operators:
    group = _clip(links, operator) or _softplus(links, operator) or _padded_pool(links, operator)
    if group is not None:
      found[operator.outputs[0]] = group
  return found


def _bounds(links: Links, operator: Operator) -> tuple[int, float, float] | None:
  """(tensor, low, high) of an operator that clips."""
  limits = {"RELU": (0.0, math.inf), "RELU6": (0.0, 6.0), "RELU_0_TO_1": (0.0, 1.0)}.get(operator.kind)
  if limits is not None and operator.inputs:
    return operator.inputs[0], *limits
  if operator.kind in ("MAXIMUM", "MINIMUM") and (pair := links.with_scalar(operator)):
    tensor, number = pair
    return (tensor, number, math.inf) if operator.kind == "MAXIMUM" else (tensor, -math.inf, number)
  return None


def _clip(links: Links, operator: Operator) -> Group | None:
  """Bounds one behind the other: min(max(x, 0), c) is a ReLU that ends at c."""
  bounds = _bounds(links, operator)
  if bounds is None:
    return None
  source, low, high = bounds
  while source in links.producers and (before := _bounds(links, links.producers[source])):
    source, first_low, first_high = before
    low, high = min(max(first_low, low), high), max(min(first_high, high), low)
  if low == 0 < high:
    maximum = None if high == math.inf else high
    return Group(source, lambda call, x: call.layer(keras.layers.ReLU, x, max_value=maximum))
  if -math.inf < low <= high < math.inf:
    return Group(source, lambda call, x: call.function("clip_by_value", x, low, high))
  return None


def _softplus(links: Links, operator: Operator) -> Group | None:
  """log(exp(x) + 1)."""
  if operator.kind != "LOG":
    return None
  add = links.producer(operator.inputs[0], "ADD")
  pair = links.with_scalar(add) if add else None
  exp = links.producer(pair[0], "EXP") if pair and pair[1] == 1.0 else None
  return Group(exp.inputs[0], lambda call, x: call.function("math.softplus", x)) if exp else None


def _padded_pool(links: Links, operator: Operator) -> Group | None:
  """A maximum over a padding of -infinity: the mirrored edge, which each window at it holds, does the same.

  Zeros do where nothing is below 0.
  """
  pad = links.producer(operator.inputs[0], "PADV2") if operator.kind == "MAX_POOL_2D" else None
  if pad is None or len(pad.inputs) != 3 or operator.option("padding") != _VALID:
    return None
  amounts, value = (links.file.tensors[number].constant for number in pad.inputs[1:])
  taps = [1, operator.option("filterHeight"), operator.option("filterWidth"), 1]
  if amounts is None or amounts.shape != (4, 2) or (2 * amounts.max(1) > taps).any():
    return None
  if value is None or value.size != 1 or value.max() > _LOWEST:
    return None
  before = links.producers.get(pad.inputs[0])
  from_zero = before is not None and (
      before.kind in ("RELU", "RELU6") or before.option("fusedActivationFunction") in _FROM_ZERO)

  def make(call: Call, x: Any) -> Any:
    if from_zero:
      padded = call.layer(keras.layers.ZeroPadding2D, x, part="padding",
                          padding=tuple(tuple(pair) for pair in amounts[1:3].tolist()))
    else:
      padded = call.function("compat.v1.pad", x, amounts.tolist(), mode="SYMMETRIC", part="padding")
    call.inputs = [padded]
    return OPERATORS[operator.kind](call)

  return Group(pad.inputs[0], make)


def needed(links: Links, groups: dict[int, Group]) -> set[int]:
  """Returns the operators that the outputs depend on where each group is one layer."""
  operators: set[int] = set()
  stack, seen = list(links.file.outputs), set()
  while stack:
    number = stack.pop()
    if number in seen or number not in links.producers:
      continue
    seen.add(number)
    operator = links.producers[number]
    operators.add(operator.index)
    stack.extend([groups[number].source] if number in groups else operator.inputs)
  return operators

