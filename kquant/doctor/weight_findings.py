"""What a float model's weights alone show to be wrong: values that are not finite, single outliers."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.doctor.results import Finding
from kquant.graph.keras_reader import named_variables, nested_layers

_OUTLIER = 10.0
"""The largest magnitude of a tensor over the second largest; at most 5 in the trained networks measured."""
_FEWEST_WEIGHTS = 16


def nonfinite_weights(model: keras.Model) -> list[Finding]:
  """Returns the weights of a built model that are not finite."""
  return [Finding("weights", name, f"{name!r} holds NaN or infinity.", "Train or load the model again.")
          for name, variable in _own_variables(model) if not np.isfinite(variable.numpy()).all()]


def outlier_weights(model: keras.Model) -> list[Finding]:
  """Returns the kernels and biases of a built model with one value far above all others, as one finding."""
  ratios = {}
  for name, variable in _own_variables(model):
    if name.endswith(("kernel", "bias")) and tf.size(variable) >= _FEWEST_WEIGHTS:
      magnitudes = np.abs(variable.numpy())
      second, largest = np.partition(magnitudes, -2, axis=None)[-2:]
      if 0 < _OUTLIER * second < largest:
        ratios[name] = largest / second, np.unravel_index(magnitudes.argmax(), magnitudes.shape)
  if not ratios:
    return []
  worst = max(ratios, key=lambda name: ratios[name][0])
  ratio, place = ratios[worst]
  more = f" {len(ratios) - 1} more of its tensors have one, too." if len(ratios) > 1 else ""
  return [Finding("outlier", worst, f"One value of {worst!r}, at {tuple(map(int, place))}, is {ratio:.0f} "
                  f"times as large as the second largest.{more}",
                  "The others have few steps of its grid: look whether training or the file is at fault.")]


def _own_variables(model: keras.Model) -> Iterator[tuple[str, tf.Variable]]:
  """Yields (layer/name, variable) of the floats of a model, each by the innermost layer that holds it."""
  owners = {}
  for layer in nested_layers(model):
    for name, variable in named_variables(layer):
      owners[variable.ref()] = f"{layer.name}/{name}", variable
  yield from (owner for owner in owners.values() if owner[1].dtype.is_floating)
