"""CurrentMinMaxQuantizer: the range of a training step is that of its own tensor."""

import tf_keras as keras

from kquant.quantizers.in_hindsight import InHindsightQuantizer
from kquant.quantizers.moving_average import Ends


@keras.saving.register_keras_serializable("kquant")
class CurrentMinMaxQuantizer(InHindsightQuantizer):
  """Min-max over the tensor that is quantized (dynamic ranges): what Fournarakis & Nagel 2021 compare with.

  Nothing saturates in training, but the whole tensor must be there before its first value is quantized. The
  average of `InHindsightQuantizer` is kept beside it: the grid outside of training, and that of the file.

  Args:
    momentum: of this average.
  """

  def _ranges(self, old: Ends, extrema: Ends) -> tuple[Ends, Ends]:
    _, kept = super()._ranges(old, extrema)
    return extrema, kept
