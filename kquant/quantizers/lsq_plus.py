"""LSQPlusQuantizer: the step and the zero point of the grid are learned."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.quantizers.base import Variables
from kquant.quantizers.lsq import LSQQuantizer
from kquant.quantizers.straight_through import round_through, scale_gradient


@keras.saving.register_keras_serializable("kquant")
class LSQPlusQuantizer(LSQQuantizer):
  """LSQ with a learned offset: Bhalgat et al. 2020, eq. 3 to 5.

  The paper's offset beta is any real number. An integer runtime needs -scale * zero_point with an integer
  zero point, and 0 on the grid (padding is 0). So the zero point is trained,

    zero_point = round(z_0 + (2^bits - 1) * shift), clipped to the grid's integers,

  with the zero point z_0 of the range, and a straight-through estimator for the rounding. shift is a fraction
  of the grid's width. Its gradient has the paper's g; like that of log_step it is scaled so that, to first
  order, plain SGD changes the offset as if the offset itself were trained. A symmetric grid has no offset:
  there it is LSQ.
  """

  def build(self, tensor_shape, name: str, layer: keras.layers.Layer) -> Variables:
    """Adds what LSQ adds and, if not symmetric, `<name>_shift`, trainable."""
    variables = super().build(tensor_shape, name, layer)
    if not self.symmetric:
      variables["shift"] = layer.add_weight(name=f"{name}_shift", shape=variables["start"].shape,
                                            dtype=tf.float32, initializer="zeros")
    return variables

  def initial_values(self, low, high) -> dict[str, Any]:
    """Returns what LSQ does; shift is 0."""
    values = super().initial_values(low, high)
    return values if self.symmetric else {**values, "shift": np.zeros_like(values["start"])}

  def _trained_grid(self, variables: Variables, gradient_scale=1.0) -> tuple[tf.Tensor, tf.Tensor]:
    scale, zero_point = super()._trained_grid(variables, gradient_scale)
    if self.symmetric:
      return scale, zero_point
    qmin, qmax = numerics.grid_limits(self.bits, narrow=self.narrow)
    factor = gradient_scale / tf.reduce_mean(tf.square(scale * (qmax - qmin)))
    shift = scale_gradient(tf.convert_to_tensor(variables["shift"]), tf.stop_gradient(factor))
    moved = round_through(zero_point + (qmax - qmin) * shift)
    return scale, moved + tf.stop_gradient(tf.clip_by_value(moved, qmin, qmax) - moved)
