"""XnorQuantizer: the weights of the any-precision paper, a tanh-normalized kernel times its mean magnitude."""

import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.quantizers.dorefa import DoReFaQuantizer

FLOAT_BITS = 32


@keras.saving.register_keras_serializable("kquant")
class XnorQuantizer(DoReFaQuantizer):
  """Weights of Any-Precision DNNs (Yu et al. 2021): DoReFa's integers, the magnitude of XNOR-Net.

    y = E (2 round(u M) / M - 1),  E = mean|w| without a gradient,  M = 2^bits - 1

  u is that of DoReFaQuantizer; mean and maximum are over the kernel, or over the channel with an axis.
  32 bits are the paper's float branch, y = E tanh(w) / max|tanh(w)|; it has no grid.
  """

  def __init__(self, *, bits: int = 8, **kwargs):
    super().__init__(bits=8 if bits == FLOAT_BITS else bits, **kwargs)
    self.bits = bits

  def _integers(self, kernel: tf.Tensor) -> tf.Tensor:
    if self.bits == FLOAT_BITS:
      return self._normalized(kernel)
    return super()._integers(kernel)

  def _least_squares(self, kernel: tf.Tensor, integers: tf.Tensor) -> tf.Tensor:
    mean = tf.reshape(tf.reduce_mean(tf.abs(kernel), self._taps(kernel)), [-1])
    return tf.maximum(mean / self._largest, numerics.SMALLEST_WEIGHT_SCALE)

  @property
  def _largest(self) -> int:
    return 1 if self.bits == FLOAT_BITS else super()._largest
