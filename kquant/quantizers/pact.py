"""PACTQuantizer: the clipping level of an activation is learned."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.core.encodings import Encoding
from kquant.core.fake_quantization import GridTensors
from kquant.quantizers.base import Quantizer, Variables
from kquant.quantizers.straight_through import onto_grid


@keras.saving.register_keras_serializable("kquant")
class PACTQuantizer(Quantizer):
  """Parameterized clipping activation: Choi et al. 2018, eq. 1 to 3. For activations.

  Behind a ReLU, y = clip(x, 0, alpha) on a grid of scale alpha / (2^bits - 1); dy/dalpha is 1 where x > alpha
  and 0 elsewhere. Unlike that of LSQ's step, the gradient of alpha ignores the rounding. The paper has no
  other case. Here a tensor of both signs keeps the zero point of its range, so that alpha, the larger end,
  changes both ends in proportion. alpha starts at the end of the range.

  Args:
    decay: L2 penalty decay * sum(alpha^2), added to the model's loss; the paper gives alpha the weight
      decay of the weights.
  """

  def __init__(self, *, decay: float = 0.0, **kwargs):
    super().__init__(**kwargs)
    self.decay = float(decay)

  def build(self, tensor_shape, name: str, layer: keras.layers.Layer) -> Variables:
    """Adds `<name>_alpha`, trainable, and `<name>_zero_point`."""
    shape, regularizer = (self._channels(tensor_shape),), None
    if self.decay:
      regularizer = keras.regularizers.L2(self.decay)
    return {"alpha": layer.add_weight(name=f"{name}_alpha", shape=shape, dtype=tf.float32,
                                      initializer="ones", regularizer=regularizer),
            "zero_point": layer.add_weight(name=f"{name}_zero_point", shape=shape, dtype=tf.float32,
                                           trainable=False, initializer="zeros")}

  def __call__(self, inputs: tf.Tensor, training, weights: Variables, *, on=None, **kwargs) -> tf.Tensor:
    """Returns the clipped and fake-quantized tensor."""
    zero_point = tf.convert_to_tensor(weights["zero_point"])
    grid = GridTensors(self._scale(weights), zero_point, self.bits, self.narrow, self.axis)
    return onto_grid(inputs, grid, on=on, rounding_gradient=False)

  def initial_values(self, low, high) -> dict[str, Any]:
    """Returns alpha and the zero point over [low, high], as float32 [channels] or [1]."""
    scale, zero_point = self._grid_over(low, high)
    zero_point = zero_point.astype(np.float32)
    return {"alpha": (scale * self._steps(zero_point)).astype(np.float32), "zero_point": zero_point}

  def first_values(self, low: tf.Tensor, high: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns alpha and the zero point over [low, high]."""
    scale, zero_point = self._grid_over_tf(low, high)
    return {"alpha": scale * self._steps(zero_point), "zero_point": zero_point}

  def encoding(self, variables: Variables) -> Encoding:
    """Returns the grid that ends at alpha."""
    zero_point = np.rint(variables["zero_point"].numpy()).astype(np.int64)
    return Encoding(self._scale(variables).numpy(), zero_point, self.bits, self.axis, self.narrow)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "decay": self.decay}

  def _scale(self, variables: Variables) -> tf.Tensor:
    alpha, zero_point = (tf.convert_to_tensor(variables[name]) for name in ("alpha", "zero_point"))
    return tf.maximum(alpha / self._steps(zero_point), numerics.SMALLEST_WEIGHT_SCALE)

  def _steps(self, zero_point):
    """Steps from 0 to the larger end of the grid."""
    qmin, qmax = numerics.grid_limits(self.bits, narrow=self.narrow)
    return abs(zero_point - (qmax + qmin) / 2) + (qmax - qmin) / 2
