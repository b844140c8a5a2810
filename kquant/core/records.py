"""Report: seconds a stage, what passes did and skipped; rows -> text table."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kquant.core.text import text_table

FEWEST_STEPS = 8
"""Of the grid of an input or output that each of its columns should use on the calibration data."""
LEAST_SQNR_DB, LEAST_AGREEMENT = 10.0, 0.9
"""Below one of them a file answers otherwise than its float model. (MobileNetV3-Small at int8, 1.4 dB and
0.51, loses 34 points of top-1; MobileNetV2 at w4a8, 8 dB and 0.89, 5 to 8; at int8, 20 dB, none.)
"""
SAME_IMAGES = "that are all the same and say nothing of others"
_SHOWN = 5
_FEW_IMAGES = 16
"""Below that an SQNR is told with a word of doubt; 128 calibration images hold 16 back."""


@dataclasses.dataclass(frozen=True)
class Skip:
  """A layer that a pass could not treat, and why."""

  layer: str
  pass_name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Edit:
  """What a pass did to a layer."""

  layer: str
  pass_name: str
  what: str


@dataclasses.dataclass(frozen=True)
class Trial:
  """A method that was tried on held-back images.

  Attributes:
    method: its name in a Recipe.
    kept: whether the network has it.
    images: how many were held back.
    change: mean over them of (quality with it - quality without), better being positive; None where there
      were too few images to hold some back.
    error: the standard error of `change`; infinite for one image.
    unit: of both: "dB" of the outputs' SQNR, or "nats" of Kullback-Leibler divergence.
    seconds: what trying took.
    epochs: (the best one, all that were trained) of a fine-tuning.
  """

  method: str
  kept: bool
  images: int
  change: float | None = None
  error: float | None = None
  unit: str = ""
  seconds: float = 0.0
  epochs: tuple[int, int] | None = None

  def __str__(self) -> str:
    """What it brought, in words."""
    if self.change is None:
      return f"not tried: {self.images} images are too few to hold some back"
    best = "" if self.epochs is None else f", best after {self.epochs[0]} of {self.epochs[1]} epochs"
    return (f"{self.change:+.2f} {self.unit} +- {self.error:.2f} on {self.images} held-back images{best}, "
            f"{self.seconds:.1f} s")


@dataclasses.dataclass(frozen=True)
class Closeness:
  """How near the answers of a quantized network are to those of its float network.

  Attributes:
    sqnr_db: signal-to-quantization-noise ratio of the outputs before a closing softmax, mean over images.
    agreement: fraction of images with the same largest output; None where the outputs are no classes.
    images: how many were compared.
    held_back: whether nothing was chosen by these images.
    tolerance: SQNR in dB that is good enough.
    constant: whether these images are all the same, so that nothing is known of others.
  """

  sqnr_db: float
  agreement: float | None
  images: int
  held_back: bool
  tolerance: float
  constant: bool = False

  @property
  def good(self) -> bool:
    """Whether it is good enough."""
    return self.sqnr_db >= self.tolerance

  def __str__(self) -> str:
    """One sentence."""
    same = "" if self.agreement is None else f", the same answer on {100 * self.agreement:.1f} %"
    images = f"{self.images} {'held-back' if self.held_back else 'calibration'} images"
    verdict = "good enough" if self.good else "NOT good enough"
    constant = f" {SAME_IMAGES}" if self.constant else ""
    few = "; so few images say little" if self.images < _FEW_IMAGES else ""
    return (f"SQNR {self.sqnr_db:.1f} dB{same} of {images}{constant}: {verdict} ({self.tolerance:g} dB asked)"
            f"{few}")


def answers_alike(judged: dict[str, Any], closeness: Closeness | None) -> bool:
  """Returns whether nothing that was measured says that a file answers otherwise than its float model.

  Args:
    judged: "sqnr_db" and "agreement" (0..1) of its outputs, each None or left out where it is not known.
    closeness: what was found while it was quantized.
  """
  sqnr_db, agreement = judged.get("sqnr_db"), judged.get("agreement")
  return ((sqnr_db is None or sqnr_db >= LEAST_SQNR_DB)
          and (agreement is None or agreement >= LEAST_AGREEMENT)
          and (closeness is None or closeness.good))


@dataclasses.dataclass(frozen=True)
class NarrowColumn:
  """A column of a tensor's last axis that uses a few steps of the tensor's grid.

  Attributes:
    column: its index.
    low, high: its range on the calibration data, in real numbers.
    steps: of the grid, within that range.
  """

  column: int
  low: float
  high: float
  steps: float


@dataclasses.dataclass(frozen=True)
class NarrowTensor:
  """An input or output some of whose columns are much smaller than the grid that they share.

  Attributes:
    tensor: its key in Encodings.
    is_input: an input of the model, else an output.
    size: how many columns it has.
    columns: those that use a few steps.
    mean, deviation: of all columns of an input on the calibration data; () for an output.
  """

  tensor: str
  is_input: bool
  size: int
  columns: tuple[NarrowColumn, ...]
  mean: tuple[float, ...] = ()
  deviation: tuple[float, ...] = ()

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> "NarrowTensor":
    """Reads what `dataclasses.asdict` made."""
    columns = tuple(NarrowColumn(**column) for column in fields["columns"])
    return cls(**{**fields, "columns": columns, "mean": tuple(fields["mean"]),
                  "deviation": tuple(fields["deviation"])})

  def __str__(self) -> str:
    """How many columns, and which: the first few by number."""
    numbers = [str(column.column) for column in self.columns]
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return (f"{len(numbers)} of {self.size} columns ({', '.join(numbers[:_SHOWN])}{more}) have fewer than "
            f"{FEWEST_STEPS} steps of the grid")

  def remedy(self) -> str:
    """Returns what to do about it."""
    if self.is_input:
      return ("let the application normalize the features: quantize keras.Sequential([layers.Normalization("
              "mean=m, variance=d**2, invert=True), model]) with (x - m) / d, where m and d are mean and "
              "deviation of this record")
    return ("make them outputs of their own: QuantConfig(split_outputs=True), --split_outputs, does that "
            "with a Concatenate")


class Report:
  """What happened in a run.

  Attributes:
    seconds: {stage: wall-clock seconds}.
    edits, skips: what each pass did to a layer; what it left alone, and why.
    trials: methods that were tried on held-back images.
    closeness: how near the result is to the float network, where an effort watched it.
    narrow: inputs and outputs some of whose columns use a few steps of the grid.
  """

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self.edits: list[Edit] = []
    self.skips: list[Skip] = []
    self.trials: list[Trial] = []
    self.closeness: Closeness | None = None
    self.narrow: list[NarrowTensor] = []

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Adds the time that the block takes to a stage."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self.add_seconds({name: time.perf_counter() - start})

  def add_edits(self, edits: Sequence[Edit], skips: Sequence[Skip]) -> None:
    """Takes over the records of a graph."""
    self.edits.extend(edits)
    self.skips.extend(skips)

  def add_seconds(self, seconds: dict[str, float]) -> None:
    """Adds to the seconds of stages."""
    for name, value in seconds.items():
      self.seconds[name] = self.seconds.get(name, 0.0) + value

  def absorb(self, other: "Report") -> None:
    """Takes over what another report says of the same run."""
    self.add_seconds(other.seconds)
    self.add_edits(other.edits, other.skips)
    self.trials += other.trials
    self.closeness = other.closeness or self.closeness
    self.narrow += other.narrow

  def to_json(self) -> dict[str, Any]:
    """Returns {"seconds", "edits", "skipped", "trials", "closeness", "narrow"}, ready for JSON."""
    return {
        "seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
        "edits": [{"layer": e.layer, "pass": e.pass_name, "what": e.what} for e in self.edits],
        "skipped": [{"layer": s.layer, "pass": s.pass_name, "reason": s.reason} for s in self.skips],
        "trials": [dataclasses.asdict(trial) for trial in self.trials],
        "closeness": None if self.closeness is None else {**dataclasses.asdict(self.closeness),
                                                          "good": self.closeness.good},
        "narrow": [dataclasses.asdict(tensor) for tensor in self.narrow],
    }

  def __str__(self) -> str:
    """The stages, the methods tried and the skipped layers as text; what to do next where it is far off."""
    lines = [text_table(("stage", "seconds"), [(n, f"{s:.2f}") for n, s in self.seconds.items()])]
    far = self.closeness is not None and not (self.closeness.good or self.closeness.constant)
    remedy = ["Next: kq.diagnose(model, images) names the tensors at fault and tries local remedies."] * far
    return "\n\n".join([*lines, *self.tables(), *remedy])

  def tables(self) -> list[str]:
    """Returns as text how near it is, methods that were tried, skipped layers and narrow columns."""
    tables = [] if self.closeness is None else [f"against float: {self.closeness}"]
    if self.trials:
      rows = [(trial.method, trial, "kept" if trial.kept else "left out") for trial in self.trials]
      tables.append(text_table(("method", "what it brought", ""), rows))
    if self.skips:
      tables.append(text_table(("layer", "pass", "not done because"),
                               [(s.layer, s.pass_name, s.reason) for s in self.skips]))
    if self.narrow:
      rows = [(tensor.tensor, column.column, f"{column.low:.4g} .. {column.high:.4g}", f"{column.steps:.1f}")
              for tensor in self.narrow for column in tensor.columns[:_SHOWN]]
      tables.append(text_table(("tensor", "column", "range", "steps of its grid"), rows))
      tables.extend(f"{tensor.tensor}: {tensor}; {tensor.remedy()}." for tensor in self.narrow)
    return tables
