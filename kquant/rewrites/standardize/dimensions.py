"""Layers of one and of three dimensions as those of two: a sequence is an image of one row, a volume
[depth, height, width, channels] is first the image [depth, height, width * channels], then
[depth * height, width, channels]. Maxima and copies are the same; an average of averages is too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.standardize.building import add_reshape, is_fixed, replace
from kquant.rewrites.standardize.training_config import behind_a_row, training_config

_GLOBAL_POOLS = {"GlobalAveragePooling3D": keras.layers.GlobalAveragePooling2D,
                 "GlobalMaxPooling3D": keras.layers.GlobalMaxPooling2D}
_VOLUMES = {
    # kind: (layer of two dimensions, {argument that is cut: its value for an idle axis}, arguments copied)
    "MaxPooling3D": (keras.layers.MaxPooling2D, {"pool_size": 1, "strides": 1}, ("padding",)),
    "AveragePooling3D": (keras.layers.AveragePooling2D, {"pool_size": 1, "strides": 1}, ("padding",)),
    "UpSampling3D": (keras.layers.UpSampling2D, {"size": 1}, ()),
    "ZeroPadding3D": (keras.layers.ZeroPadding2D, {"padding": (0, 0)}, ()),
    "Cropping3D": (keras.layers.Cropping2D, {"cropping": (0, 0)}, ()),
}


def change_dimensions(graph: Graph, node: Node) -> None:
  """Writes a layer of one or three dimensions as layers of two, with reshapes around them."""
  if node.config.get("data_format") == "channels_first" or len(node.inputs) != 1 or not is_fixed(
      node.inputs[0], Ref(node)):
    return
  if node.kind in _VOLUMES:
    _split_volume(graph, node)
  elif node.kind in _GLOBAL_POOLS:
    _flatten_global_pool(graph, node)
  elif node.kind in _SEQUENCES:
    _widen_sequence(graph, node)


def _split_volume(graph: Graph, node: Node) -> None:
  """The first two axes, then the third."""
  cls, sliced, copied = _VOLUMES[node.kind]
  (source,), name = node.inputs, node.layer_name
  common = {key: node.config[key] for key in copied}
  depth, height, width, channels = source.shape[1:]
  _, new_depth, new_height, new_width, _ = node.shapes[0]
  first = {key: tuple(node.config[key][:2]) for key in sliced}
  second = {key: (idle, node.config[key][2]) for key, idle in sliced.items()}
  x = add_reshape(graph, f"{name}/planes", source, (depth, height, width * channels))
  x = graph.add_node(graph.new_layer(cls, f"{name}/depth_height", {**common, **first}), (x,),
                     (x.shape[0], new_depth, new_height, width * channels))
  x = add_reshape(graph, f"{name}/rows", x, (new_depth * new_height, width, channels))
  x = graph.add_node(graph.new_layer(cls, f"{name}/width", {**common, **second}), (x,),
                     (x.shape[0], new_depth * new_height, new_width, channels))
  x = add_reshape(graph, f"{name}/volume", x, node.shapes[0][1:])
  replace(graph, node, x, "written in two dimensions")


def _flatten_global_pool(graph: Graph, node: Node) -> None:
  (source,), name = node.inputs, node.layer_name
  depth, height, width, channels = source.shape[1:]
  x = add_reshape(graph, f"{name}/rows", source, (depth * height, width, channels))
  x = graph.add_node(graph.new_layer(_GLOBAL_POOLS[node.kind], f"{name}/pool"), (x,), (x.shape[0], channels))
  if node.config["keepdims"]:
    x = add_reshape(graph, f"{name}/kept", x, node.shapes[0][1:])
  replace(graph, node, x, "written in two dimensions")


# --- sequences -------------------------------------------------------------------------------------


def _widen_sequence(graph: Graph, node: Node) -> None:
  (source,), name = node.inputs, node.layer_name
  if node.config.get("padding") == "causal":
    reach = (node.config["kernel_size"][0] - 1) * node.config["dilation_rate"][0]
    padding = graph.new_layer(keras.layers.ZeroPadding1D, f"{name}/causal", {"padding": (reach, 0)})
    batch, length, channels = source.shape
    source = graph.add_node(padding, (source,), (batch, length + reach, channels))
  row = add_reshape(graph, f"{name}/row", source, (1, *source.shape[1:]))
  length, channels = node.shapes[0][1:]
  result = _SEQUENCES[node.kind](graph, node, row, (row.shape[0], 1, length, channels))
  replace(graph, node, add_reshape(graph, f"{name}/sequence", result, (length, channels)),
          "written in two dimensions")


def _wide(node: Node, *keys: str) -> dict:
  """The config of the layer of two dimensions: sizes get a 1 in front."""
  wide = {key: (1, *np.atleast_1d(node.config[key]).tolist()) for key in keys}
  if node.config.get("padding") == "causal":
    wide["padding"] = "valid"
  elif "padding" in node.config:
    wide["padding"] = node.config["padding"]
  return wide


def _training(graph: Graph, node: Node, *kernels: str) -> dict[str, Any]:
  """How the weights train; the activity_regularizer is of the same output."""
  weights = {weight: weight for weight in (*kernels, "bias")}
  return {**training_config(graph, node, weights, axes=behind_a_row),
          "activity_regularizer": node.config.get("activity_regularizer")}


def _up_sampling(graph: Graph, node: Node, row: Ref, shape: Sequence) -> Ref:
  config = {"size": (1, int(node.config["size"]))}
  layer = graph.new_layer(keras.layers.UpSampling2D, f"{node.layer_name}/image", config)
  return graph.add_node(layer, (row,), shape)


def _depthwise(graph: Graph, node: Node, row: Ref, shape: Sequence) -> Ref:
  config = {**_training(graph, node, "depthwise"),
            **_wide(node, "kernel_size", "strides", "dilation_rate"),
            **{key: node.config[key] for key in ("depth_multiplier", "use_bias", "activation")}}
  layer = graph.new_layer(keras.layers.DepthwiseConv2D, f"{node.layer_name}/image", config,
                          _with_row(node, "depthwise_kernel"))
  return graph.add_node(layer, (row,), shape)


def _separable(graph: Graph, node: Node, row: Ref, shape: Sequence) -> Ref:
  config = {**_training(graph, node, "depthwise", "pointwise"),
            **_wide(node, "kernel_size", "strides", "dilation_rate"),
            **{key: node.config[key] for key in ("depth_multiplier", "use_bias", "activation", "filters")}}
  layer = graph.new_layer(keras.layers.SeparableConv2D, f"{node.layer_name}/image", config,
                          _with_row(node, "depthwise_kernel", "pointwise_kernel"))
  return graph.add_node(layer, (row,), shape)


def _transposed(graph: Graph, node: Node, row: Ref, shape: Sequence) -> Ref:
  config = {**_training(graph, node, "kernel"),
            **_wide(node, "kernel_size", "strides", "dilation_rate"),
            **{key: node.config[key] for key in ("filters", "use_bias", "activation")}}
  if node.config.get("output_padding") is not None:
    config["output_padding"] = (0, *np.atleast_1d(node.config["output_padding"]).tolist())
  layer = graph.new_layer(keras.layers.Conv2DTranspose, f"{node.layer_name}/image", config,
                          _with_row(node, "kernel"))
  return graph.add_node(layer, (row,), shape)


def _with_row(node: Node, *kernels: str) -> dict[str, np.ndarray]:
  """The weights, the kernels [taps, ...] as [1, taps, ...]."""
  return {name: value[None] if name in kernels else value for name, value in node.layer.params.items()}


_SEQUENCES = {"UpSampling1D": _up_sampling, "DepthwiseConv1D": _depthwise, "SeparableConv1D": _separable,
              "Conv1DTranspose": _transposed}
