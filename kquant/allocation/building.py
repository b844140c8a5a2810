"""Makes the network of a plan, measures its noise and its file, and fits predictions to what was measured."""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from kquant.allocation.budget import amount
from kquant.allocation.choices import Choices, Plan
from kquant.allocation.prices import Prices
from kquant.allocation.sensitivities import Subject
from kquant.allocation.solver import NoPlanError, Solver
from kquant.analysis.layer_errors import network_of
from kquant.analysis.sites import WEIGHTS, sites
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report, Trial
from kquant.doctor import files
from kquant.doctor.patient import result_of
from kquant.doctor.remedies import together
from kquant.doctor.rules import Changes
from kquant.doctor.variants import Bench, Variant
from kquant.qmodel.widths import WIDE
from kquant.search.trials import paired_change

_ROUNDS = 6
"""Plans that are made until the bytes of a file are within the budget."""


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
  """A network that was made of a plan.

  Attributes:
    plan: this.
    config: that says so.
    contents: of its file.
    costs: {what: of its file}, as the budget counts them.
    noise: at the output of each held-back image, over the signal, [images].
    of_weights: the same with activations in float.
    sqnr_db: of each held-back image, [images].
  """

  plan: Plan
  config: QuantConfig
  contents: bytes
  costs: dict[str, float]
  noise: np.ndarray
  of_weights: np.ndarray
  sqnr_db: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
  """The network that was kept.

  Attributes:
    built: this.
    choices: with noise and bytes as they were measured.
    predictions: (predicted, measured) noise of the first plan, and with the refit of that which was kept.
    trial: of the plan of the refit; None where it is the first one.
  """

  built: Built
  choices: Choices
  predictions: tuple[tuple[float, float], ...]
  trial: Trial | None


class Builder:
  """Makes networks of plans.

  Args:
    subject: whose widths are chosen.
    judge: images that nothing was fitted to.
    prices: of files.
  """

  def __init__(self, subject: Subject, judge: list[np.ndarray], prices: Prices):
    self._subject, self._judge, self._prices = subject, judge, prices
    self._reference: list[np.ndarray] | None = None
    self._built: dict[Plan, Built] = {}

  def refit_once(self, choices: Choices, limits: Mapping[str, float]) -> Outcome:
    """Builds the best plan, fits the noises to what it has, solves again, and keeps the better plan.

    Args:
      choices: as they were measured.
      limits: {what: the most of it}.

    Raises:
      ValueError: no plan is within the budget.
    """
    first, choices = self._best(choices, limits)
    before = choices.noise(first.plan), float(first.noise.mean())
    start = time.perf_counter()
    refit = refitted(choices, first)
    for what in {"latency_ms"} & first.costs.keys():  # requantizations, which no file of one width has
      refit = dearer(refit, first.plan, what, first.costs[what] - refit.cost(first.plan, what))
    try:
      kept, choices = self._best(refit, limits)
    except NoPlanError:  # the file of the first plan is within the budget
      kept, choices = first, refit
    trial = None
    if kept.plan != first.plan:
      change, error = paired_change(kept.sqnr_db, first.sqnr_db)
      trial = Trial("refit", change > 0, len(kept.noise), change, error, "dB", time.perf_counter() - start)
      kept = kept if trial.kept else first
    return Outcome(kept, choices, (before, (choices.noise(kept.plan), float(kept.noise.mean()))), trial)

  def made(self, plan: Plan) -> Built:
    """Returns the network of a plan, which is built once."""
    if plan not in self._built:
      self._built[plan] = self._build(plan)
    return self._built[plan]

  def _best(self, choices: Choices, limits: Mapping[str, float]) -> tuple[Built, Choices]:
    """Returns the network of the best plan, and the choices at the costs that files turned out to have."""
    for attempt in range(_ROUNDS):
      plan = Solver(choices).solve(limits)
      built = self.made(plan)
      beyond = [what for what, limit in limits.items() if built.costs.get(what, 0.0) > limit]
      if not beyond:
        return built, choices
      for what in beyond:
        missing = built.costs[what] - choices.cost(plan, what)
        choices = (dearer(choices, plan, what, missing) if attempt < _ROUNDS // 2 else
                   _dearer_throughout(choices, what, missing))
    raise NoPlanError(f"Budget: expected a file of {amount(beyond[0], limits[beyond[0]])} or less, got "
                      f"{amount(beyond[0], built.costs[beyond[0]])} after {_ROUNDS} plans; raise the budget.")

  def _build(self, plan: Plan) -> Built:
    patient, report = self._subject.patient, Report()
    config, made = patient.changed(Changes(specs=self._subject.changes(plan)))
    network = network_of(made.qmodel, made.float_params)
    bench = Bench(network, self._judge, self._reference)
    self._reference = bench.reference  # in float all plans are one network
    weights = [Variant(site, network.calls[0]) for site in sites(network.graph) if site.part == WEIGHTS]
    noise, of_weights = bench.among_all([])[0], bench.solo([together(weights)])[0]
    contents = files.contents(result_of(made, config, report))
    costs = self._prices.of_file(contents)
    return Built(plan, config, contents, costs, noise, of_weights, bench.sqnr_db(noise))


def dearer(choices: Choices, plan: Plan, what: str, missing: float) -> Choices:
  """Returns the choices with what a file costs more than predicted.

  They are laid on the grids of 16 bits, which ask for requantizations and tables; without any on the rest.
  """
  wide = [place for place, bits in enumerate(plan.activations)
          if bits == WIDE and len(choices.grids[place].widths) > 1]
  if not wide:
    return _dearer_throughout(choices, what, missing)
  grids = list(choices.grids)
  for place in wide:
    more = np.equal(grids[place].widths, WIDE) * missing / len(wide)
    costs = {**grids[place].costs, what: grids[place].costs[what] + more}
    grids[place] = dataclasses.replace(grids[place], costs=costs)
  return dataclasses.replace(choices, grids=tuple(grids))


def _dearer_throughout(choices: Choices, what: str, missing: float) -> Choices:
  """Returns the choices with a cost more that every plan has."""
  constant = {**choices.constant, what: choices.constant[what] + missing}
  return dataclasses.replace(choices, constant=constant)


def refitted(choices: Choices, built: Built) -> Choices:
  """Returns the choices with the noises of weights and of activations as they were measured in a plan.

  One secant step: each of both sums is scaled to what it is in the network that was built.
  """
  of_weights = dataclasses.replace(choices, grids=()).noise(Plan(built.plan.weights, ()))
  of_grids = dataclasses.replace(choices, layers=()).noise(Plan((), built.plan.activations))
  total, weights = built.noise.mean(), built.of_weights.mean()
  if weights >= total or not of_grids or not of_weights:  # errors of both kinds cancel: they share a factor
    factor = total / (of_grids + of_weights) if of_grids + of_weights else 1.0
    return choices.refitted(factor, factor)
  return choices.refitted(weights / of_weights, (total - weights) / of_grids)
