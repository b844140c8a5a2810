"""Graph: a Keras model as calls of layers, for passes to edit.

The graph holds copies of the weights: no variable is shared with the user's model, and nothing is
written to it.
"""

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.records import Edit, Skip
from kquant.core.text import scope_name
from kquant.graph import keras_calls, keras_reader, policies
from kquant.graph.losses import LossBranch, loss_branch
from kquant.graph.model_forms import as_tf_keras
from kquant.graph.nodes import LayerDef, Node, Ref, map_refs

NOTES = "graph_notes"
"""Key in the config of the one layer that carries the notes of a graph from model to model and into files."""


class Graph:
  """The calls of a model in topological order.

  Attributes:
    nodes: in an order that depends on the structure alone (depth first from the outputs).
    inputs, outputs: the model's nests with Refs as leaves.
    output_names: how the user of the model knows its flat outputs; rewrites do not change them.
    edits, skips: what passes did and what they could not do, with the reason.
    pass_name: the pass at work.
    losses: calls behind `add_loss` and `add_metric`, where they are kept; `outputs` then are a pair, the
      model's and the tensors that these calls read.
  """

  def __init__(self, *, name: str, nodes: list[Node], inputs: Any, outputs: Any):
    self.name = name
    self.nodes = nodes
    self.inputs = inputs
    self.outputs = outputs
    self.output_names: list[str] = []
    self.edits: list[Edit] = []
    self.skips: list[Skip] = []
    self.pass_name = ""
    self.losses: LossBranch | None = None
    self._readers: dict[Ref, list[Node]] = {}
    self._stood_for: LayerDef | None = None
    self.normalize()

  # --- reading -------------------------------------------------------------------------------

  @classmethod
  def from_model(cls, model: keras.Model, *, keep_losses: bool = False) -> "Graph":
    """Reads a built tf_keras model, or a Keras 3 model (`from_keras3`); layers of the user's own are traced.

    Args:
      model: the model.
      keep_losses: what `add_loss` and `add_metric` add to it goes into the models that the graph makes.

    Raises:
      TypeError: not a model.
      UnsupportedLayerError: a subclassed model that cannot be traced.
      ValueError: not built, or a weight is not finite; see also `from_keras3`.
    """
    model = as_tf_keras(model)
    nodes, inputs, outputs = keras_reader.read(model)
    losses = loss_branch(nodes, tf.nest.flatten(outputs)) if keep_losses else None
    outputs = outputs if losses is None else (outputs, list(losses.reads))
    graph = cls(name=model.name, nodes=nodes, inputs=inputs, outputs=outputs)
    graph.losses = losses
    graph.output_names = list(model.output_names)
    for layer in graph.layers:
      if NOTES in layer.config:
        graph._take_notes(layer.config[NOTES])
    return graph

  @property
  def layers(self) -> list[LayerDef]:
    """The layers that are called, each once, in the order of their first call."""
    return list({node.layer: None for node in self.nodes})

  @property
  def input_refs(self) -> list[Ref]:
    """The model's inputs, flat."""
    return tf.nest.flatten(self.inputs)

  @property
  def output_refs(self) -> list[Ref]:
    """The model's outputs, flat."""
    return tf.nest.flatten(self.outputs)

  def find(self, *kinds: str) -> list[Node]:
    """Returns the nodes of those kinds, in topological order, as a list that edits do not disturb."""
    return [node for node in self.nodes if node.kind in kinds]

  def of_role(self, role: str) -> list[Node]:
    """Returns the nodes whose kind has that role, in topological order, as a list of its own."""
    return [node for node in self.nodes if node.facts.role == role]

  def readers(self, ref: Ref) -> list[Node]:
    """Returns the nodes that read a tensor, one entry a use."""
    return self._readers.get(ref, [])

  def is_private(self, ref: Ref) -> bool:
    """Whether exactly one call reads the tensor and it is no output of the model."""
    return len(self.readers(ref)) == 1 and ref not in self.output_refs

  def calls(self, layer: LayerDef) -> list[Node]:
    """Returns every call of a layer."""
    return [node for node in self.nodes if node.layer is layer]

  # --- editing -------------------------------------------------------------------------------

  def edit(self, node: Node, what: str) -> None:
    """Records what the pass at work did to a node."""
    self.edits.append(Edit(node.name, self.pass_name, what))

  def skip(self, node: Node, reason: str) -> None:
    """Records that the pass at work left a node alone, and why."""
    self.skips.append(Skip(node.name, self.pass_name, reason))

  @contextlib.contextmanager
  def in_place_of(self, node: Node) -> Iterator[None]:
    """Layers that the block adds stand for what the node's layer stands for, and are frozen where it is."""
    outer, self._stood_for = self._stood_for, node.layer
    try:
      yield
    finally:
      self._stood_for = outer

  def new_layer(self, cls: type, name: str, config: dict[str, Any] | None = None,
                params: dict[str, np.ndarray] | None = None) -> LayerDef:
    """Returns a LayerDef of a Keras class whose config is completed by the class's defaults."""
    name = scope_name(name)
    with policies.float32_policy():
      full = cls(**{**(config or {}), "name": name}).get_config()
    return LayerDef(name, cls, full, dict(params or {}))

  def add_node(self, layer: LayerDef, args: tuple, shape: tuple, *,
               kwargs: dict[str, Any] | None = None) -> Ref:
    """Adds one call with one output and returns its tensor; `normalize` sets its place."""
    if self._stood_for is not None:
      layer.take_place_of(self._stood_for)
    node = Node(layer.name, layer, args, dict(kwargs or {}), [tuple(shape)])
    self.nodes.append(node)
    self._note_reader(node)
    return Ref(node)

  def insert_after(self, ref: Ref, layer: LayerDef, *, kwargs: dict[str, Any] | None = None) -> Ref:
    """Calls a layer of unchanged shape on a tensor; all that read the tensor read the result."""
    new = self.add_node(layer, (ref,), ref.shape, kwargs=kwargs)
    self.redirect(ref, new)
    return new

  def redirect(self, old: Ref, new: Ref, *, only: Callable[[Node], bool] | None = None) -> None:
    """Lets the readers of `old` (those that `only` accepts) read `new` instead.

    The model's outputs follow only when every reader does. What makes `new` goes on reading `old`.
    """
    swap = lambda ref: new if ref == old else ref
    for node in dict.fromkeys(self.readers(old)):
      if node is not new.node and (only is None or only(node)):
        self._forget_reader(node)
        node.args, node.kwargs = map_refs(swap, (node.args, node.kwargs))
        self._note_reader(node)
    if only is None:
      self.outputs = map_refs(swap, self.outputs)

  def set_input(self, node: Node, place: int, ref: Ref | np.ndarray) -> None:
    """Lets a node read another tensor, or a constant, as one of its `inputs`."""
    places = itertools.count()
    swap = lambda old: ref if next(places) == place else old
    self._forget_reader(node)
    node.args = map_refs(swap, node.args)
    node.kwargs = {key: map_refs(swap, value) for key, value in node.kwargs.items()}  # ordered as `inputs`
    self._note_reader(node)

  def give(self, node: Node, **arguments: Any) -> None:
    """Lets a call have more arguments, by keyword."""
    self._forget_reader(node)
    node.kwargs = {**node.kwargs, **arguments}
    self._note_reader(node)

  def remove(self, node: Node) -> None:
    """Removes a call that passes one tensor on: its readers read that."""
    (source,) = node.moved
    self.drop(node)
    self.redirect(Ref(node), source)

  def drop(self, node: Node) -> None:
    """Takes a call out of the graph; its readers must have been redirected."""
    self._forget_reader(node)
    self.nodes.remove(node)

  def restore(self, node: Node, args: tuple) -> Ref:
    """Adds a call that was dropped again, on other arguments, and returns its tensor."""
    node.args = args
    self.nodes.append(node)
    self._note_reader(node)
    return Ref(node)

  def recall(self, node: Node, layer: LayerDef, args: tuple) -> None:
    """Lets a node call another layer, which takes the place of its own, on other arguments.

    The shape of its output stays.
    """
    self._forget_reader(node)
    layer.take_place_of(node.layer)
    node.layer, node.args, node.kwargs = layer, args, {}
    self._note_reader(node)

  def normalize(self) -> None:
    """Sorts the nodes depth first from the outputs, drops unread ones, and names the calls anew."""
    order: dict[Node, None] = {ref.node: None for ref in self.input_refs}
    for output in self.output_refs:
      stack = [(output.node, False)]
      while stack:
        node, ready = stack.pop()
        if node in order:
          continue
        if ready:
          order[node] = None
          continue
        stack.append((node, True))
        stack.extend((ref.node, False) for ref in reversed(node.inputs))
    self.nodes = list(order)
    self._readers = {}
    seen: dict[LayerDef, int] = {}
    for node in self.nodes:
      self._note_reader(node)
      count = seen[node.layer] = seen.get(node.layer, -1) + 1
      node.name = node.layer.name if count == 0 else f"{node.layer.name}@{count}"

  def _note_reader(self, node: Node) -> None:
    for ref in node.inputs:
      self._readers.setdefault(ref, []).append(node)

  def _forget_reader(self, node: Node) -> None:
    for ref in node.inputs:
      self._readers[ref].remove(node)

  def copy(self) -> "Graph":
    """Returns a graph of its own; weights are shared until a pass replaces them."""
    layers: dict[LayerDef, LayerDef] = {}
    nodes: dict[Node, Node] = {}

    def moved(tree: Any) -> Any:
      return map_refs(lambda ref: Ref(nodes[ref.node], ref.index), tree)

    for node in self.nodes:
      if node.layer not in layers:
        layers[node.layer] = dataclasses.replace(
            node.layer, config=copy.deepcopy(node.layer.config), params=dict(node.layer.params))
      nodes[node] = Node(node.name, layers[node.layer], moved(node.args), moved(node.kwargs),
                         list(node.shapes))
    twin = Graph(name=self.name, nodes=list(nodes.values()), inputs=moved(self.inputs),
                 outputs=moved(self.outputs))
    twin.output_names = list(self.output_names)
    twin.edits, twin.skips = list(self.edits), list(self.skips)
    twin.losses = self.losses
    return twin

  def with_weights_of(self, model: keras.Model) -> "Graph":
    """Returns a copy whose layers have the weights that the layers of a model made of it have now."""
    twin, live = self.copy(), {layer.name: layer for layer in model.layers}
    for layer in twin.layers:
      if layer.name in live:
        layer.params = {name: variable.numpy() for name, variable in
                        keras_reader.named_variables(live[layer.name])}
    return twin

  # --- writing -------------------------------------------------------------------------------

  def notes(self) -> dict[str, Any]:
    """Returns what Keras layers have no place for, ready for JSON: names of outputs, moments of layers."""
    moments = {layer.name: [values.tolist() for values in layer.output_moments]
               for layer in self.layers if layer.output_moments is not None}
    return {"output_names": list(self.output_names), "output_moments": moments}

  def _take_notes(self, notes: dict[str, Any]) -> None:
    """Takes over what `notes` returned of the graph that a model, perhaps out of a file, was made of."""
    self.output_names = list(notes.get("output_names", self.output_names))
    moments = notes.get("output_moments", {})
    for layer in self.layers:
      if layer.name in moments:
        mean, deviation = moments[layer.name]
        layer.output_moments = np.asarray(mean, np.float64), np.asarray(deviation, np.float64)

  def to_model(self, name: str | None = None) -> keras.Model:
    """Builds a new tf_keras model by replaying every call on fresh layers with these weights.

    A layer whose config has the key NOTES carries the `notes` of the graph, into files too.
    """
    self.normalize()
    for layer in self.layers:
      if NOTES in layer.config:
        layer.config = {**layer.config, NOTES: self.notes()}
    nodes, outputs, sinks = self.nodes, self.outputs, ()
    if self.losses is not None:
      outputs, reads = self.outputs
      branch = self.losses.reading(reads)
      nodes, sinks = [*self.nodes, *branch.nodes], branch.sinks
    model = keras_calls.replay(nodes, self.inputs, outputs, name=name or self.name, sinks=sinks)
    keras_calls.name_outputs(model, self.output_names)
    return model
