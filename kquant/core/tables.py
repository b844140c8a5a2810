"""CSV files of numbers: a row a sample, with or without a header."""

import csv
import pathlib

import numpy as np

LABELS = ("label", "y")
"""Names of the column that holds class indices."""


def read_table(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns (numbers, float64 [rows, columns], the column of labels, float64 [rows]; None without one).

  Args:
    path: of a .csv file. The first row is a header where it holds a word; a column named label or y in it
      holds class indices.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: no row, a row of another length, or a cell that is no number.
  """
  if not path.exists():
    raise FileNotFoundError(f"There is no file or folder {path}; check the path.")
  with open(path, newline="", encoding="utf-8-sig") as file:
    reader = csv.reader(file)
    rows = [(reader.line_num, row) for row in reader if row]
  header = [cell.strip() for cell in rows.pop(0)[1]] if rows and not _is_numbers(rows[0][1]) else []
  if not rows:
    raise ValueError(f"{path}: expected a row of numbers a sample, got none.")
  width = len(header or rows[0][1])
  for line, row in rows:
    if len(row) != width or not _is_numbers(row):
      raise ValueError(f"{path}, line {line}: expected {width} numbers, got {','.join(row)[:80]!r}.")
  numbers = np.array([[float(cell) for cell in row] for _, row in rows])
  labelled = [index for index, name in enumerate(header) if name in LABELS]
  if not labelled:
    return numbers, None
  return np.delete(numbers, labelled, axis=1), numbers[:, labelled[0]]


def _is_numbers(row: list[str]) -> bool:
  try:
    return all(np.isfinite(float(cell)) for cell in row)
  except ValueError:
    return False
