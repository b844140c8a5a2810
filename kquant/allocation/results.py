"""Allocation: the bits that were chosen, what they cost, and what other budgets would bring."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from kquant.allocation.budget import amount
from kquant.analysis.results import finite
from kquant.core.text import milliseconds, text_table

if TYPE_CHECKING:
  from matplotlib.figure import Figure

  from kquant.allocation.budget import Budget
  from kquant.analysis.page.parts import PageParts
  from kquant.core.quant_config import QuantConfig
  from kquant.core.records import Trial

Cells = tuple[tuple[str, ...], list[tuple]]
"""The header and the rows of a table."""


@dataclasses.dataclass(frozen=True)
class AllocationRow:
  """The bits of one layer or of one grid.

  Attributes:
    name: of the layer whose weights they are, or of the first tensor on the grid.
    part: "weights" or "activation".
    bits: that it got.
    noise: at the output where it alone is quantized (QNSR), of each width that it could have: {bits: noise}.

  Example:
    >>> row = kq.AllocationRow("conv", "weights", 4, {4: 1e-3, 8: 1e-6})
    >>> row.noise[row.bits]
    0.001
  """

  name: str
  part: str
  bits: int
  noise: dict[int, float]


@dataclasses.dataclass(frozen=True)
class AllocationPoint:
  """One plan: what it costs, and the noise that is predicted.

  Attributes:
    label: "w4a8" of a uniform plan, "hawq" of one that HAWQ-V2's proxy chose, else "".
    bytes: of its file; predicted.
    bops: bit operations of an image.
    noise: at the output (QNSR), predicted.
    latency_ms: of an image, predicted, where the budget limits it.

  Example:
    >>> kq.AllocationPoint("w4a8", 1000.0, 1e6, 0.01).sqnr_db
    20.0
  """

  label: str
  bytes: float
  bops: float
  noise: float
  latency_ms: float | None = None

  @property
  def sqnr_db(self) -> float:
    """The noise in dB below the signal, 1 / QNSR; the SQNR of a file counts the mean of the signal, too."""
    return level_db(self.noise)


def level_db(noise: float) -> float:
  """Returns 1 / QNSR in dB."""
  return -10 * math.log10(noise) if noise > 0 else math.inf


@dataclasses.dataclass(frozen=True)
class Allocation:
  """How many bits each layer and each grid gets within a budget.

  Attributes:
    config: with a rule for each layer, by its exact name: `kquant.quantize(config=allocation.config)`.
    rows: the layers, then the grids, in the order of the network.
    budget: that was asked for, in absolute numbers.
    bytes: of the .tflite file of the plan, as the budget counts them.
    bops: bit operations of an image.
    latency_ms: of the operators of its file together, where the budget limits it.
    predictions: (predicted, measured) noise at the output (QNSR) on the held-back images: of the first
      plan; then, after one refit to what was measured, of the plan that was kept.
    trial: how the plan of the refit compares with the first one on held-back images; None where it is the
      same one.
    curve: the best plans for budgets from the least to the most.
    uniform: plans of one width for all weights.
    proxy: plans that the proxy of HAWQ-V2 would choose for weights, activations with the fewest bits; their
      noise is predicted as that of all plans.
    notes: what could not be done.
    seconds: of each stage.
    name: of the model.

  Example:
    >>> layers = [keras.layers.Dense(16, input_shape=(8,), activation="relu"), keras.layers.Dense(4)]
    >>> images = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    >>> allocation = kq.allocate_bits(keras.Sequential(layers), images, budget=0.99, activations=(8,))
    >>> allocation.bytes <= allocation.budget.bytes, len(allocation.rows) > 2
    (True, True)
  """

  config: "QuantConfig"
  rows: tuple[AllocationRow, ...]
  budget: "Budget"
  bytes: int
  bops: float
  predictions: tuple[tuple[float, float], ...]
  trial: "Trial | None"
  curve: tuple[AllocationPoint, ...]
  uniform: tuple[AllocationPoint, ...]
  proxy: tuple[AllocationPoint, ...] = ()
  notes: tuple[str, ...] = ()
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  latency_ms: float | None = None
  name: str = ""

  def table(self) -> str:
    """Makes a table of the bits, with the noise of each width.

    Returns:
      The text.
    """
    return text_table(*bits_cells(self))

  def curve_table(self) -> str:
    """Makes a table of the curve, with the uniform plans and those of HAWQ-V2.

    Returns:
      The text.
    """
    return text_table(*plan_cells(self))

  def plot(self) -> "Figure":
    """Draws the curve, the uniform plans and those of HAWQ-V2 beside it.

    Returns:
      The figure.
    """
    from kquant.allocation.plots import draw  # matplotlib takes long to import
    return draw(self)

  def page_parts(self) -> "PageParts":
    """Makes what `kquant.report` shows of it.

    Returns:
      Title, answers and sections.
    """
    from kquant.allocation.sections import page_parts  # matplotlib takes long to import
    return page_parts(self)

  def summary(self) -> str:
    """Says in a line what was chosen and how far the predictions hold.

    Returns:
      The text.
    """
    costs = [f"{amount(what, getattr(self, what))} of {amount(what, limit)}"
             for what, limit in self.budget.limits().items()]
    ratios = " and ".join(f"{predicted / measured:.2f}" if measured else "-"
                          for predicted, measured in self.predictions)
    level = level_db(self.predictions[-1][1])
    return (f"{', '.join(costs)}; output 1/QNSR {level:.1f} dB on held-back images; predicted / measured "
            f"noise {ratios} before and after the refit")

  def to_json(self) -> dict[str, Any]:
    """Makes what a JSON file holds; the config as `QuantConfig.from_json` reads it.

    Returns:
      A JSON-ready dict; what is not finite is None.
    """
    fields = dataclasses.asdict(dataclasses.replace(self, config=None, budget=dataclasses.replace(
        self.budget, latencies=None)))
    return {**finite(fields), "config": self.config.to_json()}

  def __str__(self) -> str:
    """The table, the notes, how the plan of the refit compares, and the summary."""
    compared = () if self.trial is None else (
        f"the plan of the refit, {'kept' if self.trial.kept else 'not kept'}: {self.trial}",)
    return "\n".join([self.table(), *self.notes, *compared, self.summary()])


def bits_cells(allocation: Allocation) -> Cells:
  """Returns the header and the rows of a table of the bits, with the noise of each width."""
  widths = sorted({bits for row in allocation.rows for bits in row.noise})
  return ("layer or tensor", "part", "bits", *(f"noise at {bits}" for bits in widths)), [
      (row.name, row.part, row.bits, *(f"{row.noise[bits]:.1e}" if bits in row.noise else ""
                                       for bits in widths)) for row in allocation.rows]


def plan_cells(allocation: Allocation) -> Cells:
  """Returns the header and the rows of a table of all plans, the cheapest first."""
  points = sorted((*allocation.curve, *allocation.uniform, *allocation.proxy), key=lambda point: point.bytes)
  timed = [] if allocation.latency_ms is None else ["ms"]
  return ("plan", "bytes", "bit operations", *timed, "predicted 1/QNSR dB"), [
      (point.label or "mixed", f"{point.bytes:,.0f}", f"{point.bops:,.0f}",
       *(milliseconds(point.latency_ms) for _ in timed), f"{point.sqnr_db:.1f}") for point in points]
