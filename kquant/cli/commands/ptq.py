"""What kquant.cli.ptq does: float Keras model in, verified full-integer .tflite out."""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tf_keras as keras
from absl import flags

from kquant import api
from kquant.allocation.results import Allocation
from kquant.analysis.results import Analysis
from kquant.cli import backends, budgets, demo, evaluation, file_flags, models, pages, running
from kquant.cli import flags as shared
from kquant.cli.commands import allocate
from kquant.cli.commands.tiling import tiled
from kquant.cli.sources import Source, open_source
from kquant.core import metrics
from kquant.core.data import choose
from kquant.core.files import same_file, written_together
from kquant.core.input_spec import InputSpec
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report, answers_alike
from kquant.core.text import text_table
from kquant.graph import keras_calls
from kquant.search.pipeline import read
from tflite_export.exporter import Exported, export
from tflite_export.file.c_array import to_c_source
from tflite_export.lowering.lower import lower
from tflite_export.proof.errors import VerificationError
from tflite_export.proof.runtime import Runtime

FLAGS = flags.FLAGS
VERIFY_IMAGES = 2
ANALYZED_IMAGES = 16
"""Calibration images by which the tensors with most of the noise are found, where the file is far off."""


@dataclasses.dataclass(frozen=True)
class _Task:
  """What one run does.

  Attributes:
    model: the float model, by which the file is judged.
    calibration: its calibration inputs, one array an input.
    config: how it is quantized.
    output: the path of the .tflite file.
    judged: the source that it is judged by, and its samples; None: it is not.
    tiled: what is quantized: the model, or with tiles.
    tiles: what the summary holds of them.
  """

  model: keras.Model
  calibration: list[np.ndarray]
  config: QuantConfig
  output: str
  judged: tuple[Source, np.ndarray] | None
  tiled: keras.Model
  tiles: dict[str, Any] = dataclasses.field(default_factory=dict)


def run() -> None:
  """Runs what the flags say."""
  _check_flags()
  config = dataclasses.replace(shared.preset(), split_outputs=FLAGS.split_outputs,
                               recurrent=FLAGS.recurrent)
  if not _names_a_model():
    _demo(config)
    return
  report = Report()
  with report.stage("load"):
    model = models.load()
    inputs = models.fixed_inputs(model)
    calibration = open_source(FLAGS.calibration, inputs, preprocess=FLAGS.preprocess)
    chosen = choose(len(calibration), FLAGS.calibration_samples, order=FLAGS.calibration_order,
                    seed=FLAGS.seed)
    images = calibration.load(chosen)
    judged = None
    if FLAGS.eval is not None:
      judged = _held_back(inputs, calibration, chosen)
      evaluation.class_labels(model, judged[0])  # a mistake in them is reported before the work
  _run(_Task(model, images, config, FLAGS.output, judged, *tiled(model, images, report)), report)


def _check_flags() -> None:
  """Raises ValueError for flags that do not go together."""
  if not _names_a_model():
    for name in ("calibration", "calibration_order", "preprocess", "eval", "input_shape", "weights", "import",
                 "trust_model", "tile_squeeze_excite"):
      if FLAGS[name].value != FLAGS[name].default:
        raise ValueError(f"--{name} was given without --model; name the model, or leave --{name} out for "
                         "the demo.")
  else:
    shared.require_model("calibration", "output")
  backends.check_flags()
  budgets.are_given()  # raises
  file_flags.check_outputs("output", "summary", "encodings", "save_model", "save_qmodel", "certificate",
                           "c_array", "report", "node_data",
                           reads=("model", "weights", "calibration", "eval"))


def _names_a_model() -> bool:
  """Whether there is a model to quantize; without one it is the demo."""
  return FLAGS.model is not None or FLAGS.build is not None


def _held_back(inputs: Sequence[InputSpec], calibration: Source,
               chosen: np.ndarray) -> tuple[Source, np.ndarray]:
  """The evaluation source and its samples, those used for calibration left out."""
  if not same_file(FLAGS.eval, FLAGS.calibration):
    source = open_source(FLAGS.eval, inputs, preprocess=FLAGS.preprocess)
    return source, np.arange(len(source))
  rest = np.setdiff1d(np.arange(len(calibration)), chosen)
  if not len(rest):
    raise ValueError(f"--eval names the calibration data and all {len(chosen)} samples were used to "
                     "calibrate; lower --calibration_samples.")
  print(f"--eval names the calibration data: its {len(chosen)} calibration images are left out.")
  return calibration, rest


def _demo(config: QuantConfig) -> None:
  """Trains the digits network, then the same run as for any model."""
  report = Report()
  with report.stage("load"):
    model = demo.train_digits(FLAGS.seed)
    (x, _), (x_test, y_test) = demo.digits(FLAGS.seed)
  print(f"Trained a {len(model.layers)}-layer network on scikit-learn's digits "
        f"in {report.seconds['load']:.1f} s.")
  with tempfile.TemporaryDirectory() as folder:
    held_back = pathlib.Path(folder) / "digits.npz"
    np.savez(held_back, x=x_test, y=y_test)
    source = open_source(str(held_back), keras_calls.input_specs(model))
    output = FLAGS.output or os.path.join(folder, "digits.tflite")
    _run(_Task(model, [x[:FLAGS.calibration_samples]], config, output, (source, np.arange(len(source))),
               model), report)


def _run(task: _Task, report: Report) -> None:
  """Quantizes, exports, judges; writes all files or none, and prints the table."""
  result, allocation = _quantized(task, report)
  with written_together() as staged:
    written, converter_rows = _export(task, result, staged(task.output))
    if allocation is not None:
      allocate.check_bytes(allocation, written)
    judged_on = task.judged or evaluation.some_of(task.calibration)
    with report.stage("eval"):
      judged = evaluation.evaluate(_float_model(task), lower(result.model, result.encodings), *judged_on)
    far = not (judged["constant"] or answers_alike(judged, result.report.closeness))
    analysis = _analysis(task, result, report) if far or pages.asked() else None
    noisiest = _noisiest(analysis) if far else None
    result.report.absorb(report)
    if pages.asked():
      with report.stage("report"):
        pages.Page(result, task.calibration, judged, written, allocation=allocation).write(staged, analysis)
        pages.write_node_data(staged, analysis, written.program)
    seconds = {**report.seconds, **result.report.seconds, **written.seconds}
    seconds |= {name: seconds.pop(name) for name in ("eval", "analyze", "report") if name in seconds}
    summary = _summary(task, result, written, {**seconds, "total": sum(seconds.values())})
    summary["calibration_closeness" if task.judged is None else "eval"] = judged
    if allocation is not None:
      summary["allocation"] = allocation.to_json()
    if noisiest is not None:
      summary["noisiest"] = noisiest
    _write(result, written, summary, staged)
  if allocation is not None:
    print(f"{allocation}\n")
  print(_table(summary, dataclasses.replace(written, path=pathlib.Path(task.output)), result.report,
               converter_rows))
  if hint := _hint(judged, noisiest):
    print(hint)


def _analysis(task: _Task, result: api.QuantizationResult, report: Report) -> Analysis:
  """Where the noise comes from: on more images where a page is asked for."""
  with report.stage("analyze"):
    return pages.analysis_of(result, task.calibration,
                             most=pages.ANALYZED_IMAGES if pages.asked() else ANALYZED_IMAGES)


def _quantized(task: _Task, report: Report) -> tuple[api.QuantizationResult, Allocation | None]:
  """Quantizes, with the bits that the budgets of the flags allow, where there are any."""
  allocation, config = None, task.config
  if budgets.are_given():
    allocation = allocate.allocated(task.tiled, task.calibration, config, shared.recipe())
    config = allocation.config
    report.add_seconds({"allocate": sum(allocation.seconds.values())})
  return api.quantize(task.tiled, task.calibration, config=config, recipe=shared.recipe(),
                      effort=shared.effort(), tolerance=FLAGS.tolerance, seed=FLAGS.seed), allocation


def _float_model(task: _Task) -> keras.Model:
  """The float model with the outputs that the file has."""
  return read(task.model, task.config).to_model() if task.config.split_outputs else task.model


def _export(task: _Task, result: api.QuantizationResult,
            path: pathlib.Path) -> tuple[Exported, list[tuple[str, str]]]:
  """Writes the .tflite file to a path; returns what was written and rows about TensorFlow's converter."""
  few = [array[:VERIFY_IMAGES] for array in task.calibration]
  second = backends.converted(result.model, result.encodings, few)
  try:
    written = export(result, path, verify=few, io=FLAGS.io, batch=shared.batch(),
                     certify=FLAGS.certificate is not None, preprocess=FLAGS.preprocess)
  except VerificationError as error:
    raise VerificationError(str(error).replace(str(path), task.output)) from error
  return written, backends.put_in_place(written, second)


def _summary(task: _Task, result: api.QuantizationResult, written: Exported,
             seconds: dict[str, float]) -> dict[str, Any]:
  """What --summary holds, but for how close the file is to the float model."""
  report = result.report.to_json()
  return {
      **task.tiles,
      "seconds": {name: round(value, 3) for name, value in seconds.items()},
      "calibration_images": len(task.calibration[0]), "bytes": written.bytes,
      "operators": written.program.operator_counts(),
      "delegated_operators": len(Runtime(written.path).delegated_operators()),
      "float_operators": written.verification.float_operators,
      "skipped": report["skipped"], "edits": report["edits"], "trials": report["trials"],
      "closeness": report["closeness"],
      "narrow": report["narrow"],
      "verify": written.verification.to_json(),
  }


def _write(result: api.QuantizationResult, written: Exported, summary: dict[str, Any],
           staged: Callable[[str], pathlib.Path]) -> None:
  """Writes the files beside the .tflite file that flags name."""
  if FLAGS.encodings:
    result.encodings.save(staged(FLAGS.encodings))
  if FLAGS.save_model:
    result.model.save(staged(FLAGS.save_model))
  if FLAGS.save_qmodel:
    result.qmodel.save(staged(FLAGS.save_qmodel))
  if FLAGS.c_array:
    source = to_c_source(written.path.read_bytes(), pathlib.Path(FLAGS.c_array).stem,
                         preprocess=FLAGS.preprocess)
    shared.write_text(staged(FLAGS.c_array), source)
  if FLAGS.certificate:
    shared.write_json(staged(FLAGS.certificate), written.certificate)
  if FLAGS.summary:
    shared.write_json(staged(FLAGS.summary), summary)


def _table(summary: dict[str, Any], written: Exported, report: Report,
           converter_rows: list[tuple[str, str]]) -> str:
  """The run on one page."""
  verification = written.verification
  rows = [("calibrated on", f"{summary['calibration_images']:,} images")]
  if "eval" in summary:
    rows += running.eval_rows(summary["eval"])
  else:
    rows.append(running.closeness_row(summary["calibration_closeness"]))
  rows += [
      ("bytes", f"{summary['bytes']:,}"),
      ("operators", ", ".join(f"{kind} {count}" for kind, count in summary["operators"].items())),
      ("delegated", f"{summary['delegated_operators']} of {sum(summary['operators'].values())} operators run "
                    "in the default delegate"),
      ("float operators", ", ".join(summary["float_operators"]) or "none"),
      ("verified", f"integers, grids and biases equal; each operator within {verification.max_lsb} "
                   f"LSB of its Keras layer on {verification.images} images"),
      *running.certificate_rows(written.certificate),
      *converter_rows,
      ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in summary["seconds"].items())),
      ("file", written.path if FLAGS.output else "written to a temporary folder; name one with --output"),
  ]
  return "\n\n".join([text_table(("result", ""), rows), *report.tables()])


def _noisiest(analysis: Analysis | None) -> list[dict[str, Any]]:
  """The tensors that most of the noise at the output comes from, for the summary."""
  rows = [] if analysis is None else analysis.rows[:4]
  return [{"name": row.name, "part": row.part, "share": row.share} for row in rows]


def _hint(judged: dict[str, Any], noisiest: list[dict[str, Any]] | None) -> str:
  """What to look at where the float model knows nothing of the images, or the file answers otherwise."""
  right, guesses = judged["float"]["top1"], ""
  if judged["constant"]:
    return ""
  if right is not None and metrics.is_chance(right, judged["classes"], judged["images"]):
    guesses = (f"The float model is right on {100 * right:.1f} % only, as guessing is: is --preprocess="
               f"{FLAGS.preprocess} what it was trained with, and do the labels count its classes from 0? ")
  if noisiest is None:
    return guesses.strip()
  places = [f"{'the weights' if row['part'] == 'weights' else 'the output'} of {row['name']!r} "
            f"({100 * row['share']:.0f} %)" for row in noisiest]
  causes = f"Most of the noise comes from {', '.join(places)}. " if places else ""
  return (f"{guesses}The file holds exactly the chosen integers, but they answer otherwise than the float "
          f"model. {causes}Next: kq.diagnose, or kquant.cli.analyze --fix, tries local remedies "
          "(docs/doctor.md); else --effort=best or --preset=int16x8. Judge by --eval on labelled images.")
