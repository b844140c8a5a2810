"""Sigmoid and tanh of 16-bit fixed-point numbers, in 16-bit arithmetic alone.

A number is an integer q of int16 that stands for q / 2^(15 - whole): `whole` bits of it lie before the point.
exp comes of a polynomial on [-1/4, 0) and a product of constants, one for each bit above; 1 / (1 + x) of
Newton's iteration. All of this is int64 here, and saturates as int16 does.
"""

import functools

import numpy as np

from tflite_export.kernels.multipliers import shift_away

FRACTION_BITS = 15
ONE = 2**15 - 1
"""The largest number without whole bits, which stands for 1."""

_MIDDLE = -0.125
"""Of [-1/4, 0), where the polynomial is exp(middle) (1 + x + x^2 / 2 + x^3 / 6 + x^4 / 24)."""
_LEAST_EXPONENT = -2
"""exp(-2^k) has a constant for each bit k from here on."""
_VANISHING_BITS = 5
"""exp(x) is 0 below x = -2^5 where x can lie there."""
_NEWTON_STEPS = 3
_NEWTON_BITS = 2
"""Whole bits of the numbers in Newton's iteration."""


def saturated(v: np.ndarray) -> np.ndarray:
  """Returns v in [-2^15, 2^15 - 1]."""
  return np.clip(v, -2**15, 2**15 - 1)


@functools.cache
def sigmoid_table(whole: int) -> np.ndarray:
  """Returns 1 / (1 + exp(-q)) without whole bits of each q, int64 [65,536] in the order of uint16."""
  q = _all_numbers()
  half = _inverse(_exponential(-np.abs(q), whole), 0)
  values = np.where(q >= 0, half, ONE - half)
  return np.where(q == 0, 2**(FRACTION_BITS - 1), values)


@functools.cache
def tanh_table(whole: int) -> np.ndarray:
  """Returns tanh(q) without whole bits of each q, int64 [65,536] in the order of uint16."""
  q = _all_numbers()
  values = _inverse(_exponential(-np.abs(q), whole + 1), 1)  # one more bit: of 2 q
  return np.where(q == 0, 0, np.sign(q) * values)


def look_up(table: np.ndarray, q: np.ndarray) -> np.ndarray:
  """Returns the entries of a table of this module, q integers of int16."""
  return table[q & 0xFFFF]


def _all_numbers() -> np.ndarray:
  return np.arange(2**16).astype(np.uint16).view(np.int16).astype(np.int64)


def _constant(value: float, whole: int = 0) -> int:
  return int(np.clip(np.floor(value * 2**(FRACTION_BITS - whole) + 0.5), -2**15, ONE))


def _product(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
  """Returns a b, ties up; its whole bits are those of both together."""
  return np.minimum((a * b + 2**14) >> FRACTION_BITS, ONE)


def _exponential(q: np.ndarray, whole: int) -> np.ndarray:
  """Returns exp(q) without whole bits, of q <= 0 with some."""
  bits = FRACTION_BITS - whole
  quarter = 1 << (bits + _LEAST_EXPONENT)
  rest = (q & (quarter - 1)) - quarter  # of [-1/4, 0)
  result, others = _near_zero(saturated(rest << whole)), rest - q
  for exponent in range(_LEAST_EXPONENT, whole):
    factor = _constant(np.exp(-2.0**exponent))
    result = np.where(others & (1 << (bits + exponent)), _product(result, factor), result)
  if whole > _VANISHING_BITS:
    result = np.where(q < -(1 << (bits + _VANISHING_BITS)), 0, result)
  return np.where(q == 0, ONE, result)


def _near_zero(q: np.ndarray) -> np.ndarray:
  """Returns exp(q) of [-1/4, 0), without whole bits."""
  x, outer = q - _constant(_MIDDLE), _constant(np.exp(_MIDDLE))
  square = _product(x, x)
  cube, fourth = _product(square, x), _product(square, square)
  rest = _product(saturated(shift_away(fourth, 2) + cube), _constant(1 / 3))
  rest = shift_away(saturated(rest + square), 1)
  return saturated(outer + _product(saturated(x + rest), outer))


def _inverse(x: np.ndarray, whole: int) -> np.ndarray:
  """Returns 1 / (1 + x) for `whole` 0, (1 - x) / (1 + x) for 1, of x in [0, 1] without whole bits."""
  half = shift_away(x + ONE, 1)
  y = saturated(_constant(48 / 17, _NEWTON_BITS) + _product(half, _constant(-32 / 17, _NEWTON_BITS)))
  one = 1 << (FRACTION_BITS - _NEWTON_BITS)
  for _ in range(_NEWTON_STEPS):  # y is 2 / (1 + x)
    error = saturated(one - _product(half, y))
    y = saturated(y + saturated(_product(y, error) << _NEWTON_BITS))
  return saturated((y - whole * one) << (whole + 1))
