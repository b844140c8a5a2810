"""Analytical clipping (ACIQ): the range of least error for a Gaussian or Laplacian with the data's moments.

Banner, Nahshan and Soudry 2019, "Post training 4-bit quantization of convolutional networks". With
clipping at +-a and M bits the mean squared error is

  Laplace of mean deviation b:       2 b^2 e^(-a/b) + a^2 / (3 4^M)
  Gauss of standard deviation s:     2 s^2 ((1 + t^2) Q(t) - t phi(t)) + a^2 / (3 4^M),  t = a / s

and the best a is where its derivative vanishes.
"""

import functools
import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import lambertw

from kquant.ranges.base import Estimator
from kquant.ranges.search import widened

_BETWEEN = 4.5
"""Kurtosis half way between that of a Gaussian, 3, and that of a Laplacian, 6."""
_MOST_BITS = 8


@functools.cache
def laplace_clip(bits: int) -> float:
  """Returns a / b of a Laplacian: the root of 3 4^M e^-t = t, which is Lambert's W(3 4^M).

  Args:
    bits: M, of the grid.

  >>> round(laplace_clip(4), 2) # 5.03 in the paper
  5.03
  """
  return float(lambertw(3.0 * 4.0**bits).real)


@functools.cache
def gauss_clip(bits: int) -> float:
  """Returns a / s of a Gaussian: the root of 2 (phi(t) - t Q(t)) = t / (3 4^M).

  Args:
    bits: M, of the grid.
  """

  def slope(t: float) -> float:
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return 2 * (density - t * math.erfc(t / math.sqrt(2)) / 2) - t / (3 * 4.0**bits)

  return float(brentq(slope, 0.1, 20.0))


class AnalyticalClipping(Estimator):
  """The best clipping of the Gaussian or Laplacian, by kurtosis, that has the moments of the data.

  Data of one sign, as a ReLU leaves them, count as half of a distribution around 0, without the zeros;
  a grid that spends all its levels on that half has M + 1 bits. Data on a symmetric grid are taken
  around 0 too, others around their mean. More than 8 bits get the extrema.
  """

  needs_histogram = True

  def _find(self, bits, symmetric):
    if bits > _MOST_BITS:
      return self.low, self.high
    one_sided = self.low >= 0 or self.high <= 0
    edges, counts = self.histogram.density(self.low, self.high, zeros=not one_sided)
    middles = (edges[:-1] + edges[1:]) / 2
    mean = 0.0 if symmetric or one_sided else float((counts * middles).sum() / counts.sum())
    reach = best_clip(edges - mean, counts, bits + (one_sided and not symmetric))
    low, high = widened(mean - reach, mean + reach, symmetric)
    return max(self.low, low), min(self.high, high)


def best_clip(edges: np.ndarray, counts: np.ndarray, bits: int) -> float:
  """Returns the distance from 0 at which to clip data around 0.

  Args:
    edges: of a histogram of the data, [bins + 1], ascending.
    counts: [bins].
    bits: M, of the grid.
  """
  deviation, variance, fourth = (absolute_moment(edges, counts, order) for order in (1, 2, 4))
  if fourth > _BETWEEN * variance**2:
    return laplace_clip(bits) * deviation * _extent(edges)
  return gauss_clip(bits) * math.sqrt(variance) * _extent(edges)


def absolute_moment(edges: np.ndarray, counts: np.ndarray, order: int) -> float:
  """Returns E |x / extent|^order of a histogram; the extent is the largest |edge|.

  The data of a bin are taken as evenly spread.

  Args:
    edges: [bins + 1], ascending.
    counts: [bins].
    order: 1 for the mean deviation, 2 for the variance.
  """
  u = edges / _extent(edges)
  integral = np.diff(u * np.abs(u) ** order) / (order + 1)
  return float((counts * integral / np.diff(u)).sum() / counts.sum())


def _extent(edges: np.ndarray) -> float:
  return float(np.abs(edges).max())
