"""Exact histograms whose bin width is a power of two that doubles when data lie beyond the last bin.

Bin k of a histogram of exponent e counts the x with trunc(x / 2^e) = k, for |k| < LIMIT. Because
trunc(trunc(x / 2^e) / 2) = trunc(x / 2^(e+1)), the counts of the coarser bins follow from those of
the finer ones exactly: the result does not depend on the batches nor on their order, and merging
two histograms equals one pass over both data. Truncation rather than floor makes bin 0 twice as
wide, (-2^e, 2^e), in exchange for a histogram of -x that mirrors that of x, and for tiny negative
numbers that count as 0 whether or not the processor flushes denormals.
"""

import numpy as np
import tensorflow as tf

LIMIT = 4096
FINEST_EXPONENT = -120
_BINS = 2 * LIMIT - 1
_LOG2_LIMIT = 12
_SLIVER = 1 / 64


def measure_bins(x: tf.Tensor, magnitude: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns (counts, exponent) of one batch; safe inside a tf.function.

  Args:
    x: float32, any shape.
    magnitude: float32 scalar, max |x|. If it is not finite the counts are all zero.

  Returns:
    counts: int64 [2 * LIMIT - 1]; entry k + LIMIT - 1 is bin k.
    exponent: int32 scalar, the smallest e with magnitude < LIMIT * 2^e, at least FINEST_EXPONENT.
  """
  biased = tf.bitwise.right_shift(tf.bitcast(magnitude, tf.int32), 23)
  exponent = tf.maximum(biased - 126 - _LOG2_LIMIT, FINEST_EXPONENT)
  inverse_width = tf.bitcast(tf.bitwise.left_shift(127 - exponent, 23), tf.float32)

  def count():
    bins = tf.cast(x * inverse_width, tf.int32) + (LIMIT - 1)
    return tf.math.bincount(tf.reshape(bins, [-1]), minlength=_BINS, maxlength=_BINS,
                            dtype=tf.int64)

  counts = tf.cond(tf.math.is_finite(magnitude), count, lambda: tf.zeros([_BINS], tf.int64))
  return counts, exponent


def coarsen(counts: np.ndarray, doublings: int) -> np.ndarray:
  """Returns the counts of wider bins, int64 [2 * LIMIT - 1].

  Args:
    counts: int64 [2 * LIMIT - 1].
    doublings: how often the width doubles.
  """
  if doublings == 0:
    return counts
  bins = np.arange(_BINS) - (LIMIT - 1)
  coarse = np.sign(bins) * (np.abs(bins) >> min(doublings, _LOG2_LIMIT))
  merged = np.zeros(_BINS, np.int64)
  np.add.at(merged, coarse + LIMIT - 1, counts)
  return merged


class Histogram:
  """Counts of a stream of real numbers; starts empty.

  Attributes:
    counts: int64 [2 * LIMIT - 1].
    exponent: the bins are 2^exponent wide.
    zeros: how many of bin 0 are zeros, such as a ReLU and padding make.
  """

  def __init__(self):
    self.counts = np.zeros(_BINS, np.int64)
    self.exponent = FINEST_EXPONENT
    self.zeros = 0

  def add(self, counts: np.ndarray, exponent: int, zeros: int) -> None:
    """Adds the counts of another histogram or of one batch; the larger of the two widths stays.

    Args:
      counts: int64 [2 * LIMIT - 1].
      exponent: its bins are 2^exponent wide.
      zeros: how many of its bin 0 are zeros.
    """
    exponent = int(exponent)
    self.zeros += int(zeros)
    if exponent > self.exponent:
      self.counts = coarsen(self.counts, exponent - self.exponent)
      self.exponent = exponent
    self.counts = self.counts + coarsen(np.asarray(counts, np.int64), self.exponent - exponent)

  def density(self, low: float, high: float, *, zeros: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Returns (edges [bins + 1], counts [bins]) from the first to the last bin that is not empty.

    Args:
      zeros: whether zeros, which are exact on every grid, count.
      low, high: the exact extrema of the data. The outermost bins end there, but stay at least 1/64 of a
        bin wide so that counts / width is defined.
    """
    counts = self.counts.copy()
    counts[LIMIT - 1] -= 0 if zeros else self.zeros
    filled = np.flatnonzero(counts)
    first, last = filled[0], filled[-1]
    width = 2.0 ** self.exponent
    bins = np.arange(first, last + 2) - (LIMIT - 1)
    edges = (bins - (bins <= 0)) * width
    edges[0] = min(max(edges[0], low), edges[1] - width * _SLIVER)
    edges[-1] = max(min(edges[-1], high), edges[-2] + width * _SLIVER)
    return edges, counts[first:last + 1]

  def quantile(self, fraction: float, low: float, high: float) -> float:
    """Returns the number below which `fraction` (0..1) of the data lie, right to within a bin.

    The data of a bin are taken as evenly spread; between two ranks the result is linear, like
    np.quantile. The quantiles 0 and 1 are the exact extrema of the data.

    Args:
      fraction: 0..1.
      low, high: the exact extrema of the data.
    """
    edges, counts = self.density(low, high)
    ends = np.cumsum(counts)
    total = int(ends[-1])

    def ordered(rank):
      if rank in (0, total - 1):
        return high if rank else low
      k = np.searchsorted(ends, rank, side="right")
      inside = (rank - (ends[k] - counts[k]) + 0.5) / counts[k]
      return float(np.clip(edges[k] + inside * (edges[k + 1] - edges[k]), low, high))

    rank = int(fraction * (total - 1))
    remainder = fraction * (total - 1) - rank
    below, above = ordered(rank), ordered(min(rank + 1, total - 1))
    return below + remainder * (above - below)
