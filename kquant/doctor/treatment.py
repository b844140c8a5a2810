"""Tensors at fault -> remedies, measured on held-back images -> one for each of them -> rows."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from kquant.analysis.measure import Network
from kquant.analysis.results import Analysis, AnalysisRow
from kquant.analysis.sites import ACTIVATION, WEIGHTS, Site
from kquant.core.records import Trial
from kquant.core.tensor_spec import TensorSpec
from kquant.doctor import choosing
from kquant.doctor.choosing import Option
from kquant.doctor.patient import Patient
from kquant.doctor.remedies import (
  EIGHT_BITS,
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
from kquant.doctor.rules import Changes, SpecChange, rule_of
from kquant.doctor.scaling import FACTORIZATION, Factorization
from kquant.doctor.splitting import SPLIT, split_remedy
from kquant.doctor.variants import Bench, Variant
from kquant.graph.nodes import Node
from kquant.search.trials import is_accepted, paired_change

_LAST_REMEDIES = (SPLIT, EIGHT_BITS)
"""Dearer than rounding in closed form."""
_PLAIN = (None, "minmax")
"""Quantizers of weights that round the weights themselves over a range."""


@dataclasses.dataclass(eq=False)
class Case:
  """A tensor at fault.

  Attributes:
    site: where it is.
    row: of the analysis.
    remedies: that were tried, cheap to dear.
    options: what they brought, in the same order.
    noise: without a remedy, on the images that the options were measured on.
    chosen: the place of the remedy; None: none.
    left_out: what the remedy that was chosen first brings on top of the others: too little.
    mended_by: the tensor whose factorization scales these weights, too.
  """

  site: Site
  row: AnalysisRow
  remedies: list[Remedy]
  options: list[Option] = dataclasses.field(default_factory=list)
  noise: float = 0.0
  chosen: int | None = None
  left_out: Trial | None = None
  mended_by: str | None = None

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
    grids = [site for site in found if site.part == ACTIVATION]
    ranges = measured_ranges(self._network, grids, self._images)
    scaled = self._factorizations(sites, grids)
    for site, row in zip(found, rows):
      remedies = (self._of_weights(site) if site.part == WEIGHTS else self._of_grid(site, ranges[site]))
      remedies = sorted([*remedies, *scaled.get(site, ())], key=lambda remedy: remedy.name == WIDE)
      self.cases.append(Case(site, row, remedies))
    self._measure(self.cases)
    self._try_rounding()

  def _factorizations(self, sites: Sequence[Site], grids: Sequence[Site]) -> dict[Site, list[Remedy]]:
    if not grids or self._patient.config.recipe.equalize != "none":
      return {}
    factorization = Factorization(self._patient.graph, self._patient.config, self._images,
                                  self._patient.calibrated.statistics)
    remedies = {site: factorization.remedy(self._network, sites, site) for site in grids}
    return {site: [remedy] for site, remedy in remedies.items() if remedy is not None}

  def _of_weights(self, site: Site) -> Iterable[Remedy]:
    spec = self._weight_spec(site)
    if spec.quantizer not in _PLAIN:
      return ()
    statistics = self._patient.calibrated.statistics
    split = split_remedy(self._network, self._patient.graph, site, spec, statistics)
    remedies = [*weight_remedies(self._network, site, spec, statistics), *([] if split is None else [split])]
    return sorted(remedies, key=lambda remedy: remedy.name == EIGHT_BITS)

  def _weight_spec(self, site: Site) -> TensorSpec:
    return rule_of(self._patient.config, self._patient.layers[site.name]).weights

  def _of_grid(self, site: Site, ranges: Ranges) -> Iterable[Remedy]:
    graph, layer = self._patient.calibrated.graph, site.nodes[0].layer
    if layer.config["fixed"] is not None:
      return ()
    bordering = [ref.key for ref in (*graph.input_refs, *graph.output_refs)]
    spec = rule_of(self._patient.config, self._patient.subjects[layer.name]).activations
    return activation_remedies(self._network, site, spec, ranges, wide=may_be_wide(site, bordering))

  def _try_rounding(self) -> None:
    """Measures closed-form rounding where no cheaper remedy is enough."""
    if self._patient.config.recipe.rounding != "nearest":
      return
    ill = []
    for case in self.cases:
      cheap = [option for option in case.options if option.remedy not in _LAST_REMEDIES]
      best = choosing.choose(cheap, case.noise, self._limit)
      if (case.site.part == WEIGHTS and self._weight_spec(case.site).quantizer in _PLAIN
          and (best is None or best.noise > self._limit)):
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
    variants = [variant for case in cases for variant in self._variants(case)]
    noises = iter(self._bench.solo(variants) if variants else ())
    for case in cases:
      before = next(noises)
      case.noise, case.options = float(before.mean()), []
      for remedy in case.remedies:
        after = next(noises)
        if remedy.baseline is not None:  # of several tensors: the part of it that goes
          after = before * after / np.maximum(next(noises), 1e-30)
        case.options.append(_option(remedy, before, after))

  def _variants(self, case: Case) -> Iterable[Variant]:
    yield Variant(case.site, self._network.calls[0])
    for remedy in case.remedies:
      yield remedy.variant
      if remedy.baseline is not None:
        yield remedy.baseline

  def choose(self, most_wide: int, tolerance: float) -> None:
    """Chooses a remedy for each case, and leaves out those that bring nothing on top of the others.

    Args:
      most_wide: so many get 16 bits, at most;
      tolerance: and no more than it takes for outputs of this SQNR in dB.
    """
    noises, options = [case.noise for case in self.cases], [case.options for case in self.cases]
    plans = [choosing.assign(noises, options, self._limit, count) for count in range(most_wide + 1)]
    plans = [plan for place, plan in enumerate(plans) if plan not in plans[:place]]
    places = [[None if option is None else own.index(option) for option, own in zip(plan, options)]
              for plan in plans]
    enough = places[-1]
    if plans[1:] and tolerance < np.inf:
      levels = self._levels([[case.remedies[at].variant for case, at in zip(self.cases, plan)
                              if at is not None] for plan in places]).mean(1)
      enough = next((plan for plan, level in zip(places, levels) if level >= tolerance), enough)
    for case, at in zip(self.cases, enough):
      case.chosen, case.left_out = at, None
    self._leave_out()
    scaled = _scaled(self.cases)
    for case in self.cases:
      case.mended_by = scaled.get(case.site.nodes[0]) if case.site.part == WEIGHTS else None
      case.chosen = None if case.mended_by else case.chosen

  def _treated(self, without: Collection[Case] = ()) -> list[Case]:
    """Returns the cases with a remedy, where that of some is left out.

    Weights that a factorization scales have none: their noise is not what it was.
    """
    chosen = [case for case in self.cases if case.remedy is not None and case not in without]
    scaled = _scaled(chosen)
    return [case for case in chosen if case.site.part != WEIGHTS or case.site.nodes[0] not in scaled]

  def _leave_out(self) -> None:
    """Takes the remedies away that harm, or cost something and bring nothing, on top of the others.

    First each is left out alone; then those that should be, one after another, the worst first: of two that
    do the same one stays.
    """
    treated = self._treated()
    if not treated:
      return
    level, *others = self._levels_without([(), *((case,) for case in treated)])
    alone = {case: paired_change(level, other) for other, case in zip(others, treated)}
    going = sorted((case for case in treated if not _stays(case, alone[case])), key=alone.get)
    if not going:
      return
    levels = [level, others[treated.index(going[0])]]
    if going[1:]:
      levels.extend(self._levels_without([going[:count] for count in range(2, len(going) + 1)]))
    for before, after, case in zip(levels, levels[1:], going):
      change = paired_change(before, after)
      if _stays(case, change):
        break
      case.left_out, case.chosen = Trial(case.remedy.name, False, len(level), *change, "dB"), None
    if set(self._treated()) - set(treated):  # weights whose factorization went: their remedies are back
      self._leave_out()

  def _levels_without(self, left_out: Sequence[Collection[Case]]) -> np.ndarray:
    """Returns the SQNR in dB with the remedies but for those of some cases, [sets of cases, images]."""
    return self._levels([[case.remedy.variant for case in self._treated(cases)] for cases in left_out])

  def _levels(self, plans: Sequence[Sequence[Variant]]) -> np.ndarray:
    """Returns the SQNR in dB with everything quantized and the variants of each plan, [plans, images]."""
    filled = [together(plan) for plan in plans if plan]
    as_it_is, *levels = self._bench.sqnr_db(self._bench.among_all(filled))
    levels = iter(levels)
    return np.array([next(levels) if plan else as_it_is for plan in plans])

  def remedied(self) -> list[int]:
    """Returns the places of the treated cases, which are those of their rows."""
    return [self.cases.index(case) for case in self._treated()]

  def changes(self, count: int | None = None) -> Changes:
    """Returns what the first `count` remedies change, all of them for None."""
    changes = Changes()
    for case in self._treated()[:count]:
      remedy = case.remedy
      changes.scales.update(remedy.scales)
      if remedy.spec is not None:
        changes.specs.append(self._spec_change(case.site, remedy.spec))
      elif remedy.splits:
        changes.split.append(case.site.name)
      elif not remedy.scales:
        changes.rounded.append(case.site.name)
    return changes

  def _spec_change(self, site: Site, spec: TensorSpec) -> SpecChange:
    if site.part == WEIGHTS:
      return SpecChange(self._patient.layers[site.name], "weights", spec)
    return SpecChange(self._patient.subjects[site.nodes[0].layer.name], "activations", spec)

  def rows(self) -> tuple[DiagnosisRow, ...]:
    """Returns what was done, with the gain of each remedy on top of those before."""
    treated = self._treated()
    variants = [case.remedy.variant for case in treated]
    plans = [variants[:count] for count in range(len(variants) + 1)]
    gains = dict(zip(treated, np.diff(self._levels(plans).mean(1)))) if treated else {}
    return tuple(self._row(case, float(gains.get(case, 0.0))) for case in self.cases)

  def _row(self, case: Case, gain: float) -> DiagnosisRow:
    row, after = case.row, case.noise if case.chosen is None else case.options[case.chosen].noise
    remedy = None if case.remedy is None else case.remedy.name
    remedy = remedy if case.mended_by is None else f"{FACTORIZATION} of {case.mended_by!r}"
    return DiagnosisRow(
        name=row.name, part=row.part, kind=row.kind, bits=row.bits, share=row.share, noise=case.noise,
        remedy=remedy, noise_after=after, below=after <= self._limit, gain_db=gain,
        tried=tuple((option.remedy, option.noise) for option in case.options), left_out=case.left_out)


def _stays(case: Case, change: tuple[float, float]) -> bool:
  """Whether the remedy of a case stays, which brings so much on top of the others."""
  return is_accepted(*change, must_gain=bool(case.remedy.cost))


def _scaled(cases: Sequence[Case]) -> dict[Node, str]:
  """Returns {call that the factorization of a case changes: the tensor that it is around}."""
  return {node: case.site.name for case in cases if case.remedy is not None and case.remedy.scales
          for node in case.remedy.variant.site.nodes}


def _option(remedy: Remedy, before: np.ndarray, after: np.ndarray) -> Option:
  gain, error = paired_change(_decibels(after), _decibels(before))
  return Option(remedy.name, float(after.mean()), gain, error, wide=remedy.name == WIDE)


def _decibels(noise: np.ndarray) -> np.ndarray:
  """Signal over noise in dB."""
  return -10 * np.log10(np.maximum(noise, 1e-12))
