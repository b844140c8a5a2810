"""What a runtime can hold: one table. Placement and finalize obey it, export asserts it."""

import dataclasses

import numpy as np

from kquant.core.encodings import Encoding


@dataclasses.dataclass(frozen=True)
class Target:
  """The limits of one runtime.

  Attributes:
    fixed: {layer kind: the only output grid its kernel takes}.
    relu_caps: caps of a ReLU that a fused activation can clamp at, beside the end of the grid.
    activation_bits: widths an activation tensor can have in the file.
    weight_bits: widths a weight can have; below 8 the integers lie in int8 tensors.
    largest_bias: |bias integer| stays below it.
    largest_accumulator: |accumulator| stays below it, whatever the input.
    largest_multiplier: s_x * s_w / s_y stays below it for every channel, s_x / s_y for a sum, s_a * s_b / s_y
      for a product.
  """

  name: str
  fixed: dict[str, Encoding]
  relu_caps: tuple[float | None, ...] = (None, 6.0)
  activation_bits: tuple[int, ...] = (8,)
  weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
  largest_bias: int = 2**30
  largest_accumulator: int = 2**31
  largest_multiplier: float = 256.0


def _grid(scale: float, zero_point: int) -> Encoding:
  return Encoding(np.float32(scale), np.int64(zero_point))


LITERT = Target(
    name="litert",
    fixed={"Softmax": _grid(1 / 256, -128), "Sigmoid": _grid(1 / 256, -128),
           "Tanh": _grid(1 / 128, 0)})

TARGETS = {"litert": LITERT}


def target(name: str) -> Target:
  """Returns the target of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in TARGETS:
    raise ValueError(f"Unknown target {name!r}; expected one of {', '.join(TARGETS)}.")
  return TARGETS[name]
