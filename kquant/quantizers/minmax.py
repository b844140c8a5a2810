"""MinMaxQuantizer: the grid spans a range [min, max] that calibration sets."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.encodings import Encoding
from kquant.core.fake_quantization import GridTensors, affine_grid_tf, symmetric_grid_tf
from kquant.quantizers.base import Quantizer, Variables
from kquant.quantizers.straight_through import onto_grid


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

  def __call__(self, inputs: tf.Tensor, training, weights: Variables, *, on=None, **kwargs) -> tf.Tensor:
    """Returns the fake-quantized tensor; the gradient is 1 inside the range and 0 outside."""
    scale, zero_point = self._grid(weights["min"], weights["max"])
    return onto_grid(inputs, GridTensors(scale, zero_point, self.bits, self.narrow, self.axis), on=on)

  def initial_values(self, low, high) -> dict[str, np.ndarray]:
    """Returns {"min", "max"} as float32 [channels] or [1]."""
    return {"min": np.atleast_1d(np.asarray(low, np.float32)),
            "max": np.atleast_1d(np.asarray(high, np.float32))}

  def first_values(self, low: tf.Tensor, high: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns {"min", "max"}."""
    return {"min": low, "max": high}

  def encoding(self, variables: Variables) -> Encoding:
    """Returns the grid over [min, max], widened to hold 0."""
    grid = self._grid_over(variables["min"].numpy(), variables["max"].numpy())
    return Encoding(*grid, self.bits, self.axis, self.narrow)

  def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (scale, zero_point) over [min, max]."""
    return self._grid(variables["min"], variables["max"])

  def _grid(self, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if self.symmetric:
      scale = symmetric_grid_tf(tf.maximum(tf.abs(low), tf.abs(high)), self.bits)
      return scale, tf.zeros_like(scale)
    return affine_grid_tf(low, high, self.bits)
