"""One option of each item so that a sum stays below a limit and another one is least."""

from collections.abc import Sequence

import numpy as np

LEVELS = 4096
"""Steps of the limit in which weights count, rounded up: what is chosen keeps the limit in any case."""


def choose_options(costs: Sequence[Sequence[float]], weights: Sequence[Sequence[float]],
                   limit: float) -> list[int] | None:
  """Returns the option of each item, the sum of costs being least of those whose weights sum to the limit.

  Dynamic programming over the levels that are used up. What rounding takes is a step for each item whose
  weight is not 0.

  Args:
    costs, weights: one sequence an item, one number an option; none is negative.
    limit: of the sum of weights.

  Returns:
    The index of an option for each item; None where no choice keeps the limit.

  >>> choose_options([[9, 4, 1], [9, 4, 1]], [[0, 1, 6], [0, 2, 3]], 4)
  [1, 2]
  """
  steps = [_levels(item, limit) for item in weights]
  least = np.full(LEVELS + 1, np.inf)
  least[0] = 0.0
  chosen = []
  for item_costs, item_steps in zip(costs, steps, strict=True):
    totals = np.full((len(item_costs), LEVELS + 1), np.inf)
    for option, (cost, step) in enumerate(zip(item_costs, item_steps, strict=True)):
      if step <= LEVELS:
        totals[option, step:] = least[:LEVELS + 1 - step] + cost
    chosen.append(totals.argmin(0))
    least = totals.min(0)
  if not np.isfinite(least.min()):
    return None
  level, options = int(least.argmin()), []
  for item_steps, choice in zip(reversed(steps), reversed(chosen)):
    options.append(int(choice[level]))
    level -= item_steps[options[-1]]
  return options[::-1]


def _levels(weights: Sequence[float], limit: float) -> list[int]:
  """Weights in steps of the limit, rounded up; beyond LEVELS what is beyond the limit."""
  if limit <= 0:
    return [0 if weight <= 0 else LEVELS + 1 for weight in weights]
  return [min(int(np.ceil(weight / limit * LEVELS - 1e-9)), LEVELS + 1) for weight in weights]
