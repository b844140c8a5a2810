"""Draws an Analysis. Imported when it is first used: matplotlib takes long to import."""

from itertools import accumulate

from matplotlib.figure import Figure

from kquant.analysis.results import Analysis
from kquant.analysis.sites import ACTIVATION, WEIGHTS

_COLOURS = {WEIGHTS: "tab:blue", ACTIVATION: "tab:orange"}


def draw(analysis: Analysis, most: int) -> Figure:
  """Returns a figure: a bar for the share of each tensor, a line for their cumulative sum, largest first."""
  rows = analysis.rows[:most]
  figure = Figure(figsize=(9, 1.5 + 0.28 * len(rows)), layout="constrained")
  axes, places = figure.subplots(), range(len(rows))
  for part, colour in _COLOURS.items():
    chosen = [place for place in places if rows[place].part == part]
    axes.barh(chosen, [100 * rows[place].share for place in chosen], color=colour, label=part)
  axes.plot([100 * share for share in accumulate(row.share for row in rows)], places, "k.-",
            label="cumulative")
  axes.set_yticks(places, [row.name for row in rows])
  axes.invert_yaxis()
  axes.set_xlabel("share of the noise at the output, %")
  axes.set_title(analysis.summary(), fontsize="small", wrap=True)
  axes.legend(loc="lower right")
  return figure
