"""Noise for stochastic rounding: a part of one table of random numbers, at a random place."""

import functools

import numpy as np
import tensorflow as tf

_SIZE = 2**20
_PLACES = _SIZE // 2
_ALIGNED = 16  # floats: a part that starts there needs no copy


def noise(count: tf.Tensor, seed: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
  """Returns `count` numbers from -1/2 to 1/2.

  The seed says where in the table they start. Over seeds each of them is even: the table holds each of 2^20
  equally spaced numbers once. Beyond 2^19 numbers the table is repeated. (To draw the numbers in each step
  took longer than all else that quantizes a gradient.)

  Args:
    count: a scalar.
    seed: int64 [2].
    table: what `noise_table` returned.

  >>> seeds = (tf.constant([7, step], tf.int64) for step in (0, 1))
  >>> first, second = (noise(tf.constant(5), seed, noise_table()) for seed in seeds)
  >>> first.shape, bool(tf.reduce_any(first == second))
  (TensorShape([5]), False)
  """
  place = tf.random.stateless_uniform([], seed, 0, _PLACES // _ALIGNED, tf.int32) * _ALIGNED

  def repeated() -> tf.Tensor:
    return tf.slice(tf.tile(table, [(count + _PLACES) // _SIZE + 1]), [place], [count])

  return tf.cond(count <= _SIZE - _PLACES, lambda: tf.slice(table, [place], [count]), repeated)


@functools.cache
def noise_table() -> tf.Tensor:
  """Returns each of 2^20 equally spaced numbers from -1/2 to 1/2 once, in random order."""
  with tf.init_scope():
    numbers = (np.random.default_rng(0).permutation(_SIZE) + 0.5) / _SIZE - 0.5
    return tf.constant(numbers.astype(np.float32))
