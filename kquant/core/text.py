"""Text for people: tables of rows, the first line of an error."""

import re
from collections.abc import Sequence
from typing import Any


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


def percent(value: float | None, digits: int = 1, *, missing: str = "-") -> str:
  """Returns a fraction as text; `missing` where there is none.

  Example:
    >>> percent(0.125), percent(0.125, 2), percent(None)
    ('12.5 %', '12.50 %', '-')
  """
  return missing if value is None else f"{100 * value:.{digits}f} %"


def milliseconds(value: float) -> str:
  """Returns milliseconds of three digits or more, never as a power of ten.

  >>> milliseconds(0.12345), milliseconds(1000.0)
  ('0.123', '1,000')
  """
  return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _is_number(text: str) -> bool:
  return text.replace(",", "").replace(".", "").replace("%", "").replace("-", "").strip().isdigit()


def scope_name(name: str) -> str:
  """Returns the name of a layer, or of one of its calls, in the letters that TensorFlow takes for a scope.

  Example:
    >>> scope_name("dense 1"), scope_name("_up"), scope_name("größe"), scope_name("conv@1")
    ('dense_1', 'layer_up', 'gr__e', 'conv_call1')
  """
  name = name.replace("@", "_call")
  name = re.sub(r"[^A-Za-z0-9_./>\\-]", "_", name)
  return name if re.match("[A-Za-z0-9.]", name) else f"layer{name}"
