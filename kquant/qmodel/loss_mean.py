"""LossMean: the mean of a loss over an epoch."""

from typing import Any

import tf_keras as keras


class LossMean(keras.metrics.Mean):
  """The mean of a loss over the epoch at work, which no file holds.

  A model that has a `Mean` as an attribute writes it into .keras files, and reading it back fails under a
  strategy with several replicas: TensorFlow divides what it reads among them. Each epoch starts anew anyway.
  """

  def save_own_variables(self, store: Any) -> None:
    """Writes nothing."""

  def load_own_variables(self, store: Any) -> None:
    """Reads nothing; older files have a sum and a count."""
