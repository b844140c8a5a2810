"""UnitQuantizer: activations of the any-precision paper, clipped to [0, 1]."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.encodings import Encoding
from kquant.quantizers.base import Quantizer, Variables
from kquant.quantizers.straight_through import round_through


@keras.saving.register_keras_serializable("kquant")
class UnitQuantizer(Quantizer):
  """y = round(clip(x, 0, 1) M) / M with M = 2^bits - 1 (Zhou et al. 2016, DoReFa, section 2.5).

  The gradient is 1 inside [0, 1] and 0 outside. It has no variables: no range decides its grid.
  """

  def build(self, tensor_shape, name: str, layer: keras.layers.Layer) -> Variables:
    """Adds nothing."""
    return {}

  def __call__(self, inputs: tf.Tensor, training, weights: Variables, *, on=None, **kwargs) -> tf.Tensor:
    """Returns the clipped and rounded tensor."""
    y = round_through(tf.clip_by_value(inputs, 0.0, 1.0) * self._steps) / self._steps
    return y if on is None else tf.where(on, y, inputs)

  def initial_values(self, low, high) -> dict[str, Any]:
    """Returns {}."""
    return {}

  def first_values(self, low: tf.Tensor, high: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns {}."""
    return {}

  def encoding(self, variables: Variables) -> Encoding:
    """Returns the grid of 2^bits numbers from 0 to 1."""
    return Encoding(np.float32(1 / self._steps), np.int64(-(2 ** (self.bits - 1))), self.bits)

  @property
  def _steps(self) -> int:
    return 2 ** self.bits - 1
