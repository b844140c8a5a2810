"""Reads a Keras model's call records into nodes."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.functional import Functional

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.graph.policies import in_float32

MOMENTS = "kquant_output_moments"
"""Attribute of a rebuilt layer that holds `LayerDef.output_moments`."""


def read(model: keras.Model) -> tuple[list[Node], Any, Any]:
  """Returns (nodes, inputs, outputs) of a model: its calls, and its nests with Refs as leaves.

  Nested models are inlined, their layers named "outer/inner"; a shared layer is one LayerDef.

  Raises:
    TypeError, ValueError: see `check_model`.
  """
  check_model(model)
  return Reader().read(model)


def check_is_model(model: Any) -> None:
  """Raises TypeError unless `model` is a tf_keras model."""
  if not isinstance(model, keras.Model):
    is_path = isinstance(model, (str, os.PathLike))
    remedy = f"; load it first: kquant.load_model({os.fspath(model)!r})" if is_path else ""
    raise TypeError(f"Expected a tf_keras model, got {type(model).__name__}{remedy}.")


def check_model(model: Any) -> None:
  """Raises unless `model` is a built functional or Sequential tf_keras model that can be rebuilt.

  Raises:
    TypeError: subclassed, or no tf_keras model.
    ValueError: unbuilt, or its weights are not finite.
  """
  check_is_model(model)
  if isinstance(model, keras.Sequential) and not model._is_graph_network:
    raise ValueError(f"Model {model.name!r} is not built: its input shape is unknown. Give its first "
                     "layer an input_shape, or call model.build(input_shape).")
  if not computes_its_graph(model):
    raise TypeError(f"Model {model.name!r} ({type(model).__name__}) is subclassed: its graph cannot be read.")
  for variable in filter(tf.is_tensor, model.weights):  # words of a table are weights to Keras, too
    if variable.dtype.is_floating and not np.isfinite(variable.numpy()).all():
      raise ValueError(f"Weight {variable.name!r} of model {model.name!r} holds NaN or infinity; "
                       "expected finite weights. Train or load the model again.")


class Reader:
  """Walks Keras call records and collects nodes.

  Attributes:
    nodes: the calls that were read, in topological order.
  """

  def __init__(self):
    self.nodes: list[Node] = []
    self._values: dict[tuple[int, int, int], Ref] = {}
    self._layers: dict[int, LayerDef] = {}

  def read(self, model: keras.Model) -> tuple[list[Node], Any, Any]:
    """Returns (nodes, inputs, outputs) of a model that computes its call records."""
    inputs = tf.nest.map_structure(self.add_input, model._nested_inputs)
    self.read_calls(_calls_in_order(model), prefix="")
    return self.nodes, inputs, tf.nest.map_structure(self.value, model._nested_outputs)

  def add_input(self, tensor: Any) -> Ref:
    """Adds an input of the model."""
    layer = tensor._keras_history.layer
    node = Node(layer.name, self._layer_def(layer, ""), shapes=[tuple(tensor.shape)])
    self.nodes.append(node)
    self.hold(tensor, Ref(node))
    return Ref(node)

  def hold(self, tensor: Any, ref: Ref) -> None:
    """Notes what a Keras tensor is."""
    self._values[_history(tensor)] = ref

  def read_calls(self, calls: Iterable[Any], prefix: str) -> None:
    """Reads calls in their order; the input tensors among them are held already."""
    for call in calls:
      if all(_history(t) in self._values for t in tf.nest.flatten(call.outputs)) and call.is_input:
        continue
      _check_inference(call)
      args, kwargs = tf.nest.map_structure(self.value, (call.call_args, call.call_kwargs))
      if isinstance(call.layer, keras.Model) and computes_its_graph(call.layer):
        outputs = self._read_model(call.layer, args[0], prefix)
      else:
        outputs = self.read_call(call, args, kwargs, prefix)
      for tensor, ref in zip(tf.nest.flatten(call.outputs), outputs, strict=True):
        self.hold(tensor, ref)

  def value(self, leaf: Any) -> Any:
    """Returns the Ref of a Keras tensor, the array of a variable, anything else as it is."""
    if hasattr(leaf, "_keras_history"):
      return self._values[_history(leaf)]
    if isinstance(leaf, tf.Variable):
      return leaf.numpy()
    return leaf

  def _read_model(self, model: keras.Model, arguments: Any, prefix: str) -> list[Ref]:
    for tensor, ref in zip(model.inputs, model._flatten_to_reference_inputs(arguments), strict=True):
      self.hold(tensor, ref)
    self.read_calls(_calls_in_order(model), f"{prefix}{model.name}/")
    return [self.value(t) for t in tf.nest.flatten(model._nested_outputs)]

  def read_call(self, call: Any, args: tuple, kwargs: dict[str, Any], prefix: str) -> list[Ref]:
    """Reads a call of a layer, its tensors as Refs; returns its outputs, flat."""
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    kwargs.pop("training", None)
    shapes = [tuple(t.shape) for t in tf.nest.flatten(call.outputs)]
    if type(call.layer).__name__ == "SlicingOpLambda":
      args = (args[0], *(_without_ellipsis(spec, len(args[0].shape)) for spec in args[1:]))
      kwargs = {key: _without_ellipsis(spec, len(args[0].shape)) for key, spec in kwargs.items()}
    node = Node(call.layer.name, self._layer_def(call.layer, prefix), tuple(args), kwargs, shapes)
    self.nodes.append(node)
    return [Ref(node, index) for index in range(len(shapes))]

  def _layer_def(self, layer: keras.layers.Layer, prefix: str) -> LayerDef:
    if id(layer) not in self._layers:
      name = prefix + layer.name
      while name in {other.name for other in self._layers.values()}:
        name += "_1"
      self._layers[id(layer)] = self.define(layer, name)
    return self._layers[id(layer)]

  def define(self, layer: keras.layers.Layer, name: str) -> LayerDef:
    """Returns a layer as data, under the name that it has in the graph."""
    try:
      config = dict(layer.get_config())
    except NotImplementedError as error:
      raise UnsupportedLayerError(
          f"Layer {layer.name!r} ({type(layer).__name__}) has no get_config and cannot be rebuilt. "
          "Give it one.") from error
    config.update(_adapted(layer))
    if "name" in config:
      config["name"] = name
    if "dtype" in config:
      config["dtype"] = in_float32(layer.dtype_policy.name)
    params = {key: _in_float32(variable.numpy()) for key, variable in named_variables(layer)}
    definition = LayerDef(name, type(layer), config, params, vars(layer).get(MOMENTS))
    definition.origins = definition.as_origins()
    return definition


def _adapted(layer: keras.layers.Layer) -> dict[str, Any]:
  """What a layer took over from data with `adapt`, which its config does not hold."""
  if isinstance(layer, keras.layers.IntegerLookup):
    words = [int(word) for word in layer.get_vocabulary(include_special_tokens=False)]
    return {"vocabulary": words} if words else {}
  if isinstance(layer, keras.layers.Discretization) and layer.bin_boundaries is not None:
    return {"bin_boundaries": [float(end) for end in layer.bin_boundaries], "num_bins": None}
  return {}


def _without_ellipsis(spec: Any, rank: int) -> Any:
  """Returns a slice without an Ellipsis, which no file holds; slices are dicts, as Keras writes them."""
  items = list(spec) if isinstance(spec, (tuple, list)) else [spec]
  places = [place for place, item in enumerate(items) if item is Ellipsis]
  if not places:
    return spec
  missing = rank - sum(item is not None and item is not Ellipsis for item in items)
  whole = {"start": None, "stop": None, "step": None}
  return (*items[:places[0]], *(dict(whole) for _ in range(missing)), *items[places[0] + 1:])


def _in_float32(values: np.ndarray) -> np.ndarray:
  return values.astype(in_float32(values.dtype.name), copy=False)


def _history(tensor) -> tuple[int, int, int]:
  layer, node_index, tensor_index = tensor._keras_history
  return id(layer), node_index, tensor_index


def _check_inference(call) -> None:
  spec = call.layer._call_spec
  given = {**dict(zip(spec.arg_names, call.call_args)), **call.call_kwargs}
  if given.get("training"):
    raise UnsupportedLayerError(f"Layer {call.layer.name!r} is called with training=True; inference "
                                "has no such mode. Rebuild the model without it.")


def computes_its_graph(model: keras.Model) -> bool:
  """Whether a model computes its call records: functional or Sequential, with no call of its own."""
  return model._is_graph_network and type(model).call in (Functional.call, keras.Sequential.call)


def nested_layers(model: keras.Model) -> list[keras.layers.Layer]:
  """Returns the layers of a model, those of models and layers inside too."""
  return list(model._flatten_layers(include_self=False))


def _calls_in_order(model: keras.Model) -> Iterator[Any]:
  for depth in sorted(model._nodes_by_depth, reverse=True):
    yield from model._nodes_by_depth[depth]


def named_variables(layer: keras.layers.Layer) -> list[tuple[str, tf.Variable]]:
  """Returns (name within the layer, variable), the names unique and independent of the layer's."""
  named, seen = [], {}
  for variable in filter(tf.is_tensor, layer.weights):
    name = variable.name.split(":")[0]
    tail = layer.name + "/"
    name = name[name.rfind(tail) + len(tail):] if tail in name else name.split("/")[-1]
    count = seen[name] = seen.get(name, -1) + 1
    named.append((name if count == 0 else f"{name}#{count}", variable))
  return named
