"""Flat rules: between which inputs a function of one element changes; beyond them it is exactly flat."""

from collections.abc import Callable

import numpy as np

from kquant.graph.kinds.calls import Call, cap_of

Ends = tuple[np.ndarray | float, np.ndarray | float]
"""(low, high) of a part of the real numbers, for all channels or [channels] each; infinite where open."""
FlatRule = Callable[[Call], Ends]
EVERYTHING: Ends = (-np.inf, np.inf)


def nowhere(call: Call) -> Ends:
  """A function that jumps: it is flat beyond no end."""
  del call
  return EVERYTHING


def clamp(call: Call) -> Ends:
  """A ReLU: 0 and its cap."""
  cap = cap_of(call)
  return 0.0, np.inf if cap is None else cap


def clip(call: Call) -> Ends:
  """tf.clip_by_value."""
  ends = call.argument(1, "clip_value_min"), call.argument(2, "clip_value_max")
  return float(np.min(ends[0])), float(np.max(ends[1]))


def at_least(call: Call) -> Ends:
  """The maximum of x and a constant."""
  return float(min(np.min(value) for value in _constants(call))), np.inf


def at_most(call: Call) -> Ends:
  """The minimum of x and a constant."""
  return -np.inf, float(max(np.max(value) for value in _constants(call)))


def threshold(call: Call) -> Ends:
  """A ThresholdedReLU: 0 below theta."""
  return float(call.config["theta"]), np.inf


def _constants(call: Call) -> list[np.ndarray]:
  return [operand for operand in call.operands if isinstance(operand, np.ndarray)]
