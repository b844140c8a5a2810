"""InputRange: what is known of a model's input where there are no images."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class InputRange:
  """Stands in the place of calibration data: every input of the model lies in [low, high].

  The ranges of all other tensors then follow from the batch norms, which remember the mean and the
  deviation of each channel on the training data.

  Attributes:
    low, high: real numbers as the model takes them, preprocessed: -1, 1 for Keras' "tf" images.

  Raises:
    ValueError: the ends are not finite, or low is not below high.

  Example:
    >>> layers = [keras.layers.Conv2D(4, 3, input_shape=(8, 8, 3)), keras.layers.BatchNormalization()]
    >>> result = kq.quantize(keras.Sequential(layers), kq.InputRange(-1, 1))
    >>> len(result.encodings.integers)  # of the kernel and the bias
    2
  """

  low: float
  high: float

  def __post_init__(self):
    if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
      raise ValueError(f"InputRange: expected finite low < high, got {self.low} and {self.high}; give the "
                       "smallest and the largest number of a preprocessed input.")
