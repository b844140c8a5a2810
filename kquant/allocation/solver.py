"""The plan of least noise within limits: a linear program in integers, solved by HiGHS.

x[l, b, a] is 1 where layer l has weights of b bits and its operator computes with activations of a bits,
y[g, a] is 1 where grid g has a bits. An operator is at least as wide as each of its grids:
sum over b and a' >= a of x[l, b, a'] >= sum over a' >= a of y[g, a']. (Dong et al. 2020, "HAWQ-V2", choose
weights so; the widths of activations come in by these ties.)
"""

from collections.abc import Mapping

import numpy as np
import scipy.optimize
import scipy.sparse

from kquant.allocation.budget import amount
from kquant.allocation.choices import Choices, Plan

_SECONDS = 20.0
"""For one plan; what has been found by then is taken."""
_POINTS = 20
_SLACK = 1e-9
_TIME_OUT = 1
"""Status of scipy.optimize.milp."""


class NoPlanError(ValueError):
  """No plan is within the limits, or none was found in time."""


class Solver:
  """Finds plans for one set of choices, whatever the limits.

  Args:
    choices: what there is to choose from.
  """

  def __init__(self, choices: Choices):
    self._choices = choices
    self._noise, self._costs, equal, above = _program(choices)
    self._rules = [scipy.optimize.LinearConstraint(equal, 1, 1)]
    if above.shape[0]:
      self._rules.append(scipy.optimize.LinearConstraint(above, 0, np.inf))
    parts = [choice.noise for choice in (*choices.layers, *choices.grids)]
    self._unit = sum(noise.min() for noise in parts) or sum(noise.max() for noise in parts) or 1.0

  def solve(self, limits: Mapping[str, float]) -> Plan:
    """Returns the plan of least noise.

    Args:
      limits: {what: the most of it}.

    Raises:
      NoPlanError: no plan is within the limits, and what the least is; none was found in time.
    """
    found = self._solved(self._noise / self._unit, limits)
    if found is None:
      raise NoPlanError(self._reason(limits))
    return found

  def least(self, what: str, limits: Mapping[str, float]) -> float | None:
    """Returns the least of a cost within the other limits; None where these alone cannot be met."""
    others = {other: limit for other, limit in limits.items() if other != what}
    scale = self._costs[what].max() or 1.0
    plan = self._solved(self._costs[what] / scale, others)
    return None if plan is None else self._choices.cost(plan, what)

  def curve(self, what: str, limits: Mapping[str, float], points: int = _POINTS) -> list[Plan]:
    """Returns plans for limits of one cost from its least to its most, the other limits as they are."""
    widest = self._choices.uniform(max(max(layer.widths) for layer in self._choices.layers),
                                   self._choices.activations[-1])
    others = {other: limit for other, limit in limits.items() if other != what}
    least = self.least(what, limits)
    if least is None:
      return []
    most = max(self._choices.cost(widest, what), least)
    steps = np.linspace(least, most, points)
    return list(dict.fromkeys(self.solve({**others, what: step * (1 + _SLACK)}) for step in steps))

  def _solved(self, objective: np.ndarray, limits: Mapping[str, float]) -> Plan | None:
    rows = list(self._rules)
    for what, limit in limits.items():
      room = limit - self._choices.constant[what]
      scale = abs(room) or 1.0
      rows.append(scipy.optimize.LinearConstraint(
          scipy.sparse.csr_matrix(self._costs[what] / scale), -np.inf, room / scale))
    found = scipy.optimize.milp(objective, constraints=rows, integrality=np.ones(len(objective)),
                                bounds=scipy.optimize.Bounds(0, 1), options={"time_limit": _SECONDS})
    if found.x is None and found.status == _TIME_OUT:
      raise NoPlanError(f"Budget: expected a plan within {_SECONDS:g} s, got none; allow fewer widths, "
                        "or raise the budget.")
    return None if found.x is None else self._plan(found.x)

  def _plan(self, x: np.ndarray) -> Plan:
    weights, activations, place = [], [], 0
    columns = len(self._choices.activations)
    for layer in self._choices.layers:
      count = len(layer.widths) * columns
      weights.append(layer.widths[int(np.argmax(x[place:place + count])) // columns])
      place += count
    for grid in self._choices.grids:
      activations.append(grid.widths[int(np.argmax(x[place:place + len(grid.widths)]))])
      place += len(grid.widths)
    return Plan(tuple(weights), tuple(activations))

  def _reason(self, limits: Mapping[str, float]) -> str:
    parts = []
    for what, limit in limits.items():
      alone, beside = self.least(what, {}), self.least(what, limits)
      if alone > limit:
        parts.append(f"expected {amount(what, alone)} or more, the least that these widths make, got "
                     f"{amount(what, limit)}")
      elif beside is not None and beside > limit:
        parts.append(f"with the other limits the least is {amount(what, beside)}, got {amount(what, limit)}")
    return f"Budget: it cannot be met: {'; '.join(parts)}. Raise it, or allow fewer bits."


def _program(choices: Choices) -> tuple[np.ndarray, dict[str, np.ndarray], scipy.sparse.csr_matrix,
                                        scipy.sparse.csr_matrix]:
  """Returns (noise of each variable, {what: costs}, rows that equal 1, rows that are at least 0)."""
  columns = len(choices.activations)
  sizes = [len(layer.widths) * columns for layer in choices.layers] + [len(g.widths) for g in choices.grids]
  starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
  of_grids = starts[len(choices.layers):]
  noise = np.concatenate([*(np.repeat(layer.noise, columns) for layer in choices.layers),
                          *(grid.noise for grid in choices.grids)])
  costs = {what: np.concatenate([np.ravel(choice.costs[what]) for choice in
                                 (*choices.layers, *choices.grids)]) for what in choices.constant}
  equal = scipy.sparse.lil_matrix((len(sizes), starts[-1]))
  for row, (start, size) in enumerate(zip(starts, sizes)):
    equal[row, start:start + size] = 1
  ties = [(number, grid, column) for number, layer in enumerate(choices.layers) for grid in layer.grids
          for column in range(1, columns)]
  above = scipy.sparse.lil_matrix((len(ties), starts[-1]))
  for row, (number, grid, column) in enumerate(ties):
    for place in range(sizes[number]):
      if place % columns >= column:
        above[row, starts[number] + place] = 1
    for place, bits in enumerate(choices.grids[grid].widths):
      if bits >= choices.activations[column]:
        above[row, of_grids[grid] + place] -= 1
  return noise, costs, equal.tocsr(), above.tocsr()
