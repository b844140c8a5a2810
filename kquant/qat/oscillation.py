"""Oscillating weights in quantization-aware training: detection, dampening and freezing, as pure maths.

The straight-through gradient pushes a weight towards the threshold between two integers when its
optimum lies between them, and from then on it flips back and forth (Nagel et al. 2022, "Overcoming
Oscillations in Quantization-Aware Training"). Everything here works on tensors of any one shape.
"""

import math
from typing import NamedTuple

import tensorflow as tf


class History(NamedTuple):
  """What is remembered of the integers of one weight tensor; every field has its shape.

  Attributes:
    integers: of the step before; of a frozen weight those that it keeps. int8.
    direction: sign of the last change; 0 before the first. int8.
    frequency: moving average of "it oscillated in this step", 0..1. float32.
    average: moving average of the integers. float32.
    frozen: bool.
  """

  integers: tf.Tensor
  direction: tf.Tensor
  frequency: tf.Tensor
  average: tf.Tensor
  frozen: tf.Tensor


def start(integers: tf.Tensor) -> History:
  """Returns the history of weights before the first step, all that is known of them being their integers."""
  integers = tf.cast(integers, tf.int8)
  nothing = tf.zeros(integers.shape, tf.int8)
  return History(integers, nothing, tf.cast(nothing, tf.float32), tf.cast(integers, tf.float32),
                 tf.cast(nothing, tf.bool))


def follow(history: History, integers: tf.Tensor, momentum: float) -> History:
  """Returns the history after a step that led to `integers` (section 4.1, eq. 4).

  A weight oscillates where its integer changes, and in the other direction than at its last change,
  however long ago. f = m * oscillates + (1 - m) * f. Frozen weights keep theirs.

  Args:
    momentum: m, the weight of this step in both averages.
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
  """Returns the history with weights that oscillate more often than `threshold` frozen for good.

  They keep the integer nearest to the average of those they had (section 4.3, algorithm 1).
  """
  frozen = history.frozen | (history.frequency > threshold)
  nearest = tf.cast(tf.round(history.average), tf.int8)
  kept = tf.where(frozen & ~history.frozen, nearest, history.integers)
  return history._replace(integers=kept, frozen=frozen)


def dampening(weight: tf.Tensor, scale: tf.Tensor, low: tf.Tensor, high: tf.Tensor,
              out_axes: tuple[int, ...]) -> tf.Tensor:
  """Returns the scalar that pulls weights to the middle of their bins (section 4.2, eq. 5).

    sum over output channels, mean over all else, of (scale * round(w / scale) - clip(w, low, high))^2

  The target has no gradient, so that it is 2 (clip(w) - scale * integer) inside the grid and 0 outside.
  The paper's weight of 0.1 belongs to this way of summing.

  Args:
    weight: float, batch norm folded into it.
    scale, low, high: step and ends of its grid, to broadcast over it.
    out_axes: its output channels.
  """
  clipped = tf.clip_by_value(weight, low, high)
  target = tf.stop_gradient(tf.round(clipped / scale) * scale)
  return tf.reduce_mean(tf.reduce_sum(tf.square(target - clipped), out_axes))


def cosine(progress: float, first: float, last: float, *, begin: float = 0.25) -> float:
  """Returns a schedule's value: `first` up to `begin`, then a half cosine to `last`.

  last + (first - last) (1 + cos(pi r)) / 2, with r from 0 to 1 over the rest.

  Args:
    progress: part of the training that is over, 0..1.
  """
  ratio = min(max((progress - begin) / (1 - begin), 0.0), 1.0)
  return last + 0.5 * (first - last) * (1 + math.cos(math.pi * ratio))
