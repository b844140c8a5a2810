"""NestedQuantizer: weights whose codes of every width are shifted from one code of 8 bits."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core import nested_codes, numerics
from kquant.core.encodings import Encoding
from kquant.quantizers.base import Variables
from kquant.quantizers.dorefa import DoReFaQuantizer
from kquant.quantizers.straight_through import with_gradient_of


@keras.saving.register_keras_serializable("kquant")
class NestedQuantizer(DoReFaQuantizer):
  """Any-precision weights (Yu et al. 2021) whose narrower codes are shifted: `kquant.core.nested_codes`.

    v = tanh(w) / max|tanh(w)|,  c = (round(119 v) + 128) >> (8 - bits),  y = scale (2 c + 1 - 2^bits)

  The paper rounds u anew at each width, so that dropping bits of its 8-bit code changes some of the others.
  Here the 8-bit code decides them all; at 4 bits it is rounded. The gradient passes the rounding and the
  shift; tanh and the maximum are differentiated.

  The scale is sum|w q| / sum(q^2) over the channel: the least-squares scale where w and q have one sign. It
  is computed from the kernel in every training step, without a gradient.
  """

  def encoding(self, variables: Variables) -> Encoding:
    """Returns the narrow grid that holds the integers: of 4 bits up to 4, of 6 to 8 above."""
    scale = variables["scale"].numpy()
    return Encoding(scale, np.zeros(scale.shape, np.int64), nested_codes.grid_bits(self.bits), self.axis,
                    narrow=True)

  def codes(self, kernel: np.ndarray) -> np.ndarray:
    """Returns the codes of 8 bits of a kernel, uint8, from which those of this width are shifted.

    Args:
      kernel: float32.
    """
    return nested_codes.codes_of(_eight_bits(self._normalized(tf.constant(kernel))).numpy())

  @property
  def _largest(self) -> int:
    return nested_codes.largest_integer(self.bits)

  def _integers(self, kernel: tf.Tensor) -> tf.Tensor:
    normalized = self._normalized(kernel)
    factor, offset = nested_codes.factor_and_offset(self.bits)
    codes = _eight_bits(normalized) + (nested_codes.CENTRE + nested_codes.half_step(self.bits))
    codes = tf.floor(codes / 2 ** (nested_codes.CODE_BITS - self.bits))
    return with_gradient_of(factor * codes - offset,
                            normalized * (nested_codes.LARGEST / nested_codes.steps(self.bits)))

  def _least_squares(self, kernel: tf.Tensor, integers: tf.Tensor) -> tf.Tensor:
    products, squares = (tf.reshape(tf.reduce_sum(a, self._taps(kernel)), [-1]) for a in (
        tf.abs(tf.cast(kernel, tf.float64) * integers), tf.square(integers)))
    scale = tf.maximum(products / tf.maximum(squares, 1.0), numerics.SMALLEST_WEIGHT_SCALE)
    return tf.cast(scale, tf.float32)


def _eight_bits(normalized: tf.Tensor) -> tf.Tensor:
  """Returns the integers of 8 bits of a kernel of -1 to 1, float64."""
  return tf.round(nested_codes.LARGEST * normalized)
