"""Whether a method made a network better, told from images that it has not seen."""

import numpy as np
import scipy.special

HARM, GAIN = 2.0, 1.0
"""Standard errors of the paired difference: a method stays unless it is worse by so many, or, where it costs
the user something, only if it is better by so many."""


def paired_change(found: np.ndarray, before: np.ndarray) -> tuple[float, float]:
  """Returns the mean of found - before, each [images], and its standard error: infinite for one image."""
  difference = found - before
  error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
  return float(difference.mean()), float(error)


def told(change: float, error: float, unit: str, images: int) -> str:
  """Returns what a report says of a `paired_change`."""
  return f"{change:+.2f} {unit} +- {error:.2f} on {images} held-back images"


def image_sqnr_db(outputs: list[np.ndarray], reference: list[np.ndarray]) -> np.ndarray:
  """Returns 10 log10(sum reference^2 / sum (output - reference)^2) of each image: [images].

  Of several outputs it is the mean.
  """
  found = []
  for output, wanted in zip(outputs, reference):
    axes = tuple(range(1, wanted.ndim))
    noise = np.square(output.astype(np.float64) - wanted).sum(axis=axes)
    signal = np.square(wanted.astype(np.float64)).sum(axis=axes)
    found.append(10 * np.log10(np.maximum(signal, 1e-30) / np.maximum(noise, 1e-12 * signal + 1e-30)))
  return np.mean(found, axis=0)


def image_divergence(outputs: list[np.ndarray], reference: list[np.ndarray]) -> np.ndarray:
  """Returns KL(softmax(reference) || softmax(output)) of each image, in nats: [images].

  The mean over all that is not the last axis; of several outputs the mean.
  """
  found = []
  for output, wanted in zip(outputs, reference):
    mine, theirs = (scipy.special.log_softmax(x.astype(np.float64), -1) for x in (output, wanted))
    divergence = (np.exp(theirs) * (theirs - mine)).sum(-1)
    found.append(divergence.reshape(len(divergence), -1).mean(1))
  return np.mean(found, axis=0)
