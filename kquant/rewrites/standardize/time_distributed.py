"""TimeDistributed: a layer or model that is called for each step of a sequence, one after the other."""

from typing import Any

import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref, map_refs
from kquant.graph.policies import float32_policy
from kquant.rewrites.standardize.building import add_sequence, add_steps, is_fixed, replace


def distribute(graph: Graph, node: Node) -> None:
  """Calls the layer inside once a step; one that acts on the last axis alone once for all steps."""
  if node.kind != "TimeDistributed" or len(node.args) != 1 or len(node.shapes) != 1 or (
      node.kwargs.keys() - {"mask"}) or (
      not is_fixed(node.inputs[0], Ref(node))):
    return
  source, name = node.inputs[0], node.layer_name
  inner = _inner_graph(node)
  layers = {layer: _renamed(layer, f"{name}/{layer.name}") for layer in inner.layers}
  if _acts_on_channels(inner):
    replace(graph, node, _call(graph, inner, layers, source), "called on all steps at once")
    return
  if node.kwargs:
    return  # what is inside may look at the mask
  results = [_call(graph, inner, layers, step) for step in add_steps(graph, name, source)]
  replace(graph, node, add_sequence(graph, f"{name}/sequence", results),
          f"called on each of {len(results)} steps")


@float32_policy()
def _inner_graph(node: Node) -> Graph:
  """The layer inside, as the graph of one step."""
  inner = keras.layers.deserialize(node.config["layer"])
  x = keras.Input(node.inputs[0].shape[2:], name="step")
  model = keras.Model(x, inner(x))
  variables = [*inner.trainable_weights, *inner.non_trainable_weights]  # as the wrapper orders them
  for variable, value in zip(variables, node.layer.params.values(), strict=True):
    variable.assign(value)
  return Graph.from_model(model)


def _renamed(layer: LayerDef, name: str) -> LayerDef:
  return LayerDef(name, layer.cls, {**layer.config, "name": name}, dict(layer.params), layer.output_moments)


def _acts_on_channels(inner: Graph) -> bool:
  """Whether all that is inside does the same at every position: Dense, functions of one element."""
  def acts(node: Node) -> bool:
    facts = node.facts
    dense = facts.role == "linear" and not facts.spatial and not facts.depthwise
    return facts.role in ("input", "relu", "identity") or dense or facts.unary or bool(facts.fixed_grid)
  return all(acts(node) for node in inner.nodes)


def _call(graph: Graph, inner: Graph, layers: dict[LayerDef, LayerDef], source: Ref) -> Ref:
  """Adds the calls of the graph inside on a tensor, or on a sequence of them."""
  values: dict[Ref, Ref] = dict.fromkeys(inner.input_refs, source)
  lead = source.shape[:len(source.shape) - len(inner.input_refs[0].shape) + 1]

  def outer(tree: Any) -> Any:
    return map_refs(values.__getitem__, tree)

  for node in inner.nodes:
    if node.facts.role != "input":
      result = graph.add_node(layers[node.layer], outer(node.args), (), kwargs=outer(node.kwargs))
      result.node.shapes = [(*lead, *shape[1:]) for shape in node.shapes]
      values.update(zip(node.outputs, result.node.outputs))
  return values[inner.output_refs[0]]
