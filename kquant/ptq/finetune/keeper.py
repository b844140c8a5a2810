"""Callbacks of fine-tuning: Keeper, the best weights and the checkpoint; Progress, the bar."""

import hashlib
import json
import math
import os
import pathlib

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from kquant.core.files import written_whole
from kquant.qmodel.distill import DistillationModel

_RECORD = "finetuning.json"


def fingerprint(arrays: list[np.ndarray], settings: tuple) -> str:
  """Returns a hash of what a run depends on."""
  digest = hashlib.sha256(repr(settings).encode())
  for array in arrays:
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()


class Keeper(keras.callbacks.Callback):
  """Notes the loss on held-back images and the best weights; writes a checkpoint after each epoch.

  The checkpoint holds what is trained, the optimizer and the best weights; the losses are beside it in JSON.
  """

  def __init__(self, model: DistillationModel, folder: str | os.PathLike | None, fingerprint: str):
    super().__init__()
    self.losses: list[float] = []
    self._trained = list(model.trainable_variables)
    self._best = [tf.Variable(variable, trainable=False) for variable in self._trained]
    model.optimizer.build(self._trained)
    self._state = tf.train.Checkpoint(trained=self._trained, best=self._best, optimizer=model.optimizer)
    self._folder = None if folder is None else pathlib.Path(folder)
    self._fingerprint = fingerprint
    if self._folder is not None and (self._folder / _RECORD).exists():
      self._resume()

  def _resume(self) -> None:
    record = json.loads((self._folder / _RECORD).read_text())
    if record["run"] != self._fingerprint:
      raise ValueError(f"finetune: {self._folder} holds a run on other images, from other weights or with "
                       "other settings; expected the same, so give another folder or remove it.")
    self._state.read(str(self._folder / record["state"])).assert_consumed()
    self.losses = record["losses"]

  def _save(self) -> None:
    """Writes the state of this epoch, then the record that names it, then forgets the state before."""
    state = f"epoch-{len(self.losses) - 1}"
    self._state.write(str(self._folder / state))
    with written_whole(self._folder / _RECORD) as (record,):
      record.write_text(json.dumps({"run": self._fingerprint, "losses": self.losses, "state": state}))
    for path in self._folder.glob("epoch-*"):
      if path.name.split(".")[0] != state:
        path.unlink()

  def note(self, loss: float) -> None:
    """Notes the loss of the weights as they are now."""
    if math.isfinite(loss) and loss < min(self.losses, default=math.inf):
      for best, variable in zip(self._best, self._trained):
        best.assign(variable)
    self.losses.append(loss)

  def on_epoch_end(self, epoch, logs=None):
    """Notes the epoch and writes the checkpoint."""
    self.note(logs["val_loss"])
    if self._folder is not None:
      self._save()

  def restore_best(self) -> int:
    """Gives the weights their best values; returns the epoch they are of, 0 for the start."""
    for best, variable in zip(self._best, self._trained):
      variable.assign(best)
    return int(np.nanargmin(self.losses))


class Progress(keras.callbacks.Callback):
  """A bar of training steps with the loss on held-back images, from the second second on."""

  def __init__(self, steps: int):
    super().__init__()
    self._steps = steps

  def on_train_begin(self, logs=None):
    """Starts the bar."""
    epochs = self.params["epochs"]
    self._bar = tqdm(desc="fine-tune", unit=" steps", total=epochs * self._steps, delay=2.0, disable=None)

  def on_train_batch_end(self, batch, logs=None):
    """Moves the bar."""
    self._bar.update()

  def on_epoch_end(self, epoch, logs=None):
    """Shows the loss on held-back images, where there are any."""
    if "val_loss" in logs:
      self._bar.set_postfix(held_back=f"{logs['val_loss']:.4f}", refresh=False)

  def on_train_end(self, logs=None):
    """Ends the bar."""
    self._bar.close()
