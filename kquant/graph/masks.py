"""Layers that compute masks, tensors of 0 and 1 where an element counts, and layers that choose by them."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

LOWEST = -1e9
"""What Keras adds to the scores of masked positions."""
MOST_EXACT = 255
"""Ones of a row that a grid of 8 bits counts exactly."""


@keras.saving.register_keras_serializable("kquant")
class IndexMask(keras.layers.Layer):
  """1 where an index is not 0."""

  def call(self, inputs):
    """Returns the mask of indices."""
    return tf.cast(tf.not_equal(inputs, 0), tf.float32)

  def compute_output_shape(self, input_shape):
    """Returns the input's shape."""
    return input_shape


@keras.saving.register_keras_serializable("kquant")
class DiffersFrom(keras.layers.Layer):
  """1 where an element is not `value`.

  Args:
    value: a real number.
  """

  def __init__(self, value: float = 0.0, **kwargs):
    super().__init__(**kwargs)
    self.value = value

  def call(self, inputs):
    """Returns the mask of elements."""
    return tf.cast(tf.not_equal(inputs, self.value), tf.float32)

  def compute_output_shape(self, input_shape):
    """Returns the input's shape."""
    return input_shape

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "value": self.value}


@keras.saving.register_keras_serializable("kquant")
class Select(keras.layers.Layer):
  """x where a mask is 1, else y or a number. Called with [mask, x, y] or [mask, x], which broadcast.

  With `condition_shape` the mask is a weight of that shape, not trained, and the layer is called with x.

  Args:
    otherwise: the number.
    room: how far below the other elements the number must lie on their grid.
    condition_shape: of a mask that is the same for every image; None: the mask is computed.
  """

  def __init__(self, otherwise: float = 0.0, *, room: float = 0.0,
               condition_shape: tuple[int, ...] | None = None, **kwargs):
    super().__init__(**kwargs)
    self.otherwise = otherwise
    self.room = room
    self.condition_shape = None if condition_shape is None else tuple(condition_shape)

  def build(self, input_shape):
    """Adds the mask that is a weight, at first without effect."""
    if self.condition_shape is not None:
      self.condition = self.add_weight(name="condition", shape=self.condition_shape, trainable=False,
                                       initializer="ones")
    super().build(input_shape)

  def call(self, inputs):
    """Returns what is chosen."""
    mask, x, *y = [self.condition, inputs] if self.condition_shape is not None else inputs
    return tf.where(mask > 0.5, x, y[0] if y else tf.cast(self.otherwise, x.dtype))

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "otherwise": self.otherwise, "room": self.room,
            "condition_shape": self.condition_shape}


@keras.saving.register_keras_serializable("kquant")
class PassMask(keras.layers.Layer):
  """Called with [mask, x]: passes x on, and beside it the mask as Keras does, for the loss."""

  def call(self, inputs):
    """Returns x."""
    return tf.identity(inputs[1])

  def compute_mask(self, inputs, mask=None):
    """Returns the mask as truth values."""
    return inputs[0] > 0.5


@keras.saving.register_keras_serializable("kquant")
class MaskShare(keras.layers.Layer):
  """The share of ones in each row of a mask: [batch, n] -> [batch, 1].

  Args:
    exact: its grid holds every number of ones up to 255, and stops there; else it reaches to 1.
  """

  def __init__(self, *, exact: bool = True, **kwargs):
    super().__init__(**kwargs)
    self.exact = exact

  def call(self, inputs):
    """Returns the shares."""
    return tf.reduce_mean(inputs, axis=-1, keepdims=True)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "exact": self.exact}


@keras.saving.register_keras_serializable("kquant")
class ShareFactor(keras.layers.Layer):
  """One of three factors whose product is 1 / n, of the share of n ones among `length`; of n = 0 as of n = 1.

  "weight" is 2^-k, 2^k the smallest power from n on, at most 128; "correction" is 2^k / n, of 255 from there
  on; "rest" is 255 / n from there on. A sum with these weights uses its grid whatever n is, and each factor
  keeps its 8 bits.

  Args:
    length: of the rows.
    part: "weight", "correction" or "rest".
  """

  def __init__(self, *, length: int, part: str, **kwargs):
    super().__init__(**kwargs)
    self.length = length
    self.part = part

  def call(self, inputs):
    """Returns the factor of each share."""
    n = tf.maximum(tf.round(inputs * self.length), 1.0)
    if self.part == "rest":
      return MOST_EXACT / tf.maximum(n, MOST_EXACT)
    weight = tf.ones_like(n)
    for k in range(1, 8):
      weight = tf.where(n > 2.0**(k - 1), 2.0**-k, weight)
    return weight if self.part == "weight" else 1 / (weight * tf.minimum(n, MOST_EXACT))

  def compute_output_shape(self, input_shape):
    """Returns the input's shape."""
    return input_shape

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "length": self.length, "part": self.part}
