"""LSQQuantizer: the step of the grid is learned."""

import math
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
class LSQQuantizer(Quantizer):
  """Learned step size quantization: Esser et al. 2020, eq. 1 to 5 and section 2.2.

  The step (scale) of each grid is trained with the network, by the gradients of
  `straight_through.onto_grid`. The zero point stays where the range put it.

  The step is trained in the log domain, scale = start * exp(log_step); `start` is what `set_range` set. So it
  stays positive, a step of Adam changes it by the same fraction in every layer, and an untrained model has
  exactly the grids of a MinMaxQuantizer.

  The gradient of log_step is g * dL/dscale * scale / mean(scale^2) over the channels, with the paper's
  g = 1 / sqrt(N * p). To first order, plain SGD then changes a tensor's scale as if the scale itself were
  trained, and a dead channel, whose scale is nearly 0, cannot dominate. N is the number of elements that
  share a step (of activations, those of one sample), p the last integer, or the number of steps of an
  asymmetric grid.

  Two bits of a narrow grid are ternary: {-1, 0, 1} times the scale.
  """

  def build(self, tensor_shape, name: str, layer: keras.layers.Layer) -> Variables:
    """Adds `<name>_log_step`, trainable, `<name>_start` and, if not symmetric, `<name>_zero_point`."""
    shape = (self._channels(tensor_shape),)
    variables = {"start": layer.add_weight(name=f"{name}_start", shape=shape, dtype=tf.float32,
                                           trainable=False, initializer="ones"),
                 "log_step": layer.add_weight(name=f"{name}_log_step", shape=shape, dtype=tf.float32,
                                              initializer="zeros")}
    if not self.symmetric:
      variables["zero_point"] = layer.add_weight(name=f"{name}_zero_point", shape=shape, dtype=tf.float32,
                                                 trainable=False, initializer="zeros")
    return variables

  def __call__(self, inputs: tf.Tensor, training, weights: Variables, *, on=None, **kwargs) -> tf.Tensor:
    """Returns the fake-quantized tensor."""
    scale, zero_point = self._trained_grid(weights, self._gradient_scale(inputs))
    return onto_grid(inputs, GridTensors(scale, zero_point, self.bits, self.narrow, self.axis), on=on)

  def initial_values(self, low, high) -> dict[str, Any]:
    """Returns the step and zero point over [low, high], as float32 [channels] or [1]; log_step is 0."""
    scale, zero_point = self._grid_over(low, high)
    values = {"start": scale, "log_step": np.zeros_like(scale)}
    return values if self.symmetric else {**values, "zero_point": zero_point.astype(np.float32)}

  def first_values(self, low: tf.Tensor, high: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the step and zero point over [low, high]; log_step, and what else is learned, stays 0."""
    scale, zero_point = self._grid_over_tf(low, high)
    return {"start": scale} if self.symmetric else {"start": scale, "zero_point": zero_point}

  def encoding(self, variables: Variables) -> Encoding:
    """Returns the grid of the trained step."""
    scale, zero_point = (value.numpy() for value in self._trained_grid(variables))
    return Encoding(scale, np.rint(zero_point).astype(np.int64), self.bits, self.axis, self.narrow)

  def grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (scale, zero_point) of the trained step."""
    return self._trained_grid(variables)

  def _trained_grid(self, variables: Variables, gradient_scale=1.0) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns float32 (scale, zero_point); gradients of the former are as the class says."""
    scale = _step(tf.convert_to_tensor(variables["start"]), tf.convert_to_tensor(variables["log_step"]),
                  tf.convert_to_tensor(gradient_scale))
    return scale, tf.zeros_like(scale) if self.symmetric else tf.identity(variables["zero_point"])

  def _gradient_scale(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns g = 1 / sqrt(N * p)."""
    qmin, qmax = numerics.grid_limits(self.bits, narrow=self.narrow)
    levels = qmax if self.symmetric else qmax - qmin
    shape = inputs.shape if self.narrow else inputs.shape[1:]
    if shape.is_fully_defined():
      return tf.constant(1 / math.sqrt(max(shape.num_elements() // self._channels(inputs.shape), 1) * levels))
    size = tf.size(inputs) / tf.maximum(tf.shape(inputs)[0], 1)
    return tf.cast(tf.math.rsqrt(tf.maximum(size, 1.0) * levels), tf.float32)


@tf.custom_gradient
def _step(start: tf.Tensor, log_step: tf.Tensor, gradient_scale: tf.Tensor):
  """Returns float32 start * exp(log_step), exactly start where log_step is 0."""
  scale = tf.cast(start, tf.float64) * tf.exp(tf.cast(log_step, tf.float64))
  scale = tf.cast(tf.maximum(scale, numerics.SMALLEST_WEIGHT_SCALE), tf.float32)

  def gradient(upstream):
    scaled = upstream * gradient_scale
    alone = scale.shape.num_elements() == 1
    return None, scaled / scale if alone else scaled * scale / tf.reduce_mean(tf.square(scale)), None

  return scale, gradient
