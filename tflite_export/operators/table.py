"""OPERATORS: the record of every operator that the writer writes."""

from tflite_export.operators import borders, elementwise, functions, linear, moving, pooling, recurrent
from tflite_export.operators.record import Operator

_FAMILIES = (borders, elementwise, functions, linear, moving, pooling, recurrent)
OPERATORS: dict[str, Operator] = {
    operator.kind: operator for family in _FAMILIES for operator in family.OPERATORS}
"""{name of the builtin: its record}."""


def operator_of(kind: str) -> Operator:
  """Returns an operator's record; for a kind that other producers write, one without any rule."""
  return OPERATORS.get(kind) or Operator(kind)
