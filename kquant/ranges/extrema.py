"""Extrema: of all data, and the mean over the images of each image's extrema."""

import math

from kquant.ranges.base import Estimator, flushed


class MinMax(Estimator):
  """The smallest and the largest value of all data: nothing saturates."""

  def _find(self, bits, symmetric):
    return self.low, self.high


class MeanExtrema(Estimator):
  """The mean over the images of each image's minimum, and of its maximum.

  The sums are exact (math.fsum) and so do not depend on the order. Two numbers are kept for each image.
  """

  def __init__(self):
    super().__init__()
    self._lows, self._highs = [], []

  def absorb(self, measured):
    """Keeps the extrema of each image beside the state of the base."""
    super().absorb(measured)
    self._lows.extend(flushed(measured["low"]).tolist())
    self._highs.extend(flushed(measured["high"]).tolist())

  def merge(self, other):
    """Adds the extrema of the other estimator's images."""
    super().merge(other)
    self._lows.extend(other._lows)
    self._highs.extend(other._highs)

  def _find(self, bits, symmetric):
    return math.fsum(self._lows) / self.images, math.fsum(self._highs) / self.images
