"""MAX_POOL_2D, AVERAGE_POOL_2D, MEAN, REDUCE_MAX, REDUCE_MIN."""

import numpy as np

from tflite_export.kernels.call import (
  Call,
  clamp,
  finish,
  merge_images,
  output_like,
  scale_of,
  zero_point_of,
)
from tflite_export.kernels.multipliers import (
  high_multiply,
  quantize_multiplier,
  shift_away,
)
from tflite_export.kernels.windows import Windows, windows_of


def max_pool_2d(call: Call, x: np.ndarray) -> list:
  """Returns [the largest integer of each window]; padding never wins."""
  windows = _windows(call)
  padded = windows.padded(merge_images(x), np.iinfo(x.dtype).min)
  return [output_like(call, clamp(call, _reduced(windows, padded, np.maximum)), len(x))]


def average_pool_2d(call: Call, x: np.ndarray) -> list:
  """Returns [the mean of the raw integers of each window without its padding, ties away from zero]."""
  windows = _windows(call)
  sums = _reduced(windows, windows.padded(merge_images(x).astype(np.int32), 0), np.add)
  ones = np.ones((1, *call.inputs[0].shape[1:3], 1), np.int32)
  counts = _reduced(windows, windows.padded(ones, 0), np.add)
  means = np.sign(sums) * ((np.abs(sums) + counts // 2) // counts)
  return [output_like(call, clamp(call, means), len(x))]


def mean(call: Call, x: np.ndarray, axes: np.ndarray) -> list:
  """Returns [the mean over axes of the tensor's shape]."""
  total = x.sum(_behind_images(call, axes), dtype=np.int64)
  count = int(np.prod(call.inputs[0].shape)) // int(np.prod(call.outputs[0].shape))
  y = (_float_mean if call.arithmetic == "xnnpack" else _integer_mean)(call, total, count)
  return [output_like(call, y, len(x))]


def reduce_max(call: Call, x: np.ndarray, axes: np.ndarray) -> list:
  """Returns [the largest integers over axes]."""
  return [output_like(call, x.max(_behind_images(call, axes)), len(x))]


def reduce_min(call: Call, x: np.ndarray, axes: np.ndarray) -> list:
  """Returns [the smallest integers over axes]."""
  return [output_like(call, x.min(_behind_images(call, axes)), len(x))]


def _behind_images(call: Call, axes: np.ndarray) -> tuple[int, ...]:
  """Returns axes of the input's shape as axes of [n, *shape]."""
  rank = len(call.inputs[0].shape)
  return tuple({int(axis) % rank + 1 for axis in np.ravel(axes)})


def _float_mean(call: Call, total: np.ndarray, count: int) -> np.ndarray:
  """Returns round(total * m + b) in float32; b holds both zero points, so z_y is rounded along."""
  source, y, n = call.inputs[0], call.outputs[0], np.float32(count)
  m = scale_of(source) / scale_of(y) * (np.float32(1) / n)
  b = np.float32(zero_point_of(y)) - np.float32(zero_point_of(source)) * n * m
  return clamp(call, np.rint(total.astype(np.float32) * m + b))


def _integer_mean(call: Call, total: np.ndarray, count: int) -> np.ndarray:
  """Returns total * s_x / s_y / count: the division is done in the multiplier, as far as it has bits."""
  source, y = call.inputs[0], call.outputs[0]
  total = total - zero_point_of(source) * count
  real = np.float64(scale_of(source)) / np.float64(scale_of(y))
  q, exponent = quantize_multiplier(real)
  bits = min(count.bit_length() - 1, 32, 31 + int(exponent))
  q, exponent = (q << bits) // count, exponent - bits
  return finish(call, shift_away(high_multiply(total << max(int(exponent), 0), q), max(-int(exponent), 0)))


def _windows(call: Call) -> Windows:
  size = (call.option("filter_height"), call.option("filter_width"))
  return windows_of(call, call.inputs[0].shape[1:3], size)


def _reduced(windows: Windows, padded: np.ndarray, combine: np.ufunc) -> np.ndarray:
  """Returns combine over each window, [n, *count, c]: along the rows, then along the columns."""
  rows = Windows((windows.size[0], 1), (windows.stride[0], 1), (1, 1), (0, 0),
                 (windows.count[0], padded.shape[2]))
  columns = Windows((1, windows.size[1]), (1, windows.stride[1]), (1, 1), (0, 0), windows.count)
  result = rows.tap(padded, 0, 0)
  for row in range(1, windows.size[0]):
    result = combine(result, rows.tap(padded, row, 0))
  padded = result
  result = columns.tap(padded, 0, 0)
  for column in range(1, windows.size[1]):
    result = combine(result, columns.tap(padded, 0, column))
  return result
