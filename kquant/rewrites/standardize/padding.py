"""Paddings that the convolution or max pool behind them does itself, or takes in another form."""

import numpy as np

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref


def absorb_zeros(graph: Graph, node: Node) -> None:
  """ZeroPadding2D then a "valid" convolution: "same" where TensorFlow would pad just as much."""
  (source,) = node.inputs
  padding = source.node
  if not padding.facts.pads or not _is_alone(graph, node):
    return
  if _is_same(node, padding.config["padding"], "kernel_size"):
    _absorb(graph, node, padding)


def absorb_lowest(graph: Graph, node: Node) -> None:
  """Padding with the lowest value, then a "valid" max pool, whose maxima are those of the image alone.

  The pool pads in the same way where it is "same". Zeros do for what is never negative, and for all else the
  image mirrored, where each window that holds a mirrored element holds the element itself.
  """
  padding = node.inputs[0].node
  if not padding.facts.pads_as_called or not _is_alone(graph, node):
    return
  value = np.asarray(padding.argument(4, "constant_values", 0))
  mode = str(padding.argument(2, "mode", "CONSTANT")).upper()
  batch, *pads, channels = np.asarray(padding.argument(1, "paddings")).tolist()
  if mode != "CONSTANT" or value > np.finfo(np.float32).min or any(batch + channels):
    return
  if _is_same(node, pads, "pool_size"):
    _absorb(graph, node, padding)
  elif _is_never_negative(padding.inputs[0]):
    _pad_with(graph, padding, "CONSTANT")
  elif all(2 * max(sides) <= size for sides, size in zip(pads, node.config["pool_size"])):
    _pad_with(graph, padding, "SYMMETRIC")


def _is_alone(graph: Graph, node: Node) -> bool:
  """Whether a "valid" layer is called once and is all that reads its input."""
  return (node.config["padding"] == "valid" and len(graph.calls(node.layer)) == 1
          and graph.is_private(node.inputs[0]))


def _is_same(node: Node, pads: list, window: str) -> bool:
  """Whether paddings [before, after] of each spatial axis are those of a layer that is "same"."""
  sizes = node.inputs[0].node.inputs[0].shape[1:-1]
  config = node.config
  dilations = config.get("dilation_rate") or (1,) * len(sizes)
  return None not in sizes and all(
      tuple(sides) == same_padding(*numbers) for sides, *numbers in
      zip(pads, sizes, config[window], config["strides"], dilations))


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
  """Returns the zeros in front of and behind an axis that "same" puts there."""
  reach = (kernel - 1) * dilation + 1
  total = max((-(-size // stride) - 1) * stride + reach - size, 0)
  return total // 2, total - total // 2


def _absorb(graph: Graph, node: Node, padding: Node) -> None:
  node.layer.config = {**node.config, "padding": "same"}
  graph.edit(padding, f"left to the \"same\" padding of {node.name!r}")
  graph.remove(padding)


def _is_never_negative(ref: Ref) -> bool:
  return ref.node.facts.role == "relu" or ref.node.facts.fixed_grid == "unit"


def _pad_with(graph: Graph, padding: Node, mode: str) -> None:
  graph.edit(padding, "pads with zeros" if mode == "CONSTANT" else "pads with the image mirrored")
  graph.recall(padding, padding.layer, (padding.inputs[0], padding.argument(1, "paddings"), mode))
