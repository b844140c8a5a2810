"""Makes the mended network, and keeps it where it is better on images that nothing was fitted to."""

import dataclasses

import numpy as np

from kquant.analysis.measure import measure
from kquant.analysis.rows import analysis_of
from kquant.analysis.sites import BOTH, sites
from kquant.api import QuantizationResult
from kquant.core.errors import UnsupportedLayerError
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Closeness, Report
from kquant.doctor import files
from kquant.doctor.patient import Patient, result_of
from kquant.doctor.results import Diagnosis
from kquant.doctor.settings import DiagnosisSettings
from kquant.doctor.treatment import Treatment
from kquant.doctor.variants import Bench
from kquant.qmodel.outputs import network_outputs
from kquant.search.automatic import closeness
from kquant.search.pipeline import Calibrated
from kquant.search.trials import HeldBack


@dataclasses.dataclass(frozen=True)
class Parts:
  """Some images to calibrate on, others to judge by.

  Attributes:
    train, judge: one array [n, ...] a model input.
    labels: class indices of `judge`, or None.
    labelled: (more images that are not calibrated on, their class indices), or None.
    held_back: whether nothing is calibrated on `judge`.
  """

  train: list[np.ndarray]
  judge: list[np.ndarray]
  labels: np.ndarray | None
  labelled: tuple[list[np.ndarray], np.ndarray] | None = None
  held_back: bool = True


@dataclasses.dataclass(frozen=True)
class _Made:
  """A finished network: its config, its answers to the images to judge by, its file where there is one."""

  result: QuantizationResult
  config: QuantConfig
  answers: list[np.ndarray]
  file: bytes | None


def mend(patient: Patient, parts: Parts, settings: DiagnosisSettings, report: Report) -> Diagnosis:
  """Treats the tensors at fault of a network."""
  with report.stage("analyze"):
    network = patient.for_analysis()
    single = [site for site in sites(network.graph) if site.part != BOTH]
    analysis = analysis_of(network, measure(network, single, parts.judge, parts.labels),
                           has_labels=parts.labels is not None)
  with report.stage("remedies"):
    treatment = Treatment(patient, network, parts.train, Bench(network, parts.judge))
    treatment.examine(analysis, single, settings.coverage)
  making = _Making(patient, parts.judge, report)
  after, notes = making.treated(treatment, settings.most_wide, settings.tolerance)
  with report.stage("remedies"):
    rows = treatment.rows()
  before = making.made(patient.config, patient.finish())
  reference = network_outputs(patient.graph.to_model(), parts.judge, graph=patient.graph)
  held_back = HeldBack(parts.judge, reference)
  quality = held_back.quality(before.answers)
  found = Diagnosis(rows, (), before.result, before.config, analysis=analysis, notes=notes,
                    sqnr_db=(float(quality.mean()),) * 2)
  report.closeness = _closeness(before, held_back, parts, settings)
  if after is None:
    return found
  trial, changed = held_back.try_change("local remedies", lambda: after.answers, quality, must_gain=True)
  kept = after if trial.kept else before
  report.closeness = _closeness(kept, held_back, parts, settings)
  found = dataclasses.replace(found, result=kept.result, config=kept.config, trial=trial,
                              sqnr_db=(float(quality.mean()), float(changed.mean())))
  if before.file is None or after.file is None:
    return found
  places = treatment.remedied() if settings.latency and trial.kept else []
  made = [before.file, *making.between(treatment, len(places)), after.file]
  return _with_costs(found, made, places, latency=settings.latency)


def _closeness(made: _Made, held_back: HeldBack, parts: Parts,
               settings: DiagnosisSettings) -> Closeness | None:
  """Returns how near a finished network is; None where any tensor gets 16 bits whatever the SQNR."""
  if not np.isfinite(settings.tolerance):
    return None
  return closeness(held_back, made.answers, settings.tolerance, apart=parts.held_back)


class _Making:
  """Finishes networks of a patient.

  Args:
    images: to judge by.
    report: takes the seconds.
  """

  def __init__(self, patient: Patient, images: list[np.ndarray], report: Report):
    self._patient, self._images, self._report = patient, images, report

  def made(self, config: QuantConfig, network: Calibrated) -> _Made:
    """Returns a network as it is now.

    Raises:
      UnsupportedLayerError: a layer without an integer operator, by name.
    """
    answers = network_outputs(network.qmodel, self._images, graph=network.graph)
    result, file = result_of(network, config, self._report), None
    try:
      with self._report.stage("files"):
        file = files.contents(result)
    except UnsupportedLayerError:
      raise
    except ValueError:  # such as activations of 4 bits: a simulation
      pass
    return _Made(result, config, answers, file)

  def between(self, treatment: Treatment, remedies: int) -> list[bytes]:
    """Returns the files behind each of so many remedies but the last, with those of the rows above it."""
    with self._report.stage("files"):
      return [files.contents(result_of(network, config, Report())) for config, network in (
          self._patient.changed(treatment.changes(count)) for count in range(1, remedies))]

  def treated(self, treatment: Treatment, most_wide: int,
              tolerance: float) -> tuple[_Made | None, tuple[str, ...]]:
    """Chooses remedies; returns the network with them, None without any, and what could not be done.

    Where a layer has no kernel for 16 bits, none gets 16 bits.
    """
    treatment.choose(most_wide, tolerance)
    changes = treatment.changes()
    if not changes:
      return None, ()
    try:
      return self.made(*self._patient.changed(changes)), ()
    except UnsupportedLayerError as error:
      if not most_wide:
        raise
      made, _ = self.treated(treatment, 0, tolerance)
      return made, (f"Nothing gets 16 bits: {error}",)


def _with_costs(found: Diagnosis, made: list[bytes], places: list[int], *, latency: bool) -> Diagnosis:
  """Returns a diagnosis with what its files cost.

  Args:
    made: the file as it was, that behind each remedy, and that with all.
    places: of the rows of the remedies, which say what each adds; with none there are two files.
    latency: whether it is measured.
  """
  sizes = list(map(len, made))
  found = dataclasses.replace(found, bytes=(sizes[0], sizes[-1]))
  if not latency:
    return found
  times, rows = files.milliseconds(made), list(found.rows)
  for place, of_bytes, of_time in zip(places, np.diff(sizes) / sizes[0], np.diff(times) / times[0]):
    rows[place] = dataclasses.replace(rows[place], bytes=float(of_bytes), latency=float(of_time))
  return dataclasses.replace(found, rows=tuple(rows), milliseconds=(times[0], times[-1]))
