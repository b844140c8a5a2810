"""Brings a graph to the few forms that placement and lowering know; the function stays the same.

Fused activations become layers, SeparableConv becomes depthwise and pointwise, operators written as
`x + y`, `x * c` or tf.nn.relu become layers, every linear layer has a bias, what does nothing at
inference goes, and a ZeroPadding2D that equals the convolution's own "same" padding is left to it.
"""

import numpy as np
import tf_keras as keras

from kquant.core.graph import Graph
from kquant.core.nodes import LayerDef, Node, Ref
from kquant.core.passes import graph_pass
from kquant.rewrites.affine import affine_layer


@graph_pass
def standardize(graph: Graph) -> None:
  """Splits, renames and drops layers as the module says; the output is unchanged."""
  for node in list(graph.nodes):
    if node.kind == "SeparableConv2D":
      _split_separable(graph, node)
  for node in list(graph.nodes):
    _split_activation(graph, node)
  for node in list(graph.nodes):
    _name_operator(graph, node)
    _name_activation(graph, node)
  for node in list(graph.nodes):
    if node.facts.role == "identity" or node.kind == "Requantize":
      graph.edit(node, f"dropped: {node.layer.cls.__name__} does nothing at inference")
      graph.remove(node)
  for node in graph.nodes:
    if node.facts.role == "linear" and "bias" not in node.layer.params:
      _give_bias(node.layer)
  for node in graph.find("Add", "Multiply"):
    _split_nary(graph, node)
  for node in graph.find("Conv2D", "DepthwiseConv2D"):
    _absorb_padding(graph, node)


def _split_separable(graph: Graph, node: Node) -> None:
  """Depthwise without bias ("name/depthwise"), then a 1x1 convolution that keeps the name."""
  config, layer = node.config, node.layer
  common = {"data_format": config["data_format"], "dtype": config["dtype"], "use_bias": False}
  depthwise = graph.new_layer(
      keras.layers.DepthwiseConv2D, f"{layer.name}/depthwise",
      {**common, "kernel_size": config["kernel_size"], "strides": config["strides"],
       "padding": config["padding"], "dilation_rate": config["dilation_rate"],
       "depth_multiplier": config["depth_multiplier"]},
      {"depthwise_kernel": layer.params["depthwise_kernel"]})
  pointwise = graph.new_layer(
      keras.layers.Conv2D, layer.name,
      {**common, "filters": config["filters"], "kernel_size": 1, "use_bias": config["use_bias"],
       "activation": config["activation"]},
      {"kernel": layer.params["pointwise_kernel"],
       **({"bias": layer.params["bias"]} if config["use_bias"] else {})})
  for call in graph.calls(layer):
    channels = layer.params["pointwise_kernel"].shape[-2]
    middle = graph.add_node(depthwise, call.args, (*call.shapes[0][:-1], channels))
    graph.redirect(Ref(call), graph.add_node(pointwise, (middle,), call.shapes[0]))
    graph.edit(call, "split into depthwise and pointwise")
    graph.drop(call)
  graph.normalize()


def _split_activation(graph: Graph, node: Node) -> None:
  """Conv2D(activation="relu") becomes Conv2D and an activation layer behind it."""
  if node.facts.role != "linear" or node.config.get("activation") in (None, "linear"):
    return
  layer, activation = node.layer, node.config["activation"]
  if isinstance(activation, dict):
    return  # an activation object of the user's; refused by name when quantizers are placed
  layer.config = {**layer.config, "activation": "linear"}
  for call in graph.calls(layer):
    behind = graph.new_layer(keras.layers.Activation, f"{call.name}/{activation}",
                             {"activation": "linear"})
    behind.config = {**behind.config, "activation": activation}
    graph.insert_after(Ref(call), behind)
    graph.edit(call, f"activation {activation!r} split off")


_ACTIVATIONS = {
    "relu": (keras.layers.ReLU, {}),
    "relu6": (keras.layers.ReLU, {"max_value": 6.0}),
    "leaky_relu": (keras.layers.LeakyReLU, {"alpha": 0.2}),
    "softmax": (keras.layers.Softmax, {}),
    "sigmoid": (keras.layers.Activation, {"activation": "sigmoid"}),
    "tanh": (keras.layers.Activation, {"activation": "tanh"}),
}
_UNARY_OPERATORS = {"tf.nn.relu": "relu", "tf.nn.relu6": "relu6", "tf.math.sigmoid": "sigmoid",
                    "tf.math.tanh": "tanh"}


def _name_activation(graph: Graph, node: Node) -> None:
  """Activation("relu") and tf.nn.relu become the layer of that activation, under the same name."""
  activation = None
  if node.kind.startswith("Activation:"):
    activation = node.config["activation"]
  elif len(node.inputs) == 1:
    activation = _UNARY_OPERATORS.get(node.kind)
  if activation in _ACTIVATIONS:
    cls, config = _ACTIVATIONS[activation]
    _become(graph, node, graph.new_layer(cls, node.layer.name, config))
  elif node.kind == "ReLU" and node.config.get("negative_slope") and _is_plain_leaky(node.config):
    _become(graph, node, graph.new_layer(keras.layers.LeakyReLU, node.layer.name,
                                         {"alpha": float(node.config["negative_slope"])}))
  elif node.kind == "tf.nn.softmax" and node.kwargs.get("axis", -1) in (-1, None):
    _become(graph, node, graph.new_layer(keras.layers.Softmax, node.layer.name))
  elif node.kind == "tf.nn.leaky_relu":
    alpha = node.args[1] if len(node.args) > 1 else node.kwargs.get("alpha", 0.2)
    _become(graph, node, graph.new_layer(keras.layers.LeakyReLU, node.layer.name,
                                         {"alpha": float(alpha)}))


def _is_plain_leaky(config: dict) -> bool:
  return config.get("max_value") is None and not config.get("threshold")


def _become(graph: Graph, node: Node, layer: LayerDef, args: tuple = ()) -> None:
  """Lets a node call a weightless layer on its tensors; other calls of its old layer stay."""
  layer.name = layer.config["name"] = node.name.replace("@", "_call")
  tensors = node.inputs
  graph.recall(node, layer, args or (tensors[0] if len(tensors) == 1 else tensors,))


_BINARY_OPERATORS = {
    "tf.__operators__.add": "add", "tf.math.add": "add", "tf.add": "add",
    "tf.math.subtract": "subtract", "tf.subtract": "subtract",
    "tf.math.multiply": "multiply", "tf.multiply": "multiply",
    "tf.math.truediv": "divide", "tf.math.divide": "divide", "tf.divide": "divide",
    "tf.math.negative": "negative",
}
_BINARY_LAYERS = {"add": keras.layers.Add, "subtract": keras.layers.Subtract,
                  "multiply": keras.layers.Multiply}


def _name_operator(graph: Graph, node: Node) -> None:
  """x + y becomes Add; x * c, x + c, x / c, c - x with one c a channel become an affine layer.

  Any other constant stays an operand of tf.math.add, tf.math.subtract or tf.math.multiply.
  """
  operator = _BINARY_OPERATORS.get(node.kind)
  if operator is None:
    return
  left, right = (*node.args, *node.kwargs.values(), None)[:2]
  if operator == "negative":
    operator, right = "multiply", -1.0
  if isinstance(left, Ref) and isinstance(right, Ref):
    if operator in _BINARY_LAYERS and len(left.shape) == len(right.shape):
      _become(graph, node, graph.new_layer(_BINARY_LAYERS[operator], node.layer.name))
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
  if constant.size == 1 or constant.shape[-1:] == (channels,) and constant.size == channels:
    _become_affine(graph, node, operator, np.broadcast_to(constant.reshape(-1), (channels,)))
  else:
    symbol = f"math.{operator}"
    function = keras.layers.deserialize(
        {"class_name": "TFOpLambda", "config": {"name": node.layer.name, "function": symbol}})
    constant = constant.astype(np.float32)
    layer = LayerDef(node.layer.name, type(function), function.get_config())
    _become(graph, node, layer,
            (constant, source) if operator == "subtract" else (source, constant))


def _become_affine(graph: Graph, node: Node, operator: str, constant: np.ndarray) -> None:
  ones, zeros = np.ones_like(constant), np.zeros_like(constant)
  scale, shift = {"multiply": (constant, zeros), "add": (ones, constant),
                  "subtract": (-ones, constant)}[operator]
  name = node.name.replace("@", "_call")
  _become(graph, node, affine_layer(graph, name, scale, shift))


def _give_bias(layer: LayerDef) -> None:
  """A bias of zeros: the integer operators have one, and bias correction needs it."""
  kernel = layer.params[layer.facts.kernel]
  outputs = int(np.prod([kernel.shape[axis] for axis in layer.facts.out_axes]))
  layer.config = {**layer.config, "use_bias": True}
  layer.params = {**layer.params, "bias": np.zeros(outputs, np.float32)}


def _split_nary(graph: Graph, node: Node) -> None:
  """Add([a, b, c]) becomes Add([Add([a, b]), c]): the runtime's operator takes two."""
  first, *others, last = node.inputs
  for index, other in enumerate(others):
    layer = graph.new_layer(node.layer.cls, f"{node.layer.name}/{index + 1}")
    shape = np.broadcast_shapes(*([n or 0 for n in ref.shape[1:]] for ref in (first, other)))
    first = graph.add_node(layer, ([first, other],), (first.shape[0], *shape))
  if others:
    graph.recall(node, node.layer, ([first, last],))


def _absorb_padding(graph: Graph, node: Node) -> None:
  """ZeroPadding2D then a "valid" convolution: "same" where TensorFlow would pad just as much."""
  (source,) = node.inputs
  padding = source.node
  if (padding.kind != "ZeroPadding2D" or node.config["padding"] != "valid"
      or len(graph.calls(node.layer)) > 1 or not graph.is_private(source)):
    return
  size = padding.inputs[0].shape[1:3]
  if None in size or any(
      tuple(pads) != _same_padding(n, k, s, d) for pads, n, k, s, d in
      zip(padding.config["padding"], size, node.config["kernel_size"], node.config["strides"],
          node.config["dilation_rate"])):
    return
  node.layer.config = {**node.config, "padding": "same"}
  graph.edit(padding, f"left to the \"same\" padding of {node.name!r}")
  graph.remove(padding)


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
  reach = (kernel - 1) * dilation + 1
  total = max((-(-size // stride) - 1) * stride + reach - size, 0)
  return total // 2, total - total // 2
