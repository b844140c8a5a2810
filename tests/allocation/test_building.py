"""What is learned from a network that was built: by hand."""

import numpy as np
import pytest

from kquant.allocation.building import Builder, Built, dearer, refitted
from kquant.allocation.choices import Plan
from kquant.allocation.solver import Solver
from kquant.core.quant_config import QuantConfig
from tests.allocation.test_solver import choices, grid, layer

CHOICES = choices([layer("a", [9.0, 1.0], [50, 100]), layer("b", [4.0, 1.0], [10, 20])],
                  [grid("x", [3.0, 0.0]), grid("y", [2.0, 0.0]), grid("fixed", [1.0])])
PLAN = Plan((4, 8), (8, 16, 8))
"""Noise 9 + 1 of weights, 3 + 0 + 1 of activations."""


def built(total, of_weights):
  return Built(PLAN, QuantConfig(), b"", {}, np.array([total]), np.array([of_weights]), np.zeros(1))


def test_weights_and_activations_are_refitted_apart():
  found = refitted(CHOICES, built(total=13.0, of_weights=5.0))
  assert [each.noise.tolist() for each in found.layers] == [[4.5, 0.5], [2.0, 0.5]]
  assert [each.noise.tolist() for each in found.grids] == [[6.0, 0.0], [4.0, 0.0], [2.0]]
  assert found.noise(PLAN) == 13.0


def test_noises_that_cancel_share_a_factor():
  found = refitted(CHOICES, built(total=7.0, of_weights=8.0))
  assert found.noise(PLAN) == 7.0 and found.layers[0].noise.tolist() == [4.5, 0.5]


def test_missing_bytes_are_laid_on_grids_of_sixteen_bits():
  found = dearer(CHOICES, PLAN, "bytes", 40)
  assert [each.costs["bytes"].tolist() for each in found.grids] == [[0, 3], [0, 43], [0]]
  assert found.cost(PLAN, "bytes") == CHOICES.cost(PLAN, "bytes") + 40


def test_missing_bytes_without_such_grids_are_laid_on_the_rest():
  plan = Plan((4, 8), (8, 8, 8))
  found = dearer(CHOICES, plan, "bytes", 40)
  assert found.cost(plan, "bytes") == pytest.approx(CHOICES.cost(plan, "bytes") + 40)


def test_a_file_that_costs_more_by_whatever_plan_is_brought_within_the_budget(monkeypatch):
  """Each file has 30 bytes more than predicted; laid on grids alone they send the program to other grids."""
  grids = [grid(f"g{place}", [10.0 - place / 10, 0.0]) for place in range(20)]
  found = choices([layer("a", [1.0, 0.9], [50, 5000])], grids)
  first = Solver(found).solve({"bytes": 0.5 + found.cost(Plan((4,), (8,) * 20), "bytes") + 9})

  def made(builder, plan):
    return Built(plan, QuantConfig(), b"", {"bytes": found.cost(plan, "bytes") + 30}, np.ones(1), np.ones(1),
                 np.zeros(1))

  monkeypatch.setattr(Builder, "_build", made)
  limit = found.cost(first, "bytes") + 24
  outcome = Builder(None, [], None).refit_once(found, {"bytes": limit})
  assert limit - 3 < outcome.built.costs["bytes"] <= limit


def test_the_first_plan_is_kept_where_no_other_file_is_within_the_budget(monkeypatch):
  """The refit finds weights of 8 bits better than a grid of 16; its file turns out to be too large."""
  found = choices([layer("a", [5.0, 1.0], [50, 53])], [grid("x", [6.0, 0.0]), grid("fixed", [1.0])])
  first = Plan((4,), (16, 8))

  def made(builder, plan):
    costs = {"bytes": 153.0 if plan == first else 163.0}
    return Built(plan, QuantConfig(), b"", costs, np.array([1000.0]), np.array([999.0]), np.zeros(1))

  monkeypatch.setattr(Builder, "_build", made)
  outcome = Builder(None, [], None).refit_once(found, {"bytes": 153.0})
  assert outcome.built.plan == first and outcome.trial is None
  assert outcome.predictions == ((6.0, 1000.0), (pytest.approx(1000.0), 1000.0))
