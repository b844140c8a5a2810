"""CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, TRANSPOSE_CONV and BATCH_MATMUL over int8.

acc = sum (q_x - z_x) q_w + q_b, exact; padding adds 0. Then y = acc * (s_x s_w / s_y) + z_y, where
each operator and set of kernels multiplies in its own way (`_requantize`).
"""

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


def weighted(call: Call, *arrays: np.ndarray) -> list:
  """Returns [y] of an operator with a kernel and a bias."""
  acc = accumulators(call, *arrays)
  x, kernel, _ = operands(call)
  y = finish(call, _requantize(call, acc, scale_of(x), kernel))
  return [output_like(call, y, len(arrays[2 if call.op.kind == "TRANSPOSE_CONV" else 0]))]


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


def accumulators(call: Call, *arrays: np.ndarray) -> np.ndarray:
  """Returns the exact sums [..., out], bias included, as floats that hold them."""
  x, kernel, bias = _in_order(call, arrays)
  kind = _float_type(call, kernel, bias)
  x = x.astype(kind) - kind(zero_point_of(operands(call)[0]))
  acc = WEIGHTED[call.op.kind](call, x, kernel.astype(kind))
  acc += bias.astype(kind)
  return acc


def operands(call: Call) -> tuple:
  """Returns the tensors of x, kernel and bias."""
  return _in_order(call, call.inputs)


def _in_order(call: Call, inputs: tuple) -> tuple:
  if call.op.kind == "TRANSPOSE_CONV":
    _, kernel, x, bias = inputs
    return x, kernel, bias
  return tuple(inputs)


def _float_type(call: Call, kernel: np.ndarray, bias: np.ndarray) -> type:
  """Returns the smallest float type in which every partial sum is exact."""
  swing = swing_of(operands(call)[0])
  others = tuple(range(3)) if call.op.kind == "DEPTHWISE_CONV_2D" else tuple(range(1, kernel.ndim))
  sums = np.abs(kernel, dtype=np.int16).sum(others, dtype=np.int64)
  bound = swing * int(sums.max(initial=0)) + int(np.abs(bias.astype(np.int64)).max(initial=0))
  return np.float32 if bound < _FLOAT32_EXACT else np.float64


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


WEIGHTED = {"CONV_2D": _conv_2d, "DEPTHWISE_CONV_2D": _depthwise_conv_2d, "FULLY_CONNECTED": _fully_connected,
         "TRANSPOSE_CONV": _transpose_conv}


# --- back to 8 bits --------------------------------------------------------------------------------


def _requantize(call: Call, acc: np.ndarray, s_x: np.float32, kernel: IntTensor) -> np.ndarray:
  """Returns acc * (s_x s_w / s_y) as the operator's kernel rounds it."""
  kind, s_w, s_y = call.op.kind, kernel.scale, scale_of(call.outputs[0])
  if call.arithmetic == "xnnpack":
    real = s_x * s_w / s_y
    y = _multiply_packed(acc, real) if kernel.dtype == "int4" else multiply_float(acc, real)
    return y if _is_depthwise(call) else _as_int32(call, y)
  real = np.float64(s_x) * s_w.astype(np.float64) / np.float64(s_y)
  if call.outputs[0].dtype == "int16":
    return multiply_exact(acc, real) if kind == "FULLY_CONNECTED" else multiply_reduced(acc, real)
  if kind == "FULLY_CONNECTED" and s_w.size == 1 and call.arithmetic == "builtin":
    real = (s_x * s_w).astype(np.float64) / np.float64(s_y)
  if call.arithmetic == "reference":
    return multiply_exact(acc, real) if kind == "FULLY_CONNECTED" else multiply_double(acc, real)
  if kind == "FULLY_CONNECTED" or kind == "CONV_2D" and not _is_grouped(call):
    return multiply_double_up(acc, real)
  return multiply_double(acc, real) if kind == "CONV_2D" else _vector_then_rest(acc, real)


def _multiply_packed(acc: np.ndarray, real: np.ndarray) -> np.ndarray:
  """Returns acc * real; the delegate's dense kernel sums 16 times int4 weights, in int32."""
  return multiply_float(wrap_int32(acc.astype(np.int64) * _NIBBLE), real / np.float32(_NIBBLE))


def _is_grouped(call: Call) -> bool:
  return call.inputs[1].shape[3] < call.inputs[0].shape[3]


def _is_depthwise(call: Call) -> bool:
  """Whether every output channel reads one input channel of its own: the delegate's depthwise kernel."""
  shape, depth = call.inputs[1].shape, call.inputs[0].shape[-1]
  if len(shape) != 4 or shape[1] * shape[2] > _DEPTHWISE_TAPS:
    return False
  if call.op.kind == "DEPTHWISE_CONV_2D":
    return shape[3] == depth
  return call.op.kind == "CONV_2D" and shape[3] == 1 and shape[0] == depth


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
