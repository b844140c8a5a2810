"""Which range [low, high] should a tensor's grid span?

Estimators are streaming and mergeable, one range a tensor, for activations. Their results do not
depend, to the last bit, on the batch size or on the order of the images. `weight_range` is the
counterpart for kernels: per channel, at once, in NumPy.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kquant.core import numerics
from kquant.ranges.histogram import Histogram, measure_bins, squared_error

_COARSE_STEPS = np.arange(32) / 4
_FINE_STEPS = np.array([0, -1, 1, -2, 2, -3, 3, -4, 4]) / 4
_WEIGHTS_AT_ONCE = 1 << 16


class Estimator:
  """Statistics of one activation tensor, and the range that follows from them.

  `measure` is made of TensorFlow operators only and keeps no state, so that it can be traced;
  `absorb` takes its results, as NumPy arrays, into the state.

  Attributes:
    images: number of images seen.
    low, high: exact extrema of all data seen.
    histogram: of all data seen, if the class `needs_histogram`; else empty.
  """

  needs_histogram = False

  def __init__(self):
    self.images = 0
    self.low = math.inf
    self.high = -math.inf
    self.histogram = Histogram()

  def measure(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the statistics of one batch x: [images, ...], of known rank.

    They are the float32 extrema of each image "low" and "high", [images], and, if the class
    `needs_histogram`, the "counts" and the "exponent" of `histogram.measure_bins`.
    """
    x = tf.cast(x, tf.float32)
    axes = list(range(1, x.shape.rank))
    measured = {"low": tf.reduce_min(x, axes), "high": tf.reduce_max(x, axes)}
    if self.needs_histogram:
      magnitude = tf.abs(tf.maximum(-tf.reduce_min(measured["low"]),
                                    tf.reduce_max(measured["high"])))
      measured["counts"], measured["exponent"] = measure_bins(x, magnitude)
    return measured

  def absorb(self, measured: dict[str, np.ndarray]) -> None:
    """Takes what `measure` returned into the state.

    Raises:
      ValueError: an image gave NaN or infinity.
    """
    low, high = _flushed(measured["low"]), _flushed(measured["high"])
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
        self.histogram.add(measured["counts"], measured["exponent"])

  def update(self, x) -> None:
    """Takes one batch x: [images, ...] into the state."""
    measured = self.measure(tf.convert_to_tensor(x))
    self.absorb({name: value.numpy() for name, value in measured.items()})

  def merge(self, other: "Estimator") -> None:
    """Takes the state of another estimator in, as if this one had seen its data too.

    Raises:
      TypeError: the other is of another kind.
    """
    if type(other) is not type(self):
      raise TypeError(f"{type(self).__name__}.merge: expected another {type(self).__name__}, "
                      f"got {type(other).__name__}; merge estimators of one kind.")
    self.images += other.images
    self.low, self.high = min(self.low, other.low), max(self.high, other.high)
    self.histogram.add(other.histogram.counts, other.histogram.exponent)

  def range(self, *, bits: int, symmetric: bool) -> tuple[float, float]:
    """Returns (low, high), real numbers, not yet widened to hold 0.

    Args:
      bits: bits of the grid that will span the range.
      symmetric: False gives a range within the extrema; True gives (-m, m), m at most max |x|.

    Raises:
      ValueError: no data were seen.
    """
    if not self.images:
      raise ValueError(f"{type(self).__name__}: expected data before range(), got none; "
                       "run at least one image through the tensor.")
    low, high = self._find(bits, symmetric)
    if symmetric:
      high = max(abs(low), abs(high))
      low = 0.0 - high
    return low, high

  def _find(self, bits: int, symmetric: bool) -> tuple[float, float]:
    raise TypeError(f"{type(self).__name__} finds no range; use one of {sorted(ESTIMATORS)}.")


def _flushed(extrema: np.ndarray) -> np.ndarray:
  """Returns float32 extrema as float64, denormals and -0.0 as 0.0: operators differ over those."""
  extrema = np.asarray(extrema, np.float32).astype(np.float64)
  return np.where(np.abs(extrema) < np.finfo(np.float32).tiny, 0.0, extrema)


class MinMax(Estimator):
  """The extrema of all data."""

  def _find(self, bits, symmetric):
    return self.low, self.high


class MeanExtrema(Estimator):
  """The mean over the images of each image's minimum, and of its maximum.

  The sums are exact (math.fsum), hence free of order. One pair of numbers an image is kept.
  """

  def __init__(self):
    super().__init__()
    self._lows, self._highs = [], []

  def absorb(self, measured):
    """Keeps the extrema of each image beside the state of the base."""
    super().absorb(measured)
    self._lows.extend(_flushed(measured["low"]).tolist())
    self._highs.extend(_flushed(measured["high"]).tolist())

  def merge(self, other):
    """Takes over the extrema of another one's images."""
    super().merge(other)
    self._lows.extend(other._lows)
    self._highs.extend(other._highs)

  def _find(self, bits, symmetric):
    return math.fsum(self._lows) / self.images, math.fsum(self._highs) / self.images


class Percentile(Estimator):
  """The percentiles 100 - p and p of all data, read off a histogram: exact to within a bin.

  Args:
    percentile: p, above 50 and up to 100, in per cent; 100 is min-max.
  """

  needs_histogram = True

  def __init__(self, percentile: float = 99.99):
    super().__init__()
    if not 50 < percentile <= 100:
      raise ValueError(f"Percentile: expected a percentile above 50 and up to 100, "
                       f"got {percentile}; 99.99 leaves out 0.01 % of the data at either end.")
    self.percentile = percentile

  def merge(self, other):
    """Takes over another one's histogram.

    Raises:
      ValueError: it is of another percentile.
    """
    if getattr(other, "percentile", self.percentile) != self.percentile:
      raise ValueError(f"Percentile.merge: expected percentile {self.percentile}, "
                       f"got {other.percentile}; merge estimators of one percentile.")
    super().merge(other)

  def _find(self, bits, symmetric):
    return (self.histogram.quantile(1 - self.percentile / 100, self.low, self.high),
            self.histogram.quantile(self.percentile / 100, self.low, self.high))


class MeanSquaredError(Estimator):
  """The range whose grid has the least mean squared quantization error over a histogram.

  The data of a bin are taken as evenly spread. Both ends of the extrema, widened to hold 0,
  shrink by 2^-a: all pairs of a = 0, 1/4, .. 7 3/4, then around the best pair down to 1/256. The
  error is that of the grid `numerics` makes of the range, with its rounded scale and zero point.
  """

  needs_histogram = True

  def _find(self, bits, symmetric):
    if self.low == self.high:
      return self.low, self.high
    low, high = min(self.low, 0.0), max(self.high, 0.0)
    if symmetric:
      low, high = -max(-low, high), max(-low, high)
    edges, counts = self.histogram.density(self.low, self.high)

    def error(ratios):
      lows, highs = low * ratios[:, 0], high * ratios[:, -1]
      return squared_error(edges, counts, *_grids(lows, highs, bits, symmetric))

    ratios = _least(error, sides=2 if low < 0 < high and not symmetric else 1)
    return (float(np.clip(low * ratios[0], self.low, self.high)),
            float(np.clip(high * ratios[-1], self.low, self.high)))


def _grids(lows, highs, bits, symmetric):
  """Returns (scale, first, last) of the grids over [lows, highs]; x = scale * (first .. last)."""
  if symmetric:
    scale = numerics.symmetric_grid(highs, bits)
    first, last = numerics.grid_limits(bits, narrow=True)
    return scale, np.full(scale.shape, first), np.full(scale.shape, last)
  scale, zero_point = numerics.affine_grid(lows, highs, bits)
  first, last = numerics.grid_limits(bits, narrow=False)
  return scale, first - zero_point, last - zero_point


def _least(error, *, sides: int) -> np.ndarray:
  """Returns the ratios in (0, 1], [sides], with the least error(ratios [candidates, sides])."""
  centre, steps, spacing = np.zeros(sides), _COARSE_STEPS, _COARSE_STEPS[1]
  for _ in range(4):
    mesh = np.stack(np.meshgrid(*[steps] * sides, indexing="ij"), axis=-1).reshape(-1, sides)
    octaves = np.maximum(centre + mesh, 0.0)
    centre = octaves[np.argmin(error(np.exp2(-octaves)))]
    steps, spacing = _FINE_STEPS * spacing, spacing / 4
  return np.exp2(-centre)


ESTIMATORS: dict[str, type] = {"minmax": MinMax, "mean_extrema": MeanExtrema,
                               "percentile": Percentile, "mse": MeanSquaredError}


def weight_range(kernel, axis: Sequence[int] | None, *, method: str = "minmax",
                 bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
  """Returns the symmetric range (low, high) of each channel of a kernel, low = -high, float64.

  Args:
    kernel: any shape.
    axis: the channel axes, ascending, as in `numerics.along`; None for one range: [1].
    method: "minmax" or "mean_extrema": max |w|. "mse": the r * max |w| whose narrow grid has the
      least squared error, r = 1, 0.99, .. 0.01, then in steps of 0.001 around the best.
    bits: bits of the narrow grid, at least 2.

  Raises:
    ValueError: an unknown method, fewer than 2 bits, an empty kernel, or one with NaN or infinity.
  """
  kernel = np.asarray(kernel, np.float32)
  if method not in _WEIGHT_METHODS:
    raise ValueError(f"weight_range: expected a method for weights, one of "
                     f"{sorted(_WEIGHT_METHODS)}, got {method!r}; choose one of those.")
  if bits < 2:
    raise ValueError(f"weight_range: expected at least 2 bits for a symmetric grid, got {bits}.")
  if not kernel.size or not np.isfinite(kernel).all():
    raise ValueError(f"weight_range: expected finite weights, got a kernel of shape {kernel.shape} "
                     "that is empty or holds NaN or infinity; check how the model was trained.")
  axis = () if axis is None else tuple(axis)
  channels = math.prod(kernel.shape[i] for i in axis)
  rows = np.moveaxis(kernel, axis, range(len(axis))).reshape(channels, -1)
  high = _WEIGHT_METHODS[method](rows, bits)
  return 0.0 - high, high


def _largest_weight(rows: np.ndarray, bits: int) -> np.ndarray:
  """Returns max |w| of each row of [channels, weights], float64."""
  return np.abs(rows).max(axis=1).astype(np.float64)


def _best_weight(rows: np.ndarray, bits: int) -> np.ndarray:
  """Returns the magnitude of least squared error of each row of [channels, weights], float64."""
  largest = _largest_weight(rows, bits)
  best = np.ones(largest.shape)
  known = largest > 0
  rows = rows[known] / largest[known, None]
  _, qmax = numerics.grid_limits(bits, narrow=True)
  for step, count in ((-0.01, range(100)), (0.001, (0, *range(9, -10, -1)))):
    ratios = np.clip(best[known][:, None] + step * np.asarray(count), 0.001, 1.0)
    errors = _rounding_errors(rows, ratios, qmax)
    best[known] = np.take_along_axis(ratios, errors.argmin(axis=1)[:, None], axis=1)[:, 0]
  return best * largest


def _rounding_errors(rows: np.ndarray, ratios: np.ndarray, qmax: int) -> np.ndarray:
  """Returns sum over weights of (w - w_hat)^2: [channels, candidates].

  Args:
    rows: weights over the channel's largest, [channels, weights].
    ratios: range over the channel's largest weight, [channels, candidates].
    qmax: last integer of the grid.
  """
  errors = np.zeros(ratios.shape)
  width = min(rows.shape[1], _WEIGHTS_AT_ONCE)
  height = _WEIGHTS_AT_ONCE // width
  for top in range(0, rows.shape[0], height):
    for left in range(0, rows.shape[1], width):
      part = rows[top:top + height, left:left + width]
      for k in range(ratios.shape[1]):
        step = ratios[top:top + height, k:k + 1] / qmax
        q = part / step
        np.clip(np.rint(q, out=q), -qmax, qmax, out=q)
        q *= step
        q -= part
        errors[top:top + height, k] += np.einsum("cn,cn->c", q, q)
  return errors


_WEIGHT_METHODS = {"minmax": _largest_weight, "mean_extrema": _largest_weight, "mse": _best_weight}
