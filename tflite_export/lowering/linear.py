"""Lowering of layers with a kernel and a bias."""

from typing import Any

import numpy as np

from kquant.graph.nodes import Node
from tflite_export.lowering.builder import Lower, ProgramBuilder

_GROUPED = 6
"""Version of CONV_2D with a kernel that reads a part of the channels."""


def _sliding(config: dict[str, Any]) -> dict[str, Any]:
  """Padding, strides and dilations of a 2-D convolution as operator options."""
  (stride_h, stride_w), (dilation_h, dilation_w) = config["strides"], config["dilation_rate"]
  return {"padding": config["padding"].upper(), "stride_h": stride_h, "stride_w": stride_w,
          "dilation_h_factor": dilation_h, "dilation_w_factor": dilation_w}


def _conv_2d(builder: ProgramBuilder, node: Node) -> None:
  kernel = builder.integers(f"{node.layer.name}/kernel", layout=lambda q: q.transpose(3, 0, 1, 2), axis=0)
  output, activation = builder.output(node)
  builder.add(node, "CONV_2D", [*builder.inputs(node), kernel, builder.bias(node)], [output],
              version=_GROUPED if node.config["groups"] > 1 else None, **_sliding(node.config),
              fused_activation_function=activation)


def _depthwise_conv_2d(builder: ProgramBuilder, node: Node) -> None:
  height, width, inputs, multiplier = node.layer.params["depthwise_kernel"].shape
  kernel = builder.integers(f"{node.layer.name}/kernel", axis=3,
                            layout=lambda q: q.reshape(1, height, width, inputs * multiplier))
  output, activation = builder.output(node)
  builder.add(node, "DEPTHWISE_CONV_2D", [*builder.inputs(node), kernel, builder.bias(node)], [output],
              **_sliding(node.config), depth_multiplier=multiplier,
              fused_activation_function=activation)


def _dense(builder: ProgramBuilder, node: Node) -> None:
  kernel = builder.integers(f"{node.layer.name}/kernel", layout=np.transpose, axis=0)
  output, activation = builder.output(node)
  builder.add(node, "FULLY_CONNECTED", [*builder.inputs(node), kernel, builder.bias(node)], [output],
              keep_num_dims=len(node.shapes[0]) > 2, fused_activation_function=activation)


def _conv_2d_transpose(builder: ProgramBuilder, node: Node) -> None:
  kernel = builder.integers(f"{node.layer.name}/kernel", layout=lambda q: q.transpose(2, 0, 1, 3), axis=0)
  output = builder.saturating_output(node)
  shape = builder.constant(f"{node.name}/output_shape", builder.program.tensors[output].shape)
  stride_h, stride_w = node.config["strides"]
  builder.add(node, "TRANSPOSE_CONV", [shape, kernel, *builder.inputs(node), builder.bias(node)],
              [output], padding=node.config["padding"].upper(), stride_h=stride_h,
              stride_w=stride_w)


def _conv_1d(builder: ProgramBuilder, node: Node) -> None:
  """[1, length, in] as an image of one row, through CONV_2D, and back."""
  config, program = node.config, builder.program
  kernel = builder.integers(f"{node.layer.name}/kernel", axis=0,
                            layout=lambda q: q.transpose(2, 0, 1)[:, None])
  (source,) = builder.inputs(node)
  padding, reach = config["padding"], (config["kernel_size"][0] - 1) * config["dilation_rate"][0]
  if padding == "causal":
    _, length, channels = program.tensors[source].shape
    padded = builder.reshaped(f"{node.name}/padded", (1, length + reach, channels), source)
    amounts = builder.constant(f"{node.name}/paddings", [[0, 0], [reach, 0], [0, 0]])
    builder.add(node, "PAD", [source, amounts], [padded])
    source, padding = padded, "valid"
  output, activation = builder.output(node)
  row = builder.as_row(node, source)
  result = builder.reshaped(f"{node.name}/image", builder.row_shape(output), output)
  options = _sliding({"padding": padding, "strides": (1, config["strides"][0]),
                      "dilation_rate": (1, config["dilation_rate"][0])})
  builder.add(node, "CONV_2D", [row, kernel, builder.bias(node)], [result],
              version=_GROUPED if config["groups"] > 1 else None, **options,
              fused_activation_function=activation)
  builder.reshape(node, result, output)


LOWERINGS: dict[str, Lower] = {
    "Conv1D": _conv_1d,
    "Conv2D": _conv_2d,
    "Conv2DTranspose": _conv_2d_transpose,
    "DepthwiseConv2D": _depthwise_conv_2d,
    "Dense": _dense,
}
