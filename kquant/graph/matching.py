"""Which tensors of a standardized graph must share a grid, whatever the grid is."""

from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref


def fuses_into_reader(graph: Graph, ref: Ref) -> bool:
  """Whether the tensor lives only inside a fused operator: its one reader is a ReLU."""
  return (ref.node.facts.absorbs_relu and graph.is_private(ref)
          and graph.readers(ref)[0].facts.role == "relu")


def grid_groups(graph: Graph) -> list[list[Ref]]:
  """Returns the groups of tensors that must share a grid, in topological order."""
  parent: dict[Ref, Ref] = {}

  def root(ref: Ref) -> Ref:
    while parent[ref] is not ref:
      ref = parent[ref]
    return ref

  for node in graph.nodes:
    for index in range(len(node.shapes)):
      ref = Ref(node, index)
      if ref.is_integer or fuses_into_reader(graph, ref):
        continue
      parent[ref] = ref
      if node.facts.role in ("move", "average"):
        for source in node.moved:
          first, second = root(source), root(ref)
          parent[second] = first
  groups: dict[Ref, list[Ref]] = {}
  for ref in parent:
    groups.setdefault(root(ref), []).append(ref)
  return list(groups.values())
