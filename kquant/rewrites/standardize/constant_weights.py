"""Functions of TensorFlow that multiply a tensor by constants become the layers that hold them as weights.

They come from layers of the user's own that are traced, whose variables are constants of these calls. As
layers their weights are folded, scaled, rounded and trained like all others.
"""

from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref

_CONVOLUTIONS = {"tf.nn.convolution": None, "tf.nn.conv1d": 1, "tf.nn.conv2d": 2, "tf.nn.conv3d": 3,
                 "tf.compat.v1.nn.conv1d": 1, "tf.compat.v1.nn.conv2d": 2}
_CONV_LAYERS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
_DEPTHWISE = ("tf.nn.depthwise_conv2d", "tf.compat.v1.nn.depthwise_conv2d")
def name_constant_weights(graph: Graph, node: Node) -> None:
  """Gives a call with constant weights the layer that does the same, under the same name."""
  if len(node.inputs) != 1:
    return
  if node.kind in _PRODUCTS:
    matrix = _PRODUCTS[node.kind](node)
    if matrix is not None:
      _become(graph, node, keras.layers.Dense, {"units": matrix.shape[1]}, {"kernel": matrix})
  elif node.kind in _CONVOLUTIONS:
    _become_convolution(graph, node)
  elif node.kind in _DEPTHWISE:
    _become_depthwise(graph, node)
  elif node.kind == "tf.nn.conv2d_transpose":
    _become_transposed(graph, node)


def _become(graph: Graph, node: Node, cls: type, config: dict[str, Any],
            params: dict[str, np.ndarray]) -> None:
  layer = graph.new_layer(cls, node.layer_name, {**config, "use_bias": False}, params)
  graph.recall(node, layer, (node.inputs[0],))
  graph.edit(node, f"became {cls.__name__}: its weights are constants")


def _constant(value: Any) -> np.ndarray | None:
  """An argument as an array; None where it is a tensor of the graph or nothing."""
  return None if value is None or isinstance(value, Ref) else np.asarray(value, np.float32)


def _of_matmul(node: Node) -> np.ndarray | None:
  """The matrix [inputs, outputs] of x @ W or x @ W^T; None for any other product."""
  first, second = node.argument(0, "a"), _constant(node.argument(1, "b"))
  if not isinstance(first, Ref) or second is None or second.ndim != 2 or len(first.shape) < 2:
    return None
  if node.argument(2, "transpose_a", False) or node.argument(4, "adjoint_a", False):
    return None
  turned = node.argument(3, "transpose_b", False) or node.argument(5, "adjoint_b", False)
  return second.T if turned else second


def _of_tensordot(node: Node) -> np.ndarray | None:
  """The matrix of a product over the last axis of a tensor and the first of a matrix."""
  first, second = node.argument(0, "a"), _constant(node.argument(1, "b"))
  if not isinstance(first, Ref) or second is None or second.ndim != 2:
    return None
  axes, last = node.argument(2, "axes"), len(first.shape) - 1
  mine, its = (last, 0) if axes == 1 else axes if np.size(axes) == 2 else (0, 0)
  if int(np.squeeze(mine)) % (last + 1) != last:
    return None
  return second.T if int(np.squeeze(its)) % 2 else second


_PRODUCTS = {"tf.linalg.matmul": _of_matmul, "tf.tensordot": _of_tensordot}


def _become_convolution(graph: Graph, node: Node) -> None:
  kernel = _constant(node.argument(1, "filters", node.argument(1, "filter")))
  options = _window(node, None if kernel is None else kernel.ndim - 2)
  if options is None or _CONVOLUTIONS[node.kind] not in (None, kernel.ndim - 2):
    return
  cls, channels = _CONV_LAYERS[kernel.ndim - 2], node.inputs[0].shape[-1]
  if channels is None or channels % kernel.shape[-2]:
    return
  _become(graph, node, cls, {**options, "filters": kernel.shape[-1], "kernel_size": kernel.shape[:-2],
                             "groups": channels // kernel.shape[-2]}, {"kernel": kernel})


def _become_depthwise(graph: Graph, node: Node) -> None:
  kernel = _constant(node.argument(1, "filter", node.argument(1, "filters")))
  options = None if kernel is None or kernel.ndim != 4 else _window(node, 2)
  if options is not None:
    _become(graph, node, keras.layers.DepthwiseConv2D,
            {**options, "kernel_size": kernel.shape[:2], "depth_multiplier": kernel.shape[3]},
            {"depthwise_kernel": kernel})


def _become_transposed(graph: Graph, node: Node) -> None:
  """Where the output has the size that the layer gives it."""
  kernel, source = _constant(node.argument(1, "filters")), node.argument(0, "input")
  options = _window(node, 2, first=3) if kernel is not None and kernel.ndim == 4 else None
  if options is None or not isinstance(source, Ref):
    return
  config = {**options, "filters": kernel.shape[2], "kernel_size": kernel.shape[:2]}
  made = keras.layers.Conv2DTranspose(**config).compute_output_shape(source.shape)
  if tuple(made)[1:] == tuple(node.shapes[0])[1:]:
    _become(graph, node, keras.layers.Conv2DTranspose, config, {"kernel": kernel})


def _window(node: Node, rank: int | None, *, first: int = 2) -> dict[str, Any] | None:
  """Strides, dilation and padding of a convolution as a layer has them; None where no layer has.

  Args:
    first: place of the strides among the arguments.
  """
  if rank not in _CONV_LAYERS or not isinstance(node.argument(0, "input"), Ref):
    return None
  strides = node.argument(first, "strides", node.kwargs.get("stride", 1))
  dilations = node.kwargs.get("dilations", node.kwargs.get("rate", 1))
  padding = node.argument(first + 1, "padding", "VALID")
  strides, dilations = (_per_axis(1 if value is None else value, rank) for value in (strides, dilations))
  layout = str(node.kwargs.get("data_format") or "N..C")
  if strides is None or dilations is None or not isinstance(padding, str) or not layout.endswith("C"):
    return None
  return {"strides": strides, "dilation_rate": dilations, "padding": padding.lower()}


def _per_axis(value: Any, rank: int) -> tuple[int, ...] | None:
  """An option of a window as one number an axis; given for all, for each, or with batch and channels."""
  numbers = [int(number) for number in np.atleast_1d(value)]
  if len(numbers) == rank + 2:
    return tuple(numbers[1:-1]) if numbers[0] == numbers[-1] == 1 else None
  return tuple(numbers * rank)[:rank] if len(numbers) in (1, rank) else None
