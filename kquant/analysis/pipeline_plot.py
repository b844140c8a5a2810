"""Draws a PipelineBuffer. Imported when it is first used: matplotlib takes long to import."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from kquant.analysis.pipeline import BlockBuffer


def draw(blocks: Sequence[BlockBuffer]) -> Figure:
  """Returns a figure: a pair of bars for each block, the elements of its image and those that it holds."""
  figure = Figure(figsize=(8, 0.9 + 0.26 * len(blocks)), layout="constrained")
  axes, places = figure.subplots(), np.arange(len(blocks))
  for shift, label, key in ((-0.2, "without tiles", "untiled"), (0.2, "held", "elements")):
    axes.barh(places + shift, [getattr(block, key) / 1e6 for block in blocks], 0.4, label=label)
  axes.set_yticks(places, [block.name for block in blocks])
  axes.invert_yaxis()
  axes.set_xlabel("elements held by a block, millions")
  axes.legend(loc="lower right")
  return figure
