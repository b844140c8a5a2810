"""XnorQuantizer: the weights of the any-precision paper, tanh-normalized kernels times mean magnitudes."""

import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.quantizers.dorefa import DoReFaQuantizer

FLOAT_BITS = 32
"""The width of float weights."""


@keras.saving.register_keras_serializable("kquant")
class XnorQuantizer(DoReFaQuantizer):
  """Weights of Any-Precision DNNs (Yu et al. 2021): DoReFa's integers, the magnitude of XNOR-Net.

    y = E (2 round(u M) / M - 1),  E = mean|w| without a gradient,  M = 2^bits - 1

  u is that of DoReFaQuantizer; mean and maximum are over the whole kernel. With an axis each channel has the
  same scale of its own, so that a batch norm behind can be absorbed into it. 32 bits are the paper's float
  branch, y = E tanh(w) / max|tanh(w)|; it has no grid.
  """

  def __init__(self, *, bits: int = 8, **kwargs):
    super().__init__(bits=8 if bits == FLOAT_BITS else bits, **kwargs)
    self.bits = bits

  def _integers(self, kernel: tf.Tensor) -> tf.Tensor:
    if self.bits == FLOAT_BITS:
      return self._normalized(kernel)
    return super()._integers(kernel)

  def _least_squares(self, kernel: tf.Tensor, integers: tf.Tensor) -> tf.Tensor:
    scale = tf.maximum(tf.reduce_mean(tf.abs(kernel)) / self._largest, numerics.SMALLEST_WEIGHT_SCALE)
    return tf.fill([self._channels(kernel.shape)], scale)

  def _taps(self, kernel: tf.Tensor) -> list[int]:
    return list(range(kernel.shape.rank))

  @property
  def _largest(self) -> int:
    return 1 if self.bits == FLOAT_BITS else super()._largest
