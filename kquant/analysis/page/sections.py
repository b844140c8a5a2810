"""The sections of a page, each from the records that it shows; without records there is no section."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.analysis.calls import Params
from kquant.analysis.page import figures
from kquant.analysis.page.parts import Section, Table, table
from kquant.analysis.page.values import histograms, kernel_ranges
from kquant.analysis.results import Analysis, AnalysisRow
from kquant.analysis.sites import ACTIVATION, WEIGHTS
from kquant.core.records import Report
from kquant.core.text import percent
from kquant.qmodel.describe import describe

_BARS, _WORST = 20, 6
_MANY = 12
"""Rows from which on a table is folded away."""


def file(export: Any, model: keras.Model | None) -> Section | None:
  """Bytes and operators."""
  if export is None:
    return None
  counts = export.program.operator_counts()
  words = [f"{export.bytes:,} bytes in {sum(counts.values())} operators."]
  if model is not None:
    floats = 4 * model.count_params()
    words.append(f"The weights in float32 take {floats:,} bytes: {floats / export.bytes:.1f} times as many.")
  words += [f"Operators in float: {', '.join(export.verification.float_operators)}."
            ] if export.verification.float_operators else ["No operator is in float."]
  return Section("The file", tuple(words), tables=(table(("operator", "how many"), sorted(
      counts.items(), key=lambda pair: -pair[1])),))


def widths(qmodel: keras.Model) -> Section:
  """How many layers have how many bits."""
  return Section("Bits", text=describe(qmodel).summary())


def damage(analysis: Analysis | None, *, mended: bool) -> Section | None:
  """Where the noise at the output comes from; of a mended network where it came from."""
  if analysis is None:
    return None
  before = ("This is the network before the remedies.",) if mended else ()
  scatter = figures.intrinsic_extrinsic(analysis.rows)
  return Section("Where the noise comes from", (*before, f"{analysis.summary()}.", *analysis.notes),
                 (figures.damage_bars(analysis.rows[:_BARS]), *([scatter] if scatter else [])),
                 (_noise_table(analysis.rows, "Every tensor in figures"),
                  *([_noise_table(analysis.layers, "Every layer: weights with its output")]
                    if analysis.layers else [])))


def _noise_table(rows: Sequence[AnalysisRow], title: str) -> Table:
  header = ("name", "part", "bits", "noise", "share", "local", "gain", "shift", "saturated")
  return table(header, [(row.name, row.part, row.bits, f"{row.solo:.2e}", percent(row.share),
                         f"{row.local:.2e}", "-" if row.amplification is None else f"{row.amplification:.3g}",
                         percent(row.mean_shift, 0), percent(row.saturated, 2)) for row in rows], title=title)


def kernels(analysis: Analysis | None, qmodel: keras.Model, float_params: Params | None) -> Section | None:
  """The ranges of the kernels that make the most noise."""
  rows = [row for row in analysis.rows if row.part == WEIGHTS][:_WORST] if analysis is not None else []
  if not rows:
    return None
  return Section("Kernels with the most noise", (
      "A channel whose weights are small within a grid that others need has few steps. Weights beyond the "
      "reach of the grid are saturated.",
  ), tuple(map(figures.kernel_figure, kernel_ranges(qmodel, float_params, rows))))


def activations(analysis: Analysis | None, qmodel: keras.Model, float_params: Params | None,
                images: list[np.ndarray] | None) -> Section | None:
  """The distributions of the activations that make the most noise."""
  rows = [row for row in analysis.rows if row.part == ACTIVATION][:_WORST] if analysis is not None else []
  if not rows or images is None:
    return None
  return Section("Activations with the most noise", (
      "Values of the float network, the grid between the red lines; each tick at the bottom is a step. What "
      "lies outside is saturated; what every reader cuts off anyway, as a ReLU does, is not counted as that. "
      "Where most values are within a few steps, the range is too wide.",
  ), tuple(map(figures.histogram_figure, histograms(qmodel, float_params, rows, images))))


def remedies(diagnosis: Any) -> Section | None:
  """What the doctor found and changed."""
  if diagnosis is None:
    return None
  rows = [(row.name, row.part, percent(row.share), row.outcome, f"{row.noise:.2e}",
           f"{row.noise_after:.2e}", f"{row.gain_db:+.1f} dB", *row.costs) for row in diagnosis.rows]
  header = ("tensor", "part", "share", "remedy", "noise", "noise after", "gain", "bytes", "latency")
  return Section("Remedies", (*map(str, diagnosis.findings), *diagnosis.notes, f"{diagnosis.summary()}."),
                 tables=(table(header, rows),) if rows else ())


def steps(report: Report | None) -> Section | None:
  """The methods that were tried on held-back images."""
  if report is None or not report.trials:
    return None
  rows = [(trial.method, "kept" if trial.kept else "left out",
           "-" if trial.change is None else f"{trial.change:+.2f} ± {trial.error:.2f} {trial.unit}",
           trial.images, f"{trial.seconds:.1f}") for trial in report.trials]
  return Section("Methods that were tried", (
      "Each was compared on held-back images with the network without it.",
  ), tables=(table(("method", "", "brought", "images", "seconds"), rows),))


def proof(export: Any) -> Section | None:
  """What the certificate compared, operator by operator."""
  if export is None or export.certificate is None:
    return None
  rows = []
  for kernels_of, result in export.certificate["kernel_sets"].items():
    for inputs, counted in (("images", result["operators"]), ("rounding ties", result["ties"]["operators"])):
      rows += [(kind, kernels_of, inputs, f"{row['elements']:,}", row["mismatching"], f"{row['max_lsb']} LSB")
               for kind, row in counted.items()]
  bound = export.certificate["accumulators"]
  missing = [f"Not simulated: {line}." for result in export.certificate["kernel_sets"].values()
             for line in result["not_simulated"]]
  return Section("Certificate", (
      f"The largest accumulator that an input can make is {bound['bound']:,} in {bound['layer']}; the limit "
      f"is {bound['limit']:,}.", f"SHA-256 of the file: {export.certificate['file']['sha256']}.", *missing,
  ), tables=(table(("operator", "kernels", "run on", "elements", "differ", "by up to"), rows,
                   title="Elements compared"),))


def left_alone(report: Report | None) -> Section | None:
  """Layers that a pass did not treat, and columns that have few steps."""
  if report is None or not (report.skips or report.narrow):
    return None
  tables = [_folded(("layer", "pass", "not done because"),
                    [dataclasses.astuple(skip) for skip in report.skips], "layers that a pass left alone")
            ] if report.skips else []
  return Section("What to know", tuple(f"{tensor.tensor}: {tensor}; {tensor.remedy()}."
                                       for tensor in report.narrow), tables=tuple(tables))


def _folded(header: tuple[str, ...], rows: list[tuple], what: str) -> Table:
  return table(header, rows, title=f"{len(rows)} {what}" if len(rows) >= _MANY else "")


def seconds(report: Report | None, export: Any) -> Section | None:
  """Wall-clock time of the stages."""
  spent = {**({} if report is None else report.seconds), **({} if export is None else export.seconds)}
  spent = dict(sorted(spent.items(), key=lambda pair: -pair[1]))
  return Section("Seconds", figures=(figures.seconds_bars(spent),)) if spent else None
