"""MinMaxQuantizer: the grid spans a range [min, max] that calibration sets."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.core.encodings import Encoding
from kquant.quantizers.base import Quantizer, Variables


@keras.saving.register_keras_serializable("kquant")
class MinMaxQuantizer(Quantizer):
  """Uniform grid over [min, max], held in two non-trainable variables of [channels] or [1].

  Jacob et al. 2018, eq. 1 and section 3. Integers of a symmetric grid are decided in float64, as
  `numerics.quantize` does, so that what is trained is what is exported.
  """

  def build(self, tensor_shape, name: str, layer: keras.layers.Layer) -> Variables:
    """Adds `<name>_min` and `<name>_max` to the layer."""
    shape = (self._channels(tensor_shape),)
    return {end: layer.add_weight(name=f"{name}_{end}", shape=shape, dtype=tf.float32, trainable=False,
                                  initializer="zeros") for end in ("min", "max")}

  def __call__(self, inputs: tf.Tensor, training, weights: Variables, **kwargs) -> tf.Tensor:
    """Returns the fake-quantized tensor; the gradient is 1 inside the range and 0 outside."""
    scale, zero_point = self._grid(weights["min"], weights["max"])
    qmin, qmax = numerics.grid_limits(self.bits, narrow=self.narrow)
    low = scale * (qmin - tf.cast(zero_point, tf.float32))
    high = scale * (qmax - tf.cast(zero_point, tf.float32))
    shape = self._broadcast_shape(inputs)
    scale, zero_point, low, high = (tf.reshape(v, shape) for v in (scale, zero_point, low, high))
    clipped = tf.clip_by_value(inputs, low, high)
    dtype = tf.float64 if self.narrow else tf.float32
    rounded = numerics.fake_quantize(inputs, scale, zero_point, bits=self.bits, narrow=self.narrow,
                                     dtype=dtype)
    return clipped + tf.stop_gradient(rounded - clipped)

  def set_range(self, variables: Variables, low, high) -> None:
    """Sets min and max, scalars or [channels]."""
    for name, value in self.initial_values(low, high).items():
      variables[name].assign(np.broadcast_to(value, variables[name].shape))

  def initial_values(self, low, high) -> dict[str, np.ndarray]:
    """Returns {"min", "max"} as float32 [channels] or [1]."""
    return {"min": np.atleast_1d(np.asarray(low, np.float32)),
            "max": np.atleast_1d(np.asarray(high, np.float32))}

  def encoding(self, variables: Variables) -> Encoding:
    """Returns the grid over [min, max], widened to hold 0."""
    low, high = variables["min"].numpy(), variables["max"].numpy()
    if self.symmetric:
      scale = numerics.symmetric_grid(np.maximum(np.abs(low), np.abs(high)), self.bits)
      return Encoding(scale, np.zeros(scale.shape, np.int64), self.bits, self.axis, self.narrow)
    return Encoding(*numerics.affine_grid(low, high, self.bits), self.bits, self.axis, self.narrow)

  def _grid(self, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if self.symmetric:
      scale = numerics.symmetric_grid_tf(tf.maximum(tf.abs(low), tf.abs(high)), self.bits)
      return scale, tf.zeros_like(scale)
    return numerics.affine_grid_tf(low, high, self.bits)

  def _broadcast_shape(self, inputs: tf.Tensor) -> list[int]:
    if self.axis is None:
      return []
    return [n if i in self.axis else 1 for i, n in enumerate(inputs.shape)]
