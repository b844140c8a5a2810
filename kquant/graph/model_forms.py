"""Models in whatever form a user has them, as functional tf_keras models."""

from typing import Any

import tensorflow as tf

from kquant.graph.keras_tracing import needs_tracing, traced
from kquant.graph.readers.keras3 import from_keras3, is_keras3


def as_tf_keras(model: Any) -> Any:
  """Returns the functional tf_keras model of a Keras 3 model, and of one with layers of the user's own.

  Anything else as it is; see `from_keras3` and `keras_tracing.traced`, also for what they raise.
  """
  if not tf.executing_eagerly():
    raise RuntimeError("kquant computes values, which needs eager execution; leave out "
                       "tf.compat.v1.disable_eager_execution(), and call kquant outside of tf.function.")
  if is_keras3(model):
    return from_keras3(model)
  return traced(model) if needs_tracing(model) else model
