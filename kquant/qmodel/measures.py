"""What a layer sums up about its ranges while it trains, for `kquant.QuantizedTraining`."""

from typing import NamedTuple

import tensorflow as tf

from kquant.quantizers.base import Variables


class Sums(NamedTuple):
  """Sums over training steps.

  Attributes:
    steps: how many.
    saturated: of the shares of values beyond the range, 0..1.
    drift: of |change of min| + |change of max|, each by the width of the range before.
    signal, noise: of the squared tensor and of its squared rounding error; 0 unless they are asked for.
  """

  steps: float
  saturated: float
  drift: float
  signal: float
  noise: float


class Measured:
  """Lets a layer sum up what becomes of the tensors that it quantizes.

  Attributes:
    measured: whether it does; such a layer adds its variable when it is built.
    measures: variable, float64 [5], the `Sums`; None until `measure` adds it.
    measures_noise: whether signal and noise are summed up.
  """

  measured = False
  measures: tf.Variable | None = None
  measures_noise = False

  def measure(self) -> None:
    """Adds the variable to a built layer, once."""
    self.measured = True
    if self.measures is None:
      self.measures = self.add_weight(name="measures", shape=(len(Sums._fields),), dtype=tf.float64,
                                      trainable=False, initializer="zeros")

  def sums(self) -> Sums:
    """Returns the sums so far, under a distribution strategy those of the first replica."""
    return Sums(*self.measures.numpy().tolist())

  def watch(self, variables: Variables):
    """Returns what a quantizer calls with (tensor, variables used, result=None); None where nobody asks.

    Args:
      variables: of the quantizer, before it moves its range.
    """
    if self.measures is None:
      return None
    before = [tf.identity(variables[end]) for end in ("min", "max")]

    def add(tensor: tf.Tensor, used: Variables, result: tf.Tensor | None = None) -> None:
      low, high = tf.minimum(used["min"], 0.0), tf.maximum(used["max"], 0.0)
      beyond = tf.logical_or(tensor < low, tensor > high)
      change = sum(tf.abs(variables[end] - old) for end, old in zip(("min", "max"), before))
      sums = [1.0, tf.reduce_mean(tf.cast(beyond, tf.float32)),
              tf.reduce_max(tf.math.divide_no_nan(change, before[1] - before[0])), 0.0, 0.0]
      if self.measures_noise and result is not None:
        sums[3:] = tf.reduce_sum(tf.square(tensor)), tf.reduce_sum(tf.square(result - tensor))
      self.measures.assign_add(tf.cast(tf.stack(sums), tf.float64))

    return add
