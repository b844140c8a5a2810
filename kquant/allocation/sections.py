"""What a page shows of an Allocation. Imported when it is first used: matplotlib is slow to import."""

from kquant.allocation.budget import amount
from kquant.allocation.plots import bits_figure, curve_figure
from kquant.allocation.results import Allocation, AllocationPoint, bits_cells, level_db, plan_cells
from kquant.analysis.page.figures import seconds_bars
from kquant.analysis.page.parts import PageParts, Section, Table, Verdict, table
from kquant.analysis.sites import ACTIVATION, WEIGHTS

_NEAR = 1.2
"""Predicted over measured noise, or its inverse, at most: 0.8 dB."""


def page_parts(allocation: Allocation) -> PageParts:
  """Returns the title, the two answers, and the sections."""
  return PageParts(f"{allocation.name}: mixed precision", (_cost(allocation), _predictions(allocation)),
                   (_curve(allocation), _bits(allocation), _seconds(allocation)))


def _cost(allocation: Allocation) -> Verdict:
  """What the budget takes away: the plan beside the best one without a budget, and those of one width."""
  level, most = _level(allocation), max(allocation.curve, key=lambda point: point.sqnr_db, default=None)
  words = [f"{amount(what, getattr(allocation, what))} of {amount(what, limit)}."
           for what, limit in allocation.budget.limits().items()]
  if most is not None:
    words.append(f"The best plan on the curve has {most.sqnr_db:.1f} dB, predicted, in {_costs(most)}: the "
                 f"budget costs {max(most.sqnr_db - level, 0.0):.1f} dB.")
  return Verdict("What does the budget cost?", f"{level:.1f} dB are left", tuple(words), None)


def _predictions(allocation: Allocation) -> Verdict:
  """Whether the noise of the network that was built is that which was predicted."""
  predicted, measured = allocation.predictions[-1]
  good = bool(measured) and 1 / _NEAR <= predicted / measured <= _NEAR
  words = ("The noise of a plan is the sum of those of its parts, fitted once to a network that was built.",
           "Measured on held-back images.")
  return Verdict("Do the predictions hold?", f"{_ratio(predicted, measured)} times the measured noise", words,
                 good if measured else None)


def _curve(allocation: Allocation) -> Section:
  return Section("Noise over budgets", (f"{allocation.summary()}.", *allocation.notes),
                 (curve_figure(allocation),), (_predicted_table(allocation), _plans_table(allocation)))


def _predicted_table(allocation: Allocation) -> Table:
  """Predicted and measured noise of the plans that were built."""
  plans = ("first plan", "plan that was kept, after the refit")
  return table(("", "predicted", "measured", "ratio"), [
      (plan, f"{level_db(predicted):.1f} dB", f"{level_db(measured):.1f} dB", _ratio(predicted, measured))
      for plan, (predicted, measured) in zip(plans, allocation.predictions)])


def _plans_table(allocation: Allocation) -> Table:
  header, rows = plan_cells(allocation)
  return table(header, rows, title=f"{len(rows)} plans in figures")


def _bits(allocation: Allocation) -> Section:
  """The bits of each layer; of grids where there were some to choose."""
  rows = {part: [row for row in allocation.rows if row.part == part] for part in (WEIGHTS, ACTIVATION)}
  shown = [part for part in rows if any(len(row.noise) > 1 for row in rows[part])]
  title = f"{len(allocation.rows)} layers and grids in figures"
  return Section("Bits of each layer", () if ACTIVATION in shown else ("Activations were not to choose.",),
                 tuple(bits_figure(rows[part], part) for part in shown or (WEIGHTS,)),
                 (table(*bits_cells(allocation), title=title),))


def _seconds(allocation: Allocation) -> Section:
  return Section("Seconds to allocate", figures=(seconds_bars(allocation.seconds),))


def _level(allocation: Allocation) -> float:
  return level_db(allocation.predictions[-1][1])


def _ratio(predicted: float, measured: float) -> str:
  return f"{predicted / measured:.2f}" if measured else "-"


def _costs(point: AllocationPoint) -> str:
  return f"{amount('bytes', point.bytes)} and {amount('bops', point.bops)}"

