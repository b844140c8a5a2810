"""Draws an Allocation. Imported when it is first used: matplotlib takes long to import."""

from matplotlib.figure import Figure

from kquant.allocation.budget import UNITS
from kquant.allocation.results import Allocation


def draw(allocation: Allocation) -> Figure:
  """Returns a figure: 1/QNSR, predicted, over the first cost of the budget, mixed and uniform, and it."""
  what, limit = next(iter(allocation.budget.limits().items()))
  figure = Figure(figsize=(7, 5), layout="constrained")
  axes = figure.subplots()
  for label, points, style in (("mixed", allocation.curve, "o-"), ("uniform", allocation.uniform, "s")):
    axes.plot([getattr(point, what) for point in points], [point.sqnr_db for point in points], style,
              label=label)
  for point in allocation.uniform:
    axes.annotate(point.label, (getattr(point, what), point.sqnr_db), textcoords="offset points",
                  xytext=(4, -10))
  axes.axvline(limit, color="gray", linestyle=":", label="budget")
  axes.set_xlabel(UNITS[what])
  axes.set_ylabel("predicted 1/QNSR of the outputs, dB")
  axes.set_title(allocation.summary(), fontsize="small", wrap=True)
  axes.legend()
  return figure
