"""What kquant.cli.analyze does: what part each tensor has in the noise of a quantized model; remedies."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras
from absl import flags

from kquant import api
from kquant.analysis.layer_errors import analyze, with_quantizers
from kquant.analysis.results import Analysis
from kquant.cli import evaluation, file_flags, models, pages, running
from kquant.cli import flags as shared
from kquant.cli.sources import Source, open_source
from kquant.core.data import choose
from kquant.core.files import same_file, written_together
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report
from kquant.core.text import text_table
from kquant.doctor.diagnose import diagnose
from kquant.doctor.settings import LABELLED_IMAGES, DiagnosisSettings
from kquant.graph import keras_calls, keras_reader
from kquant.qmodel.finalize import finalize
from tflite_export.exporter import export
from tflite_export.lowering.lower import lower

FLAGS = flags.FLAGS
FEWEST = 2
VERIFY_IMAGES = 2


@dataclasses.dataclass(frozen=True)
class _Samples:
  """What is calibrated on, and what is looked at.

  Attributes:
    calibration: inputs, one array an input.
    source: that the others are of: of --eval, else of --calibration.
    looked_at: which of them.
    labels: class indices of these, or None.
    apart: whether none of them is calibrated on.
  """

  calibration: list[np.ndarray]
  source: Source
  looked_at: np.ndarray
  labels: np.ndarray | None
  apart: bool

  def images(self) -> list[np.ndarray]:
    """Returns the inputs to look at, one array an input."""
    return self.source.load(self.looked_at)


def run() -> None:
  """Runs what the flags say."""
  _check_flags()
  config, report = shared.preset() if FLAGS.fix else QuantConfig.preset(FLAGS.preset), Report()
  with report.stage("load"):
    model = models.load()
    keras_reader.check_model(model)
    samples = _samples(model)
  if FLAGS.fix:
    _fix(model, config, samples, report)
    return
  with report.stage("quantize"):
    quantized = _as_it_is(model) or api.quantize(
        model, samples.calibration, config=config, recipe=shared.recipe(), effort=shared.effort(),
        tolerance=FLAGS.tolerance, seed=FLAGS.seed)
  with report.stage("analyze"):
    images = samples.images()
    analysis = analyze(quantized, images, samples.labels)
  with written_together() as staged:
    if pages.asked():
      with report.stage("report"):
        pages.Page(quantized, images).write(staged, analysis)
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
  shared.require_model("calibration", "output")
  ending = ".tflite" if FLAGS.fix else ".json"
  if not FLAGS.output.endswith(ending):
    raise ValueError(f"--output={FLAGS.output}: expected a path that ends in {ending}.")
  for name in ("summary", "certificate", "most_wide", "latency"):
    if not FLAGS.fix and FLAGS[name].value != FLAGS[name].default:
      raise ValueError(f"--{name} is for --fix; give both, or leave it out.")
  file_flags.check_outputs("output", "summary", "certificate", "report", "node_data",
                           reads=("model", "weights", "calibration", "eval"))


def _samples(model: keras.Model) -> _Samples:
  """Returns the samples of --calibration and --eval."""
  specs = keras_calls.input_specs(model)
  source = other = open_source(FLAGS.calibration, specs, preprocess=FLAGS.preprocess)
  chosen = choose(len(source), FLAGS.calibration_samples, order=FLAGS.calibration_order, seed=FLAGS.seed)
  if FLAGS.eval is not None and not same_file(FLAGS.eval, FLAGS.calibration):
    other = open_source(FLAGS.eval, specs, preprocess=FLAGS.preprocess)
  labels = evaluation.class_labels(model, other, flag="--calibration" if other is source else "--eval")
  count = FLAGS.images if labels is None or not FLAGS.fix else max(FLAGS.images, LABELLED_IMAGES)
  looked_at = (_looked_at(source, chosen, count) if other is source else
               choose(len(other), count, seed=FLAGS.seed))
  apart = other is not source or not set(looked_at) & set(chosen)
  return _Samples(source.load(chosen), other, looked_at, None if labels is None else labels[looked_at], apart)


def _fix(model: keras.Model, config: QuantConfig, samples: _Samples, report: Report) -> None:
  """Mends a float model, writes all files or none, and prints what was done."""
  if with_quantizers(model) is not None:
    raise ValueError(f"--fix is for float models, and {FLAGS.model} has its quantizers; leave --fix out, or "
                     "give the float model.")
  settings = DiagnosisSettings(most_wide=FLAGS.most_wide, tolerance=FLAGS.tolerance, latency=FLAGS.latency,
                               images=FLAGS.images, recipe=shared.recipe(), seed=FLAGS.seed)
  images = samples.images()
  diagnosis = diagnose(model, images, samples.labels, config=config, effort=shared.effort(),
                       calibration=samples.calibration if samples.apart else None, settings=settings)
  if diagnosis.result is None:
    raise ValueError(str(diagnosis.findings[0]))
  with written_together() as staged:
    written = export(diagnosis.result, staged(FLAGS.output), preprocess=FLAGS.preprocess,
                     verify=[array[:VERIFY_IMAGES] for array in samples.calibration],
                     certify=FLAGS.certificate is not None)
    judged = evaluation.evaluate(model, written.program, samples.source, samples.looked_at)
    if FLAGS.certificate:
      shared.write_json(staged(FLAGS.certificate), written.certificate)
    few = choose(len(images[0]), FLAGS.images, seed=FLAGS.seed)
    pages.Page(diagnosis.result, [array[few] for array in images], judged, written, diagnosis).write(
        staged, diagnosis.analysis)
    pages.write_node_data(staged, diagnosis.analysis, written.program)
    if FLAGS.summary:
      seconds = {**report.seconds, **diagnosis.seconds, **written.seconds}
      shared.write_json(staged(FLAGS.summary), {
          **diagnosis.to_json(), "seconds": {name: round(value, 3) for name, value in seconds.items()},
          "eval": judged, "verify": written.verification.to_json()})
  print(f"{diagnosis}\n\n{diagnosis.table()}\n\n{text_table(('result', ''), running.eval_rows(judged))}\n")
  if diagnosis.result.report.closeness is not None:
    print(f"against float: {diagnosis.result.report.closeness}")
  print(f"{FLAGS.output}: {written.bytes:,} bytes; integers, grids and biases equal, each operator within "
        f"{written.verification.max_lsb} LSB of its Keras layer on {written.verification.images} images")


def _as_it_is(model: keras.Model) -> Any:
  """Returns a model that has its quantizers; None for a float model.

  Raises:
    ValueError: it has, and flags say how to quantize it.
  """
  quantized = with_quantizers(model)
  if quantized is not None:
    for name in ("preset", "effort", "tolerance", "equalize", "rounding", "bias", "finetune"):
      if FLAGS[name].value != FLAGS[name].default:
        raise ValueError(f"--{name} is for float models, and {FLAGS.model} has its quantizers; leave it out.")
  return quantized


def _looked_at(source: Source, chosen: np.ndarray, count: int) -> np.ndarray:
  """The samples of --calibration to look at, at most `count`: those that are not chosen to calibrate on.

  Where too few are left, --fix has those, of which it holds some back; else any.
  """
  rest = np.setdiff1d(np.arange(len(source)), chosen)
  if len(rest) < FEWEST and FLAGS.fix:
    return chosen
  candidates = rest if len(rest) >= FEWEST else np.arange(len(source))
  return candidates[choose(len(candidates), count, seed=FLAGS.seed)]
