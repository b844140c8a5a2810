"""Calls Keras models and layers, and replays nodes into a new model.

Every private Keras attribute that kquant touches is touched here and in `keras_reader`, and nowhere else.
"""

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.keras_tensor import KerasTensor

from kquant.core.errors import UnsupportedLayerError
from kquant.core.input_spec import InputSpec
from kquant.graph.keras_reader import MOMENTS, named_variables, read
from kquant.graph.kinds.table import facts_of, kind_of_class
from kquant.graph.nodes import LayerDef, Node, Ref, map_refs
from kquant.graph.policies import float32_policy, in_float32

_RECURSION = 1000
"""Calls of Python functions around those of a model's layers."""


def is_symbol(leaf: Any) -> bool:
  """Whether something is a tensor of a tf_keras model in the making."""
  return isinstance(leaf, KerasTensor)


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
  with deep_recursion(len(nodes)):
    model = keras.Model(tf.nest.map_structure(values.__getitem__, inputs),
                        tf.nest.map_structure(values.__getitem__, outputs), name=name)
  for sink in sinks:
    config, value = sink.config, values[sink.inputs[0]]
    if sink.kind == "AddLoss":
      model.add_loss(value)
    else:
      model.add_metric(value, name=config["metric_name"], aggregation=config["aggregation"])
  return model


@contextlib.contextmanager
def deep_recursion(calls: int) -> Iterator[None]:
  """Lets Keras, which walks a model by recursion, follow so many calls behind one another."""
  limit = sys.getrecursionlimit()
  sys.setrecursionlimit(max(limit, _RECURSION + calls))
  try:
    yield
  finally:
    sys.setrecursionlimit(limit)


def _make_layer(definition: LayerDef) -> keras.layers.Layer:
  # Some classes (MultiHeadAttention) take entries out of the config they are given.
  layer = definition.cls.from_config(copy.deepcopy(definition.config))
  layer._name = definition.name  # a class of the user's may not take a name
  if hasattr(layer, "passes_through"):
    layer.passes_through = True  # until the model stands
  if definition.output_moments is not None:
    vars(layer)[MOMENTS] = definition.output_moments  # past Keras' tracking: files do not hold them
  return layer


def call_node(layer: Callable[..., Any], node: Node, value_of: Callable[[Ref], Any], *,
              training: bool | None = None) -> list[Any]:
  """Calls a layer as a node says, on the values of its Refs; returns the outputs, flat.

  Args:
    training: the mode, for layers that have two; None: that of the Keras call around it.
  """
  args, kwargs = map_refs(value_of, (node.args, node.kwargs))
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
  tables = [layer for layer in model._flatten_layers() if facts_of(kind_of_class(type(layer))).counts_rows]
  rows = _rows_of_inputs(model) if tables else {}
  keys = leaf_names(model._nested_inputs, model.input_names)
  return [InputSpec(name, tuple(tensor.shape[1:]), in_float32(tensor.dtype.name), rows.get(name),
                    key if key != name else "")
          for name, key, tensor in zip(model.input_names, keys, model.inputs)]


def _rows_of_inputs(model: keras.Model) -> dict[str, int]:
  """Returns {input: rows of the smallest table that it is looked up in}."""
  rows: dict[str, int] = {}
  for node in read(model)[0]:
    if node.facts.counts_rows:
      source = node.inputs[0].node
      while source.facts.role == "move" and len(source.inputs) == 1 or source.facts.casts:
        source = source.inputs[0].node
      if source.facts.role == "input":
        count = len(node.layer.params[node.facts.table])
        rows[source.layer.name] = min(count, rows.get(source.layer.name, count))
  return rows


def signature_names(model: keras.Model) -> tuple[list[str], list[str]]:
  """Returns the names of a model's flat inputs and outputs: the keys of a dict, else those of the layers."""
  return (leaf_names(model._nested_inputs, model.input_names),
          leaf_names(model._nested_outputs, model.output_names))


def leaf_names(nest: Any, names: list[str]) -> list[str]:
  """Returns the names of flat inputs or outputs: the keys of a dict, sorted, else those given."""
  if isinstance(nest, dict) and not any(tf.nest.is_nested(leaf) for leaf in nest.values()):
    return [str(key) for key in sorted(nest)]
  return list(names)


def name_outputs(model: keras.Model, names: list[str]) -> None:
  """Gives a rebuilt model the names by which losses and metrics of the one it stands for are given."""
  if len(names) == len(model.output_names):
    model.output_names = list(names)


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
