"""The multiplications by a real number that integer kernels use; each rounds in its own way.

v: integers (int64, or floats that are integers); real: float64 multipliers > 0 that broadcast
against v, for example one a channel. Results are integers, without zero point and clamp.
"""

from typing import NamedTuple

import numpy as np

_HALF = np.int64(1 << 30)
_FRACTION_BITS = 31


class Multiplier(NamedTuple):
  """A positive real number as q * 2^(exponent - 31).

  Attributes:
    q: int64, 0 or in [2^30, 2^31).
    exponent: int64, same shape.
  """

  q: np.ndarray
  exponent: np.ndarray


def quantize_multiplier(real: np.ndarray | float) -> Multiplier:
  """Returns the multiplier nearest to `real` (float64, > 0); below 2^-32 it is 0."""
  mantissa, exponent = np.frexp(np.asarray(real, np.float64))
  q = np.floor(np.ldexp(mantissa, _FRACTION_BITS) + 0.5).astype(np.int64)
  exponent = exponent.astype(np.int64)
  carried = q == 1 << _FRACTION_BITS
  q, exponent = np.where(carried, q >> 1, q), exponent + carried
  vanished = exponent < -_FRACTION_BITS
  return Multiplier(np.where(vanished, 0, q), np.where(vanished, 0, exponent))


def high_multiply(v: np.ndarray, q: np.ndarray) -> np.ndarray:
  """Returns v * q / 2^31, ties up, int64. (The kernels truncate after a nudge: the same integers.)"""
  return (v * q + _HALF) >> _FRACTION_BITS


def shift_away(v: np.ndarray, bits: np.ndarray | int) -> np.ndarray:
  """Returns v / 2^bits, ties away from zero; v itself for 0 bits."""
  some = -(np.asarray(bits, np.int64) > 0).astype(np.int64)
  return (v + _half_of(bits) + ((v >> 63) & some)) >> bits


def shift_up(v: np.ndarray, bits: np.ndarray | int) -> np.ndarray:
  """Returns v / 2^bits, ties up; v itself for 0 bits."""
  return (v + _half_of(bits)) >> bits


def multiply_double(v: np.ndarray, real: np.ndarray | float) -> np.ndarray:
  """Returns v * real rounded twice, the second time away from zero: `reference` operators."""
  q, exponent = quantize_multiplier(real)
  shifted = wrap_int32(_integers(v) << np.maximum(exponent, 0))
  return shift_away(high_multiply(shifted, q), np.maximum(-exponent, 0))


def multiply_double_up(v: np.ndarray, real: np.ndarray | float) -> np.ndarray:
  """Returns v * real rounded twice, ties up both times: vector code of `builtin` operators."""
  q, exponent = quantize_multiplier(real)
  shifted = wrap_int32(_integers(v) << np.maximum(exponent, 0))
  return shift_up(high_multiply(shifted, q), np.maximum(-exponent, 0))


def multiply_reduced(v: np.ndarray, real: np.ndarray | float) -> np.ndarray:
  """Returns v * real rounded once, ties up, with 15 bits of the multiplier: sums of 16-bit activations.

  |v| < 2^47; the product and its rounding fit int64.
  """
  q, exponent = quantize_multiplier(real)
  q = np.minimum((q + (1 << 15)) >> 16, (1 << 15) - 1)
  return shift_up(_integers(v) * q, 15 - exponent)


def multiply_once(v: np.ndarray, real: np.ndarray | float) -> np.ndarray:
  """Returns v * real rounded once, ties up; |v| < 2^31 and real < 2^30."""
  q, exponent = quantize_multiplier(real)
  return shift_up(_integers(v) * q, _FRACTION_BITS - exponent)


def multiply_float(v: np.ndarray, real: np.ndarray | np.float32) -> np.ndarray:
  """Returns round(f32(f32(v) * f32(real))), ties to even, as float32: delegated operators."""
  product = v.astype(np.float32) * np.asarray(real, np.float32)
  return np.rint(product, out=product)


def round_away(x: np.ndarray | float) -> np.ndarray:
  """Returns x rounded to integers, ties away from zero, in the type of x (C's round)."""
  whole = np.trunc(x)
  return whole + np.copysign(np.abs(x - whole) >= 0.5, x).astype(whole.dtype)


def multiply_exact(v: np.ndarray, real: np.ndarray | float) -> np.ndarray:
  """Returns v * real in float64, rounded once, ties away from zero: `reference` dense layers."""
  return cast_int32(round_away(v.astype(np.float64) * np.asarray(real, np.float64)))


def cast_int32(x: np.ndarray) -> np.ndarray:
  """Returns floats that are integers as int32; what does not fit becomes -2^31, as on x86."""
  return np.where(np.abs(x) < 2.0**31, x, -2.0**31).astype(np.int32)


def wrap_int32(v: np.ndarray) -> np.ndarray:
  """Returns v (int64) modulo 2^32 in [-2^31, 2^31): what an int32 register keeps of it."""
  return v.astype(np.int32).astype(np.int64)


def _integers(v: np.ndarray) -> np.ndarray:
  return v.astype(np.int64, copy=False)


def _half_of(bits: np.ndarray | int) -> np.ndarray:
  """Returns 2^(bits - 1), or 0 for 0 bits."""
  return (np.int64(1) << np.asarray(bits, np.int64)) >> 1
