"""The bytes that a training step moves between memory and an accelerator, for static and dynamic ranges."""

import dataclasses
import math
from typing import Any

import tf_keras as keras

from kquant.core.text import text_table
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize


@dataclasses.dataclass(frozen=True)
class LayerTraffic:
  """The bytes that a layer moves in a training step.

  Attributes:
    name: of the call of the layer.
    forward: bytes of its forward pass with static ranges.
    backward: bytes of its backward pass with static ranges.
    forward_extra, backward_extra: bytes that dynamic ranges add to each.

  Example:
    >>> row = kq.LayerTraffic("conv", forward=100, backward=200, forward_extra=300, backward_extra=400)
    >>> row.static, row.dynamic
    (300, 1000)
  """

  name: str
  forward: int
  backward: int
  forward_extra: int
  backward_extra: int

  @property
  def static(self) -> int:
    """Bytes of both passes with static ranges."""
    return self.forward + self.backward

  @property
  def dynamic(self) -> int:
    """Bytes of both passes with dynamic ranges."""
    return self.static + self.forward_extra + self.backward_extra


@dataclasses.dataclass(frozen=True)
class TrainingTraffic:
  """The bytes that the layers of a network move in a training step.

  Attributes:
    rows: one a call of a layer with weights, in the order of the network.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(4, input_shape=(8,))])
    >>> traffic = kq.training_traffic(model, batch=2)
    >>> traffic.static, traffic.dynamic
    (208, 272)
  """

  rows: tuple[LayerTraffic, ...]

  @property
  def static(self) -> int:
    """Bytes with static ranges."""
    return sum(row.static for row in self.rows)

  @property
  def dynamic(self) -> int:
    """Bytes with dynamic ranges."""
    return sum(row.dynamic for row in self.rows)

  def to_json(self) -> dict[str, Any]:
    """Lists all numbers, ready for JSON.

    Returns:
      {"rows": one dict each, "static", "dynamic"}.
    """
    rows = [{**dataclasses.asdict(row), "static": row.static, "dynamic": row.dynamic} for row in self.rows]
    return {"rows": rows, "static": self.static, "dynamic": self.dynamic}

  def __str__(self) -> str:
    """A row for each layer, and the sums."""
    names = ("forward", "backward", "forward_extra", "backward_extra")
    total = LayerTraffic("total", *(sum(getattr(row, name) for row in self.rows) for name in names))
    return text_table(("layer", "forward bytes", "dynamic, times", "backward bytes", "dynamic, times"), [
        (row.name, f"{row.forward:,}", f"{1 + row.forward_extra / row.forward:.2f}",
         f"{row.backward:,}", f"{1 + row.backward_extra / row.backward:.2f}") for row in (*self.rows, total)])


@dataclasses.dataclass(frozen=True)
class _Bits:
  weights: int
  activations: int
  gradients: int
  accumulator: int


def training_traffic(model: keras.Model, batch: int, weights: int = 8, activations: int = 8,
                     gradients: int = 8, accumulator: int = 32) -> TrainingTraffic:
  """Computes the bytes that an accelerator moves in a training step, for static and for dynamic ranges.

  With X, W, Y of elements x, w, y and bits b (Fournarakis & Nagel 2021, arXiv 2105.04246):

    forward           x b_activations + w b_weights + y b_activations
    input gradient    y b_gradients + w b_weights + x b_gradients
    weight gradient   x b_activations + y b_gradients + w b_accumulator
    dynamic ranges    2 y b_accumulator more forward, 2 x b_accumulator more for the input gradient

  Where a range is dynamic, the accumulators are written to memory until the last of them is there, and read
  again to be quantized. Each layer reads its input once and writes its output once; nothing stays on the chip
  in between. Batch norms are folded. Biases, the update of the weights and layers without weights are left
  out. A layer that reads an input of the model has no input gradient.

  Args:
    model: a float model whose sizes are fixed.
    batch: images of a step.
    weights, activations, gradients, accumulator: bits of each.

  Returns:
    The bytes of each layer.

  Raises:
    ValueError: batch or bits below 1, a size of the model that is open, or no layer with weights.

  Example:
    >>> model = keras.Sequential([keras.layers.Conv2D(96, 1, input_shape=(112, 112, 16))])
    >>> (row,) = kq.training_traffic(model, batch=1).rows
    >>> row.forward, row.forward + row.forward_extra
    (1406464, 11040256)
  """
  bits = _Bits(weights, activations, gradients, accumulator)
  if min(batch, *dataclasses.astuple(bits)) < 1:
    raise ValueError(f"training_traffic: batch and bits must be 1 or more, got batch={batch}, {bits}.")
  graph = fold_batch_norm(standardize(Graph.from_model(model)))
  rows = tuple(_row(graph, node, batch, bits) for node in graph.nodes if node.facts.role == "linear")
  if not rows:
    raise ValueError(f"training_traffic: model {model.name!r} has no layer with weights; expected a float "
                     "model with convolutions or dense layers.")
  return TrainingTraffic(rows)


def _row(graph: Graph, node: Node, batch: int, bits: _Bits) -> LayerTraffic:
  shapes = node.inputs[0].shape[1:], node.shapes[0][1:]
  if any(None in shape for shape in shapes):
    raise ValueError(f"training_traffic: layer {node.name!r} has an open size, {shapes[0]} to {shapes[1]}; "
                     "build the model with fixed sizes.")
  x, y = (batch * math.prod(shape) for shape in shapes)
  w = node.layer.params[node.layer.facts.kernel.name].size
  forward = _bytes((x + y) * bits.activations + w * bits.weights)
  backward = _bytes(x * bits.activations + y * bits.gradients + w * bits.accumulator)
  extra = 0
  if node.inputs[0] not in graph.input_refs:
    backward += _bytes((x + y) * bits.gradients + w * bits.weights)
    extra = _bytes(2 * x * bits.accumulator)
  return LayerTraffic(node.name, forward, backward, _bytes(2 * y * bits.accumulator), extra)


def _bytes(bits: int) -> int:
  return -(-bits // 8)
