"""A Keras model's call records: reads them into nodes, and replays nodes into a new model.

Every private Keras attribute that kquant touches is touched here, and nowhere else.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.functional import Functional
from tf_keras.src.engine.keras_tensor import KerasTensor

from kquant.core.data import InputSpec
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.kinds.table import facts_of, kind_of_class
from kquant.graph.nodes import LayerDef, Node, Ref

_MOMENTS = "kquant_output_moments"


@contextlib.contextmanager
def float32_policy() -> Iterator[None]:
  """Layers that the block makes compute in float32, whatever the user's global policy and floatx are.

  A simulation has the integers of the file in float32 alone. Both are put back.
  """
  policy, floatx = keras.mixed_precision.global_policy(), keras.backend.floatx()
  keras.backend.set_floatx("float32")
  keras.mixed_precision.set_global_policy("float32")
  try:
    yield
  finally:
    keras.backend.set_floatx(floatx)
    keras.mixed_precision.set_global_policy(policy)


def in_float32(dtype: str) -> str:
  """Returns "float32" for a floating dtype or the name of a mixed policy; others as they are."""
  return "float32" if "float" in dtype else dtype


def is_symbol(leaf: Any) -> bool:
  """Whether something is a tensor of a tf_keras model in the making."""
  return isinstance(leaf, KerasTensor)


def read(model: keras.Model) -> tuple[list[Node], Any, Any]:
  """Returns (nodes, inputs, outputs) of a model: its calls, and its nests with Refs as leaves.

  Nested models are inlined, their layers named "outer/inner"; a shared layer is one LayerDef.

  Raises:
    TypeError, ValueError: see `check_model`.
  """
  check_model(model)
  reader = _Reader()
  inputs = tf.nest.map_structure(reader.add_input, model._nested_inputs)
  reader.inline(model, prefix="")
  outputs = tf.nest.map_structure(lambda t: reader.values[_history(t)], model._nested_outputs)
  return reader.nodes, inputs, outputs


@float32_policy()
def replay(nodes: list[Node], inputs: Any, outputs: Any, *, name: str,
           sinks: Sequence[Node] = ()) -> keras.Model:
  """Builds a new model: makes each layer from its config, calls it as its nodes say, sets weights.

  Args:
    nodes: in topological order.
    inputs, outputs: nests with Refs as leaves.
    name: of the model.
    sinks: calls of AddLoss and AddMetric layers, whose losses and metrics it gets.
  """
  layers: dict[LayerDef, keras.layers.Layer] = {}
  values: dict[Ref, Any] = {}
  for node in nodes:
    if node.facts.role == "input":
      results = [_input_tensor(node.layer)]
    else:
      if node.layer not in layers:
        layers[node.layer] = _make_layer(node.layer)
      results = call_node(layers[node.layer], node, values.__getitem__)
    values.update((Ref(node, index), tensor) for index, tensor in enumerate(results))
  for definition, layer in layers.items():
    keras.backend.batch_set_value(_weights_for(layer, definition))
    layer.finalize_state()
    vars(layer).pop("passes_through", None)
  model = keras.Model(tf.nest.map_structure(values.__getitem__, inputs),
                      tf.nest.map_structure(values.__getitem__, outputs), name=name)
  for sink in sinks:
    config, value = sink.config, values[sink.inputs[0]]
    if sink.kind == "AddLoss":
      model.add_loss(value)
    else:
      model.add_metric(value, name=config["metric_name"], aggregation=config["aggregation"])
  return model


def _make_layer(definition: LayerDef) -> keras.layers.Layer:
  # Some classes (MultiHeadAttention) take entries out of the config they are given.
  layer = definition.cls.from_config(copy.deepcopy(definition.config))
  layer._name = definition.name  # a class of the user's may not take a name
  if hasattr(layer, "passes_through"):
    layer.passes_through = True  # until the model stands
  if definition.output_moments is not None:
    vars(layer)[_MOMENTS] = definition.output_moments  # past Keras' tracking: files do not hold them
  return layer


def call_node(layer: Callable[..., Any], node: Node, value_of: Callable[[Ref], Any], *,
              training: bool | None = None) -> list[Any]:
  """Calls a layer as a node says, on the values of its Refs; returns the outputs, flat.

  Args:
    training: the mode, for layers that have two; None: that of the Keras call around it.
  """
  args, kwargs = tf.nest.map_structure(
      lambda leaf: value_of(leaf) if isinstance(leaf, Ref) else leaf, (node.args, node.kwargs))
  if training is not None and getattr(layer, "_expects_training_arg", True):
    kwargs = {**kwargs, "training": training}
  return tf.nest.flatten(layer(*args, **kwargs))


def call(model: keras.Model, tensors: list[Any], *, training: bool = False) -> Any:
  """Runs a model on flat inputs, in the order of `model.inputs`, at inference or as in training."""
  return model(as_inputs(model, tensors), training=training)


def as_inputs(model: keras.Model, tensors: Sequence[Any]) -> Any:
  """Returns flat inputs as a model is called with them."""
  return tf.nest.pack_sequence_as(model._nested_inputs, tensors)


def flat_inputs(model: keras.Model, inputs: Any) -> list[Any]:
  """Returns what a functional model is called with in the order of `model.inputs`, as Keras assigns it."""
  return model._flatten_to_reference_inputs(inputs)


def input_specs(model: keras.Model) -> list[InputSpec]:
  """Returns name, shape without batch, and dtype of each input of a model."""
  tables = [layer for layer in model._flatten_layers() if facts_of(kind_of_class(type(layer))).table]
  rows = _rows_of_inputs(model) if tables else {}
  keys = _names(model._nested_inputs, model.input_names)
  return [InputSpec(name, tuple(tensor.shape[1:]), in_float32(tensor.dtype.name), rows.get(name),
                    key if key != name else "")
          for name, key, tensor in zip(model.input_names, keys, model.inputs)]


def _rows_of_inputs(model: keras.Model) -> dict[str, int]:
  """Returns {input: rows of the smallest table that it is looked up in}."""
  rows: dict[str, int] = {}
  for node in read(model)[0]:
    if node.facts.table:
      source = node.inputs[0].node
      while source.facts.role == "move" and len(source.inputs) == 1 or source.kind == "tf.cast":
        source = source.inputs[0].node
      if source.facts.role == "input":
        count = len(node.layer.params[node.facts.table])
        rows[source.layer.name] = min(count, rows.get(source.layer.name, count))
  return rows


def signature_names(model: keras.Model) -> tuple[list[str], list[str]]:
  """Returns the names of a model's flat inputs and outputs: the keys of a dict, else those of the layers."""
  return (_names(model._nested_inputs, model.input_names),
          _names(model._nested_outputs, model.output_names))


def _names(nest: Any, names: list[str]) -> list[str]:
  if isinstance(nest, dict) and not any(tf.nest.is_nested(leaf) for leaf in nest.values()):
    return [str(key) for key in sorted(nest)]
  return list(names)


def name_outputs(model: keras.Model, names: list[str]) -> None:
  """Gives a rebuilt model the names by which losses and metrics of the one it stands for are given."""
  if len(names) == len(model.output_names):
    model.output_names = list(names)


def check_model(model: Any) -> None:
  """Raises unless `model` is a built functional or Sequential tf_keras model that can be rebuilt.

  Raises:
    TypeError: subclassed, or no tf_keras model.
    ValueError: unbuilt, or its weights are not finite.
  """
  if not isinstance(model, keras.Model):
    raise TypeError(f"Expected a tf_keras model, got {type(model).__name__}.")
  if isinstance(model, keras.Sequential) and not model._is_graph_network:
    raise ValueError(f"Model {model.name!r} is not built: its input shape is unknown. Give its first "
                     "layer an input_shape, or call model.build(input_shape).")
  if not _computes_its_graph(model):
    raise TypeError(
        f"Model {model.name!r} ({type(model).__name__}) is subclassed: its graph cannot be read. Wrap "
        "it: tf_keras.Model(x, model.call(x)) with x = tf_keras.Input(shape).")
  for variable in model.weights:
    if variable.dtype.is_floating and not np.isfinite(variable.numpy()).all():
      raise ValueError(f"Weight {variable.name!r} of model {model.name!r} holds NaN or infinity; "
                       "expected finite weights. Train or load the model again.")


class _Reader:
  """Walks Keras call records and collects nodes; `values` maps a Keras tensor to its Ref."""

  def __init__(self):
    self.nodes: list[Node] = []
    self.values: dict[tuple[int, int, int], Ref] = {}
    self.layers: dict[int, LayerDef] = {}

  def add_input(self, tensor) -> Ref:
    layer = tensor._keras_history.layer
    node = Node(layer.name, self._layer_def(layer, ""), shapes=[tuple(tensor.shape)])
    self.nodes.append(node)
    self.values[_history(tensor)] = Ref(node)
    return Ref(node)

  def inline(self, model: keras.Model, prefix: str) -> None:
    """Reads the calls inside `model`, whose input tensors have values already."""
    for call in _calls_in_order(model):
      if all(_history(t) in self.values for t in tf.nest.flatten(call.outputs)) and call.is_input:
        continue
      _check_inference(call)
      args, kwargs = tf.nest.map_structure(self._value, (call.call_args, call.call_kwargs))
      if isinstance(call.layer, keras.Model) and _computes_its_graph(call.layer):
        outputs = self._call_model(call.layer, args[0], prefix)
      else:
        outputs = self._call_layer(call, args, kwargs, prefix)
      for tensor, ref in zip(tf.nest.flatten(call.outputs), outputs, strict=True):
        self.values[_history(tensor)] = ref

  def _value(self, leaf):
    if hasattr(leaf, "_keras_history"):
      return self.values[_history(leaf)]
    if isinstance(leaf, tf.Variable):
      return leaf.numpy()
    return leaf

  def _call_model(self, model: keras.Model, arguments, prefix: str) -> list[Ref]:
    for tensor, ref in zip(model.inputs, flat_inputs(model, arguments), strict=True):
      self.values[_history(tensor)] = ref
    self.inline(model, f"{prefix}{model.name}/")
    return [self.values[_history(t)] for t in tf.nest.flatten(model._nested_outputs)]

  def _call_layer(self, call, args, kwargs, prefix: str) -> list[Ref]:
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
    if id(layer) not in self.layers:
      name = prefix + layer.name
      while name in {other.name for other in self.layers.values()}:
        name += "_1"
      try:
        config = dict(layer.get_config())
      except NotImplementedError as error:
        raise UnsupportedLayerError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has no get_config and cannot be rebuilt. "
            "Give it one.") from error
      if "name" in config:
        config["name"] = name
      if "dtype" in config:
        config["dtype"] = in_float32(layer.dtype_policy.name)
      params = {key: _in_float32(variable.numpy()) for key, variable in named_variables(layer)}
      definition = LayerDef(name, type(layer), config, params, vars(layer).get(_MOMENTS))
      definition.origins = definition.as_origins()
      self.layers[id(layer)] = definition
    return self.layers[id(layer)]


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


def _weights_for(layer: keras.layers.Layer, definition: LayerDef) -> list[tuple[tf.Variable, np.ndarray]]:
  """Returns (variable, value) of a rebuilt layer, by name.

  Where sublayers named themselves anew ("dense_7") the order decides: the class and config are the same.
  """
  named, params = dict(named_variables(layer)), definition.params
  if not params.keys() <= named.keys():
    mine = list(named.values())
    if [tuple(v.shape) for v in mine] != [value.shape for value in params.values()]:
      raise UnsupportedLayerError(
          f"Layer {definition.name!r} ({definition.cls.__name__}) has the weights {list(params)}, but "
          f"rebuilt from its config {list(named)}. Let get_config hold what its weights depend on.")
    return list(zip(mine, params.values()))
  return [(named[key], value) for key, value in params.items()]


def _history(tensor) -> tuple[int, int, int]:
  layer, node_index, tensor_index = tensor._keras_history
  return id(layer), node_index, tensor_index


def _check_inference(call) -> None:
  spec = call.layer._call_spec
  given = {**dict(zip(spec.arg_names, call.call_args)), **call.call_kwargs}
  if given.get("training"):
    raise UnsupportedLayerError(f"Layer {call.layer.name!r} is called with training=True; inference "
                                "has no such mode. Rebuild the model without it.")


def _computes_its_graph(model: keras.Model) -> bool:
  return model._is_graph_network and type(model).call in (Functional.call, keras.Sequential.call)


def _calls_in_order(model: keras.Model) -> Iterator[Any]:
  for depth in sorted(model._nodes_by_depth, reverse=True):
    yield from model._nodes_by_depth[depth]


def named_variables(layer: keras.layers.Layer) -> list[tuple[str, tf.Variable]]:
  """Returns (name within the layer, variable), the names unique and independent of the layer's."""
  named, seen = [], {}
  for variable in layer.weights:
    name = variable.name.split(":")[0]
    tail = layer.name + "/"
    name = name[name.rfind(tail) + len(tail):] if tail in name else name.split("/")[-1]
    count = seen[name] = seen.get(name, -1) + 1
    named.append((name if count == 0 else f"{name}#{count}", variable))
  return named


def _input_tensor(layer: LayerDef):
  config = layer.config
  if config.get("ragged") or config.get("sparse"):
    raise UnsupportedLayerError(f"Input {layer.name!r} is ragged or sparse; expected a dense tensor.")
  shape = config.get("batch_input_shape") or config["batch_shape"]
  return keras.Input(batch_shape=tuple(shape), dtype=config["dtype"], name=layer.name)


def call_with(layer: keras.layers.Layer, inputs, weights: dict[str, tf.Tensor]):
  """Returns a layer's output with tensors in the place of its variables, by attribute."""
  attributes = vars(layer)
  variables = {name: attributes[name] for name in weights}
  try:
    attributes.update(weights)
    return layer(inputs)
  finally:
    attributes.update(variables)
