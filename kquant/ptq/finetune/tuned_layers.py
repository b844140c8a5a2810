"""The layers of a student whose grids learn: TunedLinear and TunedActivation.

Every trained variable counts in quantization steps, so that one learning rate fits all of them. A kernel
is held as V, in steps of its own scale: W = S round(V). This is QFT (Finkelstein et al. 2022) in the
coordinates (V, S) instead of (S V, S): the integers stay where they are while their scale learns. With
cross-layer factors m of the channels before and behind, W = S m_behind round(V / m_before): a factor of an
output channel moves its scale and bias, one of an input channel the integers that read it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.core.fake_quantization import GridTensors, affine_grid_tf, fake_quantize, symmetric_grid_tf
from kquant.graph import keras_calls
from kquant.graph.kinds.table import facts_of
from kquant.qmodel.quantize_activation import QuantizeActivation

DEGREES = ("weights", "biases", "weight_scales", "activation_ranges", "cross_layer_factors")
"""What can be trained."""
LARGEST_FACTOR = 16.0
"""No factor, of a scale or of a channel, goes beyond this, up or down."""


def round_steps(steps: tf.Tensor, qmax: int) -> tf.Tensor:
  """Returns round(steps) clipped to [-qmax, qmax]; straight through.

  Beyond the grid the gradient passes only where a step of descent leads back.
  """

  @tf.custom_gradient
  def rounded(v):
    def gradient(upstream):
      returns = upstream * v > 0
      return tf.where((tf.abs(v) <= qmax) | returns, upstream, tf.zeros_like(upstream))

    return tf.clip_by_value(tf.round(v), -float(qmax), float(qmax)), gradient

  return rounded(steps)


def fake_quantize_range(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor, *, bits: int,
                        symmetric: bool) -> tf.Tensor:
  """Returns x rounded to the grid over [low, high], with gradients for both ends.

  Inside the grid, with v = x / s and s = (high - low) / (qmax - qmin), dy/ds = round(v) - v (LSQ, Esser et
  al. 2020); beyond it dy/dlow or dy/dhigh is 1. The zero point follows from the range, straight through.

  Args:
    x: any shape.
    low, high: scalars, low <= 0 <= high.
    bits: of the full signed grid.
    symmetric: the zero point is 0 and the lowest integer is used too.
  """
  qmin, qmax = numerics.grid_limits(bits, narrow=False)

  @tf.custom_gradient
  def quantized(x, low, high):
    if symmetric:
      scale, zero_point = symmetric_grid_tf(tf.maximum(-low, high), bits), 0.0
    else:
      scale, zero_point = affine_grid_tf(low, high, bits)
    zero_point = tf.cast(zero_point, tf.float32)
    y = fake_quantize(x, GridTensors(scale, zero_point, bits))

    def gradient(upstream):
      below, above = x < scale * (qmin - zero_point), x > scale * (qmax - zero_point)
      inside = tf.where(below | above, tf.zeros_like(upstream), upstream)
      of_step = tf.reduce_sum(inside * (y - x)) / (scale * float(qmax - qmin))
      of_low = tf.reduce_sum(tf.where(below, upstream, tf.zeros_like(upstream)))
      of_high = tf.reduce_sum(tf.where(above, upstream, tf.zeros_like(upstream)))
      return inside, of_low - of_step, of_high + of_step

    return y, gradient

  return quantized(x, low, high)


def bounded_factor(steps: tf.Tensor, levels: int) -> tf.Tensor:
  """Returns exp(steps / levels), clamped: a change of the scale that moves the grid's end by `steps`."""
  bound = math.log(LARGEST_FACTOR) * levels
  return tf.exp(tf.clip_by_value(steps, -bound, bound) / levels)


@keras.saving.register_keras_serializable("kquant")
class TunedLinear(keras.layers.Wrapper):
  """Runs a linear layer with the kernel S round(V) and the bias b + u B.

  `kernel_steps` is V; `scale_steps` and `bias_steps`, B, start at 0: S = kernel_scale exp(scale_steps /
  qmax), [channels] or [1]. `bias_unit` u is what one step of a weight adds to the output where its input
  is at the end of its grid. The variables of the layer itself are left alone. `scale_channels` adds
  cross-layer factors.

  Args:
    layer: the layer, with a bias.
    attribute: the name of its kernel.
    bits: of the narrow signed grid of the kernel.
    axis: channel axes of the kernel, None for one scale.
    learns: those of "weights", "biases", "weight_scales" that are trained.
  """

  def __init__(self, layer, *, attribute: str = "kernel", bits: int = 8, axis: Sequence[int] | None = None,
               learns: Sequence[str] = DEGREES, **kwargs):
    super().__init__(layer, **{"name": layer.name, **kwargs})
    self.attribute, self.bits, self.learns = attribute, bits, tuple(learns)
    self.axis = None if axis is None else tuple(axis)
    self.factors: keras.layers.Layer | None = None
    self._of_scale = self._of_steps = self._behind = None

  def build(self, input_shape):
    """Builds the layer, and what is learnt beside its kernel."""
    super().build(input_shape)
    kernel, bias = getattr(self.layer, self.attribute), self.layer.bias
    self._shape = numerics.channel_shape(kernel.shape, self.axis)
    scales = (tf.TensorShape(self._shape).num_elements(),)
    self.layer.trainable = False
    self.kernel_steps = self.add_weight("kernel_steps", kernel.shape, initializer="zeros",
                                        trainable="weights" in self.learns)
    self.kernel_scale = self.add_weight("kernel_scale", scales, trainable=False, initializer="ones")
    self.bias_unit = self.add_weight("bias_unit", bias.shape, trainable=False, initializer="ones")
    self.scale_steps = self.add_weight("scale_steps", scales, initializer="zeros",
                                       trainable="weight_scales" in self.learns)
    self.bias_steps = self.add_weight("bias_steps", bias.shape, initializer="zeros",
                                      trainable="biases" in self.learns)

  def scale_channels(self, factors: keras.layers.Layer, before: np.ndarray, behind: np.ndarray) -> None:
    """Has the channels scaled by factors that layers share; `get_config` leaves them out.

    Args:
      factors: a `kquant.ptq.finetune.cross_layer.CrossLayerFactors`.
      before, behind: numbers of the factors of the input channels and of the output channels.
    """
    kernel = facts_of(type(self.layer).__name__).kernel
    shape, (in_axis, *_) = getattr(self.layer, self.attribute).shape, kernel.in_axes
    self.factors, self._behind = factors, behind
    up, down = numerics.along(behind, shape, kernel.out_axes), numerics.along_inputs(before, shape, in_axis)
    if self.axis is None:
      self._of_scale, self._of_steps = None, (up, down)
    elif in_axis in kernel.out_axes:  # depthwise: both are factors of an output channel
      self._of_scale, self._of_steps = (behind, np.repeat(before, len(behind) // len(before))), None
    else:
      self._of_scale, self._of_steps = (behind, np.zeros_like(behind)), (np.zeros_like(down), down)

  def _scaled(self, values: tf.Tensor, numbers: tuple[np.ndarray, np.ndarray] | None) -> tf.Tensor:
    """Returns values times the factors of the first numbers over those of the second."""
    if self.factors is None or numbers is None:
      return values
    up, down = (tf.gather(self.factors.values(), which) for which in numbers)
    return values * up / down

  def integers(self) -> tf.Tensor:
    """Returns the kernel's integers, float32."""
    return round_steps(self._scaled(tf.convert_to_tensor(self.kernel_steps), self._of_steps), self._qmax)

  def scale(self) -> tf.Tensor:
    """Returns the kernel's scale, [channels] or [1]."""
    return self._scaled(self.kernel_scale * bounded_factor(self.scale_steps, self._qmax), self._of_scale)

  def bias(self) -> tf.Tensor:
    """Returns the bias, [channels]."""
    bias = self.layer.bias + self.bias_unit * self.bias_steps
    return bias if self.factors is None else bias * tf.gather(self.factors.values(), self._behind)

  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=None):
    """Returns the layer's output with the kernel and the bias as they are now."""
    kernel = tf.reshape(self.scale(), self._shape) * self.integers()
    return keras_calls.call_with(self.layer, inputs, {self.attribute: kernel, "bias": self.bias()})

  @property
  def _qmax(self) -> int:
    return numerics.grid_limits(self.bits, narrow=True)[1]

  def compute_output_shape(self, input_shape):
    """Returns the layer's output shape."""
    return self.layer.compute_output_shape(input_shape)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "attribute": self.attribute, "bits": self.bits, "axis": self.axis,
            "learns": self.learns}


@keras.saving.register_keras_serializable("kquant")
class TunedActivation(QuantizeActivation):
  """A QuantizeActivation whose range [low, high] learns: each end by a factor of its own.

  `range_ends` holds the range at the start; `range_steps` the steps by which its ends moved. Both factors
  are positive, so that real 0 stays within. One whose quantizer is symmetric has one factor.

  Args:
    learns: whether the range is trained; a grid that the runtime fixes never is.
  """

  def __init__(self, quantizer, *, learns: bool = True, **kwargs):
    super().__init__(quantizer, **kwargs)
    self.learns = learns and self.fixed is None

  def build(self, input_shape):
    """Adds what is learnt."""
    super().build(input_shape)
    ends = 1 if self.quantizer.symmetric else 2
    self.range_ends = self.add_weight("range_ends", (2,), trainable=False, initializer="zeros")
    self.range_steps = self.add_weight("range_steps", (ends,), trainable=self.learns, initializer="zeros")

  def limits(self) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (low, high) of the range."""
    ends = self.range_ends * bounded_factor(self.range_steps, 2**self.quantizer.bits - 1)
    return ends[0], ends[1]

  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=None, observe=True):
    """Returns the fake-quantized inputs."""
    return fake_quantize_range(inputs, *self.limits(), bits=self.quantizer.bits,
                               symmetric=self.quantizer.symmetric)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "learns": self.learns}
