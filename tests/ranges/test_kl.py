"""Kullback-Leibler ranges: a case by hand, against a search over all thresholds, edges."""

import numpy as np
import pytest

from kquant.ranges.estimators import make_estimator
from kquant.ranges.kl import divergences
from kquant.ranges.search import Grids


def kl_range(x, bits=8, symmetric=False):
  estimator = make_estimator("kl")
  estimator.update(np.float32(x)[None])
  return estimator.range(bits=bits, symmetric=symmetric)


def one_grid(scale, first, last):
  return Grids(np.array([scale]), np.array([first]), np.array([last]))


def test_divergence_by_hand():
  """Four bins, levels 0 and 1 of scale 2 over [0, 4); then clipped at 2: one level a bin."""
  edges, counts = np.arange(5.0), np.array([4.0, 2.0, 1.0, 1.0])
  grid = one_grid(2.0, 0, 2)  # centres .5 | 1.5 2.5 | 3.5 round to 0, 1, 2
  p, q = np.array([4, 2, 1, 1]) / 8, np.array([4, 1.5, 1.5, 1]) / 8
  (found,) = divergences(edges, counts, np.array([np.inf]), grid)
  assert found == pytest.approx((p * np.log(p / q)).sum())
  p, q = np.array([4, 4]) / 8, np.array([4, 2]) / 6  # what is beyond 2 counts in P alone
  (found,) = divergences(edges, counts, np.array([2.0]), grid)
  assert found == pytest.approx((p * np.log(p / q)).sum())


def test_empty_bins_get_nothing_and_a_bin_of_outliers_alone_a_little():
  edges, counts = np.arange(5.0), np.array([3.0, 0.0, 0.0, 1.0])
  (found,) = divergences(edges, counts, np.array([np.inf]), one_grid(9.0, 0, 0))
  p, q = np.array([3, 1]) / 4, np.array([2, 2]) / 4
  assert found == pytest.approx((p * np.log(p / q)).sum())
  (found,) = divergences(edges, counts, np.array([2.0]), one_grid(1.0, 0, 3))
  p, q = np.array([3, 1]) / 4, np.array([3, 1e-4]) / 3.0001
  assert found == pytest.approx((p * np.log(p / q)).sum())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", range(2))
def test_outliers_are_clipped_and_a_flat_distribution_is_not(bits, seed):
  rng = np.random.default_rng(seed)
  x = np.append(rng.normal(size=50_000), [40.0, -35.0])
  low, high = kl_range(x, bits)
  assert 2.0 < high < 10 and -10 < low < -2.0 and high == -low
  flat = rng.uniform(-1, 1, 50_000)
  low, high = kl_range(flat, bits)
  assert high > 0.9 and low < -0.9


def test_zeros_of_a_relu_do_not_count():
  x = np.abs(np.random.default_rng(0).laplace(size=40_000))
  with_zeros = np.append(x, np.zeros(100_000))
  assert kl_range(with_zeros)[1] == kl_range(x)[1]


def test_one_sided_data_keep_their_own_end():
  x = np.append(np.random.default_rng(0).gamma(2.0, size=40_000) - 0.25, 60.0)
  low, high = kl_range(x, bits=8)
  assert low == pytest.approx(x.min(), abs=1e-6) and 5 < high < 60


def test_more_levels_than_bins_is_min_max():
  x = np.random.default_rng(0).normal(size=1000)
  assert kl_range(x, bits=16, symmetric=True) == pytest.approx((-np.abs(x).max(), np.abs(x).max()))
