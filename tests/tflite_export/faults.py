"""Planted faults: an operator whose kernel computes something else."""

import dataclasses

from tflite_export.operators.table import OPERATORS
from tflite_export.proof.simulate import kernel_of


def plant(monkeypatch, kind, wrong):
  """Puts `wrong(right, call, *arrays)` in the place of an operator's kernel `right`."""
  right = kernel_of(kind)
  monkeypatch.setitem(OPERATORS, kind, dataclasses.replace(
      OPERATORS[kind], kernel=lambda call, *arrays: wrong(right, call, *arrays)))


def off_by_one(right, call, *arrays):
  """The right integers with their last bit turned over."""
  return [right(call, *arrays)[0] ^ 1]
