"""Report: seconds a stage, what passes did and skipped; rows -> text table."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kquant.core.graph import Edit, Skip


class Report:
  """What happened in a run.

  Attributes:
    seconds: {stage: wall-clock seconds}.
    edits, skips: what each pass did to a layer; what it left alone, and why.
    steps: methods that were tried on images held back: (method, what it brought, whether it was kept).
  """

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self.edits: list[Edit] = []
    self.skips: list[Skip] = []
    self.steps: list[tuple[str, str, bool]] = []

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Adds the time that the block takes to a stage."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

  def add_edits(self, edits: Sequence[Edit], skips: Sequence[Skip]) -> None:
    """Takes over the records of a graph."""
    self.edits.extend(edits)
    self.skips.extend(skips)

  def add_step(self, method: str, what: str, *, kept: bool) -> None:
    """Notes what a method brought."""
    self.steps.append((method, what, kept))

  def to_json(self) -> dict[str, Any]:
    """Returns {"seconds", "edits", "skipped", "steps"}; rows of dicts but the first."""
    return {
        "seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
        "edits": [{"layer": e.layer, "pass": e.pass_name, "what": e.what} for e in self.edits],
        "skipped": [{"layer": s.layer, "pass": s.pass_name, "reason": s.reason} for s in self.skips],
        "steps": [{"method": name, "what": what, "kept": kept} for name, what, kept in self.steps],
    }

  def __str__(self) -> str:
    """The stages, the methods tried and the skipped layers as text."""
    lines = [text_table(("stage", "seconds"), [(n, f"{s:.2f}") for n, s in self.seconds.items()])]
    if self.steps:
      lines.append(self.step_table())
    if self.skips:
      lines.append(text_table(("layer", "pass", "not done because"),
                              [(s.layer, s.pass_name, s.reason) for s in self.skips]))
    return "\n\n".join(lines)

  def step_table(self) -> str:
    """The methods that were tried, as text."""
    return text_table(("method", "what it brought", ""),
                      [(method, what, "kept" if kept else "left out") for method, what, kept in self.steps])


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, or its class where it has none."""
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns rows under a header, columns padded to their widest cell, numbers to the right."""
  cells = [[str(cell) for cell in row] for row in [header, *rows]]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  numeric = [bool(rows) and all(_is_number(row[i]) for row in cells[1:]) for i in range(len(header))]
  lines = ["  ".join(cell.rjust(width) if right else cell.ljust(width)
                     for cell, width, right in zip(row, widths, numeric)).rstrip() for row in cells]
  return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _is_number(text: str) -> bool:
  return text.replace(",", "").replace(".", "").replace("%", "").replace("-", "").strip().isdigit()
