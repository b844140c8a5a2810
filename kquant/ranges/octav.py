"""OCTAV: the clipping of least mean squared error by Newton's iteration (Sakr et al. 2022).

The sum of two errors is minimized: rounding noise of variance step^2 / 12 inside the range, and the
squared distance of values that saturate. For a range [-s, s] the iteration is

  s <- E[|x|; |x| > s] / (k P(0 < |x| <= s) + P(|x| > s)),

with the noise k s^2. In the paper k = 4^-b / 3; here it follows from the grid's own number of steps. Zeros,
exact on every grid, do not count.
"""

import numpy as np

from kquant.core import numerics
from kquant.ranges.base import Estimator

_ITERATIONS = 200
_TOLERANCE = 1e-9


class Octav(Estimator):
  """The fixed point of the iteration over a histogram; for affine grids both ends are updated in turn.

  The end h of a range [l, h] of n steps obeys h = (E[x; x > h] + l k P) / (P(x > h) + k P), P being the
  mass inside and k = 1 / (12 n^2); the end l likewise.
  """

  needs_histogram = True

  def _find(self, bits, symmetric):
    mass = Mass(*self.histogram.density(self.low, self.high, zeros=False))
    if symmetric:
      clip = symmetric_clip(mass, numerics.grid_limits(bits, narrow=True)[1])
      clip = min(clip, max(-self.low, self.high))
      return -clip, clip
    low, high = affine_clip(mass, 2**bits - 1, self.low, self.high)
    return max(self.low, low), min(self.high, high)


class Mass:
  """Counts and first moments beyond any point of a histogram whose bins are evenly filled."""

  def __init__(self, edges: np.ndarray, counts: np.ndarray):
    self.edges = edges
    self.counts = np.append(0.0, np.cumsum(counts, dtype=np.float64))
    self.moments = np.append(0.0, np.cumsum(counts * (edges[:-1] + edges[1:]) / 2))
    self._density = counts / np.diff(edges)

  def below(self, x: float) -> tuple[float, float]:
    """Returns the mass below x and its first moment."""
    x = min(max(x, self.edges[0]), self.edges[-1])
    k = min(int(np.searchsorted(self.edges, x, side="right")), len(self.edges) - 1) - 1
    part = self._density[k] * (x - self.edges[k])
    return self.counts[k] + part, self.moments[k] + part * (x + self.edges[k]) / 2

  def above(self, x: float) -> tuple[float, float]:
    """Returns the mass above x and its first moment."""
    count, moment = self.below(x)
    return self.counts[-1] - count, self.moments[-1] - moment


def symmetric_clip(mass: Mass, steps: int) -> float:
  """Returns s of the range [-s, s].

  Args:
    mass: of the data.
    steps: from 0 to either end.
  """
  s, noise = 0.0, 1 / (12 * steps**2)
  for _ in range(_ITERATIONS):
    (right, right_sum), (left, left_sum) = mass.above(s), mass.below(-s)
    outside = right + left
    new = (right_sum - left_sum) / (noise * (mass.counts[-1] - outside) + outside)
    if abs(new - s) <= _TOLERANCE * new:
      break
    s = new
  return s


def affine_clip(mass: Mass, steps: int, low: float, high: float) -> tuple[float, float]:
  """Returns the ends of the range [l, h], l <= 0 <= h.

  Args:
    mass: of the data.
    steps: from l to h.
    low, high: extrema of the data.
  """
  bottom, top, noise = 0.0, 0.0, 1 / (12 * steps**2)
  for _ in range(_ITERATIONS):
    (right, right_sum), (left, left_sum) = mass.above(top), mass.below(bottom)
    inside = noise * (mass.counts[-1] - right - left)
    new_top = (right_sum + bottom * inside) / (right + inside) if high > 0 else 0.0
    new_bottom = (left_sum + top * inside) / (left + inside) if low < 0 else 0.0
    moved = max(abs(new_top - top), abs(new_bottom - bottom))
    bottom, top = new_bottom, new_top
    if moved <= _TOLERANCE * (top - bottom):
      break
  return bottom, top
