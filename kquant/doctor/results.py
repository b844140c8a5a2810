"""Diagnosis: what is at fault in a quantized network, what mends it, and the mended network."""

import dataclasses
from typing import TYPE_CHECKING, Any

from kquant.analysis.results import finite
from kquant.core.text import milliseconds, text_table
from kquant.search.trials import is_accepted

if TYPE_CHECKING:
  from kquant.analysis.results import Analysis
  from kquant.api import QuantizationResult
  from kquant.core.quant_config import QuantConfig
  from kquant.core.records import Trial


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something that no change of grids mends.

  Attributes:
    kind: "weights", "outlier", "values", "constant", "dead channels", "calibration", "preprocessing",
      "batch norm", "labels" or "answers".
    where: the layer or tensor; "" for the model or the images as a whole.
    what: what is wrong, in a sentence.
    remedy: what to do, in a sentence.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> _ = model.layers[0].kernel.assign(np.full((3, 2), np.nan))
    >>> kq.diagnose(model, np.eye(3, dtype=np.float32)).findings[0].where
    'dense/kernel'
  """

  kind: str
  where: str
  what: str
  remedy: str

  def __str__(self) -> str:
    """Both sentences."""
    return f"{self.what} {self.remedy}"


@dataclasses.dataclass(frozen=True)
class DiagnosisRow:
  """A tensor at fault, and what was done about it.

  Attributes:
    name: of the layer whose weights they are, or of the tensor.
    part: "weights" or "activation".
    kind: of the layer: "Conv2D".
    bits: of the integers, before.
    share: of the noise of all tensors, each alone, 0..1.
    noise: at the output where this tensor alone is quantized (QNSR).
    remedy: that was chosen, in words; None where none helps.
    noise_after: `noise` with it; of weights that are scaled with another tensor as before.
    below: whether that is below the median of all tensors + 3 median absolute deviations.
    gain_db: SQNR of the outputs with everything quantized that this remedy adds to those of the rows above,
      with biases corrected locally; 0 without a remedy.
    tried: (remedy, noise with it) of all that were measured, cheap to dear.
    left_out: how the outputs with everything quantized and the other remedies are with the one that this
      tensor would have had, and without it; None where it was not left out.
    bytes, latency: what the remedy adds on top of the rows above, as a part of the file before, 0.01: 1 %;
      None where it was not asked for, or nothing was changed.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> kq.diagnose(model, np.eye(3, dtype=np.float32), effort="fast").rows
    ()
  """

  name: str
  part: str
  kind: str
  bits: int
  share: float
  noise: float
  remedy: str | None
  noise_after: float
  below: bool
  gain_db: float
  tried: tuple[tuple[str, float], ...]
  left_out: "Trial | None" = None
  bytes: float | None = None
  latency: float | None = None

  @property
  def outcome(self) -> str:
    """The remedy; without one none, and which was left out."""
    left_out = "" if self.left_out is None else f" ({self.left_out.method} left out)"
    return self.remedy or f"none{left_out}"

  @property
  def costs(self) -> tuple[str, str]:
    """What it adds to bytes and to latency, in words; "" where that is not known."""
    return tuple("" if part is None else f"{100 * part:+.1f} %" for part in (self.bytes, self.latency))

  def __str__(self) -> str:
    """What was done, in words."""
    where = f"{self.name} ({'weights' if self.part == 'weights' else 'output'})"
    if self.remedy is None:
      return f"{where}: as it was; {self._best_tried() if self.left_out is None else self._why_left_out()}"
    costs = [f", {cost} {what}" for cost, what in zip(self.costs, ("bytes", "latency")) if cost]
    return f"{where}: {self.remedy}, {self.gain_db:+.1f} dB{''.join(costs)}"

  def _why_left_out(self) -> str:
    """Says what the remedy that was left out brings beside the others."""
    change, error = self.left_out.change, self.left_out.error
    costs = ", too little for what it costs" if is_accepted(change, error, must_gain=False) else ""
    return f"{self.left_out.method} left out: {change:+.2f} dB +- {error:.2f} on top of the others{costs}"

  def _best_tried(self) -> str:
    """Says that no remedy helps, or which would, where none is needed or it is one too many of 16 bits."""
    remedy, noise = min(self.tried, key=lambda tried: tried[1], default=("", self.noise))
    if noise >= self.noise:
      return f"none of {len(self.tried)} remedies helps"
    return f"{remedy} would lower its noise from {self.noise:.1e} to {noise:.1e}"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """What is at fault in a quantized network and what mends it; printed it is a diff in words.

  Attributes:
    rows: the tensors at fault, the largest noise first.
    findings: what no change of grids mends.
    result: the mended network, or as it was where nothing helps; None where the float model or its values
      are not finite.
    config: that it was made with: rules for the mended tensors stand in front.
    trial: how the mended network compares with the network as it was, on images that nothing was fitted to;
      None where nothing was changed.
    sqnr_db: (before, after) of the outputs on those images, mean over them.
    analysis: of the network as it was.
    bytes: (before, after) of the file; None where no file holds the network.
    milliseconds: (before, after), medians of one image on one thread; None where they were not asked for.
    notes: what could not be done.
    seconds: of each stage.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(4, input_shape=(3,)), keras.layers.Dense(2)])
    >>> images = np.random.default_rng(0).random((32, 3), np.float32)
    >>> diagnosis = kq.diagnose(model, images, config="w4a8", effort="fast")
    >>> diagnosis.sqnr_db[1] >= diagnosis.sqnr_db[0] > 0, diagnosis.findings
    (True, ())
  """

  rows: tuple[DiagnosisRow, ...]
  findings: tuple[Finding, ...]
  result: "QuantizationResult | None"
  config: "QuantConfig"
  trial: "Trial | None" = None
  sqnr_db: tuple[float, float] | None = None
  analysis: "Analysis | None" = None
  bytes: tuple[int, int] | None = None
  milliseconds: tuple[float, float] | None = None
  notes: tuple[str, ...] = ()
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  def table(self) -> str:
    """Makes a table of the tensors at fault, with what was tried.

    Returns:
      The text.
    """
    header = ("tensor", "part", "bits", "share", "noise", "remedy", "noise after", "gain dB", "tried")
    return text_table(header, [
        (row.name, row.part, row.bits, f"{100 * row.share:.0f} %", f"{row.noise:.2e}", row.outcome,
         f"{row.noise_after:.2e}", f"{row.gain_db:+.1f}",
         ", ".join(f"{remedy} {noise:.1e}" for remedy, noise in row.tried)) for row in self.rows])

  def summary(self) -> str:
    """Says in a line what all changes together bring and cost.

    Returns:
      The text.
    """
    if self.trial is None:
      level = "" if self.sqnr_db is None else f": output SQNR {self.sqnr_db[0]:.1f} dB, mean of the images"
      return f"nothing was changed{level}"
    parts = [f"together: {self.sqnr_db[0]:.1f} -> {self.sqnr_db[1]:.1f} dB "
             f"on {self.trial.images} held-back images"]
    for what, words, pair in (("bytes", "{:,d}".format, self.bytes), ("ms", milliseconds, self.milliseconds)):
      if pair is not None:
        before, after = map(words, pair)
        parts.append(f"{before} -> {after} {what} ({100 * (pair[1] / pair[0] - 1):+.1f} %)")
    return ", ".join(parts) + ("" if self.trial.kept else "; no gain beyond chance: nothing was changed")

  def to_json(self) -> dict[str, Any]:
    """Makes what a JSON file holds: all but the network; the config as `QuantConfig.from_json` reads it.

    Returns:
      A JSON-ready dict.
    """
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
              if field.name not in ("result", "config", "analysis", "trial")}
    fields["rows"] = [finite(dataclasses.asdict(row)) for row in self.rows]
    fields["findings"] = [dataclasses.asdict(finding) for finding in self.findings]
    fields["trial"] = None if self.trial is None else finite(dataclasses.asdict(self.trial))
    fields["analysis"] = None if self.analysis is None else self.analysis.to_json()
    return {**fields, "config": self.config.to_json()}

  def __str__(self) -> str:
    """What was found, what was done about each tensor, and what that brings."""
    lines = [f"- {finding}" for finding in self.findings]
    lines += [f"- {row}" for row in self.rows] or ["- no tensor stands out"] * (self.result is not None)
    return "\n".join([*lines, *self.notes, self.summary()])
