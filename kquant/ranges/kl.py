"""Kullback-Leibler ranges: the clipping that changes the distribution of a tensor least.

Migacz, "8-bit Inference with TensorRT", 2017. P is the histogram up to a threshold; the data beyond it
are added to its last bin. Q is the histogram without the data beyond, merged to the levels of the grid and
spread again over the bins that are not empty. The threshold of least KL(P || Q) is taken.
"""

import numpy as np

from kquant.ranges.base import Estimator
from kquant.ranges.search import Grids, grids_over, widened

_SMOOTHING = 1e-4
_CANDIDATES = 256


class KullbackLeibler(Estimator):
  """|x| is clipped where KL(P || Q) is least: 256 thresholds at edges of bins, geometrically spaced.

  The smallest leaves one bin a level. The levels are those of the grid that the clipped range would
  have, so that any number of bits and ranges of one or two sides are treated alike; where there are
  more levels than bins (16 bits) the range is that of min-max. Zeros, exact on every grid, do not count.
  """

  needs_histogram = True

  def _find(self, bits, symmetric):
    ends = widened(self.low, self.high, symmetric)
    largest = max(-ends[0], ends[1])
    width = 2.0**self.histogram.exponent
    levels = 2 ** (bits - 1) if symmetric or ends[0] < 0 < ends[1] else 2**bits
    bins = int(np.ceil(largest / width))
    if levels >= bins:
      return self.low, self.high
    thresholds = np.unique(np.geomspace(levels, bins, _CANDIDATES).astype(int))[:-1] * width
    thresholds = np.append(thresholds, np.inf)
    lows, highs = np.maximum(ends[0], -thresholds), np.minimum(ends[1], thresholds)
    edges, counts = self.histogram.density(self.low, self.high, zeros=False)
    losses = divergences(edges, counts, thresholds, grids_over(lows, highs, bits, symmetric))
    best = len(losses) - 1 - int(np.argmin(losses[::-1]))
    return max(self.low, float(lows[best])), min(self.high, float(highs[best]))


def divergences(edges: np.ndarray, counts: np.ndarray, thresholds: np.ndarray, grids: Grids) -> np.ndarray:
  """Returns KL(P || Q) in nats for each of many clipped grids: [grids].

  Args:
    edges: [bins + 1], ascending. counts: [bins].
    thresholds: |x| is clipped there, at edges, [grids].
    grids: those of the clipped ranges.
  """
  centres = (edges[:-1] + edges[1:]) / 2
  result = np.full(len(thresholds), np.inf)
  for index, threshold in enumerate(thresholds):
    (within,) = np.nonzero(np.abs(centres) < threshold)
    if not len(within):
      continue
    start, stop = within[0], within[-1] + 1
    inside = counts[start:stop].astype(np.float64)
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    levels = np.rint(centres[start:stop] / grids.scale[index])
    levels = np.clip(levels, grids.first[index], grids.last[index]).astype(int)
    result[index] = _divergence(p, _merged(inside, p > 0, levels - levels[0]))
  return result


def _merged(inside: np.ndarray, filled: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """Returns the counts of each level spread over those of its bins that are filled, [bins]."""
  total, number = np.bincount(levels, inside), np.bincount(levels, filled)
  return filled * (total / np.maximum(number, 1))[levels]


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
  """KL of two histograms of one support; an empty bin of q counts as 1e-4 of a datum."""
  filled = p > 0
  p, q = p[filled], np.maximum(q[filled], _SMOOTHING)
  return float((p / p.sum() * (np.log(p / p.sum()) - np.log(q / q.sum()))).sum())
