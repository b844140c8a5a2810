"""How close two sets of network outputs are; all take arrays [images, classes] or [images, ...]."""

import numpy as np


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
  """Returns the fraction of images, 0 to 1, whose largest score is at their label.

  Args:
    scores: [images, classes].
    labels: class indices, [images].

  >>> top1(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
  0.5
  """
  return float(np.mean(scores.argmax(-1) == labels))


def is_chance(right: float, classes: int, images: int) -> bool:
  """Whether a top-1 is no better than guessing, within two standard errors and one percent.

  Args:
    right: the top-1, 0 to 1.
    classes, images: how many.

  >>> is_chance(0.12, classes=10, images=64), is_chance(0.4, classes=10, images=64)
  (True, False)
  """
  chance = 1 / classes
  return bool(right <= chance + max(2 * np.sqrt(chance * (1 - chance) / images), 0.01))


def agreement(scores: np.ndarray, reference: np.ndarray) -> float:
  """Returns the fraction of images, 0 to 1, whose largest score is at the same class in both.

  Args:
    scores, reference: [images, classes], of the quantized and of the float network.

  >>> agreement(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[0.4, 0.6], [0.3, 0.7]]))
  0.5
  """
  return float(np.mean(scores.argmax(-1) == reference.argmax(-1)))


def sqnr_db(values: np.ndarray, reference: np.ndarray) -> float:
  """Returns the signal-to-quantization-noise ratio in dB.

  10 log10(sum reference^2 / sum (values - reference)^2), over all elements together.

  Args:
    values, reference: of the quantized and of the float network, of one shape.

  Returns:
    dB; infinity for equal arrays.

  >>> sqnr_db(np.array([9.0, 0.0]), np.array([10.0, 0.0]))
  20.0
  """
  reference = reference.astype(np.float64)
  noise = np.square(values - reference).sum()
  return float(10 * np.log10(np.square(reference).sum() / noise)) if noise else float("inf")


def tied(scores: np.ndarray) -> int:
  """Returns how many images have their largest score at more than one class.

  Args:
    scores: [images, classes].

  >>> tied(np.array([[3, 3, 1], [3, 2, 1]]))
  1
  """
  return int(((scores == scores.max(-1, keepdims=True)).sum(-1) > 1).sum())
