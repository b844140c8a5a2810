"""Operators written as functions, and layers that only scale, become the layers kquant knows."""

from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.text import scope_name
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.rewrites.folding.affine import affine_layer

_ACTIVATIONS = {
    "relu": (keras.layers.ReLU, {}),
    "relu6": (keras.layers.ReLU, {"max_value": 6.0}),
    "leaky_relu": (keras.layers.LeakyReLU, {"alpha": 0.2}),
    "softmax": (keras.layers.Softmax, {}),
    "sigmoid": (keras.layers.Activation, {"activation": "sigmoid"}),
    "tanh": (keras.layers.Activation, {"activation": "tanh"}),
}
_UNARY_OPERATORS = {"tf.nn.relu": "relu", "tf.nn.relu6": "relu6", "tf.math.sigmoid": "sigmoid",
                    "tf.math.tanh": "tanh", "tf.nn.silu": "swish", "tf.nn.swish": "swish",
                    "tf.nn.swish_impl": "swish"}


def name_activation(graph: Graph, node: Node) -> None:
  """Activation("relu") and tf.nn.relu become the layer of that activation, under the same name."""
  activation = None
  if node.kind.startswith("Activation:"):
    activation = node.config["activation"]
  elif len(node.inputs) == 1:
    activation = _UNARY_OPERATORS.get(node.kind)
    if activation == "swish" and node.argument(1, "beta", 1.0) != 1.0:
      return
  if activation in ("swish", "silu"):
    _become_swish(graph, node)
  elif activation == "hard_sigmoid":
    _become_hard_sigmoid(graph, node)
  elif isinstance(activation, str) and activation in _ACTIVATIONS:
    cls, config = _ACTIVATIONS[activation]
    _become(graph, node, graph.new_layer(cls, node.layer.name, config))
  elif node.facts.role == "relu" and node.config.get("negative_slope") and _is_plain_leaky(node.config):
    _become(graph, node, graph.new_layer(keras.layers.LeakyReLU, node.layer.name,
                                         {"alpha": float(node.config["negative_slope"])}))
  elif node.kind == "tf.nn.softmax" and node.argument(1, "axis", -1) in (-1, None):
    _become(graph, node, graph.new_layer(keras.layers.Softmax, node.layer.name))
  elif node.kind == "tf.nn.leaky_relu":
    _become(graph, node, graph.new_layer(keras.layers.LeakyReLU, node.layer.name,
                                         {"alpha": float(node.argument(1, "alpha", 0.2))}))


def _become_swish(graph: Graph, node: Node) -> None:
  """x * sigmoid(x): there is no integer swish operator."""
  (source,) = node.inputs
  name = node.layer_name
  sigmoid = graph.new_layer(keras.layers.Activation, f"{name}/sigmoid", {"activation": "sigmoid"})
  gate = graph.add_node(sigmoid, (source,), source.shape)
  _become(graph, node, graph.new_layer(keras.layers.Multiply, name), ([source, gate],))


def _become_hard_sigmoid(graph: Graph, node: Node) -> None:
  """Keras' clip(0.2 x + 0.5, 0, 1): an affine function, which folds, and a ReLU capped at 1."""
  (source,) = node.inputs
  if source.shape[-1] is None:
    return
  name = node.layer_name
  ones = np.ones(source.shape[-1])
  line = graph.add_node(affine_layer(graph, f"{name}/line", 0.2 * ones, 0.5 * ones), (source,), source.shape)
  _become(graph, node, graph.new_layer(keras.layers.ReLU, name, {"max_value": 1.0}), (line,))


def name_scaling(graph: Graph, node: Node) -> None:
  """Rescaling, Normalization and the scaling layers of Keras applications become affine layers."""
  params, config = node.layer.params, node.config
  channels = node.shapes[0][-1] if node.shapes[0] else None
  if channels is None:
    return
  if node.kind == "Rescaling":
    scale, shift = (np.broadcast_to(np.asarray(config[key], np.float64), (channels,))
                    for key in ("scale", "offset"))
  elif node.kind == "Normalization":
    moments = _moments_of(node)
    if moments is None:
      return
    mean, variance = (np.broadcast_to(values.reshape(-1), (channels,)) for values in moments)
    deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
    scale, shift = (deviation, mean) if config.get("invert") else (1 / deviation, -mean / deviation)
  elif node.kind == "LayerScale":  # ConvNeXt
    (factors,) = params.values()
    scale, shift = factors.reshape(-1), np.zeros(channels)
  elif node.kind == "CustomScaleLayer":  # InceptionResNetV2: x + scale * y
    _become_scaled_add(graph, node)
    return
  else:
    return
  _become(graph, node, affine_layer(graph, node.layer_name, scale, shift))


def _moments_of(node: Node) -> tuple[np.ndarray, np.ndarray] | None:
  """Mean and variance of a Normalization over the channels; None where they differ by position."""
  params, config = node.layer.params, node.config
  axes = np.atleast_1d(config["axis"]) % len(node.shapes[0]) if config["axis"] is not None else []
  if not set(axes) <= {len(node.shapes[0]) - 1}:
    return None
  if config.get("mean") is not None:
    return np.asarray(config["mean"], np.float64), np.asarray(config["variance"], np.float64)
  return params["mean"].astype(np.float64), params["variance"].astype(np.float64)


def _become_scaled_add(graph: Graph, node: Node) -> None:
  first, second = node.inputs
  name = node.layer_name
  scale = np.full(second.shape[-1], node.config["scale"], np.float64)
  scaled = graph.add_node(affine_layer(graph, f"{name}/scaled", scale, 0 * scale), (second,), second.shape)
  _become(graph, node, graph.new_layer(keras.layers.Add, name), ([first, scaled],))


def _is_plain_leaky(config: dict) -> bool:
  return config.get("max_value") is None and not config.get("threshold")


def become(graph: Graph, node: Node, cls: type, config: dict[str, Any], args: tuple = ()) -> None:
  """Lets a node call a weightless layer, under its own name, on its tensors or on `args`."""
  _become(graph, node, graph.new_layer(cls, node.layer_name, config), args)


def operator_layer(name: str, symbol: str) -> LayerDef:
  """Returns the TFOpLambda of a TensorFlow symbol such as "math.add"."""
  config = {"name": scope_name(name), "function": symbol}
  layer = keras.layers.deserialize({"class_name": "TFOpLambda", "config": config})
  return LayerDef(layer.name, type(layer), layer.get_config())


def _become(graph: Graph, node: Node, layer: LayerDef, args: tuple = ()) -> None:
  """Lets a node call a layer on its tensors or on `args`; other calls of its old layer stay."""
  layer.name = layer.config["name"] = node.layer_name
  tensors = node.inputs
  graph.recall(node, layer, args or (tensors[0] if len(tensors) == 1 else tensors,))


BINARY_LAYERS = {"add": keras.layers.Add, "subtract": keras.layers.Subtract,
                  "multiply": keras.layers.Multiply}


def name_operator(graph: Graph, node: Node) -> None:
  """x + y becomes Add; x * c, x + c, x / c, c - x with one c a channel become an affine layer.

  Any other constant stays an operand of tf.math.add, tf.math.subtract or tf.math.multiply.
  """
  operator, operands = node.facts.operator, (*node.args, *node.kwargs.values(), None)
  if len(node.inputs) == 1 and node.layer.cls in BINARY_LAYERS.values():
    (operator,) = (name for name, cls in BINARY_LAYERS.items() if cls is node.layer.cls)
    (operands,) = node.args
    if len(operands) > 2:
      return
  if not operator:
    return
  left, right = operands[:2]
  if operator == "negative":
    operator, right = "multiply", -1.0
  if isinstance(left, Ref) and isinstance(right, Ref):
    if operator in BINARY_LAYERS and len(left.shape) == len(right.shape):
      _become(graph, node, graph.new_layer(BINARY_LAYERS[operator], node.layer.name))
    return
  tensor_first = isinstance(left, Ref)
  constant = np.asarray(right if tensor_first else left, np.float64)
  source = left if tensor_first else right
  if operator == "divide":
    if not tensor_first:
      return  # c / x is no affine function
    operator, constant = "multiply", 1.0 / constant
  if operator == "subtract" and tensor_first:
    operator, constant = "add", -constant
  channels = source.shape[-1]
  if channels is None:
    return
  if constant.size == 1 or constant.shape[-1:] == (channels,) and constant.size == channels:
    _become_affine(graph, node, operator, np.broadcast_to(constant.reshape(-1), (channels,)))
  else:
    constant = constant.astype(np.float32)
    _become(graph, node, operator_layer(node.name, f"math.{operator}"),
            (constant, source) if operator == "subtract" else (source, constant))


def _become_affine(graph: Graph, node: Node, operator: str, constant: np.ndarray) -> None:
  ones, zeros = np.ones_like(constant), np.zeros_like(constant)
  scale, shift = {"multiply": (constant, zeros), "add": (ones, constant),
                  "subtract": (-ones, constant)}[operator]
  name = node.layer_name
  _become(graph, node, affine_layer(graph, name, scale, shift))
