"""Rounds weights so that one code of 8 bits serves every width: the high bits first, then the low ones.

The 4 bits are chosen in closed form (`rounding`). Then the 8 bits are chosen among the 16 integers that have
these 4 bits, by coordinate descent on the moments that the layer has in the network of 8 bits (successive
refinement). All other widths are truncations (`kquant.core.nested_codes`).
"""

import dataclasses

import numpy as np

from kquant.core import nested_codes
from kquant.core.encodings import Encoding
from kquant.ptq.layerwise import rounding
from kquant.ptq.layerwise.layer_rounding import (
  fitting_threads,
  moments_of,
  problem_of,
  round_kernel,
)
from kquant.ptq.layerwise.streaming import LayerTurn

COARSE_BITS = 4
_SWEEPS = 8


@dataclasses.dataclass(frozen=True)
class NestedKernel:
  """The integers of 8 bits of a kernel, in Keras layout, and their scale [channels]."""

  integers: np.ndarray
  scale: np.ndarray

  def at(self, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (integers, scale) of a width."""
    codes = nested_codes.codes_of(self.integers)
    return nested_codes.integers_of(codes, bits), np.float32(self.scale * nested_codes.steps(bits))


def nearest_kernel(kernel: np.ndarray, axis: tuple[int, ...]) -> NestedKernel:
  """Returns the nearest integers of 8 bits, for the layers that have them at every width.

  Args:
    kernel: float.
    axis: its channel axes.
  """
  taps = tuple(i for i in range(kernel.ndim) if i not in axis)
  largest = np.maximum(np.abs(kernel).max(axis=taps).reshape(-1), 1e-12) / nested_codes.LARGEST
  grid = Encoding(largest, np.zeros(largest.shape, np.int64), nested_codes.CODE_BITS, axis, narrow=True)
  return NestedKernel(grid.quantize(kernel), grid.scale)


def coarse_kernel(turn: LayerTurn, kernel: np.ndarray, axis: tuple[int, ...],
                  generator: np.random.Generator) -> NestedKernel:
  """Returns integers of 8 bits of which the first 4 bits are chosen in closed form; the others are 0.

  Args:
    turn: of its layer, in the network of 4 bits.
    kernel: float.
    axis: its channel axes.
    generator: of the positions that are looked at.
  """
  grid = Encoding(np.float32(1), np.int64(0), COARSE_BITS, axis, narrow=True)
  halves = moments_of(turn, generator)
  with fitting_threads(turn.patches.inputs):
    problem = problem_of(turn, kernel, halves, grid.limits[1])
    integers, scale = round_kernel(turn.patches, problem, grid)
  steps = nested_codes.steps(COARSE_BITS)
  return NestedKernel((steps * integers).astype(np.int64), scale / steps)


def refined_kernel(turn: LayerTurn, kernel: np.ndarray, coarse: NestedKernel,
                   generator: np.random.Generator) -> NestedKernel:
  """Returns the 8 bits of a kernel whose first 4 are given.

  Args:
    turn: of its layer, in the network of 8 bits.
    kernel: float.
    coarse: what `coarse_kernel` returned.
    generator: of the positions that are looked at.
  """
  with fitting_threads(turn.patches.inputs):
    problem = problem_of(turn, kernel, moments_of(turn, generator), nested_codes.LARGEST)
    shape, patches = problem.kernel.shape, turn.patches
    parts = shape[0] // patches.blocks
    scale = coarse.scale.astype(np.float64).reshape(patches.blocks, 1, patches.outputs)
    scale = np.repeat(scale, parts, axis=0)
    middle = patches.matrix(coarse.integers).reshape(shape)
    limits = tuple(np.clip(middle + end, -problem.qmax, problem.qmax) for end in (-8, 7))
    start = np.clip(np.rint(problem.kernel / scale), *limits)
    integers = rounding.descend(problem, start, scale, sweeps=_SWEEPS, limits=limits)
  whole = patches.blocks, patches.inputs, patches.outputs
  return NestedKernel(patches.kernel(integers.reshape(whole)).astype(np.int64), coarse.scale)
