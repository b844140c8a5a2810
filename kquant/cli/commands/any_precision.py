"""What kquant.cli.qat --any_precision does: one training of several widths, one bundle out."""

import os
import pathlib
import tempfile
from typing import Any

import numpy as np
import tf_keras as keras
from absl import flags

from kquant.anyprecision.model import AnyPrecisionModel
from kquant.cli import evaluation, file_flags, models
from kquant.cli import flags as shared
from kquant.cli.commands import qat
from kquant.cli.running import exactness
from kquant.cli.sources import open_source
from kquant.core.text import percent, text_table
from kquant.graph import keras_calls
from kquant.quantizers.xnor import FLOAT_BITS
from tflite_export.family.exporter import ExportedFamily, export_family

FLAGS = flags.FLAGS
_OTHER_RESULTS = ("output", "encodings", "save_model", "report")
_OTHER_METHODS = ("preset", "quantizer", "gradients", "gradient_range", "batch_norm", "distill",
                  "tile_squeeze_excite")


def run() -> None:
  """Runs what the flags say."""
  widths = _widths()
  qat.check_folders()
  file_flags.check_outputs("bundle", "summary", "save_qmodel",
                           reads=("model", "weights", "train", "calibration", "eval"))
  keras.utils.set_random_seed(FLAGS.seed)
  model = models.load()
  inputs = keras_calls.input_specs(model)
  x, y = qat.labelled(model, inputs)
  judged = None if FLAGS.eval is None else open_source(FLAGS.eval, inputs, preprocess=FLAGS.preprocess)
  images = qat.calibration_images(inputs, x)
  anymodel = AnyPrecisionModel(model, widths).calibrate(images)
  logs = qat.fit(anymodel, anymodel.at(anymodel.widths[0]), x, y, images)
  scores = {}
  if judged is not None:
    judge = evaluation.simulation_judge(model, judged)
    scores = {bits: judge(anymodel.at(bits)) for bits in anymodel.widths}
  written = _write_bundle(anymodel, images) if FLAGS.bundle else None
  if FLAGS.save_qmodel:
    anymodel.save(FLAGS.save_qmodel)
  if FLAGS.summary:
    shared.write_json(FLAGS.summary, _summary(logs, scores, written))
  print(_table(anymodel, scores, written))


def _widths() -> tuple[int, ...]:
  """Returns the widths of --any_precision; ValueError for flags that do not go together."""
  if FLAGS.any_precision is None:
    raise ValueError(f"--bundle={FLAGS.bundle} holds several widths; name them, as in --any_precision=2,4,8.")
  for name in _OTHER_RESULTS:
    if FLAGS[name].value:
      raise ValueError(f"--{name} is of one width; with --any_precision give --bundle=PATH.kqf, from which "
                       "kquant.cli.family takes the .tflite file of each width.")
  for name in _OTHER_METHODS:
    if FLAGS[name].value != FLAGS[name].default:
      raise ValueError(f"--{name} is of the training of one width; with --any_precision leave it out.")
  if not all(bits.isdecimal() for bits in FLAGS.any_precision):
    raise ValueError(f"--any_precision={','.join(FLAGS.any_precision)}: expected widths of 1 to 8 bits, and "
                     f"{FLOAT_BITS} for float, as 1,2,4,8.")
  return tuple(map(int, FLAGS.any_precision))


def _write_bundle(anymodel: AnyPrecisionModel, images: list[np.ndarray]) -> ExportedFamily:
  """Writes and certifies --bundle."""
  target = pathlib.Path(FLAGS.bundle)
  with tempfile.TemporaryDirectory(prefix=".kquant-", dir=target.absolute().parent) as folder:
    written = export_family(anymodel, folder, verify=[array[:qat.VERIFY_IMAGES] for array in images],
                            preprocess=FLAGS.preprocess)
    os.replace(written.bundle, target)
  return written


def _summary(logs: dict[str, Any], scores: dict[int, dict[str, Any]],
             written: ExportedFamily | None) -> dict[str, Any]:
  """What --summary holds."""
  summary = {"any_precision": [int(bits) for bits in FLAGS.any_precision], "eval": scores,
             "history": qat.history_of(logs)}
  if written is not None:
    files = {bits: {"bytes": file.bytes, "exact": file.certificate["exact"]}
             for bits, file in written.files.items()}
    summary["bundle"] = {"bytes": written.bytes, "files": files}
  return summary


def _table(anymodel: AnyPrecisionModel, scores: dict[int, dict[str, Any]],
           written: ExportedFamily | None) -> str:
  """A row for each width."""
  rows = []
  for bits in anymodel.widths:
    own = scores.get(bits, {})
    file = written.files.get(bits) if written else None
    rows.append((bits, percent(own.get("top1"), 2), percent(own.get("agreement"), 2),
                 f"{file.bytes:,}" if file else "-", exactness(file.certificate, "yes") if file else "-"))
  table = text_table(("bits", "top-1", "agreement", "bytes of its file", "certified"), rows)
  return table if written is None else f"{table}\n\n{FLAGS.bundle}: {written.bytes:,} bytes"
