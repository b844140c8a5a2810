"""What a page is made of: sections with words, figures and tables."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?( (%|dB|LSB))?|-")


@dataclasses.dataclass(frozen=True)
class Figure:
  """A drawing.

  Attributes:
    svg: an <svg> element.
    caption: what it shows, in words.
  """

  svg: str
  caption: str


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of text under a header.

  Attributes:
    header: of the columns.
    rows: cells as text.
    title: where it is folded away, what is read in its place.
  """

  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  title: str = ""

  @property
  def numeric(self) -> list[bool]:
    """Which columns are numbers, and lie to the right."""
    return [all(_NUMBER.fullmatch(cell) for cell in column) for column in zip(*self.rows)]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page under a title.

  Attributes:
    title: in a few words.
    words: paragraphs.
    figures, tables: behind the words.
    text: printed as it is, in fixed pitch.
  """

  title: str
  words: tuple[str, ...] = ()
  figures: tuple[Figure, ...] = ()
  tables: tuple[Table, ...] = ()
  text: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One of the answers at the head of the page.

  Attributes:
    question: that it answers.
    answer: in a few words.
    words: sentences with the figures behind it.
    good: None: it is not known.
  """

  question: str
  answer: str
  words: tuple[str, ...]
  good: bool | None


@dataclasses.dataclass(frozen=True)
class PageParts:
  """What a result that is no network shows of itself.

  Attributes:
    title: of a page about it alone.
    verdicts: at the head of such a page.
    sections: on every page that it is given to.
  """

  title: str
  verdicts: tuple[Verdict, ...]
  sections: tuple[Section, ...]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> Table:
  """Returns a Table of anything that can be written as text."""
  return Table(tuple(header), tuple(tuple(str(cell) for cell in row) for row in rows), title)
