"""Report: seconds a stage, what passes did and skipped; rows -> text table."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kquant.core.text import text_table


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
