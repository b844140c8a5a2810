"""What kquant.cli.analyze does: what part each tensor has in the noise of a quantized model; remedies."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras
from absl import flags

from kquant import api
from kquant.analysis.layer_errors import analyze, with_quantizers
from kquant.analysis.results import Analysis
from kquant.cli import evaluation, file_flags, models, pages
from kquant.cli import flags as shared
from kquant.cli.sources import Source, open_source
from kquant.core.data import choose
from kquant.core.files import written_together
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report
from kquant.doctor.diagnose import diagnose
from kquant.doctor.settings import DiagnosisSettings
from kquant.graph import keras_calls, keras_reader
from kquant.qmodel.finalize import finalize
from tflite_export.exporter import export
from tflite_export.lowering.lower import lower

FLAGS = flags.FLAGS
FEWEST = 2
VERIFY_IMAGES = 2


def run() -> None:
  """Runs what the flags say."""
  _check_flags()
  config, report = shared.preset() if FLAGS.fix else QuantConfig.preset(FLAGS.preset), Report()
  with report.stage("load"):
    model = models.load()
    keras_reader.check_model(model)
    source = open_source(FLAGS.calibration, keras_calls.input_specs(model), preprocess=FLAGS.preprocess)
    labels = evaluation.class_labels(model, source, flag="--calibration")
  chosen = choose(len(source), FLAGS.calibration_samples, seed=FLAGS.seed)
  if FLAGS.fix:
    _fix(model, config, (source, labels, chosen), report)
    return
  with report.stage("quantize"):
    quantized = _as_it_is(model) or api.quantize(
        model, source.load(chosen), config=config, effort=shared.effort(), tolerance=FLAGS.tolerance,
        seed=FLAGS.seed)
  looked_at = _looked_at(source, chosen)
  with report.stage("analyze"):
    analysis = analyze(quantized, source.load(looked_at), None if labels is None else labels[looked_at])
  with written_together() as staged:
    if pages.asked():
      with report.stage("report"):
        pages.Page(quantized, source.load(looked_at)).write(staged, analysis)
        _write_node_data(staged, analysis, quantized)
    seconds = report.to_json()["seconds"]
    shared.write_json(staged(FLAGS.output), {**analysis.to_json(), "seconds": seconds})
  print(analysis)
  print(f"\n{analysis.table(layers=True)}\n")
  print(f"{FLAGS.output}; seconds: {', '.join(f'{name} {value:.1f}' for name, value in seconds.items())}")


def _write_node_data(staged: Callable[[str], pathlib.Path], analysis: Analysis, quantized: Any) -> None:
  """Writes the file of --node_data; its tensors are those of the .tflite file that ptq or export writes."""
  if FLAGS.node_data:
    pages.write_node_data(staged, analysis, lower(*finalize(getattr(quantized, "qmodel", quantized))))


def _check_flags() -> None:
  """Raises ValueError for flags that do not go together."""
  models.require("calibration", "output")
  ending = ".tflite" if FLAGS.fix else ".json"
  if not FLAGS.output.endswith(ending):
    raise ValueError(f"--output={FLAGS.output}: expected a path that ends in {ending}.")
  for name in ("summary", "certificate", "most_wide", "latency"):
    if not FLAGS.fix and FLAGS[name].value != FLAGS[name].default:
      raise ValueError(f"--{name} is for --fix; give both, or leave it out.")
  file_flags.check_outputs("output", "summary", "certificate", "report", "node_data",
                           reads=("model", "weights", "calibration"))


def _fix(model: keras.Model, config: QuantConfig, data: tuple[Source, np.ndarray | None, np.ndarray],
         report: Report) -> None:
  """Mends a float model, writes all files or none, and prints what was done.

  Args:
    data: the samples, their labels, and which of them to calibrate on.
  """
  if with_quantizers(model) is not None:
    raise ValueError(f"--fix is for float models, and {FLAGS.model} has its quantizers; leave --fix out, or "
                     "give the float model.")
  source, labels, chosen = data
  looked_at = _looked_at(source, chosen)
  apart = not set(looked_at) & set(chosen)
  images = looked_at if apart else chosen
  settings = DiagnosisSettings(most_wide=FLAGS.most_wide, tolerance=FLAGS.tolerance, latency=FLAGS.latency,
                               images=FLAGS.images, seed=FLAGS.seed)
  diagnosis = diagnose(model, source.load(images), None if labels is None else labels[images], config=config,
                       calibration=source.load(chosen) if apart else None, effort=shared.effort(),
                       settings=settings)
  if diagnosis.result is None:
    raise ValueError(str(diagnosis.findings[0]))
  with written_together() as staged:
    written = export(diagnosis.result, staged(FLAGS.output), verify=source.load(chosen[:VERIFY_IMAGES]),
                     certify=FLAGS.certificate is not None, preprocess=FLAGS.preprocess)
    if FLAGS.certificate:
      shared.write_json(staged(FLAGS.certificate), written.certificate)
    pages.Page(diagnosis.result, source.load(images), exported=written, diagnosis=diagnosis).write(
        staged, diagnosis.analysis)
    pages.write_node_data(staged, diagnosis.analysis, written.program)
    if FLAGS.summary:
      seconds = {**report.seconds, **diagnosis.seconds, **written.seconds}
      shared.write_json(staged(FLAGS.summary), {
          **diagnosis.to_json(), "seconds": {name: round(value, 3) for name, value in seconds.items()},
          "verify": written.verification.to_json()})
  print(f"{diagnosis}\n\n{diagnosis.table()}\n")
  print(f"{FLAGS.output}: {written.bytes:,} bytes; integers, grids and biases equal, each operator within "
        f"{written.verification.max_lsb} LSB of its Keras layer on {written.verification.images} images")


def _as_it_is(model: keras.Model) -> Any:
  """Returns a model that has its quantizers; None for a float model.

  Raises:
    ValueError: it has, and flags say how to quantize it.
  """
  quantized = with_quantizers(model)
  if quantized is not None:
    for name in ("preset", "effort", "tolerance"):
      if FLAGS[name].value != FLAGS[name].default:
        raise ValueError(f"--{name} is for float models, and {FLAGS.model} has its quantizers; leave it out.")
  return quantized


def _looked_at(source: Source, chosen: np.ndarray) -> np.ndarray:
  """The samples to look at: those that are not chosen to calibrate on, or all where too few are left."""
  rest = np.setdiff1d(np.arange(len(source)), chosen)
  candidates = rest if len(rest) >= FEWEST else np.arange(len(source))
  return candidates[choose(len(candidates), FLAGS.images, seed=FLAGS.seed)]
