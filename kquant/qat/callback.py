"""The base class of kquant's training callbacks: the step, the progress, the quantized layers."""

import tf_keras as keras

from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights


def quantized_model(model: keras.Model) -> keras.Model:
  """Returns the quantized model that is trained: the student of a DistillationModel, or the model itself."""
  return getattr(model, "student", model)


def quantized_models(model: keras.Model) -> list[keras.Model]:
  """Returns the models that are trained: those of all widths of an AnyPrecisionModel, or the one."""
  return getattr(model, "width_models", [quantized_model(model)])


class TrainingCallback(keras.callbacks.Callback):
  """A callback that knows the step of the whole training, also if it continues from a checkpoint.

  Attributes:
    step: optimizer steps so far, of all epochs.
  """

  _supports_tf_logs = True  # without it Keras copies the logs of every batch to the host and waits

  def __init__(self):
    super().__init__()
    self.step = 0

  def on_train_begin(self, logs=None):
    """Starts to count."""
    self.step = 0

  def on_epoch_begin(self, epoch, logs=None):
    """Counts the epochs that are over, where their length is known."""
    if self.params.get("steps"):
      self.step = epoch * self.params["steps"]
    self._first = self.step

  def on_train_batch_end(self, batch, logs=None):
    """Counts."""
    self.step = self._first + batch + 1

  def trace_anew(self) -> None:
    """Makes Keras trace the functions of the model and of nested models again, after a layer was changed."""
    for model in (self.model, *self.model.submodules):
      if isinstance(model, keras.Model):
        model.train_function = model.test_function = model.predict_function = None
    self.model.make_train_function(force=True)

  @property
  def progress(self) -> float:
    """Fraction of the training that is over, 0..1.

    Raises:
      ValueError: fit does not know how many steps an epoch has.
    """
    if not self.params.get("steps"):
      raise ValueError(f"{type(self).__name__} needs to know how long the training is; give model.fit "
                       "steps_per_epoch, or a dataset of known length.")
    return self.step / (self.params["steps"] * self.params["epochs"])

  def weight_layers(self, *, most_bits: int | None = None) -> list[QuantizeWeights]:
    """Returns the layers with quantized weights, also those of nested models.

    Args:
      most_bits: largest number of bits of their weights; None: any.

    Raises:
      ValueError: the model has none.
    """
    layers = self._layers(QuantizeWeights)
    if most_bits is None:
      return layers
    narrow = [layer for layer in layers
              if all(grid.bits <= most_bits for grid in layer.weight_encodings().values())]
    if not narrow:
      raise ValueError(f"{type(self).__name__}: no weights of at most {most_bits} bits; raise bits=, or "
                       "leave the callback out.")
    return narrow

  def activation_layers(self) -> list[QuantizeActivation]:
    """Returns the activation quantizers, except those whose grid the runtime fixes.

    Raises:
      ValueError: the model has none.
    """
    return [layer for layer in self._layers(QuantizeActivation) if layer.fixed is None]

  def _layers(self, kind: type) -> list:
    layers = [module for module in (self.model, *self.model.submodules) if isinstance(module, kind)]
    if not layers:
      raise ValueError(f"{type(self).__name__}: model {self.model.name!r} has no {kind.__name__} layers; "
                       "expected what kq.insert_quantizers returns.")
    return sorted(layers, key=lambda layer: layer.name)
