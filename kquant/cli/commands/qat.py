"""What kquant.cli.qat does: quantization-aware training of a classifier, labelled images in, .tflite out."""

import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

from kquant.api import QuantizationResult
from kquant.cli import evaluation, file_flags, models, pages, running
from kquant.cli import flags as shared
from kquant.cli.commands.qat_config import fits_a_file, training_config
from kquant.cli.commands.tiling import tiled
from kquant.cli.sources import open_source
from kquant.core.data import choose
from kquant.core.encodings import Encodings
from kquant.core.event_files import write_scalar
from kquant.core.files import written_together
from kquant.core.input_spec import InputSpec
from kquant.core.records import Report
from kquant.core.target import target
from kquant.core.text import percent, text_table
from kquant.graph import keras_calls
from kquant.graph.graph import Graph
from kquant.ptq.layerwise.bias_correction import correct_bias
from kquant.qat.bn_reestimate import ReestimateBatchNorm
from kquant.qat.oscillation_control import FreezeOscillations
from kquant.qat.quantized_training import QuantizedTraining
from kquant.qat.schedules import FreezeBatchNorm
from kquant.qmodel.calibrate import calibrate
from kquant.qmodel.distill import DistillationModel
from kquant.qmodel.finalize import finalize
from kquant.qmodel.folded_conv import FoldedConv
from kquant.qmodel.insert import insert_quantizers
from kquant.rewrites.standardize.standardize import standardize
from tflite_export.exporter import Exported, export
from tflite_export.lowering.lower import lower

FLAGS = flags.FLAGS
VERIFY_IMAGES = 2
_SHARES = ("oscillating", "frozen", "saturated", "gradient_saturated")


def run() -> None:
  """Runs what the flags say."""
  shared.require_model("train")
  if FLAGS.any_precision is not None or FLAGS.bundle:
    from kquant.cli.commands import any_precision
    any_precision.run()
  else:
    _run()


def _run() -> None:
  """Trains one width, writes its file and prints the table."""
  config = training_config()
  check_folders()
  file_flags.check_outputs("output", "summary", "encodings", "save_model", "save_qmodel", "report",
                           reads=("model", "weights", "train", "calibration", "eval"))
  keras.utils.set_random_seed(FLAGS.seed)
  report = Report()
  with report.stage("load"):
    model = models.load()
    inputs = keras_calls.input_specs(model)
    x, y = labelled(model, inputs)
    judged = None if FLAGS.eval is None else open_source(FLAGS.eval, inputs, preprocess=FLAGS.preprocess)
  with report.stage("quantize"):
    images = calibration_images(inputs, x)
    source, tiles = tiled(model, images, report)
    qmodel = calibrate(insert_quantizers(source, config, batch_norm=FLAGS.batch_norm), images)
    if FLAGS.batch_norm == "fold":
      correct_bias(qmodel, source, images)
  with report.stage("train"):
    logs = _train(model, qmodel, x, y, images)
  network = finalize(qmodel, target=target(config.target))
  written = _export(network, images)
  summary = {**tiles, **_summary(logs, written)}
  with report.stage("eval"):
    if judged is not None:
      summary["simulation"] = evaluation.simulation_judge(model, judged)(qmodel)
      if fits_a_file(config):
        summary["eval"] = evaluation.evaluate(model, lower(*network), judged, np.arange(len(judged)))
    elif written is not None:
      some = evaluation.some_of(images)
      summary["calibration_closeness"] = evaluation.evaluate(model, written.program, *some)
  if FLAGS.report:
    _write_page(QuantizationResult(*network, qmodel, report), images, summary, written)
  summary["seconds"] = {name: round(seconds, 3) for name, seconds in report.seconds.items()}
  _save(qmodel, *network, summary)
  print(text_table(("result", ""), _rows(summary, written)))


def check_folders() -> None:
  """Raises ValueError where --checkpoint and --resume do not go together."""
  if FLAGS.resume and not (FLAGS.checkpoint and _has_checkpoint()):
    raise ValueError("--resume: there is no training to go on with; expected --checkpoint to name the folder "
                     "of one.")
  if FLAGS.checkpoint and _has_checkpoint() and not FLAGS.resume:
    raise ValueError(f"--checkpoint={FLAGS.checkpoint} holds a training; add --resume to go on with it, or "
                     "name another folder.")


def _has_checkpoint() -> bool:
  return any(pathlib.Path(FLAGS.checkpoint).rglob("checkpoint"))


def labelled(model: keras.Model, inputs: list[InputSpec]) -> tuple[list[np.ndarray], np.ndarray]:
  """Returns (inputs, class indices) of --train."""
  source = open_source(FLAGS.train, inputs, preprocess=FLAGS.preprocess)
  labels = evaluation.class_labels(model, source, flag="--train")
  if labels is None:
    raise ValueError(f"--train={FLAGS.train} has no labels, or the model's output is not [batch, classes]; "
                     "expected y in the .npz, labels.csv in the folder. Other models are trained from Python "
                     "(docs/qat.md).")
  if len(labels) < FLAGS.batch_size:
    raise ValueError(f"--train={FLAGS.train} has {len(labels)} samples, fewer than --batch_size="
                     f"{FLAGS.batch_size}; lower it.")
  return source.load(np.arange(len(source))), labels


def calibration_images(inputs: list[InputSpec], x: list[np.ndarray]) -> list[np.ndarray]:
  """A seeded random sample of --calibration, or of the training images."""
  source = FLAGS.calibration and open_source(FLAGS.calibration, inputs, preprocess=FLAGS.preprocess)
  chosen = choose(len(source) if source else len(x[0]), FLAGS.calibration_samples, order="random",
                  seed=FLAGS.seed)
  return source.load(chosen) if source else [array[chosen] for array in x]


def _train(model: keras.Model, qmodel: keras.Model, x: list[np.ndarray], y: np.ndarray,
           images: list[np.ndarray]) -> dict[str, Any]:
  """Trains qmodel in place; returns {name: values, one an epoch}."""
  trainer = DistillationModel(qmodel, model, output_loss="kl") if FLAGS.distill else qmodel
  return fit(trainer, qmodel, x, y, images)


def fit(trainer: keras.Model, qmodel: keras.Model, x: list[np.ndarray], y: np.ndarray,
        images: list[np.ndarray]) -> dict[str, Any]:
  """Fits a model as the flags say; returns {name: values, one an epoch}.

  Args:
    trainer: what is fitted.
    qmodel: which it trains, or one of several.
    x, y: to train on.
    images: for batch norm statistics.
  """
  batches = Batches(dict(zip(keras_calls.signature_names(qmodel)[0], x)), y, batch_size=FLAGS.batch_size,
                    seed=FLAGS.seed)
  schedule = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, FLAGS.epochs * batches.steps)
  trainer.compile(keras.optimizers.Adam(schedule, jit_compile=False),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=not _ends_in_softmax(qmodel)),
                  metrics=["accuracy"])
  callbacks = [batches]
  if any(isinstance(layer, FoldedConv) for layer in qmodel.layers):
    callbacks.append(FreezeBatchNorm(epochs=FLAGS.epochs // 2))
  if any(isinstance(layer, keras.layers.BatchNormalization) for layer in qmodel.layers):
    callbacks.append(ReestimateBatchNorm(images))
  if FLAGS.freeze_oscillations:
    callbacks.append(FreezeOscillations())
  if FLAGS.gradients:
    callbacks.append(QuantizedTraining())
  if FLAGS.log_dir:
    callbacks.append(EventLog(FLAGS.log_dir))
  if FLAGS.checkpoint:
    callbacks.append(keras.callbacks.BackupAndRestore(FLAGS.checkpoint, delete_checkpoint=False))
  return trainer.fit(batches.dataset(), epochs=FLAGS.epochs, callbacks=callbacks,
                     verbose=1 if sys.stdout.isatty() else 2).history


class Batches(keras.callbacks.Callback):
  """Shuffled batches whose order depends on seed and epoch alone: a resumed training sees the same."""

  def __init__(self, x: dict[str, np.ndarray], y: np.ndarray, *, batch_size: int, seed: int):
    super().__init__()
    self._x, self._y, self._batch_size, self._seed, self._epoch = x, y, batch_size, seed, 0
    self.steps = len(y) // batch_size

  def on_epoch_begin(self, epoch, logs=None):
    """Starts the epoch's order."""
    self._epoch = epoch

  def dataset(self) -> tf.data.Dataset:
    """Returns the batches of one epoch, of the one at work when they are asked for."""
    x = {name: tf.TensorSpec((None, *array.shape[1:]), array.dtype) for name, array in self._x.items()}
    signature = x, tf.TensorSpec((None,), tf.int64)
    epoch = tf.data.Dataset.from_generator(self._one_epoch, output_signature=signature)
    return epoch.apply(tf.data.experimental.assert_cardinality(self.steps))

  def _one_epoch(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._y))
    for chosen in order[:self.steps * self._batch_size].reshape(self.steps, -1):
      yield {name: array[chosen] for name, array in self._x.items()}, self._y[chosen]


class EventLog(keras.callbacks.Callback):
  """Writes what each epoch logs as scalars that TensorBoard reads; needs no package of its own."""

  def __init__(self, folder: str):
    super().__init__()
    self._writer = tf.summary.create_file_writer(folder)

  def on_epoch_end(self, epoch, logs=None):
    """Writes one epoch."""
    with self._writer.as_default():
      for name, value in (logs or {}).items():
        write_scalar(f"epoch_{name}", value, step=epoch)
    self._writer.flush()


def _export(network: tuple[keras.Model, Encodings], images: list[np.ndarray]) -> Exported | None:
  """Writes and verifies the file of --output, where it is given."""
  if not FLAGS.output:
    return None
  return export(network, FLAGS.output, verify=[array[:VERIFY_IMAGES] for array in images],
                preprocess=FLAGS.preprocess)


def _write_page(result: QuantizationResult, images: list[np.ndarray], summary: dict[str, Any],
                written: Exported | None) -> None:
  """Writes the page of --report; the noise of each tensor is measured on the calibration images."""
  with result.report.stage("analyze"):
    analysis = pages.analysis_of(result.qmodel, images)
  with result.report.stage("report"), written_together() as staged:
    pages.Page(result, images, summary.get("eval"), written).write(staged, analysis)


def _summary(logs: dict[str, Any], written: Exported | None) -> dict[str, Any]:
  """What --summary holds of the training and of the file."""
  summary = {"preset": FLAGS.preset, "quantizer": FLAGS.quantizer, "history": history_of(logs)}
  if written is not None:
    summary.update(bytes=written.bytes, verify=written.verification.to_json())
  return summary


def history_of(logs: dict[str, Any]) -> dict[str, list[float]]:
  """Returns what `fit` returned, as JSON holds it."""
  return {name: [float(value) for value in values] for name, values in logs.items()}


def _save(qmodel: keras.Model, final: keras.Model, encodings: Encodings, summary: dict[str, Any]) -> None:
  """Writes the files that flags name."""
  if FLAGS.encodings:
    encodings.save(FLAGS.encodings)
  for path, model in ((FLAGS.save_model, final), (FLAGS.save_qmodel, qmodel)):
    if path:
      model.save(path)
  if FLAGS.summary:
    shared.write_json(FLAGS.summary, summary)


def _ends_in_softmax(model: keras.Model) -> bool:
  return any(node.facts.takes_scores for node in standardize(Graph.from_model(model)).nodes)


def _rows(summary: dict[str, Any], written: Exported | None) -> list[tuple[str, str]]:
  shown = functools.partial(percent, digits=2, missing="- (no labels)")
  history = summary["history"]
  rows = [("epochs", str(len(history["loss"]))), ("loss", f"{history['loss'][-1]:.4f}")]
  rows += [(name, shown(history[name][-1])) for name in _SHARES if name in history]
  if "simulation" in summary:
    rows += [("simulation top-1", shown(summary["simulation"]["top1"])),
             ("simulation agreement", shown(summary["simulation"]["agreement"]))]
  if "eval" in summary:
    rows += running.eval_rows(summary["eval"])
  if "calibration_closeness" in summary:
    rows.append(running.closeness_row(summary["calibration_closeness"]))
  if written is not None:
    rows += [("bytes", f"{written.bytes:,}"),
             ("verified", f"integers, grids and biases equal; each operator within "
                          f"{written.verification.max_lsb} LSB of its Keras layer")]
  return rows
