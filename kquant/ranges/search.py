"""Search for the range whose grid has the least error of some kind.

Both ends of the extrema, widened to contain 0, are multiplied by 2^-a. All pairs of a = 0, 1/4, .. 7 3/4 are
tried, then pairs around the best one, down to steps of 1/256. The error is that of the grid that `numerics`
makes of the range, with its rounded scale and zero point.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from kquant.core import numerics

_COARSE_STEPS = np.arange(32) / 4
_FINE_STEPS = np.array([0, -1, 1, -2, 2, -3, 3, -4, 4]) / 4


@dataclasses.dataclass(frozen=True, eq=False)
class Grids:
  """Many grids; each holds x = scale * (first .. last).

  Attributes:
    scale: [grids].
    first, last: its integers less its zero point, [grids].
  """

  scale: np.ndarray
  first: np.ndarray
  last: np.ndarray


GridError = Callable[[Grids], np.ndarray]
"""Error of each of many grids, [grids]."""


@dataclasses.dataclass(frozen=True)
class RangeCandidates:
  """The ranges that are tried: parts of the smallest range in which nothing saturates.

  Attributes:
    low, high: extrema of the data.
    bits: of the grid.
    symmetric: whether ranges are (-m, m).
  """

  low: float
  high: float
  bits: int
  symmetric: bool

  @property
  def ends(self) -> tuple[float, float]:
    """The ends of the range in which nothing saturates."""
    return widened(self.low, self.high, self.symmetric)

  @property
  def sides(self) -> int:
    """How many ends can be chosen apart from each other."""
    return 1 if self.symmetric or not self.ends[0] < 0 < self.ends[1] else 2

  def grids(self, ratios: np.ndarray) -> Grids:
    """Returns the grids over the range's ends times ratios [grids, sides]."""
    low, high = self.ends
    return grids_over(low * ratios[:, 0], high * ratios[:, -1], self.bits, self.symmetric)

  def range(self, ratios: np.ndarray) -> tuple[float, float]:
    """Returns the range's ends times ratios [sides], within the extrema."""
    return tuple(float(np.clip(end * ratio, self.low, self.high))
                 for end, ratio in zip(self.ends, (ratios[0], ratios[-1])))


def search_range(error: GridError, candidates: RangeCandidates, *,
                 coupled: bool = False) -> tuple[float, float]:
  """Returns the (low, high) within the extrema whose grid has the least error; of equals the widest.

  Args:
    error: see GridError.
    candidates: what is tried.
    coupled: both ends are searched together first and then one after the other: a ninth of the evaluations.
  """
  def error_at(ratios: np.ndarray) -> np.ndarray:
    return error(candidates.grids(ratios))

  if coupled and candidates.sides == 2:
    return candidates.range(_one_by_one(error_at))
  return candidates.range(least(error_at, sides=candidates.sides))


def _one_by_one(error_at: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """The best common ratio, then the best of the lower end beside it, then of the upper one."""
  both = least(error_at, sides=1)[0]
  lower = least(lambda r: error_at(np.column_stack([r, np.full(len(r), both)])), sides=1)[0]
  upper = least(lambda r: error_at(np.column_stack([np.full(len(r), lower), r])), sides=1)[0]
  return np.array([lower, upper])


def widened(low: float, high: float, symmetric: bool) -> tuple[float, float]:
  """Returns the ends of the smallest range in which nothing saturates: it contains 0, or is (-m, m).

  Args:
    low, high: extrema of the data.
    symmetric: whether the range is (-m, m).

  >>> widened(1.0, 4.0, symmetric=False), widened(-1.0, 4.0, symmetric=True)
  ((0.0, 4.0), (-4.0, 4.0))
  """
  low, high = min(low, 0.0), max(high, 0.0)
  return (-max(-low, high), max(-low, high)) if symmetric else (low, high)


def grids_over(lows: np.ndarray, highs: np.ndarray, bits: int, symmetric: bool) -> Grids:
  """Returns the grids over many ranges.

  Args:
    lows, highs: ends of the ranges, [grids].
    bits, symmetric: of all of them.
  """
  if symmetric:
    scale = numerics.symmetric_grid(highs, bits)
    first, last = numerics.grid_limits(bits, narrow=True)
    return Grids(scale, np.full(scale.shape, first), np.full(scale.shape, last))
  scale, zero_point = numerics.affine_grid(lows, highs, bits)
  first, last = numerics.grid_limits(bits, narrow=False)
  return Grids(scale, first - zero_point, last - zero_point)


def least(error: Callable[[np.ndarray], np.ndarray], *, sides: int) -> np.ndarray:
  """Returns the ratios in (0, 1], [sides], of least error.

  Args:
    error: takes ratios [candidates, sides] and returns [candidates].
    sides: 1 where both ends have one ratio, else 2.
  """
  centre, steps, spacing = np.zeros(sides), _COARSE_STEPS, _COARSE_STEPS[1]
  for _ in range(4):
    mesh = np.stack(np.meshgrid(*[steps] * sides, indexing="ij"), axis=-1).reshape(-1, sides)
    octaves = np.maximum(centre + mesh, 0.0)
    centre = octaves[np.argmin(error(np.exp2(-octaves)))]
    steps, spacing = _FINE_STEPS * spacing, spacing / 4
  return np.exp2(-centre)
