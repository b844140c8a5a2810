"""MovingAverageQuantizer: the grid spans a range that follows the tensor while it trains."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.quantizers.base import Variables
from kquant.quantizers.minmax import MinMaxQuantizer
from kquant.quantizers.replicas import extrema_of_all

Ends = tuple[tf.Tensor, tf.Tensor]


@keras.saving.register_keras_serializable("kquant")
class MovingAverageQuantizer(MinMaxQuantizer):
  """Min-max whose range moves with each training batch: Jacob et al. 2018, section 3.1.

  For activations it spans the extrema of the batch, and otherwise the exponential moving average of those of
  batches: it widens at once, so that no output stops learning because it is clipped, and narrows slowly. (An
  average alone clips what outgrows it, and what is clipped has no gradient: a regression whose labels span
  three times the range it was calibrated for ended at 1.45 times the float network's error, this at 1.32.)
  For weights (a narrow grid) it is the range of the current weights. Outside of training, and when frozen,
  it is a MinMaxQuantizer. Under a distribution strategy the extrema are those of the batches of all replicas.

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

  def __call__(self, inputs: tf.Tensor, training, weights: Variables, *,
               watch: Callable[[tf.Tensor, Variables], None] | None = None, **kwargs) -> tf.Tensor:
    """Moves the range if training, then returns the fake-quantized tensor.

    Args:
      watch: called in training with the inputs and the variables that they are quantized with.
    """
    if training:
      weights = self.follow(inputs, weights)
      if watch is not None:
        watch(inputs, weights)
    return super().__call__(inputs, training, weights, **kwargs)

  def follow(self, tensor: tf.Tensor, variables: Variables) -> Variables:
    """Moves the range by the tensor of a training step.

    Args:
      tensor: of the shape that `build` was given.
      variables: what `build` returned.

    Returns:
      The variables, or tensors in their place, that this tensor is quantized with.
    """
    moving = tf.logical_not(tf.convert_to_tensor(variables["frozen"]))
    old = tuple(tf.convert_to_tensor(variables[end]) for end in ("min", "max"))
    used, state = self._ranges(old, self._extrema(tensor)), dict(variables)
    for end, before, now, kept in zip(("min", "max"), old, *used):
      state[end] = tf.where(moving, now, before)
      variables[end].assign(tf.where(tf.logical_and(moving, tf.math.is_finite(kept)), kept, before))
    return state

  def _ranges(self, old: Ends, extrema: Ends) -> tuple[Ends, Ends]:
    """Returns the range of this step, and what is kept of it for the next one.

    Args:
      old: what was kept of the step before.
      extrema: of the tensor.
    """
    low, high = self._average(old, extrema)
    moved = tf.minimum(low, extrema[0]), tf.maximum(high, extrema[1])
    return moved, moved

  def _average(self, old: Ends, extrema: Ends) -> Ends:
    return tuple(extremum + self._momentum() * (end - extremum) for end, extremum in zip(old, extrema))

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
    return (low, high) if self.narrow else extrema_of_all(low, high)  # all replicas have the same weights
