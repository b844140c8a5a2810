"""Where tensors of 8 and of 16 bits meet: requantizations in front of an operator and behind it.

No operator but a requantization or a table takes both. An operator computes in 16 bits where a tensor that it
reads or writes has 16; what it reads of fewer bits is widened, which is exact, and a result of fewer bits is
rounded once more, from a grid of 16 bits.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tf_keras as keras

from kquant.core.encodings import Encoding
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.graph import Graph
from kquant.graph.matching import fuses_into_reader, looped_layers
from kquant.graph.nodes import LayerDef, Node, Ref

WIDE = 16
_STEPS = 128
"""Steps of a widened grid in a step of 8 bits: |q - z| is at most 255, and 128 * 255 fits 16 bits."""


@dataclasses.dataclass
class Conversions:
  """The requantizations between widths.

  Attributes:
    widened: {tensor of at most 8 bits: the same numbers in 16 bits}; the latter have no quantizer.
    narrowed: {tensor of at most 8 bits: that of 16 bits which it is rounded from}.
  """

  widened: dict[Ref, Ref] = dataclasses.field(default_factory=dict)
  narrowed: dict[Ref, Ref] = dataclasses.field(default_factory=dict)
  _layers: dict[tuple[LayerDef, int, int], LayerDef] = dataclasses.field(default_factory=dict)

  def layer(self, graph: Graph, ref: Ref, bits: int) -> LayerDef:
    """A layer that stands for a QUANTIZE behind a tensor: one for all calls that make it."""
    key = ref.node.layer, ref.index, bits
    if key not in self._layers:
      self._layers[key] = graph.new_layer(keras.layers.Activation, f"{ref.key}/to_{bits}_bits",
                                          {"activation": "linear"})
    return self._layers[key]


def part_widths(graph: Graph, bits: dict[Ref, int]) -> Conversions:
  """Adds the requantizations that let every operator read and write tensors of one width.

  Args:
    graph: standardized; edited in place.
    bits: {tensor on a grid: what its rule gives it}; of a tensor that a requantization reads it becomes 16,
      and what the requantization makes is added.
  """
  conversions, operators, looped = Conversions(), list(_operators(graph)), looped_layers(graph)
  wide = {node for node, result in operators
          if WIDE in [bits[result], *(bits[ref] for ref in node.inputs if ref in bits)]}
  wide_in_loops = {node.layer for node in wide} & looped  # in all steps
  for node, result in operators:
    if node not in wide and node.layer not in wide_in_loops:
      continue
    for place, ref in enumerate(node.inputs):
      if bits.get(ref, WIDE) != WIDE:
        graph.set_input(node, place, _widen(graph, ref, conversions))
        graph.edit(node, f"reads {ref.key} widened to {WIDE} bits: it computes in {WIDE} bits")
    if bits[result] != WIDE:
      with graph.in_place_of(result.node):
        narrow = graph.insert_after(result, conversions.layer(graph, result, bits[result]))
      conversions.narrowed[narrow], bits[narrow], bits[result] = result, bits[result], WIDE
      graph.edit(node, f"computes in {WIDE} bits, as it reads {WIDE}; rounded to {bits[narrow]} behind it")
  graph.normalize()
  return conversions


def wide_spec(spec: TensorSpec) -> TensorSpec:
  """Returns the spec of 16 bits for a tensor that is rounded to `spec` behind it: all that occurs fits."""
  quantizer = None if spec.quantizer is None else "moving_average"
  return TensorSpec(bits=WIDE, quantizer=quantizer).for_activations()


def widened(grid: Encoding) -> Encoding:
  """Returns the grid of 16 bits that holds every number of one of at most 8 bits."""
  return Encoding(grid.scale / np.float32(_STEPS), np.zeros(1, np.int64), WIDE)


def _operators(graph: Graph) -> Iterator[tuple[Node, Ref]]:
  """Yields each call that becomes an operator of one width, and the tensor on a grid that it writes."""
  for node in graph.nodes:
    facts = node.facts
    if (facts.role in ("input", "move", "average") or facts.unary or facts.takes_indices or facts.requantizes
        or facts.role == "relu" and fuses_into_reader(graph, node.inputs[0])):
      continue
    result = Ref(node)
    yield node, Ref(graph.readers(result)[0]) if fuses_into_reader(graph, result) else result


def _widen(graph: Graph, ref: Ref, conversions: Conversions) -> Ref:
  if ref not in conversions.widened:
    with graph.in_place_of(ref.node):
      conversions.widened[ref] = graph.add_node(conversions.layer(graph, ref, WIDE), (ref,),
                                                 ref.shape)
  return conversions.widened[ref]
