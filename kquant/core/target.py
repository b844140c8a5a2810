"""What a runtime can hold: one table. Placement and finalize obey it, export asserts it."""

import dataclasses

import numpy as np

from kquant.core.encodings import Encoding

PACKED_BITS = 4
"""Bits of an INT4 tensor; narrower grids lie within."""
SUM_STEP = 2.0**-12
"""Scale of the sums of 16 bits inside a recurrent operator."""
CELL_EXPONENTS = range(-15, -8)
"""n of the scales 2^n that its cell of 16 bits may have: tanh reads up to 6 bits before the point."""


@dataclasses.dataclass(frozen=True)
class Target:
  """The limits of one runtime.

  Attributes:
    fixed: {name: a grid of 8 bits that is the only output grid a kernel takes}: "unit" over 0..1 (softmax,
      sigmoid), "signed_unit" over -1..1 (tanh), "mask": 0 and 1 as they are. Layer kinds say
      which is theirs.
    fixed_16: the same of 16 bits.
    relu_caps: caps of a ReLU that a fused activation can clamp at, beside the end of the grid.
    activation_bits: widths an activation tensor can have in the file.
    weight_bits: widths a weight can have.
    packs: whether kernels of at most 4 bits are stored as INT4, two integers a byte, where the operator
      takes them; all others lie in int8 tensors.
    packed_activation_bits: the widest activations beside which they are: over int16 LiteRT takes the bytes
      of a packed depthwise kernel for int8 weights, without an error.
    largest_bias, largest_bias_16: |bias integer| stays below it, with 8- and 16-bit activations. (A kernel
      takes a multiplier below 2^-32 for 0: a larger bias beside it would be lost.)
    largest_accumulator, largest_accumulator_16: |accumulator| stays below it, whatever the input.
    largest_packed_accumulator: the same in dense layers whose kernel has the bits of INT4, packed or not,
      so that both ways of storing it hold the same integers.
    short_scales: the scales of weights are bfloat16, of which a bundle holds many.
    largest_multiplier: s_x * s_w / s_y stays below it for every channel, s_x / s_y for a sum, s_a * s_b / s_y
      for a product.
  """

  name: str
  fixed: dict[str, Encoding]
  fixed_16: dict[str, Encoding]
  relu_caps: tuple[float | None, ...] = (None, 6.0)
  activation_bits: tuple[int, ...] = (8, 16)
  weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
  packs: bool = True
  packed_activation_bits: int = 8
  short_scales: bool = False
  largest_bias: int = 2**30
  largest_bias_16: int = 2**32
  largest_accumulator: int = 2**31
  largest_accumulator_16: int = 2**47
  largest_packed_accumulator: int = 2**27
  largest_multiplier: float = 256.0

  def fixed_grid(self, name: str, bits: int) -> Encoding | None:
    """Returns the fixed grid of that name with so many bits; None for the name "": the kernel takes any."""
    return (self.fixed_16 if bits == 16 else self.fixed).get(name)

  def accumulator_limits(self, is_dense: bool, kernel: Encoding, bits: int) -> tuple[int, int]:
    """Returns what |bias| and |accumulator| of a layer stay below, with activations of `bits` bits."""
    if bits == 16:
      return self.largest_bias_16, self.largest_accumulator_16
    if is_dense and kernel.bits <= PACKED_BITS:
      return self.largest_packed_accumulator // 2, self.largest_packed_accumulator
    return self.largest_bias, self.largest_accumulator


def _grid(scale: float, zero_point: int, bits: int = 8) -> Encoding:
  return Encoding(np.float32(scale), np.int64(zero_point), bits)


def product_limit(step: float) -> int:
  """Returns what |integer| of a product inside a recurrent operator must stay below.

  Args:
    step: s_x * s_w of its operands. The product is shifted to the left within 32 bits where this is the
      larger one beside SUM_STEP.
  """
  return 2**31 >> max(0, int(np.frexp(step / SUM_STEP)[1]))


LITERT = Target(
    name="litert",
    fixed={"unit": _grid(1 / 256, -128), "signed_unit": _grid(1 / 128, 0), "mask": _grid(1, 0)},
    fixed_16={**dict.fromkeys(("unit", "signed_unit"), _grid(1 / 32768, 0, 16)), "mask": _grid(1, 0, 16)})
LITERT_UNPACKED = dataclasses.replace(LITERT, name="litert_unpacked", packs=False)
"""LiteRT, every kernel in an int8 tensor: larger files that run faster where the delegate has no INT4.

MobileNetV2 at 224 pixels, w4a8, one thread on x86 (LiteRT 2.3): 2,264,464 bytes and 9.9 ms packed,
3,999,328 bytes and 1.9 ms unpacked, the least of 60 runs in turn.
"""
LITERT_FAMILY = dataclasses.replace(LITERT, name="litert_family", short_scales=True)
"""LiteRT, for files that a bundle holds together."""

TARGETS = {each.name: each for each in (LITERT, LITERT_UNPACKED)}


def target(name: str) -> Target:
  """Returns the target of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in TARGETS:
    raise ValueError(f"Unknown target {name!r}; expected one of {', '.join(TARGETS)}.")
  return TARGETS[name]
