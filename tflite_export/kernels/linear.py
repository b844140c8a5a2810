"""CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, TRANSPOSE_CONV and BATCH_MATMUL over int8.

acc = sum (q_x - z_x) q_w + q_b, exact; padding adds 0. Then y = acc * (s_x s_w / s_y) + z_y, where
each operator and set of kernels multiplies in its own way (`Weighted.rescale`).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tflite_export.kernels.call import (
  Call,
  centred,
  finish,
  merge_images,
  output_like,
  scale_of,
  swing_of,
  with_rank,
  zero_point_of,
)
from tflite_export.kernels.multipliers import (
  cast_int32,
  multiply_double,
  multiply_double_up,
  multiply_exact,
  multiply_float,
  multiply_reduced,
  wrap_int32,
)
from tflite_export.kernels.windows import Windows, padding_before, windows_of
from tflite_export.program.program import IntTensor

_FLOAT32_EXACT = 2**24
_DEPTHWISE_TAPS = 25
"""The delegate runs larger depthwise windows as matrix products."""
_NIBBLE = 16
"""An int4 weight in the upper half of its byte is 16 times the weight."""
_VECTOR = 8
"""Channels that the vector code of `builtin` takes at once."""


@dataclasses.dataclass(frozen=True)
class Weighted:
  """An operator with a constant kernel and a bias.

  Attributes:
    places: positions of x, kernel and bias among its inputs.
    channel_axis: of the output channels, in the kernel.
    add_up: called with (call, x without its zero point, kernel): the sums without bias.
    rescale: called with (call, acc, s_x s_w / s_y in float64): acc on the output's grid without its zero
      point, where the delegate does not run it.
    of_one_channel: called with (shape of the kernel, channels of x): whether every output channel reads one
      input channel of its own.
    int4: the kernel may be int4 over int8; one that may not refuses to load with one. Over int16 none may:
      DEPTHWISE_CONV_2D loads and then reads the packed bytes as int8.
    packed_limit: what accumulators must stay below where the kernel is int4.
  """

  places: tuple[int, int, int]
  channel_axis: int
  add_up: Callable[[Call, np.ndarray, np.ndarray], np.ndarray]
  rescale: Callable[[Call, np.ndarray, np.ndarray], np.ndarray]
  of_one_channel: Callable[[tuple[int, ...], int], bool] = lambda shape, depth: False
  int4: bool = True
  packed_limit: int = 2**31

  def run(self, call: Call, *arrays: np.ndarray) -> list:
    """Returns [y], the operator's kernel."""
    y = finish(call, self._requantize(call, self.accumulators(call, *arrays)))
    return [output_like(call, y, len(self.operands(arrays)[0]))]

  def accumulators(self, call: Call, *arrays: np.ndarray) -> np.ndarray:
    """Returns the exact sums [..., out], bias included, as floats that hold them."""
    (x, kernel, bias), source = self.operands(arrays), self.operands(call.inputs)[0]
    kind = self._float_type(source, kernel, bias)
    x = x.astype(kind) - kind(zero_point_of(source))
    acc = self.add_up(call, x, kernel.astype(kind))
    acc += bias.astype(kind)
    return acc

  def operands(self, inputs: Sequence) -> tuple:
    """Returns x, kernel and bias of an operator's inputs (tensors, arrays or names)."""
    return tuple(inputs[place] for place in self.places)

  def _float_type(self, x: IntTensor, kernel: np.ndarray, bias: np.ndarray) -> type:
    """Returns the smallest float type in which every partial sum is exact."""
    others = tuple(axis for axis in range(kernel.ndim) if axis != self.channel_axis)
    sums = np.abs(kernel, dtype=np.int16).sum(others, dtype=np.int64)
    bound = swing_of(x) * int(sums.max(initial=0)) + int(np.abs(bias.astype(np.int64)).max(initial=0))
    return np.float32 if bound < _FLOAT32_EXACT else np.float64

  def _requantize(self, call: Call, acc: np.ndarray) -> np.ndarray:
    """Returns acc * (s_x s_w / s_y) as the operator's kernel rounds it."""
    x, kernel, _ = self.operands(call.inputs)
    s_x, s_w, s_y = scale_of(x), kernel.scale, scale_of(call.outputs[0])
    if call.arithmetic != "xnnpack":
      return self.rescale(call, acc, np.float64(s_x) * s_w.astype(np.float64) / np.float64(s_y))
    real = s_x * s_w / s_y
    y = _multiply_packed(acc, real) if kernel.dtype == "int4" else multiply_float(acc, real)
    taps = int(np.prod(kernel.shape[1:3]))
    depthwise = taps <= _DEPTHWISE_TAPS and self.of_one_channel(kernel.shape, x.shape[-1])
    return y if depthwise else _as_int32(call, y)


def batch_matmul(call: Call, a: np.ndarray, b: np.ndarray) -> list:
  """Returns [a @ b], either one transposed first where the options say so."""
  first, second = call.inputs
  rank, n = len(call.outputs[0].shape), max(len(x) for x, t in zip((a, b), call.inputs) if t.data is None)
  a, b = (with_rank(centred(x, t).astype(np.float64), t, rank) for x, t in zip((a, b), call.inputs))
  a = a.swapaxes(-1, -2) if call.option("adj_x", False) else a
  b = b.swapaxes(-1, -2) if call.option("adj_y", False) else b
  acc, product, s_y = a @ b, scale_of(first) * scale_of(second), scale_of(call.outputs[0])
  if call.arithmetic == "xnnpack":
    y = _as_int32(call, multiply_float(acc, product / s_y))
  else:
    multiply = multiply_reduced if first.dtype == "int16" else multiply_double
    y = multiply(acc, np.float64(product) / np.float64(s_y))
  return [output_like(call, finish(call, y), n)]


# --- sums: x is [n, *shape] without its zero point, the kernel as in the file -----------------------


def _conv_2d(call: Call, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """kernel: [out, h, w, in / groups], grouped where in / groups < in."""
  outputs, height, width, depth = kernel.shape
  windows = windows_of(call, call.inputs[0].shape[1:3], (height, width))
  patches = windows.patches(windows.padded(merge_images(x), 0))
  groups = patches.shape[-1] // depth
  rows = patches.reshape(-1, height, width, groups, depth).transpose(3, 0, 1, 2, 4)
  rows = rows.reshape(groups, -1, height * width * depth)
  columns = kernel.reshape(groups, outputs // groups, -1).transpose(0, 2, 1)
  return (rows @ columns).transpose(1, 0, 2).reshape(-1, outputs)


def _depthwise_conv_2d(call: Call, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """kernel: [1, h, w, in * multiplier]; output channel c reads c // multiplier."""
  _, height, width, channels = kernel.shape
  windows = windows_of(call, call.inputs[0].shape[1:3], (height, width))
  padded = windows.padded(merge_images(x), 0)
  if channels > padded.shape[-1]:
    padded = np.repeat(padded, channels // padded.shape[-1], axis=-1)
  acc = np.zeros((len(padded), *windows.count, channels), padded.dtype)
  for row, column in np.ndindex(height, width):
    acc += windows.tap(padded, row, column) * kernel[0, row, column]
  return acc


def _fully_connected(call: Call, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """kernel: [out, in]; all axes of x before `in` are rows."""
  del call
  return x.reshape(-1, kernel.shape[1]) @ kernel.T


def _transpose_conv(call: Call, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """kernel: [out, h, w, in]; each pixel of x adds one window to the output."""
  x, (outputs, *size, _) = merge_images(x), kernel.shape
  image, result = x.shape[1:3], call.outputs[0].shape[1:3]
  stride = (call.option("stride_h"), call.option("stride_w"))
  before = (0, 0)
  if call.option("padding", "SAME") == "SAME":
    before = tuple(padding_before(whole, count, step, taps)
                   for whole, count, step, taps in zip(result, image, stride, size))
  windows = Windows(tuple(size), stride, (1, 1), before, tuple(image))
  reach = [max((count - 1) * step + taps, start + whole)
           for count, step, taps, start, whole in zip(image, stride, size, before, result)]
  acc = np.zeros((len(x), *reach, outputs), x.dtype)
  for row, column in np.ndindex(*size):
    view = windows.tap(acc, row, column)
    view += x @ kernel[:, row, column].T
  return acc[:, before[0]:before[0] + result[0], before[1]:before[1] + result[1]]


# --- back to 8 bits --------------------------------------------------------------------------------


def _rescale_convolution(call: Call, acc: np.ndarray, real: np.ndarray) -> np.ndarray:
  """Groups, where the kernel reads fewer channels than x has, are for the reference code in every set."""
  if call.outputs[0].dtype == "int16":
    return multiply_reduced(acc, real)
  grouped = call.inputs[1].shape[3] < call.inputs[0].shape[3]
  return (multiply_double if grouped or call.arithmetic == "reference" else multiply_double_up)(acc, real)


def _rescale_in_vectors(call: Call, acc: np.ndarray, real: np.ndarray) -> np.ndarray:
  if call.outputs[0].dtype == "int16":
    return multiply_reduced(acc, real)
  return (multiply_double if call.arithmetic == "reference" else _vector_then_rest)(acc, real)


def _rescale_dense(call: Call, acc: np.ndarray, real: np.ndarray) -> np.ndarray:
  """`builtin` multiplies the scales of a kernel on one grid in float32."""
  if call.outputs[0].dtype == "int16" or call.arithmetic == "reference":
    return multiply_exact(acc, real)
  x, kernel, y = call.inputs[0], call.inputs[1], call.outputs[0]
  if kernel.scale.size == 1:
    real = (scale_of(x) * kernel.scale).astype(np.float64) / np.float64(scale_of(y))
  return multiply_double_up(acc, real)


def _multiply_packed(acc: np.ndarray, real: np.ndarray) -> np.ndarray:
  """Returns acc * real; the delegate's dense kernel sums 16 times int4 weights, in int32."""
  return multiply_float(wrap_int32(acc.astype(np.int64) * _NIBBLE), real / np.float32(_NIBBLE))


def _as_int32(call: Call, y: np.ndarray) -> np.ndarray:
  """Returns what the delegate's matrix product keeps of y: -2^31 of all below, so that z_y wraps around."""
  if y.min(initial=0) >= -2.0**31:
    return y
  return cast_int32(np.minimum(y, np.float32(127 - zero_point_of(call.outputs[0]))))


def _vector_then_rest(acc: np.ndarray, real: np.ndarray) -> np.ndarray:
  """Channels in whole vectors round ties up, the rest away from zero."""
  channels = acc.shape[-1]
  real, whole = np.broadcast_to(real, (channels,)), channels // _VECTOR * _VECTOR
  return np.concatenate([multiply_double_up(acc[..., :whole], real[:whole]),
                         multiply_double(acc[..., whole:], real[whole:])], axis=-1)


CONVOLUTION = Weighted((0, 1, 2), 0, _conv_2d, _rescale_convolution,
                       of_one_channel=lambda shape, depth: shape[3] == 1 and shape[0] == depth)
DEPTHWISE = Weighted((0, 1, 2), 3, _depthwise_conv_2d, _rescale_in_vectors,
                     of_one_channel=lambda shape, depth: shape[3] == depth)
DENSE = Weighted((0, 1, 2), 0, _fully_connected, _rescale_dense, packed_limit=2**27)
"""The delegate's kernel over int4 sums 16 times the weights in int32."""
TRANSPOSED = Weighted((2, 1, 3), 0, _transpose_conv, _rescale_in_vectors, int4=False)
