"""finetune(): trains a calibrated quantized model against its float model on a few unlabelled images."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core import data
from kquant.graph import keras_calls
from kquant.ptq.finetune.batches import batches, can_augment, packed
from kquant.ptq.finetune.keeper import Keeper, Progress, fingerprint
from kquant.ptq.finetune.qft import student_of, write_back
from kquant.ptq.finetune.tuned_layers import DEGREES
from kquant.qmodel.distill import DistillationModel

METHODS: dict[str, tuple[str, ...]] = {
    "bft": ("biases",), "qft": tuple(degree for degree in DEGREES if degree != "cross_layer_factors")}
"""What each method trains."""


@dataclasses.dataclass
class Finetuning:
  """What `finetune` did.

  Attributes:
    qmodel: the model that was given, trained.
    losses: on the held-back images; the first before training, then one an epoch.
    best_epoch: whose weights were kept; 0 where no epoch was better than none, and qmodel is unchanged.
  """

  qmodel: keras.Model
  losses: list[float]
  best_epoch: int


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
  """How `finetune` trains, and what it compares.

  Attributes:
    learns: what is trained, of "weights", "biases", "weight_scales", "activation_ranges" and
      "cross_layer_factors", in place of what the method trains. (Channels under a ReLU6 have no factor.)
    epochs: passes over the images that are not held back.
    learning_rate: of Adam at the start: quantization steps an update.
    batch_size: images of an update.
    augment: whether images are shifted by up to an eighth of their size and mirrored; None: where the
      model has one input and that is an image of 16 x 16 or more.
    held_back: fraction of the images to judge by.
    until: the epoch whose weights are kept, of those that the learning rate is laid out for: nothing is held
      back or judged. For a run on all images of what a judged run found.
    seed: of the images held back, their order and their shifts.
    features, feature_weight, output_loss, output_weight: see `DistillationModel`.
    checkpoint: a folder. The state is written there after each epoch, and a call with the same arguments
      goes on where an earlier one was stopped, to the same weights.

  Example:
    >>> settings = kq.FinetuneSettings(learns=("biases",), epochs=4, output_loss="kl")
    >>> settings.comparison()["output_loss"]
    'kl'
  """

  learns: Sequence[str] | None = None
  epochs: int = 30
  learning_rate: float = 0.01
  batch_size: int = 16
  augment: bool | None = None
  held_back: float = data.HELD_BACK
  until: int | None = None
  seed: int = 0
  features: str | None = "auto"
  feature_weight: float = 1.0
  output_loss: str = "relative_l2"
  output_weight: float = 1.0
  checkpoint: str | os.PathLike | None = None

  def comparison(self) -> dict[str, Any]:
    """Picks the settings that say what is compared.

    Returns:
      {argument of `DistillationModel`: its value}.
    """
    return {"features": self.features, "feature_weight": self.feature_weight, "output_loss": self.output_loss,
            "output_weight": self.output_weight}


def finetune(qmodel: keras.Model, float_model: keras.Model, images: Any, *, method: str = "qft",
             settings: FinetuneSettings | None = None, validation: Any = None,
             callbacks: Sequence[keras.callbacks.Callback] = ()) -> Finetuning:
  """Trains a calibrated quantized model, in place, to answer as its float model does.

  A seeded part of the images is held back; after each epoch the loss on it is taken, and the weights of
  the epoch where it was least are kept, or those of the start. Adam, its rate rising for an epoch, then
  falling to 0 along a cosine.
  Under the `tf.distribute` strategy in whose scope it is called each batch is shared by the replicas.

  Behind `round_weights` leave the weights out of `learns` where activations have 8 bits: a few hundred
  images do not improve on its integers. (ResNet-8, 256 images, W4A8: agreement with float 0.927, then 0.938
  by biases and grids, 0.928 by everything; W4A4: 0.692, 0.744, 0.753.)

  Args:
    qmodel: what `insert_quantizers` returned, calibrated, its biases corrected.
    float_model: the rewritten float model that `insert_quantizers` was given.
    images: unlabelled inputs, as `calibrate` takes them; a hundred or more.
    method: "bft", biases alone (Finkelstein et al. 2019): the kernels stay as they are; or "qft", also
      weights and the scales of weights and activations (Finkelstein et al. 2022). The paper's cross-layer
      factors are left to `learns`: behind `equalize` they brought nothing (ResNet-8, agreement with float
      without and with them: W4A4 0.745, 0.733; W4A8 biases and grids 0.939, 0.930; int8 with one scale a
      kernel 0.968, 0.970).
    settings: how long, how fast, and what is compared; None: a FinetuneSettings of defaults.
    validation: inputs to judge by, in place of a part of the images. `round_weights` must not have seen them:
      on its own images the start looks better than it is, and training seems to do harm.
    callbacks: Keras callbacks; the logs have "loss" and "val_loss".

  Returns:
    The trained qmodel, the losses on the held-back images, and the epoch whose weights were kept.

  Raises:
    ValueError: an unknown method, degree or loss; too few images, or such as do not fit; no calibration;
      nothing to learn; a float_model without the features or the outputs that are compared, or for
      cross-layer factors one that qmodel was not made from; `until` beyond the epochs, or beside validation
      or a checkpoint; a checkpoint of another run.
    TypeError: images that are no data.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> qmodel = kq.calibrate(kq.insert_quantizers(model, "w4a8"), images)
    >>> done = kq.finetune(qmodel, model, images, settings=kq.FinetuneSettings(epochs=2))
    >>> len(done.losses), done.qmodel is qmodel
    (3, True)
  """
  settings = settings or FinetuneSettings()
  learns = _degrees(method, settings.learns)
  specs = keras_calls.input_specs(qmodel)
  inputs = data.gather(images, specs, where="fine-tuning")
  _check_until(settings, validation)
  if settings.until is not None:
    train, judge = inputs, None
  elif validation is None:
    train, judge = split_to_judge(inputs, settings.held_back, seed=settings.seed)
  else:
    train, judge = inputs, data.gather(validation, specs, where="validation")
  student = student_of(qmodel, float_model, learns)
  if not student.trainable_variables:
    raise ValueError(f"finetune: {qmodel.name!r} has nothing to learn by learns={', '.join(learns)}; "
                     "channels under a ReLU6 have no cross-layer factor. Name other degrees.")
  model = DistillationModel(student, float_model, **settings.comparison())
  training = _Training(model, train, settings, callbacks)
  if judge is None:
    training.fit(range(settings.until))
    write_back(student, qmodel)
    return Finetuning(qmodel, [], settings.until)
  keeper = Keeper(model, settings.checkpoint, fingerprint(
      [*train, *judge, *qmodel.get_weights(), *model.teacher.get_weights()],
      (learns, dataclasses.replace(settings, checkpoint=None), training.augment)))
  judged = tf.data.Dataset.from_tensor_slices(packed(judge)).batch(training.batch_size)
  if not keeper.losses:
    keeper.note(model.evaluate(judged, verbose=0))
  training.fit(range(len(keeper.losses) - 1, settings.epochs), keeper, validation_data=judged)
  best = keeper.restore_best()
  if best:
    write_back(student, qmodel)
  return Finetuning(qmodel, keeper.losses, best)


def _check_until(settings: FinetuneSettings, validation: Any) -> None:
  if settings.until is not None and (settings.checkpoint or validation is not None
                                     or not 0 < settings.until <= settings.epochs):
    raise ValueError(f"finetune: until={settings.until} of {settings.epochs} epochs; expected one of them, "
                     "and neither validation= nor checkpoint=.")


class _Training:
  """The training of a compiled student on arrays, epoch by epoch."""

  def __init__(self, model: DistillationModel, train: list[np.ndarray], settings: FinetuneSettings,
               callbacks: Sequence[keras.callbacks.Callback]):
    self._model, self._train, self._settings, self._callbacks = model, train, settings, callbacks
    self.augment = can_augment(train) if settings.augment is None else settings.augment
    self.batch_size = min(settings.batch_size, len(train[0]))
    self._steps = len(train[0]) // self.batch_size
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, (settings.epochs - 1) * self._steps), warmup_steps=self._steps,
        warmup_target=settings.learning_rate)
    model.compile(keras.optimizers.Adam(schedule, epsilon=1e-12, jit_compile=False))

  def fit(self, epochs: range, *keepers: keras.callbacks.Callback, **judged: Any) -> None:
    """Trains for those epochs."""
    drawn = batches(self._train, epochs, self.batch_size, self._settings.seed, self.augment)
    self._model.fit(drawn, epochs=epochs.stop, initial_epoch=epochs.start, steps_per_epoch=self._steps,
                    verbose=0, callbacks=[*keepers, Progress(self._steps), *self._callbacks], **judged)


def _degrees(method: str, learns: Sequence[str] | None) -> tuple[str, ...]:
  if method not in METHODS:
    raise ValueError(f"finetune: method must be one of {', '.join(METHODS)}, got {method!r}.")
  learns = METHODS[method] if learns is None else learns
  if not learns or isinstance(learns, str) or not set(learns) <= set(DEGREES):
    raise ValueError(f"finetune: learns must name some of {', '.join(DEGREES)}, got {learns!r}.")
  return tuple(degree for degree in DEGREES if degree in learns)


def split_to_judge(inputs: list[np.ndarray], held_back: float = data.HELD_BACK, *,
                   seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Returns (inputs to train on, a fraction of them to judge by).

  Raises:
    ValueError: there are too few.
  """
  count = len(inputs[0])
  if not 0 < round(count * held_back) < count:
    raise ValueError(f"finetune: expected images to train on and to judge by, got {count} of which "
                     f"{held_back} are held back; give a hundred or more, and a held_back between 0 and 1.")
  return data.hold_back(inputs, held_back, seed=seed)
