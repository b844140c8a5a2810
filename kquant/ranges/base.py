"""Estimator: the base class of the range estimators of activation tensors.

Estimators are streaming and mergeable, and give one range for each tensor. Their results do not depend,
bit by bit, on the batch size or on the order of the images.
"""

import math

import numpy as np
import tensorflow as tf

from kquant.ranges.histogram import Histogram, measure_bins

_SMALLEST = float(np.finfo(np.float32).tiny)


class Estimator:
  """Statistics of one activation tensor, and the range that follows from them.

  `measure` is made of TensorFlow operators only and keeps no state, so that it can be traced;
  `absorb` takes its results, as NumPy arrays, into the state.

  Attributes:
    images: number of images seen.
    low, high: exact extrema of all data seen.
    histogram: of all data seen, if the class `needs_histogram`; else empty.
    number: the parameter of the method (99.9 of "percentile:99.9"), or None.
  """

  needs_histogram = False
  needs_logits = False
  number: float | None = None

  def __init__(self):
    self.images = 0
    self.low = math.inf
    self.high = -math.inf
    self.histogram = Histogram()

  def measure(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the statistics of one batch.

    Args:
      x: [images, ...], of known rank.

    Returns:
      The float32 extrema of each image, "low" and "high", [images]. If the class `needs_histogram`, also
      "counts" and "exponent" of `histogram.measure_bins` and the number of "zeros", which includes
      numbers below the smallest normal one.
    """
    x = tf.cast(x, tf.float32)
    axes = list(range(1, x.shape.rank))
    measured = {"low": tf.reduce_min(x, axes), "high": tf.reduce_max(x, axes)}
    if self.needs_histogram:
      magnitude = tf.abs(tf.maximum(-tf.reduce_min(measured["low"]),
                                    tf.reduce_max(measured["high"])))
      measured["counts"], measured["exponent"] = measure_bins(x, magnitude)
      measured["zeros"] = tf.math.count_nonzero(tf.abs(x) < _SMALLEST)
    return measured

  def absorb(self, measured: dict[str, np.ndarray]) -> None:
    """Adds what `measure` returned to the state.

    Args:
      measured: as NumPy arrays.

    Raises:
      ValueError: an image gave NaN or infinity.
    """
    low, high = flushed(measured["low"]), flushed(measured["high"])
    bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
    if bad.size:
      raise ValueError(
          f"{type(self).__name__}: expected finite activations, got {low[bad[0]]}..{high[bad[0]]} "
          f"for image {self.images + bad[0]} of the data; check that image and the layers before.")
    if low.size:
      self.images += low.size
      self.low = min(self.low, float(low.min()))
      self.high = max(self.high, float(high.max()))
      if self.needs_histogram:
        self.histogram.add(measured["counts"], measured["exponent"], measured["zeros"])

  def update(self, x) -> None:
    """Adds one batch to the state.

    Args:
      x: [images, ...].

    Raises:
      ValueError: an image gave NaN or infinity.
    """
    measured = self.measure(tf.convert_to_tensor(x))
    self.absorb({name: value.numpy() for name, value in measured.items()})

  def merge(self, other: "Estimator") -> None:
    """Adds the state of another estimator, as if this one had seen its data too.

    Args:
      other: an estimator of the same class and number.

    Raises:
      TypeError: the other is of another class.
      ValueError: it has another number.
    """
    if type(other) is not type(self):
      raise TypeError(f"{type(self).__name__}.merge: expected another {type(self).__name__}, "
                      f"got {type(other).__name__}; merge estimators of one kind.")
    if other.number != self.number:
      raise ValueError(f"{type(self).__name__}.merge: expected the number {self.number}, got {other.number}; "
                       "merge estimators of one number.")
    self.images += other.images
    self.low, self.high = min(self.low, other.low), max(self.high, other.high)
    self.histogram.add(other.histogram.counts, other.histogram.exponent, other.histogram.zeros)

  def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
    """Returns (low, high), real numbers, not yet widened to contain 0.

    Args:
      bits: bits of the grid that will span the range.
      symmetric: False gives a range within the extrema; True gives (-m, m), m at most max |x|.

    Raises:
      ValueError: no data were seen.
    """
    if not self.images:
      raise ValueError(f"{type(self).__name__}: expected data before range(), got none; "
                       "run at least one image through the tensor.")
    low, high = (self.low, self.high) if self.low == self.high else self._find(bits, symmetric)
    if symmetric:
      high = max(abs(low), abs(high))
      low = 0.0 - high
    return low, high

  def _find(self, bits: int, symmetric: bool) -> tuple[float, float]:
    """Returns the range of data that are not constant; `range` makes it symmetric where that is asked for."""
    raise NotImplementedError


def flushed(extrema: np.ndarray) -> np.ndarray:
  """Returns extrema with denormals and -0.0 as 0.0, since operators differ in how they treat these.

  Args:
    extrema: float32, any shape.

  Returns:
    float64.
  """
  extrema = np.asarray(extrema, np.float32).astype(np.float64)
  return np.where(np.abs(extrema) < _SMALLEST, 0.0, extrema)
