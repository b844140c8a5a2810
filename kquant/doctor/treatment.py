"""Tensors at fault -> remedies, measured on held-back images -> one for each of them -> rows."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from kquant.analysis.measure import Network
from kquant.analysis.results import Analysis, AnalysisRow
from kquant.analysis.sites import ACTIVATION, WEIGHTS, Site
from kquant.doctor import choosing
from kquant.doctor.choosing import Option
from kquant.doctor.patient import Change, Patient, rule_of
from kquant.doctor.remedies import (
  WIDE,
  Ranges,
  Remedy,
  activation_remedies,
  may_be_wide,
  measured_ranges,
  rounding_remedy,
  together,
  weight_remedies,
)
from kquant.doctor.results import DiagnosisRow
from kquant.doctor.variants import Bench, Variant
from kquant.search.trials import paired_change

_LAST_REMEDIES = ("weights of 8 bits",)
"""Dearer than rounding in closed form."""


@dataclasses.dataclass
class Case:
  """A tensor at fault.

  Attributes:
    site: where it is.
    row: of the analysis.
    remedies: that were tried, cheap to dear.
    options: what they brought, in the same order.
    noise: without a remedy, on the images that the options were measured on.
    chosen: the place of the remedy; None: none.
  """

  site: Site
  row: AnalysisRow
  remedies: list[Remedy]
  options: list[Option] = dataclasses.field(default_factory=list)
  noise: float = 0.0
  chosen: int | None = None

  @property
  def remedy(self) -> Remedy | None:
    """The one that was chosen."""
    return None if self.chosen is None else self.remedies[self.chosen]


class Treatment:
  """The cases of a network, and the remedies that were chosen for them.

  Args:
    patient: whose network is analyzed.
    network: of `patient.for_analysis`.
    images: to calibrate on.
    bench: with the images to judge by.

  Attributes:
    cases: the largest noise first.
  """

  def __init__(self, patient: Patient, network: Network, images: list[np.ndarray], bench: Bench):
    self._patient, self._network, self._images, self._bench = patient, network, images, bench
    self.cases: list[Case] = []
    self._limit = 0.0

  def examine(self, analysis: Analysis, sites: Sequence[Site], coverage: float) -> None:
    """Finds the tensors at fault and measures every remedy for each."""
    by_name = {(site.part, site.name): site for site in sites}
    noises = [row.solo for row in analysis.rows]
    self._limit = choosing.threshold(noises)
    rows = [analysis.rows[place] for place in choosing.at_fault(noises, coverage)]
    found = [by_name[row.part, row.name] for row in rows]
    ranges = measured_ranges(self._network, [site for site in found if site.part == ACTIVATION], self._images)
    self.cases = [Case(site, row, list(self._remedies(site, ranges.get(site, {}))))
                  for site, row in zip(found, rows)]
    self._measure(self.cases)
    self._try_rounding()

  def _remedies(self, site: Site, ranges: Ranges) -> Iterable[Remedy]:
    config = self._patient.config
    if site.part == WEIGHTS:
      rule = rule_of(config, self._patient.layers[site.name])
      mean = self._patient.calibrated.statistics.input_means[site.name]
      return weight_remedies(self._network, site, rule, mean)
    graph, layer = self._patient.calibrated.graph, site.nodes[0].layer
    if layer.config["fixed"] is not None:
      return []
    bordering = [ref.key for ref in (*graph.input_refs, *graph.output_refs)]
    spec = rule_of(config, self._patient.subjects[layer.name]).activations
    return activation_remedies(self._network, site, spec, ranges, wide=may_be_wide(site, bordering))

  def _try_rounding(self) -> None:
    """Measures closed-form rounding where no cheaper remedy is enough."""
    if self._patient.config.recipe.rounding != "nearest":
      return
    ill = []
    for case in self.cases:
      cheap = [option for option in case.options if option.remedy not in _LAST_REMEDIES]
      best = choosing.choose(cheap, case.noise, self._limit)
      if case.site.part == WEIGHTS and (best is None or best.noise > self._limit):
        ill.append(case)
    if not ill:
      return
    self._patient.round([case.site.name for case in ill])
    rounded = [Case(case.site, case.row, [rounding_remedy(self._network, case.site)]) for case in ill]
    self._patient.for_analysis()
    self._measure(rounded)
    for case, new in zip(ill, rounded):
      place = sum(option.remedy not in _LAST_REMEDIES for option in case.options)
      case.remedies[place:place] = new.remedies
      case.options[place:place] = new.options

  def _measure(self, cases: Sequence[Case]) -> None:
    """Fills in noise and options of cases."""
    on_grid = self._network.calls[0]
    variants = [variant for case in cases for variant in
                (Variant(case.site, on_grid), *(remedy.variant for remedy in case.remedies))]
    noises = iter(self._bench.solo(variants) if variants else ())
    for case in cases:
      before = next(noises)
      case.noise = float(before.mean())
      case.options = [_option(remedy, before, next(noises)) for remedy in case.remedies]

  def choose(self, most_wide: int) -> None:
    """Chooses a remedy for each case, with 16 bits for so many at most."""
    for case in self.cases:
      option = choosing.choose(case.options, case.noise, self._limit, wide=most_wide > 0)
      case.chosen = None if option is None else case.options.index(option)
      most_wide -= option is not None and option.wide

  def changes(self) -> tuple[list[Change], list[str]]:
    """Returns what rules change, and the layers to be rounded in closed form."""
    changes, rounded = [], []
    for case in self.cases:
      if case.remedy is None:
        continue
      if case.remedy.spec is None:
        rounded.append(case.site.name)
      elif case.site.part == WEIGHTS:
        changes.append(Change(self._patient.layers[case.site.name], "weights", case.remedy.spec))
      else:
        layer = self._patient.subjects[case.site.nodes[0].layer.name]
        changes.append(Change(layer, "activations", case.remedy.spec))
    return changes, rounded

  def rows(self) -> tuple[DiagnosisRow, ...]:
    """Returns what was done, with the gain of each remedy on top of those before."""
    treated = [case for case in self.cases if case.remedy is not None]
    variants = [case.remedy.variant for case in treated]
    noises = self._bench.among_all([together(variants[:count + 1]) for count in range(len(variants))])
    levels = _decibels(noises).mean(1) if treated else []
    gains = dict(zip([case.row for case in treated], np.diff(levels)))
    return tuple(self._row(case, float(gains.get(case.row, 0.0))) for case in self.cases)

  def _row(self, case: Case, gain: float) -> DiagnosisRow:
    row, after = case.row, case.noise if case.chosen is None else case.options[case.chosen].noise
    return DiagnosisRow(
        name=row.name, part=row.part, kind=row.kind, bits=row.bits, share=row.share, noise=case.noise,
        remedy=None if case.remedy is None else case.remedy.name, noise_after=after,
        below=after <= self._limit, gain_db=gain,
        tried=tuple((option.remedy, option.noise) for option in case.options))


def _option(remedy: Remedy, before: np.ndarray, after: np.ndarray) -> Option:
  gain, error = paired_change(_decibels(after), _decibels(before))
  return Option(remedy.name, float(after.mean()), gain, error, wide=remedy.name == WIDE)


def _decibels(noise: np.ndarray) -> np.ndarray:
  """Signal over noise in dB."""
  return -10 * np.log10(np.maximum(noise, 1e-12))
