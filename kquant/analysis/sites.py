"""What of a quantized network can be quantized by itself: weights of a layer, a grid of activations, both."""

import dataclasses

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights

WEIGHTS, ACTIVATION, BOTH = "weights", "activation", "both"


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
  """Something that is quantized while the rest is not, or the other way round.

  Attributes:
    name: of the layer whose weights they are, or of the first tensor on the grid.
    part: WEIGHTS of a layer, in all its calls; ACTIVATION: every tensor of a grid; BOTH: the weights of a
      layer and its output.
    nodes: calls that are quantized or not.
    shared_with: other tensors on the same grid, and other calls of the layer, by name.
    output: {call: the tensor at which the noise is measured that comes in there}.
  """

  name: str
  part: str
  nodes: tuple[Node, ...]
  shared_with: tuple[str, ...]
  output: dict[Node, Ref]

  def name_of(self, call: Node) -> str:
    """Returns the name of the tensor that a quantizer's call is given, or of a layer's call."""
    return call.inputs[0].key if self.part == ACTIVATION else call.name


def sites(graph: Graph) -> list[Site]:
  """Returns what is quantized in the graph of a qmodel: weights and grids in order, then layers."""
  single: dict[object, Site] = {}
  for node in graph.nodes:
    if node.layer not in single and issubclass(node.layer.cls, QuantizeWeights):
      single[node.layer] = _weights(graph, node)
    elif node.layer not in single and issubclass(node.layer.cls, QuantizeActivation):
      single[node.layer] = _activation(graph, node)
  layers = [_both(graph, site) for site in single.values() if site.part == WEIGHTS]
  return [*single.values(), *(layer for layer in layers if layer is not None)]


def _weights(graph: Graph, node: Node) -> Site:
  calls = graph.calls(node.layer)
  return Site(node.layer.name, WEIGHTS, tuple(calls), tuple(call.name for call in calls[1:]),
              {call: Ref(call) for call in calls})


def _activation(graph: Graph, node: Node) -> Site:
  calls = graph.calls(node.layer)
  name, *others = (call.inputs[0].key for call in calls)
  return Site(name, ACTIVATION, tuple(calls), tuple(others), {call: Ref(call) for call in calls})


def _both(graph: Graph, weights: Site) -> Site | None:
  """The weights of a layer with its output; None where its output has no quantizer."""
  behind = {call: quantizer_behind(graph, Ref(call)) for call in weights.nodes}
  quantizers = tuple(dict.fromkeys(quantizer for quantizer in behind.values() if quantizer is not None))
  output = {call: Ref(quantizer or call) for call, quantizer in behind.items()}
  return Site(weights.name, BOTH, (*weights.nodes, *quantizers), weights.shared_with,
              output) if quantizers else None


def quantizer_behind(graph: Graph, ref: Ref) -> Node | None:
  """Returns the quantizer of the integer operator that a call belongs to: behind what is fused into it."""
  while True:
    readers = graph.readers(ref)
    if len(readers) != 1:
      return None
    if issubclass(readers[0].layer.cls, QuantizeActivation):
      return readers[0]
    ref = Ref(readers[0])
