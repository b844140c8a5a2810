"""InHindsightQuantizer: the range of a training step is known before its tensor exists."""

import tensorflow as tf
import tf_keras as keras

from kquant.quantizers.moving_average import Ends, MovingAverageQuantizer


@keras.saving.register_keras_serializable("kquant")
class InHindsightQuantizer(MovingAverageQuantizer):
  """Min-max whose range comes from the steps before: Fournarakis & Nagel 2021, arXiv 2105.04246.

  With the extrema m and M of the tensor of step t, and eta = momentum:

    y_t        quantized in [min_t, max_t]
    min_{t+1}  (1 - eta) m + eta min_t
    max_{t+1}  (1 - eta) M + eta max_t

  So hardware can quantize each value as it leaves the accumulator (static ranges); what lies beyond the range
  is saturated. As long as all that was seen is 0 the range is that of the tensor itself, as in the first
  step. Values that are not finite leave the range as it is. Outside of training, and when frozen, it is a
  MinMaxQuantizer.

  Args:
    momentum: eta; 0.9 keeps a tenth of each step.
  """

  def __init__(self, *, momentum: float = 0.9, **kwargs):
    super().__init__(momentum=momentum, **kwargs)

  def _ranges(self, old: Ends, extrema: Ends) -> tuple[Ends, Ends]:
    unseen = tf.logical_and(tf.equal(old[0], 0.0), tf.equal(old[1], 0.0))
    known = tuple(tf.where(unseen, extremum, end) for end, extremum in zip(old, extrema))
    return known, self._average(known, extrema)
