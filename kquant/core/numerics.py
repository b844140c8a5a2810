"""The grid: the one place where a range becomes a scale and a real number becomes an integer.

A grid of `bits` bits holds the integers [qmin, qmax]; x = scale * (q - zero_point). Every scale is
rounded to float32 once, when it is chosen, and all later arithmetic uses that rounded value; the
quotient x / scale is formed in float64. Ties go to the even integer, in NumPy and in TensorFlow.
"""

from collections.abc import Sequence

import numpy as np

SMALLEST_WEIGHT_SCALE = 1e-9
SMALLEST_ACTIVATION_WIDTH = 4e-6
"""Of 255 steps each is above 2**-26, at which LiteRT's reference SOFTMAX ends the process."""
SMALLEST_GRADIENT_WIDTH = 1e-30


def grid_limits(bits: int, *, narrow: bool) -> tuple[int, int]:
  """Returns (qmin, qmax), the first and the last integer of a signed grid.

  Args:
    bits: bits of the grid, 2 or more.
    narrow: leaves out the lowest integer, so that the grid is symmetric.

  >>> grid_limits(8, narrow=False), grid_limits(8, narrow=True)
  ((-128, 127), (-127, 127))
  """
  qmax = 2 ** (bits - 1) - 1
  return (-qmax if narrow else -qmax - 1), qmax


def affine_grid(low, high, bits: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (scale, zero_point) of the asymmetric grid over [low, high], widened to contain 0.

  The zero point is -low / ((high - low) / 255) rounded, counted from the first integer; the scale is
  then the smallest that clips neither end. (Keeping (high - low) / 255 would shift the grid by up to
  half a step: for [-1, 1] every pixel v / 127.5 - 1 lands half way between two integers.)

  Args:
    low, high: real limits, scalars or [channels].
    bits: bits of the full signed grid [-2^(bits-1), 2^(bits-1) - 1].

  Returns:
    float32 scale and int64 zero_point, both 1-D. Real 0 lies exactly on the grid.

  >>> scale, zero_point = affine_grid(0.0, 255.0, bits=8)
  >>> float(scale[0]), int(zero_point[0])
  (1.0, -128)
  """
  qmin, qmax = grid_limits(bits, narrow=False)
  low = np.minimum(np.atleast_1d(np.asarray(low, np.float64)), 0.0)
  high = np.maximum(np.atleast_1d(np.asarray(high, np.float64)), 0.0)
  high = np.maximum(high, low + SMALLEST_ACTIVATION_WIDTH)
  zero_point = np.rint(qmin - low * (qmax - qmin) / (high - low))
  above, below = np.maximum(qmax - zero_point, 0.5), np.maximum(zero_point - qmin, 0.5)
  return np.maximum(high / above, -low / below).astype(np.float32), zero_point.astype(np.int64)


def symmetric_grid(magnitude, bits: int, *, smallest: float = SMALLEST_WEIGHT_SCALE) -> np.ndarray:
  """Returns the scale that puts `magnitude` on the last integer of a symmetric grid: magnitude / qmax.

  Args:
    magnitude: max |x|, a scalar or [channels].
    bits: bits of the narrow grid.
    smallest: lower bound of the scale, for channels that are all 0.

  Returns:
    float32, 1-D.

  >>> symmetric_grid([127.0, 254.0], bits=8).tolist()
  [1.0, 2.0]
  """
  _, qmax = grid_limits(bits, narrow=True)
  magnitude = np.atleast_1d(np.asarray(magnitude, np.float64))
  return np.maximum(magnitude / qmax, smallest).astype(np.float32)


def along(values, shape: Sequence[int], axis: Sequence[int] | None) -> np.ndarray:
  """Returns 1-D values reshaped so that they broadcast over a tensor.

  Args:
    values: [channels] or [1].
    shape: of the tensor.
    axis: its channel axes, ascending: (3,) for a Conv2D kernel [h, w, in, out], (2, 3) for a depthwise
      kernel [h, w, in, multiplier], whose output channel is in * multipliers + multiplier; None: per-tensor.

  >>> along([1.0, 2.0], (3, 3, 4, 2), (3,)).shape
  (1, 1, 1, 2)
  """
  values = np.asarray(values)
  if axis is None or values.size == 1:
    return values.reshape(())
  return values.reshape(channel_shape(shape, axis))


def channel_shape(shape: Sequence[int], axis: Sequence[int] | None) -> list[int]:
  """Returns the shape in which per-channel values broadcast over a tensor; [] without axis.

  Args:
    shape: of the tensor.
    axis: its channel axes, as in `along`; None: per-tensor.
  """
  return [] if axis is None else [n if i in axis else 1 for i, n in enumerate(shape)]


def along_inputs(values: np.ndarray, shape: Sequence[int], in_axis: int) -> np.ndarray:
  """Returns one value for each input channel, reshaped to broadcast over a kernel.

  A grouped kernel [h, w, in / groups, out] gets, for output channel o of group j, the values of the
  inputs j * in / groups + i.

  Args:
    values: [input channels].
    shape: of the kernel.
    in_axis: its axis of input channels.
  """
  groups = len(values) // shape[in_axis]
  if groups == 1:
    return along(values, shape, (in_axis,))
  per_output = np.repeat(values.reshape(groups, -1), shape[-1] // groups, axis=0)
  return per_output.T.reshape((1,) * (len(shape) - 2) + tuple(shape[-2:]))


def quantize(x, scale, zero_point, *, bits: int, narrow: bool = False,
             axis: Sequence[int] | None = None) -> np.ndarray:
  """Returns the integers q = clip(round(x / scale) + zero_point, qmin, qmax).

  Args:
    x: real numbers, any shape.
    scale, zero_point: of the grid, [channels] or [1].
    bits, narrow: of the grid, as in `grid_limits`.
    axis: the channel axes of x, as in `along`; None: per-tensor.

  Returns:
    int64, shaped like x. Values outside the grid saturate; ties go to the even integer.

  >>> quantize([0.24, 0.25, 0.75, 99.0], [0.5], [0], bits=8).tolist()
  [0, 0, 2, 127]
  """
  x = np.asarray(x, np.float64)
  qmin, qmax = grid_limits(bits, narrow=narrow)
  scale = along(np.asarray(scale, np.float64), x.shape, axis)
  return np.clip(np.rint(x / scale) + along(zero_point, x.shape, axis), qmin, qmax).astype(np.int64)


def dequantize(q, scale, zero_point, *, axis: Sequence[int] | None = None) -> np.ndarray:
  """Returns the real numbers x = scale * (q - zero_point).

  Args:
    q: integers, any shape.
    scale, zero_point: of the grid, [channels] or [1].
    axis: the channel axes of q, as in `along`; None: per-tensor.

  Returns:
    float32, shaped like q; the product is formed in float64.

  >>> dequantize([0, 2, 127], [0.5], [0]).tolist()
  [0.0, 1.0, 63.5]
  """
  q = np.asarray(q, np.float64)
  scale = along(np.asarray(scale, np.float64), q.shape, axis)
  return (scale * (q - along(zero_point, q.shape, axis))).astype(np.float32)


def short_scale(scale, *, up: bool = False) -> np.ndarray:
  """Returns scales of which float32 has the last 16 bits 0 (bfloat16), within 2^-8 of the given ones.

  Integers up to 127 on such a grid are those on the grid of the given scales.

  Args:
    scale: positive float32, any shape.
    up: none is smaller than the given one.

  >>> short_scale([1.001, 1.006], up=False).tolist(), short_scale([1.001], up=True).tolist()
  ([1.0, 1.0078125], [1.0078125])
  """
  bits = np.asarray(scale, np.float32).view(np.uint32)
  carry = np.uint32(0xFFFF) if up else np.uint32(0x7FFF) + (bits >> 16 & 1)
  return ((bits + carry) & np.uint32(0xFFFF0000)).view(np.float32)


def bias_scale(input_scale, kernel_scale) -> np.ndarray:
  """Returns the scale of a bias, s_x * s_w, the float32 product that the runtime expects.

  Args:
    input_scale: s_x, a scalar.
    kernel_scale: s_w, [channels] or [1].
  """
  return np.float32(input_scale) * np.asarray(kernel_scale, np.float32)


def packed_int4(integers: np.ndarray) -> np.ndarray:
  """Returns integers of 4 bits two to a byte, as TFLite's INT4 has them; the last byte is filled with 0.

  Args:
    integers: int8, n of them, each in [-8, 7].

  Returns:
    uint8 [ceil(n / 2)]: two's complement, the earlier one in the low nibble.

  >>> packed_int4(np.array([1, -1, -8], np.int8)).tolist()
  [241, 8]
  """
  nibbles = np.append(integers, np.zeros(integers.size % 2, np.int8)).astype(np.uint8) & 0xF
  return nibbles[::2] | nibbles[1::2] << 4
