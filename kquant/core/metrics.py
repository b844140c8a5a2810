"""How close two sets of network outputs are; all take arrays [images, classes] or [images, ...]."""

import numpy as np


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
  """Returns the fraction of images, 0 to 1, whose largest score is at their label."""
  return float(np.mean(scores.argmax(-1) == labels))


def agreement(scores: np.ndarray, reference: np.ndarray) -> float:
  """Returns the fraction of images, 0 to 1, whose largest score is where the reference's is."""
  return float(np.mean(scores.argmax(-1) == reference.argmax(-1)))


def sqnr_db(values: np.ndarray, reference: np.ndarray) -> float:
  """Returns 10 log10(sum reference^2 / sum (values - reference)^2), infinite for equal arrays."""
  reference = reference.astype(np.float64)
  noise = np.square(values - reference).sum()
  return float(10 * np.log10(np.square(reference).sum() / noise)) if noise else float("inf")


def tied(scores: np.ndarray) -> int:
  """Returns how many images have their largest score at more than one class."""
  return int(((scores == scores.max(-1, keepdims=True)).sum(-1) > 1).sum())
