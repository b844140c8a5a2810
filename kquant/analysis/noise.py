"""The measures of a layer-wise analysis: what noise is at an output, and what part of it each tensor makes.

Gluska, Grobman: Exploring Neural Networks Quantization via Layer-Wise Quantization Analysis, 2020; the split
into mean and variance is that of Finkelstein et al.: Fighting Quantization Bias With Bias, 2019.
"""

from collections.abc import Sequence

import numpy as np

ROUNDING = 1e-12
"""A noise-to-signal ratio below this is float32's own rounding: it counts as none."""
_FEWEST_MEDIAN = 1e-6  # of the largest peak: channels below it count as dead


def noise_to_signal(noise: float, signal: float) -> float:
  """Returns noise / signal of two powers; 0 below float32's own rounding, infinite beside no signal.

  >>> noise_to_signal(1.0, 4.0), noise_to_signal(0.0, 0.0), noise_to_signal(1.0, 0.0)
  (0.25, 0.0, inf)
  """
  if noise <= ROUNDING * signal:
    return 0.0
  return float(noise / signal) if signal else float("inf")


def varying_power(total: np.ndarray, squares: np.ndarray, images: int) -> float:
  """Returns the power of an output about its mean over images: sum (z - mean z)^2 over images and elements.

  What is the same for every image tells nothing of the image, so it is no signal.

  Args:
    total, squares: sums over images of z and of z^2, [...] each.

  >>> varying_power(np.array([4.0, 2.0]), np.array([10.0, 2.0]), 2)
  2.0
  """
  power = float(np.maximum(squares - np.square(total) / images, 0.0).sum())
  return power if power > ROUNDING * squares.sum() else 0.0


def mean_shift(total: np.ndarray, squares: np.ndarray, count: int) -> float:
  """Returns which share of a noise is a constant shift of its channels, 0 to 1: MSSR / QNSR.

  sum_c mean(e_c)^2 / sum_c mean(e_c^2). It is what a bias correction removes.

  Args:
    total, squares: sums of the errors e and of e^2 of each channel, [channels].
    count: errors in each sum.

  >>> mean_shift(np.array([4.0, 0.0]), np.array([4.0, 4.0]), 4)
  0.5
  """
  noise = squares.sum()
  return float(np.square(total).sum() / count / noise) if noise else 0.0


def divergence(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Returns KL(softmax(reference) || softmax(scores)) in nats, over the last axis.

  Args:
    scores: logits [..., classes].
    reference: logits that broadcast over them.

  >>> two, even = np.log([[0.5, 0.25, 0.25]]), np.zeros((1, 3))
  >>> bool(np.isclose(divergence(even, two)[0], np.log(3) - 1.5 * np.log(2)))
  True
  """
  mine, theirs = _log_softmax(scores), _log_softmax(reference)
  return np.maximum((np.exp(theirs) * (theirs - mine)).sum(-1), 0.0)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
  shifted = scores - scores.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def additivity(solo: Sequence[float], whole: float) -> float | None:
  """Returns sum of the solo noises / noise of the whole; None where there is no noise.

  Near 1 the tensors make their noise independently of each other. Above 1 noises cancel, below 1 they add up
  coherently (look at the mean shifts), or something saturates.

  >>> additivity([0.25, 0.5], 1.0)
  0.75
  """
  return float(sum(solo) / whole) if whole else None


def largest(powers: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
  """Returns the channels with the largest shares of a noise: (channel, share) each, largest first.

  >>> largest(np.array([1.0, 6.0, 3.0]), 2)
  ((1, 0.6), (2, 0.3))
  """
  total = powers.sum()
  order = np.argsort(-powers, kind="stable")[:count]
  return tuple((int(channel), float(powers[channel] / total)) for channel in order if powers[channel] > 0)


def widest(peaks: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
  """Returns the channels that set the range: (channel, its peak / the median peak), widest first.

  Args:
    peaks: largest magnitude of each channel, [channels]; dead channels do not count.

  >>> widest(np.array([2.0, 8.0, 0.0, 4.0]), 1)
  ((1, 2.0),)
  """
  alive = peaks > _FEWEST_MEDIAN * peaks.max(initial=0.0)
  if not alive.any():
    return ()
  median = np.median(peaks[alive])
  order = np.argsort(-peaks, kind="stable")[:count]
  return tuple((int(channel), float(peaks[channel] / median)) for channel in order if alive[channel])
