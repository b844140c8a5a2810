"""What reads indices reads an input of the model, which is made an int32 input."""

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref


def take_integer_indices(graph: Graph, node: Node) -> None:
  """Lets a layer of indices read its input without casts between, and the input hold int32."""
  if not node.facts.takes_indices:
    return
  (source,) = node.inputs
  while source.node.facts.casts:
    source = source.node.inputs[0]
  if source.node.facts.role != "input":
    return
  graph.redirect(node.inputs[0], source, only=lambda reader: reader is node)
  if source.node.config["dtype"] == "int32" or not _holds_indices(graph, source):
    return
  layer = source.node.layer
  layer.config = {**layer.config, "dtype": "int32"}
  graph.edit(source.node, "made an int32 input: it holds indices")


def _holds_indices(graph: Graph, source: Ref) -> bool:
  """Whether what takes indices alone reads an input, casts between left aside."""
  return all(reader.facts.takes_indices or reader.facts.casts and _holds_indices(graph, Ref(reader))
             for reader in graph.readers(source)) and source not in graph.output_refs
