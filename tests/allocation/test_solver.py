"""The program in integers: small cases that were solved by hand, and all plans against it."""

import itertools

import numpy as np
import pytest
import scipy.optimize

from kquant.allocation.choices import Choices, GridChoice, LayerChoice, Plan
from kquant.allocation.solver import Solver

WIDTHS = (4, 8)


def layer(name, noise, sizes, grids=(0,)):
  """A layer of 4 or 8 bits whose bytes do not depend on its activations, and whose operations do."""
  sizes = np.array(sizes, float)
  return LayerChoice(name, WIDTHS, np.array(noise), {
      "bytes": np.stack([sizes, sizes], 1), "bops": np.outer([4, 8], [8, 16]) * 10.0}, grids)


def grid(name, noise):
  return GridChoice(name, (8, 16)[:len(noise)], np.array(noise),
                    {"bytes": np.array([0.0, 3.0])[:len(noise)], "bops": np.zeros(len(noise))})


def choices(layers, grids):
  return Choices(tuple(layers), tuple(grids), (8, 16), {"bytes": 100.0, "bops": 0.0})


TWO = choices([layer("a", [9.0, 1.0], [50, 100]), layer("b", [4.0, 1.0], [10, 20])], [grid("x", [0.5])])
"""8 bits for a take 8 noise off for 50 bytes, for b 3 for 10."""


@pytest.mark.parametrize("room, wanted", [(60, (4, 4)), (69, (4, 4)), (70, (4, 8)), (109, (4, 8)),
                                          (110, (8, 4)), (119, (8, 4)), (120, (8, 8))])
def test_least_noise_by_hand(room, wanted):
  plan = Solver(TWO).solve({"bytes": 100 + room})
  assert plan == Plan(wanted, (8,))
  assert TWO.cost(plan, "bytes") <= 100 + room


def test_noise_and_costs_of_a_plan():
  plan = Plan((4, 8), (8,))
  assert TWO.noise(plan) == 10.5 and TWO.cost(plan, "bytes") == 170 and TWO.cost(plan, "bops") == 960


def test_an_operator_computes_as_wide_as_its_widest_grid():
  both = choices([layer("a", [1.0, 0.0], [50, 100], grids=(0, 1))],
                 [grid("x", [3.0, 0.0]), grid("y", [2.0, 0.0])])
  assert both.cost(Plan((8,), (8, 16)), "bops") == both.cost(Plan((8,), (16, 16)), "bops") == 1280
  assert Solver(both).solve({"bops": 1280}) == Plan((8,), (16, 16))
  assert Solver(both).solve({"bops": 1279}) == Plan((4,), (16, 16))  # 640, noise 1
  assert Solver(both).solve({"bops": 639}) == Plan((4,), (8, 8))
  assert Solver(both).solve({"bops": 1280, "bytes": 153}) == Plan((4,), (16, 8))  # 16 bits are 3 bytes more


def test_a_budget_that_cannot_be_met_says_the_least():
  with pytest.raises(ValueError, match=r"expected 160 bytes or more, .* got 159 bytes\. Raise"):
    Solver(TWO).solve({"bytes": 159})
  with pytest.raises(ValueError, match=r"expected 640 bit operations or more"):
    Solver(TWO).solve({"bytes": 200, "bops": 600})


def test_limits_that_exclude_each_other_say_the_least_beside_the_other():
  costs = {"bytes": np.array([[1.0, 1.0], [9.0, 9.0]]), "bops": np.array([[9.0, 9.0], [1.0, 1.0]])}
  either = choices([LayerChoice("a", WIDTHS, np.ones(2), costs, ())], ())
  with pytest.raises(ValueError, match="with the other limits the least is 109 bytes, got 105 bytes"):
    Solver(either).solve({"bytes": 105, "bops": 5})


@pytest.mark.parametrize("seed", range(6))
def test_no_other_plan_within_the_limits_is_better(seed):
  rng = np.random.default_rng(seed)
  grids = [grid(f"g{i}", np.sort(rng.lognormal(-3, 2, 2))[::-1]) for i in range(3)]
  layers = [layer(f"l{i}", np.sort(rng.lognormal(-3, 2, 2))[::-1], np.sort(rng.integers(1, 99, 2)),
                  tuple(sorted(set(rng.integers(0, 3, 2).tolist())))) for i in range(4)]
  all_choices = choices(layers, grids)
  plans = [Plan(w, a) for w in itertools.product(WIDTHS, repeat=4)
           for a in itertools.product((8, 16), repeat=3)]
  limits = {what: np.quantile([all_choices.cost(plan, what) for plan in plans], 0.6)
            for what in ("bytes", "bops")}
  within = [plan for plan in plans if all(all_choices.cost(plan, w) <= limits[w] for w in limits)]
  best = min(map(all_choices.noise, within))
  found = Solver(all_choices).solve(limits)
  assert found in within and all_choices.noise(found) == pytest.approx(best, rel=1e-3)


def test_curve_goes_from_the_least_to_the_most():
  plans = Solver(TWO).curve("bytes", {"bytes": 130})
  assert [plan.weights for plan in plans] == [(4, 4), (4, 8), (8, 4), (8, 8)]


def test_refitted_noise():
  assert TWO.refitted(2.0, 4.0).noise(Plan((4, 8), (8,))) == 22.0


def test_two_hundred_layers_of_twelve_choices():
  rng = np.random.default_rng(0)
  widths = (2, 3, 4, 5, 6, 8)
  layers = tuple(LayerChoice(
      f"l{i}", widths, rng.lognormal(0, 2) * 4.0 ** -np.array(widths),
      {"bytes": np.outer(widths, [1.0, 1.0]) * (size := rng.integers(100, 9999)),
       "bops": np.outer(widths, [8.0, 16.0]) * size}, (i, i + 1)) for i in range(200))
  grids = tuple(GridChoice(f"g{i}", (8, 16), rng.lognormal(-12, 2) * np.array([1.0, 2.0 ** -16]),
                           {"bytes": np.array([0.0, 200.0]), "bops": np.zeros(2)}) for i in range(201))
  large = Choices(layers, grids, (8, 16), {"bytes": 0.0, "bops": 0.0})
  limits = {what: large.cost(large.uniform(4, 8), what) for what in ("bytes", "bops")}
  found = Solver(large).solve(limits)
  assert large.noise(found) < 0.6 * large.noise(large.uniform(4, 8))
  assert all(large.cost(found, what) <= limits[what] * (1 + 1e-6) for what in limits)


def test_a_time_out_without_a_plan_is_told_as_such(monkeypatch):
  solver = Solver(TWO)
  late = scipy.optimize.OptimizeResult(x=None, status=1)
  monkeypatch.setattr(scipy.optimize, "milp", lambda *args, **options: late)
  for ask in (lambda: solver.solve({"bytes": 200}), lambda: solver.curve("bytes", {"bytes": 200})):
    with pytest.raises(ValueError, match="expected a plan within 20 s, got none"):
      ask()
