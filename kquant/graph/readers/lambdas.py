"""Lambda layers of tf_keras, as the operations that their functions are made of."""

import math  # noqa: F401  for the code of Lambdas
import sys
from typing import Any

import numpy as np  # noqa: F401  for the code of Lambdas
import tensorflow as tf
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.keras_reader import read
from kquant.graph.nodes import Node, Ref, map_refs

K = keras.backend
"""With the imports above what the code of a Lambda calls by short names; a file does not hold its imports."""


def with_names(config: Any) -> Any:
  """Returns a config whose Lambdas see the names of this module where their own is not imported."""
  if isinstance(config, (list, tuple)):
    return type(config)(map(with_names, config))
  if not isinstance(config, dict):
    return config
  config = {key: with_names(part) for key, part in config.items()}
  if "function_type" in config and (config.get("module") in (None, "__main__") or
                                    config["module"] not in sys.modules):
    config["module"] = __name__
  return config


def without_lambdas(model: keras.Model) -> keras.Model:
  """Returns the model with each Lambda traced into operations; one that cannot be traced stays.

  Tracing runs the function: only for a file that its user trusts.
  """
  graph = Graph.from_model(model)
  for node in graph.find("Lambda"):
    traced = _traced(node)
    if traced is not None:
      _put_in_place(graph, node, traced)
  return graph.to_model()


def _traced(node: Node) -> keras.Model | None:
  """The call of a Lambda as a model of its own, of the flat tensors that it reads; None: it has no graph."""
  layer = node.layer.cls.from_config(with_names(node.config))
  inputs = [keras.Input(batch_shape=ref.shape, dtype=_dtype(ref)) for ref in node.inputs]
  tensors = dict(zip(node.inputs, inputs))
  args, kwargs = map_refs(tensors.__getitem__, (node.args, node.kwargs))
  try:
    return keras.Model(inputs, layer.function(*args, **kwargs, **layer.arguments))
  except Exception:  # whatever the function does with tensors that have no values
    return None


def _dtype(ref: Ref) -> Any:
  return ref.node.config["dtype"] if ref.is_integer else "float32"


def _put_in_place(graph: Graph, node: Node, model: keras.Model) -> None:
  """Puts the calls of a traced model in the place of a node."""
  nodes, inputs, outputs = read(model)
  own = dict(zip(tf.nest.flatten(inputs), node.inputs))
  for layer in dict.fromkeys(inner.layer for inner in nodes):
    layer.name = f"{node.layer_name}/{layer.name}"
    layer.config = {**layer.config, "name": layer.name}
  for inner in nodes:
    if Ref(inner) not in own:
      inner.args, inner.kwargs = map_refs(lambda ref: own.get(ref, ref), (inner.args, inner.kwargs))
      graph.nodes.append(inner)
  graph.normalize()
  for index, ref in enumerate(tf.nest.flatten(outputs)):
    graph.redirect(Ref(node, index), own.get(ref, ref))
  graph.normalize()
