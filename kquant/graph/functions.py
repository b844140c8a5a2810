"""Functions of one element that Keras has no layer for. They are layers, so that a graph can hold them."""

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("kquant")
class ShiftedPower(keras.layers.Layer):
  """factor * (x + offset) ** exponent, for x of at least 0.

  Args:
    factor, offset, exponent: real numbers.
  """

  def __init__(self, *, factor: float = 1.0, offset: float = 0.0, exponent: float = 1.0, **kwargs):
    super().__init__(**kwargs)
    self.factor = factor
    self.offset = offset
    self.exponent = exponent

  def call(self, inputs):
    """Returns the function of each element."""
    return self.factor * tf.math.pow(inputs + self.offset, self.exponent)

  def compute_output_shape(self, input_shape):
    """Returns the input's shape."""
    return input_shape

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "factor": self.factor, "offset": self.offset, "exponent": self.exponent}
