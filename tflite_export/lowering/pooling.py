"""Lowering of pools, reductions and resizing."""

import numpy as np

from kquant.graph.nodes import Node, Ref
from tflite_export.lowering.builder import Lower, ProgramBuilder


def _pool_2d(kind: str) -> Lower:
  def lower_pool(builder: ProgramBuilder, node: Node) -> None:
    (height, width), (stride_h, stride_w) = node.config["pool_size"], node.config["strides"]
    builder.add(node, kind, builder.inputs(node), [builder.activation(Ref(node))],
                padding=node.config["padding"].upper(), stride_h=stride_h, stride_w=stride_w,
                filter_height=height, filter_width=width)
  return lower_pool


def _pool_1d(kind: str) -> Lower:
  def lower_pool(builder: ProgramBuilder, node: Node) -> None:
    (source,) = builder.inputs(node)
    output = builder.activation(Ref(node))
    result = builder.reshaped(f"{node.name}/image", builder.row_shape(output), output)
    builder.add(node, kind, [builder.as_row(node, source)], [result],
                padding=node.config["padding"].upper(), stride_h=1,
                stride_w=node.config["strides"][0], filter_height=1,
                filter_width=node.config["pool_size"][0])
    builder.reshape(node, result, output)
  return lower_pool


def _global_average(builder: ProgramBuilder, node: Node) -> None:
  axes = builder.constant(f"{node.name}/axes", range(1, len(node.inputs[0].shape) - 1))
  output = builder.saturating_output(node)
  builder.add(node, "MEAN", [*builder.inputs(node), axes], [output],
              keep_dims=bool(node.config["keepdims"]))


def _global_max(builder: ProgramBuilder, node: Node) -> None:
  """One MAX_POOL_2D over the whole image; a sequence is an image of one row."""
  (source,) = builder.inputs(node)
  if len(node.inputs[0].shape) == 3:
    source = builder.as_row(node, source)
  _, height, width, channels = builder.program.tensors[source].shape
  output = builder.activation(Ref(node))
  pooled = builder.reshaped(f"{node.name}/image", (1, 1, 1, channels), output)
  builder.add(node, "MAX_POOL_2D", [source], [pooled], padding="VALID", stride_h=1,
              stride_w=1, filter_height=height, filter_width=width)
  builder.reshape(node, pooled, output)


def _resize(kind: str) -> Lower:
  def lower_resize(builder: ProgramBuilder, node: Node) -> None:
    output = builder.activation(Ref(node))
    size = builder.constant(f"{node.name}/size", builder.program.tensors[output].shape[1:3])
    builder.add(node, kind, [*builder.inputs(node), size], [output],
                align_corners=False, half_pixel_centers=True)
  return lower_resize


def _reduce(kind: str) -> Lower:
  """tf.reduce_mean, reduce_max, reduce_min over any axes but the batch."""
  def lower_reduce(builder: ProgramBuilder, node: Node) -> None:
    rank = len(node.inputs[0].shape)
    axes = node.argument(1, "axis")
    axes = range(rank) if axes is None else np.atleast_1d(axes)
    axes = sorted(int(axis) % rank for axis in axes)
    constant = builder.constant(f"{node.name}/axes", axes)
    builder.add(node, kind, [*builder.inputs(node), constant], [builder.saturating_output(node)],
                keep_dims=bool(node.argument(2, "keepdims", False)))
  return lower_reduce


def _mask_share(builder: ProgramBuilder, node: Node) -> None:
  axes = builder.constant(f"{node.name}/axes", [len(node.inputs[0].shape) - 1])
  builder.add(node, "MEAN", [*builder.inputs(node), axes], [builder.activation(Ref(node))], keep_dims=True)


LOWERINGS: dict[str, Lower] = {
    "MaxPooling1D": _pool_1d("MAX_POOL_2D"),
    "MaxPooling2D": _pool_2d("MAX_POOL_2D"),
    "AveragePooling1D": _pool_1d("AVERAGE_POOL_2D"),
    "AveragePooling2D": _pool_2d("AVERAGE_POOL_2D"),
    "GlobalAveragePooling1D": _global_average,
    "GlobalAveragePooling2D": _global_average,
    "GlobalMaxPooling1D": _global_max,
    "GlobalMaxPooling2D": _global_max,
    "MaskShare": _mask_share,
    "Resizing:bilinear": _resize("RESIZE_BILINEAR"),
    "Resizing:nearest": _resize("RESIZE_NEAREST_NEIGHBOR"),
    "tf.math.reduce_max": _reduce("REDUCE_MAX"),
    "tf.math.reduce_mean": _reduce("MEAN"),
    "tf.math.reduce_min": _reduce("REDUCE_MIN"),
    "UpSampling2D": _resize("RESIZE_NEAREST_NEIGHBOR"),
    "UpSampling2DBilinear": _resize("RESIZE_BILINEAR"),
}
