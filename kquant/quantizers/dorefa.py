"""DoReFaQuantizer: weights as odd integers of a tanh-normalized kernel."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.core.encodings import Encoding
from kquant.quantizers.base import Quantizer, Variables
from kquant.quantizers.straight_through import round_through


@keras.saving.register_keras_serializable("kquant")
class DoReFaQuantizer(Quantizer):
  """Weights of DoReFa-Net: Zhou et al. 2016, eq. 9, with the magnitude of its eq. 8 for every width.

    u = tanh(w) / (2 max|tanh(w)|) + 1/2,  q = 2 round(u M) - M,  y = scale * q,  M = 2^bits - 1

  The integers q are odd, from -M to M, without 0: 1 bit is {-1, 1}, 2 bits {-3, -1, 1, 3}. A file
  stores them as integers of bits + 1 bits, up to 7 bits in int8; 8 bits are for simulation only. The
  gradient of the rounding is a straight-through estimator; tanh and the maximum (over the channel, or over
  the kernel without axis) are differentiated.

  The scale is the least-squares one, sum(w q) / sum(q^2), per-channel or per-tensor, so that a kernel keeps
  its magnitude. For 1 bit it is the paper's E|w|. In training it is computed from the kernel in every step,
  without a gradient.
  """

  def __init__(self, *, bits: int = 8, symmetric: bool = True, narrow: bool = True, axis=None):
    super().__init__(bits=bits, symmetric=symmetric, narrow=narrow, axis=axis)
    if not (1 <= bits <= 8 and symmetric and narrow):
      raise ValueError(f"{type(self).__name__}: quantizes weights, symmetric and narrow, of 1 to 8 bits; got "
                       f"bits={bits}, symmetric={symmetric}, narrow={narrow}. Use another for activations.")

  def build(self, tensor_shape, name: str, layer: keras.layers.Layer) -> Variables:
    """Adds `<name>_scale` to the layer."""
    return {"scale": layer.add_weight(
        name=f"{name}_scale", shape=(self._channels(tensor_shape),), dtype=tf.float32, trainable=False,
        initializer="ones", synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN)}

  def __call__(self, inputs: tf.Tensor, training, weights: Variables, *, on=None, **kwargs) -> tf.Tensor:
    """Returns scale * q; in training the scale is that of the inputs, and is kept."""
    integers = self._integers(inputs)
    scale = tf.convert_to_tensor(weights["scale"])
    if training:
      scale = self._least_squares(tf.stop_gradient(inputs), tf.stop_gradient(integers))
      weights["scale"].assign(scale)
    y = tf.cast(integers * self._along(tf.cast(scale, tf.float64), inputs), inputs.dtype)
    return y if on is None else tf.where(on, y, inputs)

  def initial_values(self, low, high) -> dict[str, Any]:
    """Returns the scale that puts the larger end on the largest integer, float32 [channels] or [1]."""
    low, high = (np.atleast_1d(np.asarray(end, np.float64)) for end in (low, high))
    scale = np.maximum(np.abs(low), np.abs(high)) / self._largest
    return {"scale": np.maximum(scale, numerics.SMALLEST_WEIGHT_SCALE).astype(np.float32)}

  def values_of(self, kernel) -> dict[str, Any]:
    """Returns the least-squares scale of a kernel: no range decides it."""
    kernel = tf.constant(kernel)
    return {"scale": self._least_squares(kernel, self._integers(kernel)).numpy()}

  def transform(self, kernel, variables: Variables) -> np.ndarray:
    """Returns the kernel on its grid."""
    return self(tf.constant(kernel), False, variables).numpy()

  def encoding(self, variables: Variables) -> Encoding:
    """Returns the grid that holds the odd integers: one bit wider."""
    scale = variables["scale"].numpy()
    return Encoding(scale, np.zeros(scale.shape, np.int64), self.bits + 1, self.axis, narrow=True)

  @property
  def _largest(self) -> int:
    return 2 ** self.bits - 1

  def _integers(self, kernel: tf.Tensor) -> tf.Tensor:
    """Returns q, float64, shaped like the kernel."""
    unit = self._normalized(kernel) / 2 + 0.5
    return 2 * round_through(unit * self._largest) - self._largest

  def _normalized(self, kernel: tf.Tensor) -> tf.Tensor:
    """Returns tanh(w) / max|tanh(w)|, float64 of -1 to 1."""
    bent = tf.tanh(tf.cast(kernel, tf.float64))
    return bent / tf.maximum(tf.reduce_max(tf.abs(bent), self._taps(kernel), keepdims=True), 1e-30)

  def _least_squares(self, kernel: tf.Tensor, integers: tf.Tensor) -> tf.Tensor:
    """Returns sum(w q) / sum(q^2), float32 [channels]."""
    sums = [tf.reshape(tf.reduce_sum(tf.cast(a, tf.float64) * integers, self._taps(kernel)), [-1])
            for a in (kernel, integers)]
    return tf.cast(tf.maximum(sums[0] / sums[1], numerics.SMALLEST_WEIGHT_SCALE), tf.float32)

  def _taps(self, kernel: tf.Tensor) -> list[int]:
    return [i for i in range(kernel.shape.rank) if i not in (self.axis or ())]

  def _along(self, values: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.reshape(values, numerics.channel_shape(kernel.shape, self.axis))
