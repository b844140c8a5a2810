"""Which rows of its tensors a network holds while an image comes in row by row.

Every layer computes a row of its output when the rows that it needs are there, at the pace at which the
image comes. A row is held until the last row that needs it is made: a convolution needs its window of rows;
what joins two tensors waits for the later one; a mean over positions adds up rows as they come and holds
none. What only moves elements (crop, pad, reshape, concatenate, repeat) is read where it lies.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.standardize.padding import same_padding

_NO_ROW = 1 << 30
_ROUNDING = 1e-6
Span = tuple[np.ndarray, np.ndarray]
"""First and last row, int [rows] each, that each row of another tensor needs; _NO_ROW and -1 where none."""


@dataclasses.dataclass
class Held:
  """The rows of one tensor.

  Attributes:
    row_size: elements of a row.
    step: rows that come at a time.
    pace: time from one row to the next; the unit is a row of the network's input.
    time: when each row is there, [rows].
    need: the last row of this tensor that is needed beside each row, int [rows].
    wait: the time until which each row waits for another tensor, [rows]; -1 where it does not.
  """

  row_size: int
  step: int
  pace: float
  time: np.ndarray
  need: np.ndarray
  wait: np.ndarray

  def rows(self, *, waiting: bool = True) -> int:
    """Returns how many rows are held at most; 0 where they are passed on as they come.

    Args:
      waiting: those that wait for another tensor count.
    """
    most = 0
    for start in range(0, len(self.time), self.step):
      end = min(start + self.step, len(self.time))
      held = self.need[:end] >= start
      if waiting:
        held |= self.wait[:end] >= self.time[end - 1] - _ROUNDING
      most = max(most, int(held.sum()))
    return most if most > self.step else 0


def stream(graph: Graph, rows_per_step: int) -> dict[Ref, Held]:
  """Returns what is held of each tensor that a layer computes.

  Args:
    graph: standardized, of images of fixed size.
    rows_per_step: rows of the input that come at a time.
  """
  held: dict[Ref, Held] = {}
  sources: dict[Ref, list[tuple[Ref, Span]]] = {}
  for node in graph.nodes:
    spans = [_composed(sources[ref], span) for ref, span in zip(node.inputs, _spans(node), strict=True)]
    parts = [part for span in spans for part in span]
    for ref in node.outputs:
      if _is_view(node):
        sources[ref] = parts
        continue
      held[ref] = _made(held, parts, ref, rows_per_step) if parts else _arriving(ref, rows_per_step)
      if not node.facts.pools:
        _hold(held, parts, held[ref].time)
      rows = np.arange(_rows_of(ref))
      sources[ref] = [(ref, (rows, rows))]
  return held


def _arriving(ref: Ref, rows_per_step: int) -> Held:
  """The image: so many rows come at once."""
  rows = _rows_of(ref)
  return _held(ref, rows_per_step, 1.0, (np.arange(rows) // rows_per_step + 1.0) * rows_per_step)


def _made(held: dict[Ref, Held], parts: Sequence[tuple[Ref, Span]], ref: Ref, rows_per_step: int) -> Held:
  """What reads parts: a row is there with the last row that it needs, and in time behind the one before."""
  rows = _rows_of(ref)
  time, paces = np.zeros(rows), []
  for source, (_, last) in parts:
    there = last >= 0
    time[there] = np.maximum(time[there], held[source].time[last[there]])
    if len(held[source].time) > 1 and rows > 1:
      paces.append(held[source].pace * _stride(last))
  pace = min(paces, default=held[parts[0][0]].pace)
  step = max(1, round(rows_per_step / pace))
  for row in range(1, rows):
    time[row] = max(time[row], time[row - 1], time[row - step] + step * pace if row >= step else 0)
  return _held(ref, step, pace, time)


def _held(ref: Ref, step: int, pace: float, time: np.ndarray) -> Held:
  rows = len(time)
  return Held(int(np.prod(ref.shape[1:])) // rows, step, pace, time, np.arange(rows), np.full(rows, -1.0))


def _stride(last: np.ndarray) -> float:
  """Rows of what is read for each row that is made: the steps in the middle, where no border is."""
  there = last[last >= 0]
  inner = there[len(there) // 4:len(there) - len(there) // 4] if len(there) > 8 else there
  return (inner[-1] - inner[0]) / max(len(inner) - 1, 1) or 1.0


def _hold(held: dict[Ref, Held], parts: Sequence[tuple[Ref, Span]], time: np.ndarray) -> None:
  """Notes how long the rows of each part are needed by rows that are made at these times."""
  for ref, (first, last) in parts:
    source = held[ref]
    for a, b, made in zip(first, last, time):
      if b >= 0:
        source.need[a:b + 1] = np.maximum(source.need[a:b + 1], b)
        if made > source.time[b]:
          source.wait[a:b + 1] = np.maximum(source.wait[a:b + 1], made)


def _composed(parts: Sequence[tuple[Ref, Span]], span: Span) -> Iterator[tuple[Ref, Span]]:
  """Yields what rows need of the tensors that a view of them is made of."""
  for ref, (first, last) in parts:
    pairs = [(first[a:b + 1].min(), last[a:b + 1].max()) if b >= 0 else (_NO_ROW, -1) for a, b in zip(*span)]
    yield ref, tuple(np.array(pairs, int).T)


def _rows_of(ref: Ref) -> int:
  """The rows of a map; a vector is one row."""
  return ref.shape[1] if len(ref.shape) > 3 else 1


def _is_view(node: Node) -> bool:
  """Whether a call moves elements that can be read where they lie."""
  return node.facts.role == "move" and not node.facts.takes_maximum and (
      len(node.inputs) == 1 or node.facts.joins)


def _spans(node: Node) -> list[Span]:
  """The rows of each input that each row of the output needs."""
  rows = _rows_of(Ref(node))
  if node.facts.joins and node.config["axis"] % len(node.shapes[0]) == 1 and len(node.shapes[0]) > 3:
    return _side_by_side(node, rows)
  return [_span(node, ref, rows) for ref in node.inputs]


def _side_by_side(node: Node, rows: int) -> list[Span]:
  """Each row of tensors that lie one below the other needs a row of one of them."""
  spans, start = [], 0
  for ref in node.inputs:
    place = np.arange(rows) - start
    inside = (place >= 0) & (place < _rows_of(ref))
    spans.append((np.where(inside, place, _NO_ROW), np.where(inside, place, -1)))
    start += _rows_of(ref)
  return spans


def _span(node: Node, ref: Ref, rows: int) -> Span:
  height, config = _rows_of(ref), node.config
  size = config.get("kernel_size", config.get("pool_size"))
  whole = np.zeros(rows, int), np.full(rows, height - 1)
  if height == 1 or rows == 1:
    return whole
  if size is not None and len(size) == 2:
    return _windows(node, height, rows)
  if _is_view(node) and not node.facts.joins and (rows != height or len(ref.shape) != len(node.shapes[0])):
    return _moved(node, ref, rows)
  if rows == height:
    return np.arange(rows), np.arange(rows)
  return whole


def _windows(node: Node, height: int, rows: int) -> Span:
  """Of a convolution, transposed or not, or a pool."""
  config, out = node.config, np.arange(rows)
  taps = config.get("kernel_size", config.get("pool_size"))[0]
  stride, dilation = config["strides"][0], (config.get("dilation_rate") or (1,))[0]
  reach = (taps - 1) * dilation + 1
  if node.facts.transposed:
    before = max(reach - stride, 0) // 2 if config["padding"] == "same" else 0
    first, last = -((reach - 1 - out - before) // stride), (out + before) // stride
  else:
    before = same_padding(height, taps, stride, dilation)[0] if config["padding"] == "same" else 0
    first, last = out * stride - before, out * stride - before + reach - 1
  return np.clip(first, 0, height - 1), np.clip(last, 0, height - 1)


def _moved(node: Node, ref: Ref, rows: int) -> Span:
  """Moves the numbers of the rows, from 1, as the call moves elements; 0 is what it pads with."""
  numbers = np.arange(1, ref.shape[1] + 1, dtype=np.float32).reshape(1, -1, *(1,) * (len(ref.shape) - 2))
  moved = node.compute(np.broadcast_to(numbers, (1, *ref.shape[1:]))).reshape(rows, -1).astype(int)
  return np.where(moved > 0, moved, _NO_ROW + 1).min(1) - 1, moved.max(1) - 1
