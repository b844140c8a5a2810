"""SOFTMAX over the last axis: fixed-point arithmetic in `reference`, a float table in `builtin`; over
int16 two interpolated tables in both (`softmax_16`).

The delegate does not take it. The float table was exact on all of 62 million elements of rows of 500 to 523
although its exponentials are rounded here from float64, not by the C library's float32 function.
"""

import math

import numpy as np

from tflite_export.kernels.call import Call, clamp, scale_of
from tflite_export.kernels.multipliers import high_multiply, quantize_multiplier, round_away, shift_away
from tflite_export.kernels.softmax_16 import softmax_16


def softmax(call: Call, x: np.ndarray) -> list:
  """Returns [exp(beta x) / sum exp(beta x)]; the output's grid is scale 1/256, zero point -128."""
  below = x.astype(np.int64) - x.max(-1, keepdims=True)
  if call.inputs[0].dtype == "int16":
    return [clamp(call, softmax_16(call, below))]
  exact = _fixed_point if call.arithmetic == "reference" else _float_table
  return [clamp(call, exact(call, below) - 128)]


def _float_table(call: Call, below: np.ndarray) -> np.ndarray:
  """Float32 throughout, the sum in the order of the elements."""
  step = -scale_of(call.inputs[0]) * np.float32(call.option("beta", 1.0))
  table = np.exp((step * np.arange(256, dtype=np.float32)).astype(np.float64)).astype(np.float32)
  powers = table[-below]
  total = np.add.accumulate(powers, axis=-1, dtype=np.float32)[..., -1:]
  inverse = np.float32(1) / (total * scale_of(call.outputs[0]))
  return round_away(powers * inverse).astype(np.int64)


# --- fixed point: raw integers; "Qi" has i integer bits and 31 - i fractional bits ------------------

_DIFFERENCE_BITS = 5
_SUM_BITS = 12
_ONE = (1 << 31) - 1
_ABORTS = 1 << 28
"""512 in Q12: more does not fit the kernel's shift."""
_EXP_MINUS_EIGHTH = round(math.exp(-1 / 8) * 2**31)
_THIRD = round(2**31 / 3)
_EXP_OF_POWERS = {k: round(math.exp(-(2.0**k)) * 2**31) for k in range(-2, 5)}
"""{k: exp(-2^k)} in Q0."""
_48_OVER_17, _MINUS_32_OVER_17 = round(48 / 17 * 2**29), round(-32 / 17 * 2**29)
"""First guess of a quotient, in Q2."""


def _fixed_point(call: Call, below: np.ndarray) -> np.ndarray:
  """exp by a polynomial and a product of powers, then a Newton division, all in fixed point."""
  real = min(float(np.float32(call.option("beta", 1.0))) * float(scale_of(call.inputs[0]))
             * 2.0**(31 - _DIFFERENCE_BITS), 2.0**31 - 1)
  if real <= 1:
    raise ValueError(f"SOFTMAX of layer {call.op.source!r}: the reference kernel ends the process where "
                     f"a step of its input is {2.0**(_DIFFERENCE_BITS - 31):.3g} or less.")
  q, left = (int(part) for part in quantize_multiplier(real))
  least = -((((1 << _DIFFERENCE_BITS) - 1) << (31 - _DIFFERENCE_BITS)) >> left)
  counted = below >= least
  scaled = high_multiply(np.where(counted, below, 0) << left, q)
  powers = np.where(counted, _exp(scaled), 0)
  total = np.where(counted, shift_away(powers, _SUM_BITS), 0).sum(-1, keepdims=True)
  if np.any(total >= _ABORTS):
    raise ValueError(f"SOFTMAX of layer {call.op.source!r}: the reference kernel ends the process where "
                     "exp(x - max x) sums to 512 or more; these images have such a row.")
  leading_zeros = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
  inverse = _one_over_one_plus((total << leading_zeros) - (1 << 31))
  return shift_away(high_multiply(powers, inverse), _SUM_BITS - leading_zeros + 31 - 8)


def _exp(x: np.ndarray) -> np.ndarray:
  """Returns exp(x) in Q0 of x <= 0 in Q5."""
  quarter = 1 << (31 - _DIFFERENCE_BITS - 2)
  low = (x & (quarter - 1)) - quarter
  result = _exp_of_small(low << _DIFFERENCE_BITS)
  rest = low - x
  for power, factor in _EXP_OF_POWERS.items():
    chosen = rest & (1 << (31 - _DIFFERENCE_BITS + power))
    result = np.where(chosen != 0, high_multiply(result, factor), result)
  return np.where(x == 0, _ONE, result)


def _exp_of_small(x: np.ndarray) -> np.ndarray:
  """Returns exp(x) of x in [-1/4, 0), both Q0: the series around -1/8."""
  x = x + (1 << 28)
  x2 = high_multiply(x, x)
  x3, x4 = high_multiply(x2, x), high_multiply(x2, x2)
  series = shift_away(high_multiply(shift_away(x4, 2) + x3, _THIRD) + x2, 1)
  return _EXP_MINUS_EIGHTH + high_multiply(x + series, _EXP_MINUS_EIGHTH)


def _one_over_one_plus(x: np.ndarray) -> np.ndarray:
  """Returns 1 / (1 + x) of x in [0, 1), both Q0: three Newton steps in Q2."""
  half_denominator = (x + _ONE + 1) >> 1
  y = _48_OVER_17 + high_multiply(half_denominator, _MINUS_32_OVER_17)
  for _ in range(3):
    y = y + (high_multiply(y, (1 << 29) - high_multiply(half_denominator, y)) << 2)
  return np.minimum(y << 1, _ONE)
