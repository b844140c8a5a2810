"""Percentiles: a given fraction of the data saturates at either end."""

from kquant.ranges.base import Estimator


class Percentile(Estimator):
  """The percentiles 100 - p and p of all data, read off a histogram: exact to within a bin.

  Args:
    percentile: p in per cent, above 50; 100 is min-max.
  """

  needs_histogram = True

  def __init__(self, percentile: float = 99.99):
    super().__init__()
    self.number = percentile

  def _find(self, bits, symmetric):
    return (self.histogram.quantile(1 - self.number / 100, self.low, self.high),
            self.histogram.quantile(self.number / 100, self.low, self.high))
