"""Finalised Keras model + Encodings -> IntProgram: one small function an operator, in one table.

Nothing is decided here. A tensor that has an encoding is a tensor of the program under its key; a
call whose output has none is fused with the ReLU that reads it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.encodings import Encoding, Encodings
from kquant.core.graph import Graph
from kquant.core.layers import UnsupportedLayerError
from kquant.core.nodes import Node, Ref
from tflite_export.program import IntOp, IntProgram, IntTensor

_DTYPES = {8: "int8", 16: "int16"}


class Lowering:
  """The program under construction.

  Attributes:
    graph: the finalised model.
    encodings: its grids and integers.
    program: what has been lowered so far.
    fused: ReLU calls that an operator before them has taken in.
  """

  def __init__(self, graph: Graph, encodings: Encodings):
    self.graph = graph
    self.encodings = encodings
    self.program = IntProgram()
    self.fused: set[Node] = set()

  def activation(self, ref: Ref) -> str:
    """Adds the tensor of a Keras tensor and returns its name."""
    grid = self._grid(ref)
    return self.program.add_tensor(IntTensor(ref.key, _fixed_shape(ref), _DTYPES[grid.bits],
                                             grid.scale, grid.zero_point))

  def reshaped(self, name: str, shape: Sequence[int], like: str) -> str:
    """Adds a tensor on the grid of another one, with another shape."""
    base = self.program.tensors[like]
    return self.program.add_tensor(IntTensor(name, shape, base.dtype, base.scale, base.zero_point))

  def constant(self, name: str, values: Any) -> str:
    """Adds an int32 constant (a shape, axes, paddings)."""
    values = np.asarray(values, np.int32)
    return self.program.add_tensor(IntTensor(name, values.shape, "int32", data=values))

  def integers(self, key: str, *, layout: Callable[[np.ndarray], np.ndarray] = lambda q: q,
               axis: int | None = None, dtype: str = "int8") -> str:
    """Adds the integers of a kernel, bias or constant in the layout of the file, once."""
    if key not in self.program.tensors:
      grid, values = self.encodings[key], layout(self.encodings.integers[key])
      self.program.add_tensor(IntTensor(key, values.shape, dtype, grid.scale, grid.zero_point,
                                        None if grid.axis is None else axis, values))
    return key

  def bias(self, node: Node) -> str:
    """Adds the bias of one call of a linear layer."""
    return self.integers(f"{node.name}/bias", axis=0, dtype="int32")

  def inputs(self, node: Node) -> list[str]:
    """The names of the tensors that a call reads."""
    return [ref.key for ref in node.inputs]

  def output(self, node: Node) -> tuple[str, str]:
    """Adds the output tensor of a call, behind the ReLU fused with it; returns (name, activation).

    The activation is "NONE" where the end of the grid is the clamp already.
    """
    ref = Ref(node)
    if ref.key in self.encodings:
      return self.activation(ref), "NONE"
    (relu,) = self.graph.readers(ref)
    assert relu.kind == "ReLU", f"{ref.key!r} has no encoding and is read by {relu!r}"
    self.fused.add(relu)
    return self.activation(Ref(relu)), _clamp(relu, self._grid(Ref(relu)))

  def add(self, node: Node, kind: str, inputs: list[str], outputs: list[str], *, version: int = 1,
          reason: str = "", **options: Any) -> None:
    """Appends an operator."""
    self.program.ops.append(IntOp(kind, inputs, outputs, options, version, node.name, reason))

  def reshape(self, node: Node, source: str, result: str) -> str:
    """Appends a RESHAPE of a tensor to another one's shape; returns the result."""
    shape = self.program.tensors[result].shape
    self.add(node, "RESHAPE", [source, self.constant(f"{result}/shape", shape)], [result],
             new_shape=list(shape))
    return result

  def _grid(self, ref: Ref) -> Encoding:
    if ref.key not in self.encodings:
      raise ValueError(f"Encodings have no grid for tensor {ref.key!r}; they belong to another model.")
    return self.encodings[ref.key]


def lower(model: keras.Model, encodings: Encodings) -> IntProgram:
  """Returns the integer program of a finalised model; its borders are int8.

  Raises:
    UnsupportedLayerError: a layer that has no lowering, or an open shape, by name.
  """
  lowering = Lowering(Graph.from_model(model), encodings)
  for node in lowering.graph.nodes:
    if node in lowering.fused:
      continue
    if node.kind not in LOWERINGS:
      raise UnsupportedLayerError(f"Layer {node.name!r} ({node.kind}) has no integer operator; replace it.")
    LOWERINGS[node.kind](lowering, node)
  program = lowering.program
  program.inputs = [ref.key for ref in lowering.graph.input_refs]
  program.outputs = [ref.key for ref in lowering.graph.output_refs]
  return program


def _fixed_shape(ref: Ref) -> tuple[int, ...]:
  shape = (1, *ref.shape[1:])
  if None in shape:
    raise UnsupportedLayerError(
        f"Tensor {ref.key!r} has the open shape {ref.shape}; a file needs a fixed one. Build the model "
        "with a fixed input shape (--input_shape=H,W,C).")
  return shape


def _clamp(relu: Node, grid: Encoding) -> str:
  """The fused activation that a ReLU needs on a grid: none where the grid ends where it clamps."""
  (low,), (high,) = grid.range
  half_step = float(grid.scale[0]) / 2
  cap = relu.config.get("max_value")
  if cap is not None and high > cap + half_step:
    if cap != 6.0:
      raise ValueError(f"Layer {relu.name!r}: its grid ends at {high:.6g}, above its cap {cap}.")
    return "RELU6"
  return "RELU" if low < -half_step else "NONE"


# --- linear layers ---------------------------------------------------------------------------------


def _sliding(config: dict[str, Any]) -> dict[str, Any]:
  """Padding, strides and dilations of a 2-D convolution as operator options."""
  (stride_h, stride_w), (dilation_h, dilation_w) = config["strides"], config["dilation_rate"]
  return {"padding": config["padding"].upper(), "stride_h": stride_h, "stride_w": stride_w,
          "dilation_h_factor": dilation_h, "dilation_w_factor": dilation_w}


def _conv_2d(lowering: Lowering, node: Node) -> None:
  kernel = lowering.integers(f"{node.layer.name}/kernel", layout=lambda q: q.transpose(3, 0, 1, 2), axis=0)
  output, activation = lowering.output(node)
  lowering.add(node, "CONV_2D", [*lowering.inputs(node), kernel, lowering.bias(node)], [output],
               version=6 if node.config["groups"] > 1 else 3, **_sliding(node.config),
               fused_activation_function=activation)


def _depthwise_conv_2d(lowering: Lowering, node: Node) -> None:
  height, width, inputs, multiplier = node.layer.params["depthwise_kernel"].shape
  kernel = lowering.integers(f"{node.layer.name}/kernel", axis=3,
                             layout=lambda q: q.reshape(1, height, width, inputs * multiplier))
  output, activation = lowering.output(node)
  lowering.add(node, "DEPTHWISE_CONV_2D", [*lowering.inputs(node), kernel, lowering.bias(node)], [output],
               version=3, **_sliding(node.config), depth_multiplier=multiplier,
               fused_activation_function=activation)


def _dense(lowering: Lowering, node: Node) -> None:
  kernel = lowering.integers(f"{node.layer.name}/kernel", layout=np.transpose, axis=0)
  output, activation = lowering.output(node)
  lowering.add(node, "FULLY_CONNECTED", [*lowering.inputs(node), kernel, lowering.bias(node)], [output],
               version=5, keep_num_dims=len(node.shapes[0]) > 2, fused_activation_function=activation)


def _conv_2d_transpose(lowering: Lowering, node: Node) -> None:
  kernel = lowering.integers(f"{node.layer.name}/kernel", layout=lambda q: q.transpose(2, 0, 1, 3), axis=0)
  output = lowering.activation(Ref(node))
  shape = lowering.constant(f"{node.name}/output_shape", lowering.program.tensors[output].shape)
  stride_h, stride_w = node.config["strides"]
  lowering.add(node, "TRANSPOSE_CONV", [shape, kernel, *lowering.inputs(node), lowering.bias(node)],
               [output], version=3, padding=node.config["padding"].upper(), stride_h=stride_h,
               stride_w=stride_w)


def _conv_1d(lowering: Lowering, node: Node) -> None:
  """[1, length, in] as an image of one row, through CONV_2D, and back."""
  config, program = node.config, lowering.program
  kernel = lowering.integers(f"{node.layer.name}/kernel", axis=0,
                             layout=lambda q: q.transpose(2, 0, 1)[:, None])
  (source,) = lowering.inputs(node)
  padding, reach = config["padding"], (config["kernel_size"][0] - 1) * config["dilation_rate"][0]
  if padding == "causal":
    _, length, channels = program.tensors[source].shape
    padded = lowering.reshaped(f"{node.name}/padded", (1, length + reach, channels), source)
    amounts = lowering.constant(f"{node.name}/paddings", [[0, 0], [reach, 0], [0, 0]])
    lowering.add(node, "PAD", [source, amounts], [padded], version=2)
    source, padding = padded, "valid"
  output, activation = lowering.output(node)
  row = _as_row(lowering, node, source)
  result = lowering.reshaped(f"{node.name}/image", _row_shape(lowering, output), output)
  options = _sliding({"padding": padding, "strides": (1, config["strides"][0]),
                      "dilation_rate": (1, config["dilation_rate"][0])})
  lowering.add(node, "CONV_2D", [row, kernel, lowering.bias(node)], [result],
               version=6 if config["groups"] > 1 else 3, **options, fused_activation_function=activation)
  lowering.reshape(node, result, output)


def _row_shape(lowering: Lowering, name: str) -> tuple[int, ...]:
  _, length, channels = lowering.program.tensors[name].shape
  return 1, 1, length, channels


def _as_row(lowering: Lowering, node: Node, source: str) -> str:
  row = lowering.reshaped(f"{node.name}/row", _row_shape(lowering, source), source)
  return lowering.reshape(node, source, row)


# --- pooling and moving ----------------------------------------------------------------------------


def _pool_2d(kind: str) -> Callable[[Lowering, Node], None]:
  def lower_pool(lowering: Lowering, node: Node) -> None:
    (height, width), (stride_h, stride_w) = node.config["pool_size"], node.config["strides"]
    lowering.add(node, kind, lowering.inputs(node), [lowering.activation(Ref(node))], version=2,
                 padding=node.config["padding"].upper(), stride_h=stride_h, stride_w=stride_w,
                 filter_height=height, filter_width=width)
  return lower_pool


def _pool_1d(kind: str) -> Callable[[Lowering, Node], None]:
  def lower_pool(lowering: Lowering, node: Node) -> None:
    (source,) = lowering.inputs(node)
    output = lowering.activation(Ref(node))
    result = lowering.reshaped(f"{node.name}/image", _row_shape(lowering, output), output)
    lowering.add(node, kind, [_as_row(lowering, node, source)], [result], version=2,
                 padding=node.config["padding"].upper(), stride_h=1,
                 stride_w=node.config["strides"][0], filter_height=1,
                 filter_width=node.config["pool_size"][0])
    lowering.reshape(node, result, output)
  return lower_pool


def _global_average(lowering: Lowering, node: Node) -> None:
  axes = lowering.constant(f"{node.name}/axes", range(1, len(node.inputs[0].shape) - 1))
  output, _ = lowering.output(node)
  lowering.add(node, "MEAN", [*lowering.inputs(node), axes], [output], version=2,
               keep_dims=bool(node.config["keepdims"]))


def _global_max(lowering: Lowering, node: Node) -> None:
  """One MAX_POOL_2D over the whole image; a sequence is an image of one row."""
  (source,) = lowering.inputs(node)
  if len(node.inputs[0].shape) == 3:
    source = _as_row(lowering, node, source)
  _, height, width, channels = lowering.program.tensors[source].shape
  output = lowering.activation(Ref(node))
  pooled = lowering.reshaped(f"{node.name}/image", (1, 1, 1, channels), output)
  lowering.add(node, "MAX_POOL_2D", [source], [pooled], version=2, padding="VALID", stride_h=1,
               stride_w=1, filter_height=height, filter_width=width)
  lowering.reshape(node, pooled, output)


def _zero_padding(lowering: Lowering, node: Node) -> None:
  spatial = np.reshape(node.config["padding"], (-1, 2))
  amounts = lowering.constant(f"{node.name}/paddings", [[0, 0], *spatial.tolist(), [0, 0]])
  lowering.add(node, "PAD", [*lowering.inputs(node), amounts], [lowering.activation(Ref(node))], version=2)


def _resize(kind: str) -> Callable[[Lowering, Node], None]:
  def lower_resize(lowering: Lowering, node: Node) -> None:
    output = lowering.activation(Ref(node))
    size = lowering.constant(f"{node.name}/size", lowering.program.tensors[output].shape[1:3])
    lowering.add(node, kind, [*lowering.inputs(node), size], [output], version=3,
                 align_corners=False, half_pixel_centers=True)
  return lower_resize


def _reshape(lowering: Lowering, node: Node) -> None:
  (source,) = lowering.inputs(node)
  lowering.reshape(node, source, lowering.activation(Ref(node)))


def _concatenate(lowering: Lowering, node: Node) -> None:
  axis = node.config["axis"] % len(node.shapes[0])
  if axis == 0:
    raise UnsupportedLayerError(f"Layer {node.name!r} concatenates along the batch axis, which has size 1.")
  lowering.add(node, "CONCATENATION", lowering.inputs(node), [lowering.activation(Ref(node))],
               version=2, axis=axis, fused_activation_function="NONE")


# --- elementwise -----------------------------------------------------------------------------------


def _binary(kind: str) -> Callable[[Lowering, Node], None]:
  """Two tensors, or a tensor and a constant in the order of the call."""
  def lower_binary(lowering: Lowering, node: Node) -> None:
    operands = lowering.inputs(node)
    if len(operands) == 1:
      constant = lowering.integers(f"{node.name}/constant")
      operands = [operand.key if isinstance(operand, Ref) else constant for operand in node.args]
    output, activation = lowering.output(node)
    pot = {} if kind == "MUL" else {"pot_scale_int16": False}
    lowering.add(node, kind, operands, [output], version=2, **pot, fused_activation_function=activation)
  return lower_binary


def _unary(kind: str, version: int, **options: Any) -> Callable[[Lowering, Node], None]:
  def lower_unary(lowering: Lowering, node: Node) -> None:
    lowering.add(node, kind, lowering.inputs(node), [lowering.activation(Ref(node))], version=version,
                 **options)
  return lower_unary


def _relu(lowering: Lowering, node: Node) -> None:
  """A ReLU that no operator before it takes in; its cap is the end of its grid, or 6."""
  output = lowering.activation(Ref(node))
  clamp = _clamp(node, lowering.encodings[Ref(node).key])
  lowering.add(node, "RELU6" if clamp == "RELU6" else "RELU", lowering.inputs(node), [output], version=2)


def _leaky_relu(lowering: Lowering, node: Node) -> None:
  lowering.add(node, "LEAKY_RELU", lowering.inputs(node), [lowering.activation(Ref(node))], version=2,
               alpha=float(np.float32(node.config["alpha"])))


def _requantize(lowering: Lowering, node: Node) -> None:
  lowering.add(node, "QUANTIZE", lowering.inputs(node), [lowering.activation(Ref(node))], version=2,
               reason=f"{node.name}: the grids of its two sides cannot be one")


LOWERINGS: dict[str, Callable[[Lowering, Node], None]] = {
    "InputLayer": lambda lowering, node: lowering.activation(Ref(node)) and None,
    "Conv1D": _conv_1d,
    "Conv2D": _conv_2d,
    "Conv2DTranspose": _conv_2d_transpose,
    "DepthwiseConv2D": _depthwise_conv_2d,
    "Dense": _dense,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "Softmax": _unary("SOFTMAX", 2, beta=1.0),
    "Sigmoid": _unary("LOGISTIC", 2),
    "Tanh": _unary("TANH", 2),
    "Requantize": _requantize,
    "Add": _binary("ADD"),
    "Subtract": _binary("SUB"),
    "Multiply": _binary("MUL"),
    "tf.math.add": _binary("ADD"),
    "tf.math.subtract": _binary("SUB"),
    "tf.math.multiply": _binary("MUL"),
    "Concatenate": _concatenate,
    "MaxPooling1D": _pool_1d("MAX_POOL_2D"),
    "MaxPooling2D": _pool_2d("MAX_POOL_2D"),
    "AveragePooling1D": _pool_1d("AVERAGE_POOL_2D"),
    "AveragePooling2D": _pool_2d("AVERAGE_POOL_2D"),
    "GlobalAveragePooling1D": _global_average,
    "GlobalAveragePooling2D": _global_average,
    "GlobalMaxPooling1D": _global_max,
    "GlobalMaxPooling2D": _global_max,
    "ZeroPadding1D": _zero_padding,
    "ZeroPadding2D": _zero_padding,
    "UpSampling2D": _resize("RESIZE_NEAREST_NEIGHBOR"),
    "UpSampling2DBilinear": _resize("RESIZE_BILINEAR"),
    "Flatten": _reshape,
    "Reshape": _reshape,
}


def with_border(program: IntProgram, io: str) -> IntProgram:
  """Returns the program with int8 (as it is), uint8 or float32 inputs and outputs.

  Raises:
    ValueError: another io.
  """
  if io == "int8":
    return program
  if io not in ("uint8", "float32"):
    raise ValueError(f"io must be int8, uint8 or float32, got {io!r}.")
  bordered = dataclasses.replace(program, tensors=dict(program.tensors), ops=list(program.ops))
  inward, outward = ("QUANTIZE", "DEQUANTIZE") if io == "float32" else ("QUANTIZE", "QUANTIZE")
  versions = {"QUANTIZE": 2 if io == "uint8" else 1, "DEQUANTIZE": 2}
  bordered.inputs = [_border_tensor(bordered, name, io) for name in program.inputs]
  bordered.outputs = [_border_tensor(bordered, name, io) for name in program.outputs]
  bordered.ops[:0] = [IntOp(inward, [outer], [inner], {}, versions[inward], inner, f"{io} input")
                      for outer, inner in zip(bordered.inputs, program.inputs)]
  bordered.ops += [IntOp(outward, [inner], [outer], {}, versions[outward], inner, f"{io} output")
                   for outer, inner in zip(bordered.outputs, program.outputs)]
  return bordered


def _border_tensor(program: IntProgram, name: str, io: str) -> str:
  inner = program.tensors[name]
  grid = (None, None) if io == "float32" else (inner.scale, inner.zero_point + 128)
  return program.add_tensor(IntTensor(f"{name}/{io}", inner.shape, io, *grid))
