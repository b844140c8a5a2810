"""Which tensors of a standardized graph must share a grid, whatever the grid is."""

import collections
from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Ref


def fuses_into_reader(graph: Graph, ref: Ref) -> bool:
  """Whether the tensor lives only inside a fused operator: its one reader is a ReLU."""
  return (ref.node.facts.absorbs_relu and graph.is_private(ref)
          and graph.readers(ref)[0].facts.role == "relu")


def looped_layers(graph: Graph) -> set[LayerDef]:
  """Returns the layers of steps that follow one another: calls of layers that read what their own calls made.

  That are several layers called more than once which form a circle, at least one of them with weights: the
  cell of a recurrent network, unrolled. A state that the next run gets closes a circle, too.
  """
  carried = carried_states(graph)
  counts = collections.Counter(node.layer for node in graph.nodes)
  layers = {layer: place for place, layer in enumerate(
      layer for layer, count in counts.items() if count > 1 or carried)}
  links = {(layers[ref.node.layer], layers[node.layer]) for node in graph.nodes if node.layer in layers
           for ref in node.inputs if ref.node.layer in layers}
  links |= {(layers[state.node.layer], layers[entered.node.layer]) for entered, state in carried.items()}
  if not links:
    return set()
  first, second = np.transpose(list(links))
  matrix = coo_matrix((np.ones(len(links), bool), (first, second)), shape=(len(layers), len(layers)))
  _, labels = connected_components(matrix, directed=True, connection="strong")
  circles = {labels[a] for a, b in links if a != b and labels[a] == labels[b]}
  weighted = {labels[place] for layer, place in layers.items() if layer.facts.weights}
  return {layer for layer, place in layers.items() if labels[place] in circles & weighted}


def carried_states(graph: Graph) -> dict[Ref, Ref]:
  """Returns {input of the model: the output that the next run gets in its place}."""
  return {node.inputs[1]: Ref(node) for node in graph.nodes if node.facts.carries}


def remembering_layers(graph: Graph) -> set[LayerDef]:
  """Returns the layers of loops that have no weights and are not read by one of the loop that has.

  What they compute goes from step to step without a matrix product: its rounding errors add up. So does what
  a mask chooses instead of it.
  """
  looped = looped_layers(graph)
  remembering = {layer for layer in looped if not layer.facts.weights} - _made_by(
      ref for node in graph.nodes if node.facts.weights and node.layer in looped for ref in node.inputs)
  for node in graph.nodes:
    if node.facts.chooses and remembering & {ref.node.layer for ref in node.moved}:
      remembering |= {ref.node.layer for ref in node.moved if ref.node.facts.role == "own"}
  return remembering


def _made_by(refs: Iterable[Ref]) -> set[LayerDef]:
  """The layers that compute, move or choose the elements of tensors."""
  seen, todo = set(), list(refs)
  while todo:
    ref = todo.pop()
    if ref not in seen:
      seen.add(ref)
      todo += ref.node.moved if ref.node.facts.role == "move" else []
  return {ref.node.layer for ref in seen}


def grid_groups(graph: Graph) -> list[list[Ref]]:
  """Returns the groups of tensors that must share a grid, in topological order.

  What a layer of a loop computes has one grid in all steps.
  """
  looped, first_calls = looped_layers(graph), {}
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
      elif node.layer in looped:
        parent[root(ref)] = root(first_calls.setdefault((node.layer, index), ref))
  groups: dict[Ref, list[Ref]] = {}
  for ref in parent:
    groups.setdefault(root(ref), []).append(ref)
  return list(groups.values())
