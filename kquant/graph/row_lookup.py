"""The layer that looks up rows by whole numbers, those beyond the table as its first or last."""

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("kquant")
class RowLookup(keras.layers.Embedding):
  """An Embedding of the numbers from `first` on; lower ones have its first row, higher ones its last.

  Args:
    first: a whole number.
  """

  def __init__(self, input_dim: int, output_dim: int, *, first: int = 0, **kwargs):
    super().__init__(input_dim, output_dim, **kwargs)
    self.first = first

  def call(self, inputs):
    """Returns the rows."""
    return super().call(tf.clip_by_value(inputs, self.first, self.first + self.input_dim - 1) - self.first)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "first": self.first}
