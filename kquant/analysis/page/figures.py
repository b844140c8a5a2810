"""Draws what is on a page, as SVG in the page's colours. Imported when it is first used: matplotlib is slow.

Colours are stand-ins that become CSS variables, so that a figure follows the page into light, dark and
print. Text stays text. Names of layers are never read as formulas.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from kquant.analysis.page.parts import Figure
from kquant.analysis.page.values import Histogram, KernelRange
from kquant.analysis.results import AnalysisRow
from kquant.analysis.sites import ACTIVATION, WEIGHTS

_VARIABLES = {"#000001": "ink", "#000002": "muted", "#000003": "line", "#000004": "weights",
              "#000005": "activation", "#000006": "bad"}
INK, MUTED, LINE, BLUE, ORANGE, BAD = _VARIABLES
_COLOURS = {WEIGHTS: BLUE, ACTIVATION: ORANGE}
_STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9.0, "text.color": INK,
          "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.titlesize": 9.0,
          "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "xtick.color": MUTED,
          "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": LINE,
          "grid.linewidth": 0.6, "legend.frameon": False, "legend.labelcolor": INK, "legend.fontsize": 8.0,
          "lines.linewidth": 1.2, "axes.formatter.useoffset": False}
_WIDTH, _POINTS = 6.3, 380
"""Of a figure in inches, and of its axes in points."""
_DRAWN_BITS = 8
"""Finer grids have too many steps to draw."""
_LONGEST = 38
_NUMBERED = 8


def damage_bars(rows: Sequence[AnalysisRow]) -> Figure:
  """The share of each tensor in the noise at the output, the largest first."""
  def draw(axes: Axes) -> None:
    for part, colour in _COLOURS.items():
      chosen = [place for place, row in enumerate(rows) if row.part == part]
      axes.barh(chosen, [rows[place].share for place in chosen], color=colour, label=part, height=0.7)
    for place, row in enumerate(rows):
      beside(axes, row.share, place, f"{100 * row.share:.1f} %")
    axes.set_yticks(range(len(rows)), [f"{rank}. {short(row.name)}" for rank, row in enumerate(rows, 1)],
                    fontsize=8)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of the noise at the output")
    axes.grid(axis="x")
    axes.legend(loc="lower right")

  return figure(draw, 0.9 + 0.21 * len(rows),
                "Each tensor is quantized alone. Begin with those that have long bars.")


def intrinsic_extrinsic(rows: Sequence[AnalysisRow]) -> Figure | None:
  """Local noise against what the rest of the network makes of it; lines of equal noise at the output."""
  ranked = {rank: row for rank, row in enumerate(rows, 1)
            if row.local and row.amplification and np.isfinite(row.solo)}
  if not ranked:
    return None

  def draw(axes: Axes) -> None:
    axes.loglog()
    _write_plainly(axes.xaxis)
    _write_plainly(axes.yaxis)
    for part, colour in _COLOURS.items():
      chosen = [row for row in ranked.values() if row.part == part]
      axes.scatter([row.local for row in chosen], [row.amplification for row in chosen], s=16, color=colour,
                   label=part, alpha=0.8, linewidths=0)
    for rank, row in list(ranked.items())[:_NUMBERED]:
      axes.annotate(str(rank), (row.local, row.amplification), xytext=(3, 3), textcoords="offset points",
                    fontsize=8)
    axes.margins(0.08)
    _equal_noise(axes, max(row.solo for row in ranked.values()))
    axes.set_xlabel("intrinsic: noise at the tensor itself (QNSR)")
    axes.set_ylabel("extrinsic: gain to the output")
    axes.grid()
    legend_above(axes)

  return figure(draw, 3.6, "To the right: the grid is coarse for this tensor. To the top: the network is "
                "sensitive at this place. Numbers are the ranks of the bars. On a dashed line the noise at "
                "the output is the same, a tenth of that on the line above.")


def _equal_noise(axes: Axes, largest: float) -> None:
  """Lines of equal noise at the output, a decade apart."""
  limits, across = axes.axis(), np.array(axes.get_xlim())
  for decade in range(4):
    axes.plot(across, largest * 10.0**-decade / across, color=MUTED, linewidth=0.7, linestyle=(0, (4, 4)),
              zorder=1)
  axes.axis(limits)


def kernel_figure(kernel: KernelRange) -> Figure:
  """The range of each output channel of a kernel in float and on its grid, the widest channel first."""
  def draw(axes: Axes) -> None:
    order = np.argsort(-np.max(np.abs(kernel.before), 0), kind="stable")
    channels, before, after, limit = np.arange(len(order)), *(np.asarray(values)[..., order] for values in (
        kernel.before, kernel.after, kernel.limit))
    _upright(axes, channels, *before, color=LINE, linewidth=_bar_width(channels, 0.9), label="float")
    _upright(axes, channels, *after, color=BLUE, linewidth=_bar_width(channels, 0.4),
             label="on the grid")
    for sign in (1, -1):
      axes.plot(channels, sign * limit, color=BAD, linewidth=0.7, drawstyle="steps-mid",
                label="reach of the grid" if sign == 1 else None)
    axes.set_title(short(kernel.name, 60), loc="left")
    axes.set_xlabel("output channels, the widest first")
    axes.set_ylabel("weights")
    legend_above(axes)

  return figure(draw, 2.3, f"{kernel.name}: {100 * kernel.row.share:.1f} % of the noise.")


def _upright(axes: Axes, places: np.ndarray, low: np.ndarray, high: np.ndarray, **style: Any) -> None:
  """Draws lines from low to high as one path: hundreds of elements would make a large file."""
  gaps = np.full(len(places), np.nan)
  axes.plot(np.repeat(places, 3), np.stack([low, high, gaps], 1).reshape(-1), solid_capstyle="butt", **style)


def _bar_width(channels: np.ndarray, share: float) -> float:
  """Points; so that bars touch nowhere."""
  return float(np.clip(_POINTS * share / len(channels), 0.4, 8.0))


def histogram_figure(histogram: Histogram) -> Figure:
  """The distribution of an activation with its grid: what lies outside is saturated."""
  (low, high), row = histogram.range, histogram.row

  def draw(axes: Axes) -> None:
    axes.stairs(histogram.counts, histogram.edges, fill=True, color=ORANGE, alpha=0.75)
    axes.set_yscale("log")
    _write_plainly(axes.yaxis)
    axes.set_ylim(bottom=0.8)
    for limit in (low, high):
      axes.axvline(limit, color=BAD, linewidth=1.0)
    if histogram.bits <= _DRAWN_BITS:
      steps = np.arange(low, high + histogram.step / 2, histogram.step)
      _upright(axes, steps, np.zeros(len(steps)), np.full(len(steps), 0.05), color=INK, linewidth=0.3,
               transform=axes.get_xaxis_transform())
    axes.set_title(short(histogram.name, 60), loc="left")
    axes.set_ylabel("values (log)")

  name = histogram.name if histogram.name == row.name else f"{histogram.name}, on the grid of {row.name}"
  saturated = "" if row.saturated is None else f", {100 * row.saturated:.2g} % saturated"
  return figure(draw, 2.0, f"{name}: {histogram.bits} bits, {low:.4g} to {high:.4g} in steps of "
                f"{histogram.step:.3g}{saturated}; {100 * row.share:.1f} % of the noise.")


def seconds_bars(seconds: dict[str, float]) -> Figure:
  """Wall-clock seconds of each stage."""
  def draw(axes: Axes) -> None:
    axes.barh(range(len(seconds)), list(seconds.values()), color=BLUE, height=0.7)
    for place, value in enumerate(seconds.values()):
      beside(axes, value, place, f"{value:.1f}")
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.grid(axis="x")

  return figure(draw, 0.6 + 0.21 * len(seconds), f"{sum(seconds.values()):.1f} s in all.")


def short(name: str, longest: int = _LONGEST) -> str:
  """Returns a name that fits beside a bar: its middle is left out where it is long."""
  half = longest // 2
  return name if len(name) <= longest else f"{name[:half - 1]}…{name[-half:]}"


def beside(axes: Axes, length: float, place: int, text: str) -> None:
  """Writes behind a bar."""
  axes.annotate(text, (length, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)


def _write_plainly(axis: Axis) -> None:
  """Writes the numbers of a logarithmic axis as plain text, not as formulas."""
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
  axis.set_minor_formatter(NullFormatter())


def legend_above(axes: Axes) -> None:
  """Writes what is what above the axes, to the right."""
  axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderpad=0, handlelength=1.2)


def figure(draw: Callable[[Axes], None], height: float, caption: str) -> Figure:
  """Draws on axes of that height in inches; returns them as SVG in the colours of the page."""
  with matplotlib.rc_context({**_STYLE, "svg.hashsalt": caption}):
    canvas = Canvas(figsize=(_WIDTH, height), layout="constrained")
    draw(canvas.subplots())
    file = io.StringIO()
    canvas.savefig(file, format="svg", transparent=True)
  return Figure(_in_page(file.getvalue()), caption)


def _in_page(svg: str) -> str:
  """The <svg> element alone, without what names other sites, its colours those of the page."""
  svg = svg[svg.index("<svg"):].replace("xlink:href", "href")
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
  svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
  svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg)
  return re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", svg)
