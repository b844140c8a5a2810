"""Oscillating weights in quantization-aware training: detection, dampening and freezing, as pure maths.

If the optimum of a weight lies between two integers, the straight-through gradient moves the weight to the
threshold between them, where it changes from one to the other again and again (Nagel et al. 2022,
"Overcoming Oscillations in Quantization-Aware Training"). The functions take tensors of any one shape.
"""

import math
from typing import NamedTuple

import tensorflow as tf


class History(NamedTuple):
  """The state that is kept for the integers of one weight tensor; every field has its shape.

  Attributes:
    integers: after the last step; for a frozen weight the integer that it keeps. int8.
    direction: sign of the last change; 0 before the first. int8.
    frequency: moving average of "it oscillated in this step", 0..1. float32.
    average: moving average of the integers. float32.
    frozen: whether the weight keeps its integer. bool.
  """

  integers: tf.Tensor
  direction: tf.Tensor
  frequency: tf.Tensor
  average: tf.Tensor
  frozen: tf.Tensor


def start(integers: tf.Tensor) -> History:
  """Returns the history before the first step.

  Args:
    integers: of the weights, any shape.
  """
  integers = tf.cast(integers, tf.int8)
  nothing = tf.zeros(integers.shape, tf.int8)
  return History(integers, nothing, tf.cast(nothing, tf.float32), tf.cast(integers, tf.float32),
                 tf.cast(nothing, tf.bool))


def follow(history: History, integers: tf.Tensor, momentum: float) -> History:
  """Returns the history after a step that led to `integers` (section 4.1, eq. 4).

  A weight oscillates in a step if its integer changes in the direction opposite to its last change, however
  long ago that was. f = m * oscillates + (1 - m) * f. The history of frozen weights does not change.

  Args:
    history: before the step.
    integers: after the step, of the same shape.
    momentum: m, the weight of this step in both averages.

  >>> history = start(tf.constant([0, 0]))
  >>> for integers in ([1, 1], [0, 2], [1, 3]):  # the first weight oscillates, the second moves on
  ...   history = follow(history, tf.constant(integers), momentum=0.5)
  >>> history.frequency.numpy().tolist()
  [0.75, 0.0]
  """
  integers = tf.cast(integers, tf.int8)
  change = tf.sign(integers - history.integers)
  oscillates = tf.cast((change != 0) & (change == -history.direction), tf.float32)
  direction = tf.where(change != 0, change, history.direction)
  frequency = history.frequency + momentum * (oscillates - history.frequency)
  average = history.average + momentum * (tf.cast(integers, tf.float32) - history.average)
  moved = History(integers, direction, frequency, average, history.frozen)
  return History(*(tf.where(history.frozen, old, new) for old, new in zip(history, moved)))


def freeze(history: History, threshold: tf.Tensor) -> History:
  """Returns the history with the weights frozen that oscillate more often than a threshold.

  They keep the integer nearest to the moving average of their integers (section 4.3, algorithm 1), also if
  they oscillate less later.

  Args:
    history: of the weights.
    threshold: of the frequency, a scalar.
  """
  frozen = history.frozen | (history.frequency > threshold)
  nearest = tf.cast(tf.round(history.average), tf.int8)
  integers = tf.where(frozen & ~history.frozen, nearest, history.integers)
  return history._replace(integers=integers, frozen=frozen)


def dampening(weight: tf.Tensor, scale: tf.Tensor, low: tf.Tensor, high: tf.Tensor,
              out_axes: tuple[int, ...]) -> tf.Tensor:
  """Returns a scalar loss that pulls weights to the centre of their bins (section 4.2, eq. 5).

    sum over output channels, mean over all else, of (scale * round(w / scale) - clip(w, low, high))^2

  The target has no gradient, so the gradient of each term is 2 (clip(w) - scale * integer) inside the grid
  and 0 outside. The paper's weight of 0.1 holds for this normalization.

  Args:
    weight: float, batch norm folded into it.
    scale, low, high: step and ends of its grid, to broadcast over it.
    out_axes: its output channels.
  """
  clipped = tf.clip_by_value(weight, low, high)
  target = tf.stop_gradient(tf.round(clipped / scale) * scale)
  return tf.reduce_mean(tf.reduce_sum(tf.square(target - clipped), out_axes))


def cosine(progress: float, first: float, last: float, *, begin: float = 0.25) -> float:
  """Returns the value of a schedule: `first` up to `begin`, then a half cosine to `last`.

  last + (first - last) (1 + cos(pi r)) / 2, with r from 0 to 1 over the rest.

  Args:
    progress: fraction of the training that is over, 0..1.
    first, last: values at the start and at the end.
    begin: fraction up to which the value is `first`.

  >>> cosine(0.1, 1.0, 0.0), cosine(1.0, 1.0, 0.0)
  (1.0, 0.0)
  """
  ratio = min(max((progress - begin) / (1 - begin), 0.0), 1.0)
  return last + 0.5 * (first - last) * (1 + math.cos(math.pi * ratio))
