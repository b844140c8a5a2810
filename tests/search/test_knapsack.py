"""The knapsack against all choices, tried one by one."""

import itertools

import numpy as np
import pytest

from kquant.search.knapsack import LEVELS, choose_options


def best(costs, weights, limit):
  choices = [choice for choice in itertools.product(*(range(len(item)) for item in costs))
             if sum(weights[i][option] for i, option in enumerate(choice)) <= limit]
  return min((sum(costs[i][option] for i, option in enumerate(choice)) for choice in choices), default=None)


@pytest.mark.parametrize("seed", range(8))
def test_least_cost_of_all_choices(seed):
  rng = np.random.default_rng(seed)
  costs = [rng.integers(0, 50, rng.integers(1, 5)).tolist() for _ in range(6)]
  weights = [rng.integers(0, 40, len(item)).tolist() for item in costs]
  limit = LEVELS // 32  # whole numbers are whole steps
  chosen = choose_options(costs, weights, limit)
  expected = best(costs, weights, limit)
  if expected is None:
    assert chosen is None
  else:
    assert sum(item[option] for item, option in zip(weights, chosen)) <= limit
    assert sum(item[option] for item, option in zip(costs, chosen)) == expected


def test_rounding_never_breaks_the_limit():
  weights = [[0.0, 0.1 + 1e-7 * i] for i in range(12)]
  chosen = choose_options([[1.0, 0.0]] * 12, weights, 1.0)
  assert sum(item[option] for item, option in zip(weights, chosen)) <= 1.0 and sum(chosen) == 9


def test_no_room_and_no_choice():
  assert choose_options([[3, 1]], [[0.0, 1e-9]], 0.0) == [0]
  assert choose_options([[3, 1]], [[2.0, 1.0]], 0.5) is None
