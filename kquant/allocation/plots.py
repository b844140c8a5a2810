"""Draws an Allocation, alone or on a page. Imported when it is first used: matplotlib is slow to import."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kquant.allocation.budget import UNITS
from kquant.allocation.results import Allocation, AllocationPoint, AllocationRow, level_db
from kquant.analysis.page import parts
from kquant.analysis.page.figures import BAD, BLUE, INK, MUTED, ORANGE, figure, legend_above, short
from kquant.analysis.sites import WEIGHTS

_IN_PRINT = {"mixed": "tab:blue", "HAWQ-V2": "tab:orange", "one width": "gray", "chosen": "black",
             "budget": "tab:red"}
_ON_PAGE = {"mixed": BLUE, "HAWQ-V2": ORANGE, "one width": MUTED, "chosen": INK, "budget": BAD}
_STYLES = {"mixed": "o-", "HAWQ-V2": "^-", "one width": "s"}
_MOST_NAMES = 48
"""Beside each other below bars."""


def draw(allocation: Allocation) -> Figure:
  """Returns a figure: 1/QNSR, predicted, over the first cost of the budget, of all plans, and the budget."""
  canvas = Figure(figsize=(7, 5), layout="constrained")
  axes = canvas.subplots()
  _curve(axes, allocation, _IN_PRINT)
  axes.set_title(allocation.summary(), fontsize="small", wrap=True)
  axes.legend()
  return canvas


def curve_figure(allocation: Allocation) -> parts.Figure:
  """Returns the same for a page."""
  def draw_on(axes: Axes) -> None:
    _curve(axes, allocation, _ON_PAGE)
    axes.grid()
    legend_above(axes)

  proxy = (" HAWQ-V2: plans that its proxy chooses for weights, at the noise that is predicted of them."
           if allocation.proxy else "")
  return figure(draw_on, 3.8, "Each dot is the best plan for a budget; its noise is predicted. The diamond "
                f"is the network that was built, its noise measured.{proxy}")


def _curve(axes: Axes, allocation: Allocation, colours: dict[str, str]) -> None:
  """Draws every plan, and the budget."""
  what, limit = next(iter(allocation.budget.limits().items()))
  plans = {"mixed": allocation.curve, "HAWQ-V2": allocation.proxy, "one width": allocation.uniform}
  for label, points in plans.items():
    shown = [(getattr(point, what), point.sqnr_db) for point in points if math.isfinite(point.sqnr_db)]
    if shown:
      axes.plot(*zip(*shown), _STYLES[label], color=colours[label], markersize=4, label=label)
  axes.plot([getattr(allocation, what)], [level_db(allocation.predictions[-1][1])], "D",
            color=colours["chosen"], label="chosen")
  axes.axvline(limit, color=colours["budget"], linestyle=":", label="budget")
  for point in _labelled(allocation.uniform, what):
    axes.annotate(point.label, (getattr(point, what), point.sqnr_db), textcoords="offset points",
                  xytext=(4, -10), fontsize=8)
  axes.xaxis.set_major_locator(MaxNLocator(6))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
  axes.set_xlabel(UNITS[what])
  axes.set_ylabel("1/QNSR of the outputs, dB")


def _labelled(points: Sequence[AllocationPoint], what: str) -> Iterable[AllocationPoint]:
  """The best plan of each cost: labels of the others would lie on its own."""
  return {getattr(point, what): point for point in sorted(points, key=lambda point: point.sqnr_db)
          if math.isfinite(point.sqnr_db)}.values()


def bits_figure(rows: Sequence[AllocationRow], part: str) -> parts.Figure:
  """Returns the bits of all layers, or of all grids, in the order of the network, as bars."""
  def draw_on(axes: Axes) -> None:
    axes.bar(range(len(rows)), [row.bits for row in rows], color=BLUE if part == WEIGHTS else ORANGE)
    every = -(-len(rows) // _MOST_NAMES)
    axes.set_xticks(range(0, len(rows), every), [short(row.name, 24) for row in rows[::every]], rotation=90,
                    fontsize=7)
    axes.set_yticks(sorted({bits for row in rows for bits in row.noise}))
    axes.set_xlim(-1, len(rows))
    axes.set_ylabel(f"bits of {part if part == WEIGHTS else 'activations'}")
    axes.grid(axis="y")

  counts = np.unique([row.bits for row in rows], return_counts=True)
  told = ", ".join(f"{bits} bits: {count}" for bits, count in zip(*counts))
  return figure(draw_on, 2.8, f"{'Layers' if part == WEIGHTS else 'Grids'} in the order of the network. "
                f"{told}.")
