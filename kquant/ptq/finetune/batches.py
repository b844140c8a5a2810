"""The batches that fine-tuning trains on: shuffled, shifted and mirrored by seed and epoch."""

import numpy as np
import tensorflow as tf


def packed(arrays: list[np.ndarray]):
  """One input by itself, several as a tuple: of a tuple alone Keras would take the second for labels."""
  return arrays[0] if len(arrays) == 1 else (tuple(arrays),)


def batches(inputs: list[np.ndarray], epochs: range, batch_size: int, seed: int,
            augment: bool) -> tf.data.Dataset:
  """Yields whole batches; order and shifts depend on the seed and the epoch, not on earlier epochs."""
  count = len(inputs[0])
  whole = count // batch_size * batch_size
  arrays = [tf.constant(x) for x in inputs]

  def order(epoch):
    seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
    places = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), seeds)[:whole]
    return tf.data.Dataset.from_tensor_slices((places, epoch * count + places))

  def sample(place, number):
    chosen = [tf.gather(x, place) for x in arrays]
    return packed([_shifted(x, tf.stack([tf.constant(seed, tf.int64), number])) for x in chosen]
                  if augment else chosen)

  epochs = tf.data.Dataset.range(epochs.start, epochs.stop)
  samples = epochs.flat_map(order).map(sample, num_parallel_calls=2, deterministic=True)
  return samples.batch(batch_size, drop_remainder=True).prefetch(1)


def can_augment(inputs: list[np.ndarray]) -> bool:
  """Whether there is one input and that is an image of 16 x 16 or more."""
  return len(inputs) == 1 and inputs[0].ndim == 4 and min(inputs[0].shape[1:3]) >= 16


def _shifted(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Returns an image [h, w, channels] shifted by up to an eighth, its borders reflected, or mirrored."""
  height, width, _ = shape = image.shape
  padded = tf.pad(image, [[height // 8] * 2, [width // 8] * 2, [0, 0]], "REFLECT")
  cropped = tf.image.stateless_random_crop(padded, shape, seed)
  return tf.image.stateless_random_flip_left_right(cropped, seed + 1)
