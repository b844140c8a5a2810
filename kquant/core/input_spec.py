"""InputSpec: what one input of a model takes."""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class InputSpec:
  """One input of a model.

  Attributes:
    name: of the Keras input.
    shape: without the batch; None where a size is free.
    dtype: of the values that the model takes.
    rows: of the table that its values, whole numbers, are looked up in; None for other values.
    key: under which the model takes it in a dict, where that is not its name; "" otherwise.
  """

  name: str
  shape: tuple[int | None, ...]
  dtype: str = "float32"
  rows: int | None = None
  key: str = ""

  @property
  def batch(self) -> tf.TensorSpec:
    """A batch of any size of it, as functions are traced for."""
    return tf.TensorSpec((None, *self.shape), self.dtype)
