"""Layers with a kernel for which the runtime has no int8 operator, as one convolution of two dimensions.

Conv3D: the kernel's planes of depth go into its channels. For each place of depth the planes that it reads
lie side by side in the channels; these images lie one below the other in one image, with rows between that
keep their windows apart. So one operator sums all taps exactly and rounds once. Conv3DTranspose: the same
with zeros between the planes. LocallyConnected: the window of each position is a group of channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.standardize.building import (
  add_crop,
  add_join,
  add_reshape,
  add_slice,
  is_fixed,
  replace,
)
from kquant.rewrites.standardize.padding import same_padding
from kquant.rewrites.standardize.training_config import training_config


def split_volume_kernel(graph: Graph, node: Node) -> None:
  """Writes Conv3D, Conv3DTranspose and LocallyConnected as a convolution and moves of elements."""
  split = _SPLITS.get(node.kind)
  if split is None or node.config.get("data_format") == "channels_first" or not is_fixed(*node.inputs):
    return
  result = split(graph, node)
  if result is not None:
    replace(graph, node, result, "written as one convolution of two dimensions")


def _conv_3d(graph: Graph, node: Node) -> Ref:
  config, kernel, name = node.config, node.layer.params["kernel"], node.layer_name
  (source,), taps, strides, dilations = node.inputs, *(config[key] for key in (
      "kernel_size", "strides", "dilation_rate"))
  reach = [(size - 1) * step + 1 for size, step in zip(taps, dilations)]
  _, depth, rows, columns, made = node.shapes[0]
  pads = [(0, 0)] * 3
  if config["padding"] == "same":
    pads = [same_padding(*numbers) for numbers in zip(source.shape[1:4], taps, strides, dilations)]
  height = source.shape[2] + sum(pads[1])
  pads[1] = pads[1][0], pads[1][1] + -height % strides[1]  # each image begins where a window does
  planes = _pad_planes(graph, name, source, pads[0], pads[1])
  starts = range(0, taps[0] * dilations[0], dilations[0])
  stack = _stack_planes(graph, node, planes, [range(first, first + (depth - 1) * strides[0] + 1, strides[0])
                                              for first in starts], config["groups"])
  stack = _pad(graph, f"{name}/apart", stack, (0, max(reach[1] - strides[1], 0)), pads[2])
  kernel = np.moveaxis(kernel, 0, 2).reshape(*taps[1:], -1, made)
  layer = graph.new_layer(keras.layers.Conv2D, f"{name}/image", {
      **_shared(graph, node, _in_channels), "kernel_size": taps[1:], "strides": strides[1:],
      "dilation_rate": dilations[1:], "groups": config["groups"]}, {**node.layer.params, "kernel": kernel})
  pitch = planes.shape[2] // strides[1]
  x = graph.add_node(layer, (stack,), (source.shape[0], depth * pitch, columns, made))
  return _part_images(graph, name, x, (depth, pitch, columns, made), range(rows))


def _conv_3d_transpose(graph: Graph, node: Node) -> Ref | None:
  config, kernel, name = node.config, node.layer.params["kernel"], node.layer_name
  if config["output_padding"] is not None:
    return None
  (source,), taps, strides = node.inputs, config["kernel_size"], config["strides"]
  _, depth, rows, columns, made = node.shapes[0]
  beyond = [max(size - step, 0) for size, step in zip(taps, strides)]
  first = [extra // 2 if config["padding"] == "same" else 0 for extra in beyond]
  planes = _spread_planes(graph, name, source, strides[0])
  after = first[0] + depth - planes.shape[1]
  pitch = source.shape[2] + -(-beyond[1] // strides[1])  # rows of an image, its results apart from the next
  planes = _pad_planes(graph, name, planes, (taps[0] - 1, max(after, 0)), (0, pitch - source.shape[2]))
  stack = _stack_planes(graph, node, planes, [range(start, start + depth) for start in range(
      first[0] + taps[0] - 1, first[0] - 1, -1)], 1)
  layer = graph.new_layer(keras.layers.Conv2DTranspose, f"{name}/image", {
      **_shared(graph, node, _in_channels_transposed), "kernel_size": taps[1:], "strides": strides[1:]},
      {**node.layer.params, "kernel": np.moveaxis(kernel, 0, 3).reshape(*taps[1:], made, -1)})
  height, width = depth * pitch * strides[1], source.shape[3] * strides[2]
  x = graph.add_node(layer, (stack,), (source.shape[0], height + beyond[1], width + beyond[2], made))
  cut = (0, beyond[1]), (first[2], width + beyond[2] - columns - first[2])
  x = add_crop(graph, f"{name}/cut", x, *cut)
  return _part_images(graph, name, x, (depth, pitch * strides[1], columns, made),
                      range(first[1], first[1] + rows))


def _pad_planes(graph: Graph, name: str, source: Ref, depth: Sequence[int], rows: Sequence[int]) -> Ref:
  """Puts zeros around a volume along its depth and height."""
  _, *sizes, columns, channels = source.shape
  if not any((*depth, *rows)):
    return source
  x = add_reshape(graph, f"{name}/planes", source, (*sizes, columns * channels))
  x = _pad(graph, f"{name}/padded", x, depth, rows)
  return add_reshape(graph, f"{name}/volume", x, (*x.shape[1:3], columns, channels))


def _pad(graph: Graph, name: str, source: Ref, rows: Sequence[int], columns: Sequence[int]) -> Ref:
  """Puts zeros around an image."""
  if not any((*rows, *columns)):
    return source
  batch, height, width, channels = source.shape
  layer = graph.new_layer(keras.layers.ZeroPadding2D, name, {"padding": (tuple(rows), tuple(columns))})
  return graph.add_node(layer, (source,), (batch, height + sum(rows), width + sum(columns), channels))


def _spread_planes(graph: Graph, name: str, source: Ref, step: int) -> Ref:
  """Puts step - 1 planes of zeros behind each plane of a volume."""
  if step == 1:
    return source
  _, depth, *plane = source.shape
  x = add_reshape(graph, f"{name}/each", source, (depth, 1, int(np.prod(plane))))
  x = _pad(graph, f"{name}/spread", x, (0, 0), (0, step - 1))
  return add_reshape(graph, f"{name}/spread_volume", x, (depth * step, *plane))


def _stack_planes(graph: Graph, node: Node, volume: Ref, parts: Sequence[range], groups: int) -> Ref:
  """Puts parts of the depth of a volume side by side in the channels, and all its planes in one image.

  Args:
    parts: planes, one range of equal length for each.
    groups: of channels, each of which has all parts of its channels.
  """
  _, depth, height, width, channels = volume.shape
  name, size, places = node.layer_name, channels // groups, len(parts[0])
  flat = add_reshape(graph, f"{name}/rows", volume, (depth, height * width, channels))
  pieces = [add_slice(graph, f"{name}/part{index}_{group}", flat,
                      {1: part, 3: range(group * size, (group + 1) * size)})
            for group in range(groups) for index, part in enumerate(parts)]
  flat = add_join(graph, f"{name}/side_by_side", pieces, -1)
  return add_reshape(graph, f"{name}/stack", flat, (places * height, width, channels * len(parts)))


def _part_images(graph: Graph, name: str, image: Ref, shape: Sequence[int], rows: range) -> Ref:
  """Returns some rows of each of the images that lie one below the other, as a volume."""
  depth, pitch, columns, channels = shape
  x = add_reshape(graph, f"{name}/images", image, (depth, pitch * columns, channels))
  x = add_crop(graph, f"{name}/kept", x, (0, 0), (rows.start * columns, (pitch - rows.stop) * columns))
  return add_reshape(graph, f"{name}/result", x, (depth, len(rows), columns, channels))


def _locally_connected(graph: Graph, node: Node) -> Ref | None:
  """One convolution whose groups of channels are the windows."""
  config, kernel, name = node.config, node.layer.params["kernel"], node.layer_name
  if config["implementation"] != 1:
    return None
  (source,), lead = node.inputs, (1,) * (4 - len(node.inputs[0].shape))
  taps, strides = ((*lead, *config[key]) for key in ("kernel_size", "strides"))
  sizes, (positions, inputs, made) = (*lead, *node.shapes[0][1:-1]), kernel.shape
  x = add_reshape(graph, f"{name}/row", source, (*lead, *source.shape[1:])) if lead else source
  spans = [[range(first, first + (size - 1) * step + 1, step) for first in range(count)]
           for count, size, step in zip(taps, sizes, strides)]
  parts = [add_slice(graph, f"{name}/part{row}_{column}", x, {1: spans[0][row], 2: spans[1][column]})
           for row in range(taps[0]) for column in range(taps[1])]
  windows = add_join(graph, f"{name}/windows", parts, -1)
  x = add_reshape(graph, f"{name}/groups", windows, (1, 1, positions * inputs))
  params = {"kernel": kernel.transpose(1, 0, 2).reshape(1, 1, inputs, positions * made)}
  if config["use_bias"]:
    params["bias"] = node.layer.params["bias"].reshape(-1)
  layer = graph.new_layer(keras.layers.Conv2D, f"{name}/image", {
      **_shared(graph, node, lambda axes: None), "filters": positions * made, "kernel_size": 1,
      "groups": positions}, params)
  x = graph.add_node(layer, (x,), (x.shape[0], 1, 1, positions * made))
  return add_reshape(graph, f"{name}/result", x, node.shapes[0][1:])


def _shared(graph: Graph, node: Node, axes: Any) -> dict[str, Any]:
  """What the convolution takes over; it pads nothing itself."""
  weights = {"kernel": "kernel", "bias": "bias"}
  return {**training_config(graph, node, weights, axes=axes), "padding": "valid",
          **{key: node.config.get(key) for key in (
              "filters", "use_bias", "activation", "activity_regularizer")}}


def _in_channels(axes: tuple[int, ...]) -> tuple[int, ...] | None:
  """Axes of a kernel whose depth went into its input channels: all of them or none."""
  return (0, 1, 2) if sorted(axes) == [0, 1, 2, 3] else None


def _in_channels_transposed(axes: tuple[int, ...]) -> tuple[int, ...] | None:
  return (0, 1, 3) if sorted(axes) == [0, 1, 2, 4] else None


_SPLITS = {"Conv3D": _conv_3d, "Conv3DTranspose": _conv_3d_transpose,
           "LocallyConnected1D": _locally_connected, "LocallyConnected2D": _locally_connected}
