"""Tries a change on images that nothing was chosen by, paired image by image, and keeps it or not."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import scipy.special

from kquant.core.records import Trial

HARM, GAIN = 2.0, 1.0
"""Standard errors of the paired difference: a change stays unless it is worse by so many, or, where it costs
the user something, only if it is better by so many."""

Outputs = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class HeldBack:
  """Images to judge by, and what the float network answers to them.

  Attributes:
    images: one array [n, ...] a model input.
    reference: one array [n, ...] an output.
    unit: how answers are compared: "dB" by SQNR, "nats" by divergence. Divergence leaves the level of logits
      free, SQNR does not (ResNet-8, w4a4: -4.4 dB while top-1 rose from 0.64 to 0.70).
  """

  images: list[np.ndarray]
  reference: Outputs
  unit: str = "dB"

  def quality(self, outputs: Outputs) -> np.ndarray:
    """Returns how near the outputs of each image are to the float network's, [images]; higher is better."""
    if self.unit == "dB":
      return image_sqnr_db(outputs, self.reference)
    return -image_divergence(outputs, self.reference)

  def try_change(self, method: str, change: Callable[[], Outputs], before: np.ndarray, *,
                 must_gain: bool) -> tuple[Trial, np.ndarray]:
    """Makes a change and judges it; returns (its record, the quality of each image behind it).

    Args:
      change: makes it and returns what the network then answers to the images.
      before: the quality of each image without it.
      must_gain: it costs the user something, so it is kept only if it is better by GAIN standard errors.
    """
    start = time.perf_counter()
    after = self.quality(change())
    gain, error = paired_change(after, before)
    seconds = time.perf_counter() - start
    accepted = is_accepted(gain, error, must_gain=must_gain)
    return Trial(method, accepted, len(self.images[0]), gain, error, self.unit, seconds), after


def is_accepted(gain: float, error: float, *, must_gain: bool) -> bool:
  """Whether a change stays.

  Args:
    gain, error: of `paired_change`.
    must_gain: it costs the user something, so it stays only if it is better by GAIN standard errors.

  >>> is_accepted(-0.1, 0.1, must_gain=False), is_accepted(0.1, 0.1, must_gain=True)
  (True, False)
  """
  return gain > GAIN * error if must_gain else gain >= -HARM * error


def paired_change(after: np.ndarray, before: np.ndarray) -> tuple[float, float]:
  """Returns the mean of after - before, each [images], and its standard error: infinite for one image."""
  difference = after - before
  error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
  return float(difference.mean()), float(error)


def image_sqnr_db(outputs: list[np.ndarray], reference: list[np.ndarray]) -> np.ndarray:
  """Returns 10 log10(sum reference^2 / sum (output - reference)^2) of each image: [images].

  Of several outputs it is the mean.
  """
  decibels = []
  for output, wanted in zip(outputs, reference):
    axes = tuple(range(1, wanted.ndim))
    noise = np.square(output.astype(np.float64) - wanted).sum(axis=axes)
    signal = np.square(wanted.astype(np.float64)).sum(axis=axes)
    decibels.append(10 * np.log10(np.maximum(signal, 1e-30) / np.maximum(noise, 1e-12 * signal + 1e-30)))
  return np.mean(decibels, axis=0)


def image_divergence(outputs: list[np.ndarray], reference: list[np.ndarray]) -> np.ndarray:
  """Returns KL(softmax(reference) || softmax(output)) of each image, in nats: [images].

  The mean over all that is not the last axis; of several outputs the mean.
  """
  divergences = []
  for output, wanted in zip(outputs, reference):
    mine, theirs = (scipy.special.log_softmax(x.astype(np.float64), -1) for x in (output, wanted))
    divergence = (np.exp(theirs) * (theirs - mine)).sum(-1)
    divergences.append(divergence.reshape(len(divergence), -1).mean(1))
  return np.mean(divergences, axis=0)
