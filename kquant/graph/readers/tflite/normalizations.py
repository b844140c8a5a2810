"""Normalizations in a file, whatever operators they are written with: found by what they compute.

The operators between a tensor and one of the same shape are run on random values. Where the result is
gamma * (x - mean) / sqrt(variance + epsilon) + beta over the last axis, or over groups of channels, they are
a LayerNormalization or GroupNormalization; gamma and beta are the least-squares fit.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.readers.tflite.call import Call
from kquant.graph.readers.tflite.file import Operator
from kquant.graph.readers.tflite.groups import Group, Links, Make
from kquant.graph.readers.tflite.names import Names
from kquant.graph.readers.tflite.table import OPERATORS

_PARTS = frozenset((
    "MEAN", "SUM", "SUB", "ADD", "MUL", "DIV", "SQUARE", "SQUARED_DIFFERENCE", "RSQRT", "SQRT", "POW", "NEG",
    "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SHAPE", "STRIDED_SLICE", "SLICE", "REDUCE_PROD",
    "PACK", "FILL", "CONCATENATION", "GATHER", "CAST", "BROADCAST_TO", "BROADCAST_ARGS", "ZEROS_LIKE",
    "EQUAL", "SELECT_V2"))
"""What normalizations are written with."""
_ROOTS = ("RSQRT", "SQRT", "POW")
_MOST_OPERATORS, _MOST_STEPS = 64, 12
_DRAWS, _LARGEST_ERROR = 6, 1e-4


def find_normalizations(links: Links) -> dict[int, Group]:
  """Returns {tensor: group} of the normalizations of a file."""
  found: dict[int, Group] = {}
  for operator in links.file.operators:
    if operator.kind in _ROOTS:
      match = _match(links, operator)
      if match is not None:
        end, group = match
        found[end] = group
  return found


def _match(links: Links, root: Operator) -> tuple[int, Group] | None:
  """The last tensor behind a root that is a normalization of one before it."""
  epsilon = _epsilon(links, root)
  for source in _sources(links, root):
    if None in links.file.tensors[source].shape[1:]:
      continue
    slices = {end: _between(links, source, end) for end in _ends(links, root)}
    for end, operators in sorted(slices.items(), key=lambda item: _is_read_inside(links, item)):
      if operators and (group := _fit(links, operators, (source, end), epsilon)):
        return end, group
  return None


def _is_read_inside(links: Links, item: tuple[int, list[Operator] | None]) -> bool:
  """Whether other operators read a float tensor inside of those that make `end`: they would stay."""
  end, operators = item
  inside = {operator.index for operator in operators or ()}
  return any(reader.index not in inside for operator in operators or () for number in operator.outputs
             for reader in links.readers(number)
             if number != end and links.file.tensors[number].dtype == "float32")


def _sources(links: Links, root: Operator) -> list[int]:
  """Tensors before a root that are read more than once, also as they were before they were reshaped."""
  sources: dict[int, None] = {}
  for operator in _behind(links, root):
    for number in operator.inputs:
      while number >= 0 and len(links.readers(number)) > 1 and links.file.tensors[number].constant is None:
        sources[number] = None
        before = links.producers.get(number)
        if before is None or before.kind not in ("RESHAPE", "TRANSPOSE"):
          break
        number = before.inputs[0]
  return [number for number in sources if links.file.tensors[number].dtype == "float32"]


def _behind(links: Links, root: Operator) -> Iterator[Operator]:
  """The operators that a root depends on, nearest first, as far as normalizations are made of such."""
  queue, seen = [root], {root.index}
  while queue and len(seen) <= _MOST_OPERATORS:
    operator = queue.pop(0)
    yield operator
    for number in operator.inputs:
      before = links.producers.get(number)
      if before is not None and before.kind in _PARTS and before.index not in seen:
        seen.add(before.index)
        queue.append(before)


def _ends(links: Links, root: Operator) -> list[int]:
  """The tensors that come of a root within a few steps, last first."""
  front, ends = set(root.outputs), set()
  for _ in range(_MOST_STEPS):
    front = {operator.outputs[0] for number in front for operator in links.readers(number)
             if operator.kind in _PARTS and operator.outputs}
    ends |= front
  return sorted(ends, key=lambda number: -links.producers[number].index)


def _between(links: Links, source: int, end: int) -> list[Operator] | None:
  """The operators that make `end` of `source` and constants alone, in order; None if others have a part."""
  operators: dict[int, Operator] = {}
  stack = [end]
  while stack:
    number = stack.pop()
    if number == source or number < 0 or links.file.tensors[number].constant is not None:
      continue
    operator = links.producers.get(number)
    if operator is None or operator.kind not in _PARTS or len(operators) > _MOST_OPERATORS:
      return None
    if operator.index not in operators:
      operators[operator.index] = operator
      stack.extend(operator.inputs)
  return [operators[index] for index in sorted(operators)]


def _epsilon(links: Links, root: Operator) -> float:
  """What is added to the variance under a root."""
  add = links.producer(root.inputs[0], "ADD")
  pair = links.with_scalar(add) if add else None
  return pair[1] if pair else 0.0


def _fit(links: Links, operators: Sequence[Operator], ends: tuple[int, int], epsilon: float) -> Group | None:
  """The normalization that operators compute on random values; None if they compute something else."""
  source, end = ends
  rng = np.random.default_rng(0)
  shape = [size or 1 for size in links.file.tensors[source].shape]
  if len(shape) < 2:
    return None
  draws = [(rng.normal(size=shape) * scale + rng.normal(size=shape[-1])).astype(np.float32)
           for scale in np.geomspace(0.1, 10.0, _DRAWS)]
  try:
    results = [_run(links, operators, (source, end), x) for x in draws]
  except Exception:  # whatever these operators are, they are no normalization
    return None
  in_rows = end not in links.file.outputs and all(op.kind == "RESHAPE" for op in links.readers(end))
  if any(y.shape != x.shape and not (in_rows and y.size == x.size) for x, y in zip(draws, results)):
    return None
  for cls, config, normalize in _forms(shape, epsilon):
    normal = np.concatenate([normalize(x.astype(np.float64)).reshape(-1, shape[-1]) for x in draws])
    result = np.concatenate([y.astype(np.float64).reshape(-1, shape[-1]) for y in results])
    gamma, beta = _line(normal, result)
    if np.abs(normal * gamma + beta - result).max() <= _LARGEST_ERROR * np.abs(result).max():
      return Group(source, _layer(cls, {**config, "weights": [gamma.astype(np.float32),
                                                              beta.astype(np.float32)]}))
  return None


def _layer(cls: type, config: dict[str, Any]) -> Make:
  return lambda call, x: call.layer(cls, x, **config)


def _run(links: Links, operators: Sequence[Operator], ends: tuple[int, int], x: np.ndarray) -> np.ndarray:
  """What the operators make of values of the source."""
  source, end = ends
  values: dict[int, Any] = {source: x}
  names = Names()
  for operator in operators:
    call = Call(operator, f"t{operator.index}", names, None)
    call.inputs = [None if number < 0 else values.get(number, links.file.tensors[number].constant)
                   for number in operator.inputs]
    result = OPERATORS[operator.kind](call)
    results = result if isinstance(result, (list, tuple)) else [result]
    values.update(zip(operator.outputs, results, strict=True))
  return np.asarray(values[end])


def _forms(shape: Sequence[int], epsilon: float) -> Iterator[tuple[type, dict[str, Any], Any]]:
  """(layer, config, function of float64 values) of each normalization that a tensor may have."""
  def over(axes, values):
    centred = values - values.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)

  yield keras.layers.LayerNormalization, {"epsilon": epsilon}, lambda x: over((-1,), x)
  if len(shape) != 4:
    return
  *_, channels = shape
  for groups in [number for number in range(channels, 0, -1) if channels % number == 0]:
    apart = (*shape[:-1], groups, channels // groups)
    yield (keras.layers.GroupNormalization, {"epsilon": epsilon, "groups": groups},
           lambda x, apart=apart: over((1, 2, 4), x.reshape(apart)).reshape(x.shape))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Slope and offset of the best line y = slope * x + offset, for each column."""
  mean_x, mean_y = x.mean(0), y.mean(0)
  slope = ((x - mean_x) * (y - mean_y)).sum(0) / np.maximum(((x - mean_x)**2).sum(0), 1e-12)
  return slope, mean_y - slope * mean_x
