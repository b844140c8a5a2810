"""SOFTMAX over int16: exp and 1 / (1 + x) by tables of 512 pieces, straight between their ends."""

import functools
from collections.abc import Callable

import numpy as np

from tflite_export.kernels.call import Call, scale_of
from tflite_export.kernels.multipliers import multiply_double

_PIECES = 512
_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
_ONE = float(1 << 15)
_EXP_STEP = 10.0 / 65535
"""Real step of the argument of exp, whose table spans [-10, 0]."""


def softmax_16(call: Call, below: np.ndarray) -> np.ndarray:
  """Returns exp(beta x) / sum exp(beta x) in Q15 of below = q - max q <= 0, int64."""
  beta = float(np.float32(call.option("beta", 1.0)))
  real = float(scale_of(call.inputs[0])) * beta / _EXP_STEP
  place = np.clip(multiply_double(below, real) + _HIGH, _LOW, _HIGH)
  powers = _look_up(_exp_table(), place)
  total = powers.sum(-1, keepdims=True)
  bits = np.frexp(total.astype(np.float64))[1].astype(np.int64)
  normal = ((total << (31 - bits)) + (1 << 13)) >> 14
  inverse = _look_up(_inverse_table(), np.clip(normal - (1 << 15) - (1 << 16), _LOW, _HIGH))
  shift = bits - 1
  half = (np.int64(1) << shift) >> 1
  return np.clip((powers * inverse + half) >> shift, 0, _HIGH)


def _look_up(table: np.ndarray, value: np.ndarray) -> np.ndarray:
  """Returns the table at 16-bit values: the upper 9 bits choose the piece, the lower 7 a place in it."""
  piece, offset = 256 + (value >> 7), value & 127
  base = table[piece]
  return base + (((table[piece + 1] - base) * offset + 64) >> 7)


@functools.cache
def _exp_table() -> np.ndarray:
  return _table(np.exp, low=_EXP_STEP * (_LOW - _HIGH), high=0.0)


@functools.cache
def _inverse_table() -> np.ndarray:
  return _table(lambda x: 1 / (1 + x), low=0.0, high=1.0)


def _table(function: Callable[[np.ndarray], np.ndarray], *, low: float, high: float) -> np.ndarray:
  """Returns int64 [513]: Q15 of a function at the ends of the pieces, moved by half of its error midway."""
  step = (high - low) / _PIECES
  starts = low + np.arange(_PIECES) * step
  ends = _rounded(function(starts) * _ONE)
  interpolated = _rounded((function(starts + step) * _ONE + ends) / 2)
  error = interpolated - _rounded(function(starts + step / 2) * _ONE)
  table = np.append(ends - _rounded(error / 2), _rounded(function(np.float64(high)) * _ONE))
  return np.clip(table, _LOW, _HIGH).astype(np.int64)


def _rounded(x: np.ndarray) -> np.ndarray:
  return np.trunc(x + np.copysign(0.5, x))
