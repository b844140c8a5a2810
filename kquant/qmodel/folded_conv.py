"""FoldedConv: a convolution (or dense layer) and its batch norm, quantized as the one layer they become."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.graph import keras_calls
from kquant.graph.kinds.table import LAYERS
from kquant.qmodel.quantize_weights import QuantizeWeights


@keras.saving.register_keras_serializable("kquant")
class FoldedConv(QuantizeWeights):
  """Quantizes the kernel that folding makes, while the batch norm goes on learning.

  With s = sqrt(moving_variance + epsilon), s_B the same of the batch, W_q = quantize(W gamma / s):

    training     y = conv(x, W_q) s / s_B + beta - gamma mean_B / s_B
    frozen       y = conv(x, W_q) + beta - gamma moving_mean / s        (also at inference)

  The integers follow the moving variance, not the noise of each batch; the factor s / s_B gives back the
  function of a batch norm (Krishnamoorthi 2018, section 3.2.2, eq. 20 to 22; Jacob et al. 2018, section
  3.2). Statistics of the batch need a second, float, convolution, which `frozen` saves: set it by
  `freeze_statistics` when they have settled. `finalize` puts a plain layer in its place, of the kernel
  and bias that inference computes with.

  Args:
    layer: linear layer without bias.
    quantize_config: says how its kernel is quantized.
    batch_norm: the BatchNormalization of its output channels, or its serialized form.
  """

  def __init__(self, layer, quantize_config, batch_norm, **kwargs):
    super().__init__(layer, quantize_config, **kwargs)
    self.batch_norm = keras.layers.deserialize(batch_norm) if isinstance(batch_norm, dict) else batch_norm

  def build(self, input_shape):
    """Builds the layer, the batch norm, the kernel's quantizer and the switch `frozen`."""
    self.frozen = self.add_weight(name="frozen", shape=(), dtype=tf.bool, trainable=False,
                                  initializer="zeros")
    self.batch_norm.build(self.layer.compute_output_shape(input_shape))
    super().build(input_shape)

  @tf.autograph.experimental.do_not_convert
  def call(self, inputs, training=None):
    """Returns the output of convolution and batch norm, quantized as the class says."""
    if self.passes_through:
      return self.float_call(inputs)
    kernel = self.simulated_weights(training)
    if not (training and self.trainable and self.batch_norm.trainable):
      outputs = keras_calls.call_with(self.layer, inputs, kernel) + self.folded_bias()
      return self.with_gradient(outputs, training)
    norm = self.batch_norm
    mean, variance = tf.cond(self.frozen, lambda: (norm.moving_mean.value(), norm.moving_variance.value()),
                             lambda: self._batch_statistics(inputs))
    deviation = tf.sqrt(variance + norm.epsilon)
    correction = tf.stop_gradient(tf.sqrt(norm.moving_variance + norm.epsilon)) / deviation
    gamma, beta = (1.0 if norm.gamma is None else norm.gamma), (0.0 if norm.beta is None else norm.beta)
    outputs = keras_calls.call_with(self.layer, inputs, kernel) * correction
    outputs = self.with_gradient(outputs + (beta - gamma * mean / deviation), training)
    for moving, value in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
      moving.assign_sub((moving - tf.stop_gradient(value)) * (1.0 - norm.momentum))
    return outputs

  def float_call(self, inputs, training=None):
    """Returns the output of the float layer and its batch norm at inference."""
    return self.batch_norm(self.layer(inputs), training=False)

  def folded_kernel(self) -> tf.Tensor:
    """Returns W gamma / s, float32; computed in float64, so that training and export agree."""
    kernel = tf.cast(getattr(self.layer, self._facts.kernel.name), tf.float64)
    shape = numerics.channel_shape(kernel.shape, self._facts.kernel.out_axes)
    return tf.cast(kernel * tf.reshape(self._folded_scale(), shape), tf.float32)

  def folded_bias(self) -> tf.Tensor:
    """Returns beta - gamma moving_mean / s, float32 [channels]."""
    norm = self.batch_norm
    shift = -tf.cast(norm.moving_mean, tf.float64) * self._folded_scale()
    return tf.cast(shift if norm.beta is None else tf.cast(norm.beta, tf.float64) + shift, tf.float32)

  def freeze_statistics(self) -> None:
    """Ends the learning of mean and variance: from now on training computes what inference does."""
    self.frozen.assign(True)

  def latent_weights(self) -> dict[str, tf.Tensor]:
    """Returns {attribute of the layer: folded kernel}."""
    return {self._facts.kernel.name: self.folded_kernel()}

  def plain_layer(self) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (config, {name: value}) of the layer with the batch norm folded into it."""
    config, params = super().plain_layer()
    return {**config, "use_bias": True}, {**params, "bias": self.folded_bias().numpy()}

  @property
  def trainable_weights(self) -> list[tf.Variable]:
    """Those of the wrapper, without what a frozen batch norm has."""
    frozen = {id(variable) for variable in self._frozen_variables()}
    return [variable for variable in super().trainable_weights if id(variable) not in frozen]

  @property
  def non_trainable_weights(self) -> list[tf.Variable]:
    """The others."""
    own = super().non_trainable_weights
    return [*own, *self._frozen_variables()] if self.trainable else own

  def _frozen_variables(self) -> list[tf.Variable]:
    """Variables of a batch norm that would learn if it were not frozen."""
    norm = self.batch_norm
    return [] if norm.trainable else [variable for variable in norm.weights if variable.trainable]

  def _own_variables(self) -> list[tf.Variable]:
    own = super()._own_variables()
    return [*own, *self.batch_norm.weights, self.frozen] if own else own

  @property
  def integers_settle(self) -> tf.Tensor:
    """Whether the statistics, and with them the folding, are frozen."""
    return self.frozen.value()

  @property
  def _facts(self):
    return LAYERS[type(self.layer).__name__]

  def _folded_scale(self) -> tf.Tensor:
    """gamma / s, float64 [channels]."""
    norm = self.batch_norm
    inverse = tf.math.rsqrt(tf.cast(norm.moving_variance, tf.float64) + norm.epsilon)
    return inverse if norm.gamma is None else tf.cast(norm.gamma, tf.float64) * inverse

  def _batch_statistics(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    outputs = self.layer(inputs)
    return tf.nn.moments(outputs, list(range(outputs.shape.rank - 1)))

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {**super().get_config(), "batch_norm": keras.layers.serialize(self.batch_norm)}
