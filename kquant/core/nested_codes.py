"""Nested codes: one code of 8 bits for each weight, from which the codes of all other widths are shifted.

    code_8 = round(119 v) + 128,   code_k = code_8 >> (8 - k),   code_4 = (code_8 + 8) >> 4
    integer_k = 2 code_k + 1 - 2^k,   at 4 and 8 bits code_k - 2^(k - 1)

v is a weight divided by the largest of its channel, -1 to 1. With u = (119 v + 128.5) / 256 these are the
floor codes code_k = floor(2^k u); that of 4 bits is rounded, so that INT4 holds it. The integer is what a
file holds:

    bits      1        2        3        4         5          6          7          8
    values    +-1      odd, 3   odd, 7   -7 .. 7   odd, 29    odd, 59    odd, 119   -119 .. 119

Those of up to 4 bits fit INT4, all others int8, and no half step is left over. `docs/decisions/011` derives
the numbers.
"""

import numpy as np

CODE_BITS = 8
WIDTHS = range(1, CODE_BITS + 1)
LARGEST = 119
"""The last integer of 8 bits: 7.5 steps of 4 bits, less what rounds up to 8 of them."""
CENTRE = 128
"""The code of 0."""
ROUNDED_BITS = 4
"""The width whose code is rounded, not truncated."""


def factor_and_offset(bits: int) -> tuple[int, int]:
  """Returns (factor, offset) of a width: its integers are factor * code - offset.

  Args:
    bits: 1 to 8.

  Raises:
    ValueError: another width.

  >>> factor_and_offset(4), factor_and_offset(6), factor_and_offset(1)
  ((1, 8), (2, 63), (2, 1))
  """
  if bits not in WIDTHS:
    raise ValueError(f"Nested codes have 1 to 8 bits, got {bits}; choose one of these widths.")
  if bits in (ROUNDED_BITS, CODE_BITS):
    return 1, CENTRE >> (CODE_BITS - bits)
  return 2, 2 ** bits - 1


def half_step(bits: int) -> int:
  """Returns what is added to a code of 8 bits before it is shifted to a width: 8 at 4 bits, 0 at all others.

  >>> half_step(4), half_step(2)
  (8, 0)
  """
  return 2 ** (CODE_BITS - bits - 1) if bits == ROUNDED_BITS else 0


def codes_of(integers, bits: int = CODE_BITS) -> np.ndarray:
  """Returns the codes of a width from its integers.

  Args:
    integers: those of a file, any shape.
    bits: of the width.

  Returns:
    uint8, of the same shape.

  Raises:
    ValueError: an integer that the width does not have.

  >>> codes_of([-119, 0, 119]).tolist(), codes_of([-3, -1, 1, 3], bits=2).tolist()
  ([9, 128, 247], [0, 1, 2, 3])
  """
  factor, offset = factor_and_offset(bits)
  codes, rest = np.divmod(np.asarray(integers, np.int64) + offset, factor)
  if rest.any() or codes.min(initial=0) < 0 or codes.max(initial=0) >= 2 ** bits:
    raise ValueError(f"Integers that no nested code of {bits} bits has; expected {factor} * code - {offset}.")
  return codes.astype(np.uint8)


def narrower(codes, bits: int) -> np.ndarray:
  """Returns the codes of a width: those of 8 bits shifted right, rounded at 4 bits.

  Args:
    codes: uint8, of 8 bits, any shape.
    bits: of the width.

  >>> narrower(np.array([9, 135, 136, 247], np.uint8), bits=2).tolist()
  [0, 2, 2, 3]
  >>> narrower(np.array([9, 135, 136, 247], np.uint8), bits=4).tolist()
  [1, 8, 9, 15]
  """
  wide = np.asarray(codes, np.uint8).astype(np.int16) + half_step(bits)
  return (wide >> (CODE_BITS - bits)).astype(np.uint8)


def codes_within(codes, bits: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first and the last code of 8 bits that has given codes at a width, int16.

  Args:
    codes: uint8, of the width, any shape.
    bits: of the width.

  >>> [end.tolist() for end in codes_within([9], bits=4)], [end.tolist() for end in codes_within([2], bits=2)]
  ([[136], [151]], [[128], [191]])
  """
  first = (np.asarray(codes, np.int16) << (CODE_BITS - bits)) - half_step(bits)
  return first, first + 2 ** (CODE_BITS - bits) - 1


def integers_of(codes, bits: int) -> np.ndarray:
  """Returns what a file of a width holds, from the codes of 8 bits.

  Args:
    codes: uint8, of 8 bits, any shape.
    bits: of the width.

  Returns:
    int8, of the same shape, symmetric about 0.

  >>> codes = np.array([9, 127, 128, 247], np.uint8)
  >>> [integers_of(codes, bits).tolist() for bits in (8, 4, 2, 1)]
  [[-119, -1, 0, 119], [-7, 0, 0, 7], [-3, -1, 1, 3], [-1, -1, 1, 1]]
  """
  factor, offset = factor_and_offset(bits)
  return (factor * narrower(codes, bits).astype(np.int16) - offset).astype(np.int8)


def largest_integer(bits: int) -> int:
  """Returns the last integer of a width; the first is its negative.

  >>> [largest_integer(bits) for bits in WIDTHS]
  [1, 3, 7, 7, 29, 59, 119, 119]
  """
  return int(integers_of(LARGEST + CENTRE, bits))


def grid_bits(bits: int) -> int:
  """Returns the bits of the narrow grid that holds the integers of a width.

  >>> [grid_bits(bits) for bits in WIDTHS]
  [2, 3, 4, 4, 6, 7, 8, 8]
  """
  return largest_integer(bits).bit_length() + 1


def steps(bits: int) -> float:
  """Returns how many steps of 8 bits an integer of a width stands for.

  >>> [steps(bits) for bits in WIDTHS]
  [64.0, 32.0, 16.0, 16.0, 4.0, 2.0, 1.0, 1.0]
  """
  return 2 ** (CODE_BITS - bits) / factor_and_offset(bits)[0]
