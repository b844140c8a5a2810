"""Keras metrics of oscillating weights: for `compile`, for TensorBoard, or by themselves."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kquant.qat.oscillation import History
from kquant.qmodel.quantize_weights import QuantizeWeights

COUNTED = 0.005
"""Frequency above which a weight counts as oscillating: that of Nagel et al. 2022."""


def history_of(layer: QuantizeWeights, name: str) -> History:
  """Returns the history of the integers of a layer's weight.

  Args:
    layer: followed by `TrackOscillations`.
    name: of the weight, as an attribute of the wrapped layer.
  """
  variables = layer.histories[name]
  return History(*(variables[field].value() for field in History._fields))


def fraction(layers: Iterable[QuantizeWeights], field: str, counted: float = COUNTED) -> tf.Tensor:
  """Returns the fraction of all followed weights that are frozen, or that oscillate and are not frozen.

  Args:
    layers: quantized layers.
    field: "frozen" or "oscillating".
    counted: frequency above which a weight counts as oscillating.

  Returns:
    A scalar, 0..1; NaN if no weight is followed.
  """
  histories = [history_of(layer, name) for layer in layers for name in layer.histories]
  masks = [h.frozen if field == "frozen" else ~h.frozen & (h.frequency > counted) for h in histories]
  count = sum((tf.math.count_nonzero(mask, dtype=tf.float32) for mask in masks), tf.constant(0.0))
  total = float(sum(mask.shape.num_elements() for mask in masks))
  return count / total if masks else tf.constant(float("nan"))


class _WeightFraction(keras.metrics.Metric):
  """A metric computed from a model's weights, not from its outputs.

  Its value is that after the last step of `TrackOscillations` or `FreezeOscillations`; before one of these
  callbacks has run it is NaN. A compiled model that is loaded has the metric without its model: it is NaN
  until `compile` is called with a new metric. For models with one output that are trained with labels; for
  others Keras copies the metric or leaves it out. There use the logs of the callback at the end of an epoch.
  """

  field = ""

  def __init__(self, model: keras.Model | None = None, *, counted: float = COUNTED, name: str | None = None,
               dtype=None):
    super().__init__(name=name or self.field, dtype=dtype)
    self.counted = counted
    self._find_layers = lambda: None if model is None else [  # in a lambda, or Keras would own the model
        module for module in (model, *model.submodules) if isinstance(module, QuantizeWeights)]

  def update_state(self, *_, **__) -> None:
    """Does nothing: outputs are not needed."""

  def reset_state(self) -> None:
    """Does nothing: the callback holds the state."""

  def result(self) -> tf.Tensor:
    """Returns the fraction, 0..1."""
    layers = self._find_layers()
    return tf.constant(float("nan")) if layers is None else fraction(layers, self.field, self.counted)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor but the model."""
    return {**super().get_config(), "counted": self.counted}


@keras.saving.register_keras_serializable("kquant")
class OscillatingFraction(_WeightFraction):
  """Fraction of the followed weights that oscillate more often than `counted` and are not frozen.

  Args:
    model: the model that is trained: what `insert_quantizers` returned, or a model around it. None: the value
      is NaN.
    counted: frequency above which a weight counts as oscillating.
    name, dtype: of the metric, as Keras takes them.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), "w4a8")
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse", metrics=[kq.OscillatingFraction(qmodel)])
    >>> history = qmodel.fit(images, images[:, :2], callbacks=[kq.TrackOscillations()], verbose=0)
    >>> history.history["oscillating"]
    [0.0]
  """

  field = "oscillating"


@keras.saving.register_keras_serializable("kquant")
class FrozenFraction(_WeightFraction):
  """Fraction of the followed weights that `FreezeOscillations` has frozen.

  Args:
    model: the model that is trained: what `insert_quantizers` returned, or a model around it. None: the value
      is NaN.
    counted: frequency that counts as oscillating; not used.
    name, dtype: of the metric, as Keras takes them.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), "w4a8")
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse", metrics=[kq.FrozenFraction(qmodel)])
    >>> history = qmodel.fit(images, images[:, :2], callbacks=[kq.FreezeOscillations()], verbose=0)
    >>> history.history["frozen"]
    [0.0]
  """

  field = "frozen"
