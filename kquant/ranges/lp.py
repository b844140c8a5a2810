"""Least error norm: the range whose grid has the least mean |x - x_hat|^p.

p = 2 is the mean squared error. A larger p clips less: 2.4 is that of BRECQ (Li et al. 2021), 4 nearly
keeps the extrema.
"""

import numpy as np

from kquant.ranges.base import Estimator
from kquant.ranges.search import Grids, RangeCandidates, search_range

_GRIDS_AT_ONCE = 16


class LpError(Estimator):
  """The range of least mean |x - x_hat|^p over a histogram; see `ranges.search` for the candidates.

  The data of a bin are taken as evenly spread.

  Args:
    power: p.
  """

  needs_histogram = True

  def __init__(self, power: float = 2.4):
    super().__init__()
    self.number = power

  def _find(self, bits, symmetric):
    edges, counts = self.histogram.density(self.low, self.high)
    return search_range(lambda grids: power_error(edges, counts, grids, power=self.number),
                        RangeCandidates(self.low, self.high, bits, symmetric))


class MeanSquaredError(LpError):
  """The range whose grid has the least mean squared quantization error over a histogram."""

  def __init__(self):
    super().__init__(2.0)


def power_error(edges: np.ndarray, counts: np.ndarray, grids: Grids, *, power: float) -> np.ndarray:
  """Returns the sum of |x - x_hat|^p over a histogram, for each of many grids: [grids].

  With u = x / scale and q = clip(round(u), first, last), the integral from 0 to u of |v - q(v)|^p dv is
  q 2^-p / (p + 1) + (u - q) |u - q|^p / (p + 1), inside the range as well as beyond it. Summed over
  bins of even density, each edge counts with the step of the density there.

  Args:
    edges: [bins + 1], ascending. counts: [bins].
    grids: to be judged.
    power: p, positive.

  Returns:
    The sums in units of the histogram's width to the power p + 1: any data give finite numbers.
  """
  scale = np.asarray(grids.scale, np.float64)
  step = -np.diff(counts / np.diff(edges), prepend=0, append=0)
  errors = []
  for start in range(0, scale.size, _GRIDS_AT_ONCE):
    part = slice(start, start + _GRIDS_AT_ONCE)
    u = edges / scale[part, None]
    q = np.clip(np.rint(u), grids.first[part, None], grids.last[part, None])
    u -= q
    errors.append(np.einsum("ge,e->g", q * 0.5**power + u * np.abs(u) ** power, step))
  return (scale / (edges[-1] - edges[0])) ** (power + 1) / (power + 1) * np.concatenate(errors)
