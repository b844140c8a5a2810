"""Nested codes: one code of 8 bits for each weight, whose leading bits are its code of every fewer bits.

    code_8 = round(119 v) + 136,   code_k = code_8 >> (8 - k),   integer_k = factor_k * code_k - offset_k

v is a weight divided by the largest of its channel, -1 to 1. With u = (119 v + 136.5) / 256 these are the
floor codes code_k = floor(2^k u). The integer is what a file holds:

    bits      1        2        3          4          5           6           7           8
    integer   2c - 1   2c - 3   2c - 7     c - 8      2c - 33     2c - 67     2c - 135    c - 136
    values    +-1      odd, 3   odd, 7     -7 .. 7    odd, 29     odd, 59     odd, 119    -119 .. 119

Those of up to 4 bits fit INT4, all others int8, and no half step is left over. `docs/decisions/011` derives
the numbers.
"""

import numpy as np

CODE_BITS = 8
WIDTHS = range(1, CODE_BITS + 1)
LARGEST = 119
"""The last integer of 8 bits: 7.5 steps of 4 bits, less what rounds up to 8 of them."""
CENTRE = 136
"""The code of 0: 8.5 steps of 4 bits, so that integers of 4 and of 8 bits are rounded, not floored."""

CENTRED_BITS = 4
"""From here on an integer is the middle of what its code stands for, but for 1/4 of a step."""


def factor_and_offset(bits: int) -> tuple[int, int]:
  """Returns (factor, offset) of a width: its integers are factor * code - offset.

  Args:
    bits: 1 to 8.

  Raises:
    ValueError: another width.

  >>> factor_and_offset(4), factor_and_offset(6), factor_and_offset(1)
  ((1, 8), (2, 67), (2, 1))
  """
  if bits not in WIDTHS:
    raise ValueError(f"Nested codes have 1 to 8 bits, got {bits}; choose one of these widths.")
  if bits in (4, CODE_BITS):
    return 1, CENTRE >> (CODE_BITS - bits)
  return 2, 2 ** bits - 1 + (2 ** (bits - 4) if bits > 4 else 0)


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
  ([17, 136, 255], [0, 1, 2, 3])
  """
  factor, offset = factor_and_offset(bits)
  codes, rest = np.divmod(np.asarray(integers, np.int64) + offset, factor)
  if rest.any() or codes.min(initial=0) < 0 or codes.max(initial=0) >= 2 ** bits:
    raise ValueError(f"Integers that no nested code of {bits} bits has; expected {factor} * code - {offset}.")
  return codes.astype(np.uint8)


def narrower(codes, bits: int) -> np.ndarray:
  """Returns the codes of a width: the leading bits of those of 8 bits.

  Args:
    codes: uint8, of 8 bits, any shape.
    bits: of the width.

  >>> narrower(np.array([17, 136, 255], np.uint8), bits=2).tolist()
  [0, 2, 3]
  """
  return np.asarray(codes, np.uint8) >> (CODE_BITS - bits)


def integers_of(codes, bits: int) -> np.ndarray:
  """Returns what a file of a width holds, from the codes of 8 bits.

  Args:
    codes: uint8, of 8 bits, any shape.
    bits: of the width.

  Returns:
    int8, of the same shape, symmetric about 0.

  >>> codes = np.array([17, 135, 136, 255], np.uint8)
  >>> [integers_of(codes, bits).tolist() for bits in (8, 4, 2, 1)]
  [[-119, -1, 0, 119], [-7, 0, 0, 7], [-3, 1, 1, 3], [-1, 1, 1, 1]]
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
