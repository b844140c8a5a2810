"""ADD, SUB, MUL, MAXIMUM, MINIMUM, PRELU: two operands that broadcast."""

import numpy as np

from tflite_export.kernels.call import Call, centred, finish, scale_of, with_rank
from tflite_export.kernels.multipliers import multiply_double, multiply_float, multiply_once

_REFERENCE_SHIFTS = {"int8": 20, "int16": 15}
"""Bits by which the operands of a sum are raised before they are put on one scale."""
_VECTOR = 16
"""Elements that the vector code of `builtin` adds at once."""
_DELEGATE_BITS = 20
"""Fractional bits of the larger of the two multipliers in a delegated sum."""


def add(call: Call, a: np.ndarray, b: np.ndarray) -> list:
  """Returns [a + b]; of int32 tensors (indices) the plain sum."""
  if call.outputs[0].dtype == "int32":
    return [np.add(*_aligned(call, a, b))]
  return [_sum(call, a, b, sign=1)]


def sub(call: Call, a: np.ndarray, b: np.ndarray) -> list:
  """Returns [a - b]."""
  return [_sum(call, a, b, sign=-1)]


def mul(call: Call, a: np.ndarray, b: np.ndarray) -> list:
  """Returns [a * b]."""
  first, second = call.inputs
  a, b = _aligned(call, centred(a, first), centred(b, second))
  real = scale_of(first) * scale_of(second) / scale_of(call.outputs[0])
  multiply = multiply_float if call.arithmetic == "xnnpack" else multiply_double
  return [finish(call, multiply(a * b, real))]


def maximum(call: Call, a: np.ndarray, b: np.ndarray) -> list:
  """Returns [the larger integers]; all on one grid."""
  return [np.maximum(*_aligned(call, a, b))]


def minimum(call: Call, a: np.ndarray, b: np.ndarray) -> list:
  """Returns [the smaller integers]; all on one grid."""
  return [np.minimum(*_aligned(call, a, b))]


def prelu(call: Call, x: np.ndarray, alpha: np.ndarray) -> list:
  """Returns [x where x >= 0, else alpha * x]."""
  source, slope = call.inputs
  s_x, s_y = scale_of(source), scale_of(call.outputs[0])
  x, alpha = _aligned(call, centred(x, source), centred(alpha, slope))
  positive = multiply_double(x, s_x / s_y)
  negative = multiply_double(x * alpha, s_x * scale_of(slope) / s_y)
  return [finish(call, np.where(x >= 0, positive, negative))]


def _sum(call: Call, a: np.ndarray, b: np.ndarray, *, sign: int) -> np.ndarray:
  first, second = call.inputs
  y = call.outputs[0]
  a, b = _aligned(call, centred(a, first), centred(b, second))
  scales = [scale_of(tensor) for tensor in (first, second, y)]
  if call.arithmetic == "xnnpack":
    s_a, s_b, s_y = scales
    return finish(call, _delegated_sum(a, b, s_a / s_y, s_b / s_y, sign=sign))
  s_a, s_b, s_y = (np.float64(scale) for scale in scales)
  twice, shift = 2 * max(s_a, s_b), _REFERENCE_SHIFTS[y.dtype]
  multiply = _multiply_in_vectors if sign > 0 and _has_vectors(call) else _multiply_each
  a, b = multiply(call, a << shift, s_a / twice), multiply(call, b << shift, s_b / twice)
  return finish(call, multiply_double(a + sign * b, twice / (2.0**shift * s_y)))


def _has_vectors(call: Call) -> bool:
  """Whether `builtin` has vector code that adds: int16 tensors of one shape. There is none that subtracts."""
  same = call.inputs[0].shape == call.inputs[1].shape
  return call.arithmetic == "builtin" and call.outputs[0].dtype == "int16" and same


def _multiply_each(call: Call, v: np.ndarray, real: np.float64) -> np.ndarray:
  del call
  return multiply_double(v, real)


def _multiply_in_vectors(call: Call, v: np.ndarray, real: np.float64) -> np.ndarray:
  """Returns v * real: rounded once in whole vectors of an image, twice behind them."""
  size = int(np.prod(call.outputs[0].shape))
  flat, whole = v.reshape(-1, size), size // _VECTOR * _VECTOR
  parts = [multiply_once(flat[:, :whole], real), multiply_double(flat[:, whole:], real)]
  return np.concatenate(parts, axis=1).reshape(v.shape)


def _delegated_sum(a: np.ndarray, b: np.ndarray, ratio_a: np.float32, ratio_b: np.float32, *,
                   sign: int) -> np.ndarray:
  """Returns (a m_a +- b m_b) / 2^shift, ties up; m = 2^shift ratio, rounded, and the larger has 21 bits."""
  exponent = int(np.frexp(max(ratio_a, ratio_b))[1]) - 1
  shift = _DELEGATE_BITS - exponent
  m_a, m_b = (int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in (ratio_a, ratio_b))
  return (a * m_a + sign * b * m_b + (1 << (shift - 1))) >> shift


def _aligned(call: Call, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns both with as many axes as the output has behind the images."""
  return tuple(with_rank(x, tensor, len(call.outputs[0].shape)) for x, tensor in zip((a, b), call.inputs))
