"""Layers that act in training alone (Dropout, noise, augmentation): taken out, put back behind quantizers.

Quantizers are placed where they stand without these layers, since in the file none is left.
"""

import dataclasses

import tensorflow as tf

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref, map_refs


@dataclasses.dataclass(frozen=True)
class TrainingCall:
  """A call that was taken out of a graph.

  Attributes:
    node: the call.
    args: of the call.
    source: the tensor that it passes on.
    readers: (call, place among its inputs) where its result is read.
    outputs: places among the model's flat outputs where its result stands.
    alone: nothing else reads its source.
  """

  node: Node
  args: tuple
  source: Ref
  readers: tuple[tuple[Node, int], ...]
  outputs: tuple[int, ...]
  alone: bool


def take_out_training_layers(graph: Graph) -> list[TrainingCall]:
  """Takes the layers out of a graph, in its order, and returns what `put_back_training_layers` needs."""
  taken = []
  for node in [node for node in graph.nodes if node.facts.training_only]:
    (source,), result = node.moved, Ref(node)
    readers = tuple((reader, place) for reader in dict.fromkeys(graph.readers(result))
                    for place, ref in enumerate(reader.inputs) if ref == result)
    outputs = tuple(place for place, ref in enumerate(graph.output_refs) if ref == result)
    taken.append(TrainingCall(node, node.args, source, readers, outputs, graph.is_private(source)))
    graph.remove(node)
  return taken


def put_back_training_layers(graph: Graph, taken: list[TrainingCall]) -> None:
  """Calls each layer again, between what its result's readers read now and them.

  That is behind the quantizer of the tensor; what augments the model's input stands in front of it.
  """
  for call in reversed(taken):
    if call.alone and call.source.node.facts.role == "input":
      graph.redirect(call.source, graph.restore(call.node, (call.source,)))
      continue
    results: dict[Ref, Ref] = {}
    for reader, place in call.readers:
      graph.set_input(reader, place, _result(graph, call, reader.inputs[place], results))
    outputs = graph.output_refs
    for place in call.outputs:
      outputs[place] = _result(graph, call, outputs[place], results)
    graph.outputs = tf.nest.pack_sequence_as(graph.outputs, outputs)


def _result(graph: Graph, call: TrainingCall, ref: Ref, results: dict[Ref, Ref]) -> Ref:
  """Returns the result of a layer on a tensor, calling it where it has not been; `results` has the others."""
  if ref not in results:
    args = map_refs(lambda old: ref if old == call.source else old, call.args)
    results[ref] = (graph.add_node(call.node.layer, args, ref.shape) if results
                    else graph.restore(call.node, args))
  return results[ref]
