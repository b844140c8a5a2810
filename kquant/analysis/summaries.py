"""Writes an Analysis for TensorBoard."""

import math
import os

import tensorflow as tf

from kquant.analysis.results import Analysis
from kquant.core.event_files import write_scalar, write_text

_INDENT = "    "
"""Markdown leaves text in fixed pitch as it is behind four blanks."""


def write(analysis: Analysis, folder: str | os.PathLike, step: int) -> None:
  """Writes scalars of the whole and of each tensor, and the table as text; what is not finite is left out."""
  writer = tf.summary.create_file_writer(os.fspath(folder))
  with writer.as_default():
    for name, value in _scalars(analysis).items():
      if value is not None and math.isfinite(value):
        write_scalar(name, value, step=step)
    write_text("analysis", "\n".join(_INDENT + line for line in str(analysis).splitlines()), step=step)
  writer.close()


def _scalars(analysis: Analysis) -> dict[str, float | None]:
  """{tag: value}, a group of charts for each measure."""
  values = {"whole/noise": analysis.whole, "whole/additivity": analysis.additivity,
            "whole/divergence": analysis.divergence}
  for row in analysis.rows:
    values.update({f"{measure}/{row.part}/{row.name}": getattr(row, measure)
                   for measure in ("solo", "share", "local", "amplification")})
  return values
