"""QuantizedTraining: whether ranges that are known beforehand fit the tensors that come."""

import dataclasses
import math
import os

import numpy as np
import tensorflow as tf

from kquant.core.event_files import write_scalar
from kquant.core.text import text_table
from kquant.qat.callback import TrainingCallback
from kquant.qmodel.measures import Measured, Sums

_FIELDS = ("saturated", "drift", "sqnr")


@dataclasses.dataclass(frozen=True)
class RangeRow:
  """What became of one quantizer's tensors in some steps of a training.

  Attributes:
    step: the last of them, counted from 1.
    name: of the quantizer's layer.
    kind: "activation" or "gradient".
    saturated: share of the values that lay beyond the range, 0..1.
    drift: change of the range from step to step, by its width; mean of the steps.
    sqnr: of the gradient, in dB; None where it was not asked for.
  """

  step: int
  name: str
  kind: str
  saturated: float
  drift: float
  sqnr: float | None


class QuantizedTraining(TrainingCallback):
  """Logs how well ranges fit in training: saturation, drift, and on demand the SQNR of gradients.

  For activations whose quantizer is in_hindsight, current_minmax or moving_average, and for all quantized
  gradients. After each epoch `logs` has the means over quantizers: "saturated" and "drift" of activations,
  "gradient_saturated", "gradient_drift" and "gradient_sqnr" (dB) of gradients. `rows` has those of each.

  A range that saturates more than a percent lags behind its tensor: the learning rate jumped, or the loss was
  scaled. The sums behind all this are variables of the layers; checkpoints and saved models contain them.

  Args:
    every: adds to `rows` after so many batches, too; None: after each epoch alone.
    sqnr: measures the SQNR of gradients; it takes two more sums over each.
    log_dir: folder for the values of each quantizer, for TensorBoard; None: none are written.

  Attributes:
    rows: a list of `RangeRow`.

  Raises:
    ValueError: when training starts: the model has no such quantizer.

  Example:
    >>> spec = kq.TensorSpec(quantizer="in_hindsight")
    >>> config = kq.QuantConfig((kq.Rule(activations=spec, gradients=spec),))
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), config)
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> watch = kq.QuantizedTraining(sqnr=True)
    >>> history = qmodel.fit(images, images[:, :2], callbacks=[watch], verbose=0)
    >>> sorted(history.history)
    ['drift', 'gradient_drift', 'gradient_saturated', 'gradient_sqnr', 'loss', 'saturated']
    >>> [row.kind for row in watch.rows]
    ['activation', 'activation', 'gradient']
  """

  def __init__(self, *, every: int | None = None, sqnr: bool = False,
               log_dir: str | os.PathLike | None = None):
    super().__init__()
    if every is not None and every < 1:
      raise ValueError(f"QuantizedTraining: every must be 1 or more batches, got {every}.")
    self._every, self._sqnr = every, sqnr
    self._writer = None if log_dir is None else tf.summary.create_file_writer(os.fspath(log_dir))
    self.rows: list[RangeRow] = []

  def on_train_begin(self, logs=None):
    """Lets the layers sum up.

    Raises:
      ValueError: the model has no quantizer whose range follows its tensor.
    """
    super().on_train_begin(logs)
    self._watched = self._find()
    with self.model.distribute_strategy.scope():
      for _, layer in self._watched:
        layer.measure()
        layer.measures_noise = self._sqnr
    self.trace_anew()
    self._last = self._epoch = self._sums()

  def on_train_batch_end(self, batch, logs=None):
    """Adds rows where it is time."""
    super().on_train_batch_end(batch, logs)
    if self._every and self.step % self._every == 0:
      self._add_rows()

  def on_epoch_end(self, epoch, logs=None):
    """Adds rows and logs the means over quantizers of the epoch."""
    self._add_rows()
    now = self._sums()
    rows = self._rows_between(self._epoch, now)
    self._epoch = now
    if logs is not None:
      logs.update(_means(rows))

  def table(self) -> str:
    """Lists the latest row of each quantizer.

    Returns:
      A table as text.
    """
    latest = {(row.kind, row.name): row for row in self.rows}
    return text_table(("quantizer", "of", "saturated", "drift", "SQNR dB"), [
        (row.name, row.kind, f"{100 * row.saturated:.3f} %", f"{100 * row.drift:.2f} %",
         "-" if row.sqnr is None else f"{row.sqnr:.1f}") for row in latest.values()])

  def _find(self) -> list[tuple[str, Measured]]:
    """Returns (kind, layer) of each quantizer that is watched."""
    layers = [("activation", layer) for layer in self.activation_layers() if layer.follows]
    layers += [("gradient", layer) for layer in self.weight_layers() if layer.gradients is not None]
    if not layers:
      raise ValueError("QuantizedTraining: no range of the model follows its tensor; give rules "
                       "gradients=kq.TensorSpec(), or activations=kq.TensorSpec(quantizer='in_hindsight').")
    return layers

  def _sums(self) -> list[Sums]:
    return [layer.sums() for _, layer in self._watched]

  def _add_rows(self) -> None:
    """Adds the rows of the steps since the last ones."""
    now = self._sums()
    rows = self._rows_between(self._last, now)
    self._last = now
    self.rows += rows
    if self._writer is not None and rows:
      with self._writer.as_default():
        for row in rows:
          for field in _FIELDS:
            if (value := getattr(row, field)) is not None:
              write_scalar(f"{row.kind}_{field}/{row.name}", value, step=row.step)
      self._writer.flush()

  def _rows_between(self, before: list[Sums], after: list[Sums]) -> list[RangeRow]:
    rows = []
    for (kind, layer), old, new in zip(self._watched, before, after):
      steps, saturated, drift, signal, noise = np.subtract(new, old).tolist()
      if steps:
        sqnr = 10 * math.log10(signal / noise) if self._sqnr and signal > 0 and noise > 0 else None
        rows.append(RangeRow(self.step, layer.name, kind, saturated / steps, drift / steps, sqnr))
    return rows


def _means(rows: list[RangeRow]) -> dict[str, float]:
  """Returns {name in the logs: mean over the quantizers of a kind}."""
  means = {}
  for kind, prefix in (("activation", ""), ("gradient", "gradient_")):
    for field in _FIELDS:
      values = [getattr(row, field) for row in rows if row.kind == kind]
      values = [value for value in values if value is not None]
      if values:
        means[prefix + field] = float(np.mean(values))
  return means
