"""How much of its grid each column of an input or output uses: a feature, a class, a coordinate."""

import dataclasses

import numpy as np
import tensorflow as tf

from kquant.core.encodings import Encoding
from kquant.core.records import FEWEST_STEPS, NarrowColumn, NarrowTensor
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.qmodel.quantize_activation import QuantizeActivation


@dataclasses.dataclass(frozen=True)
class Border:
  """An input or output of a quantized network, [images, ..., columns], on a grid that its values decide.

  Attributes:
    ref: in the graph with the quantizers.
    tensor: its key in Encodings.
    quantizer: the QuantizeActivation layer that its grid is of.
  """

  ref: Ref
  tensor: str
  is_input: bool
  quantizer: str


def borders(graph: Graph) -> list[Border]:
  """Returns the inputs and outputs of a graph with quantizers that hold real numbers, on no fixed grid."""
  found = []
  for refs, is_input in ((graph.input_refs, True), (dict.fromkeys(graph.output_refs), False)):
    for ref in refs:
      tensor = ref.node.inputs[0] if _quantizes(ref) else ref
      owner = _quantizer_behind(graph, tensor) if is_input else _quantizer_before(ref)
      if owner is not None and owner.node.config["fixed"] is None and ref.shape[1:] and ref.shape[-1]:
        found.append(Border(tensor, tensor.key, is_input, owner.node.layer.name))
  return found


def _quantizes(ref: Ref) -> bool:
  return issubclass(ref.node.layer.cls, QuantizeActivation)


def _quantizer_behind(graph: Graph, ref: Ref) -> Ref | None:
  return next((Ref(node) for node in graph.readers(ref) if _quantizes(Ref(node))), None)


def _quantizer_before(ref: Ref) -> Ref | None:
  """Returns the quantizer whose integers a tensor holds, moved or not."""
  while ref.node.facts.role == "move":
    ref = ref.node.moved[0]
  return ref if _quantizes(ref) else None


def measure_columns(tensor: tf.Tensor, *, moments: bool) -> list[tf.Tensor]:
  """Returns lowest and highest value of each column; with `moments` mean, variance and count of rows too."""
  rows = tf.reshape(tensor, [-1, tensor.shape[-1]])
  ends = [tf.reduce_min(rows, 0), tf.reduce_max(rows, 0)]
  return [*ends, *tf.nn.moments(rows, [0]), tf.shape(rows)[0]] if moments else ends


class ColumnStatistics:
  """Range, mean and variance of each column of a tensor, batch after batch."""

  def __init__(self):
    self._low, self._high = np.float32(np.inf), np.float32(-np.inf)
    self._mean, self._variance, self._rows = np.float64(0), np.float64(0), 0

  def absorb(self, low: np.ndarray, high: np.ndarray, *moments: np.ndarray) -> None:
    """Adds what `measure_columns` returned of a batch: variances of parts and of their means add up."""
    self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
    if moments:
      mean, variance, rows = moments
      share = int(rows) / (self._rows + int(rows))
      step = mean.astype(np.float64) - self._mean
      self._variance = (1 - share) * self._variance + share * variance + share * (1 - share) * step**2
      self._mean, self._rows = self._mean + share * step, self._rows + int(rows)

  def narrow(self, border: Border, grid: Encoding) -> NarrowTensor | None:
    """Returns the columns that use fewer than FEWEST_STEPS steps of a grid; None where there is none.

    A constant column has nothing to tell apart.
    """
    (first,), (last,) = grid.range
    steps = (np.clip(self._high, first, last) - np.clip(self._low, first, last)) / grid.scale[0]
    few = np.flatnonzero((steps < FEWEST_STEPS) & (self._low < self._high))
    if not len(few):
      return None
    columns = tuple(NarrowColumn(int(c), *(float(values[c]) for values in (self._low, self._high, steps)))
                    for c in few)
    moments = (self._mean, np.sqrt(self._variance)) if self._rows else ()
    return NarrowTensor(border.tensor, border.is_input, len(steps), columns,
                        *(tuple(values.tolist()) for values in moments))
