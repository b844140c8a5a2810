"""The error norm of a grid over a histogram, by hand and by sampling; what a larger power does."""

import numpy as np
import pytest

from kquant.ranges.estimators import make_estimator
from kquant.ranges.lp import power_error
from kquant.ranges.search import Grids


def lp_range(name, x, bits):
  estimator = make_estimator(name)
  estimator.update(np.float32(x)[None])
  return np.array(estimator.range(bits=bits, symmetric=False))


@pytest.mark.parametrize("power", [2.0, 2.4, 4.0])
def test_error_of_a_uniform_bin_by_hand(power):
  """One count in [0, 2] on the grid {0, 1}: [0, .5] and twice more below half a step, [1.5, 2] beyond 1."""
  error = power_error(np.array([0.0, 2.0]), np.array([1]),
                      Grids(np.array([1.0]), np.array([0]), np.array([1])), power=power)
  half, whole = 0.5 ** (power + 1) / (power + 1), 1 / (power + 1)
  expected = (half * 2 + whole) / 2  # [0, .5], [.5, 1], [1, 2] at density 1/2
  assert error == pytest.approx(expected / 2 ** (power + 1), rel=1e-12)


@pytest.mark.parametrize("power", [2.0, 2.4, 4.0])
@pytest.mark.parametrize("seed", range(2))
def test_error_is_that_of_the_data(power, seed):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=200_000) + 0.3
  counts, edges = np.histogram(x, 600)
  scale = np.array([0.1, 0.4])
  errors = power_error(edges, counts, Grids(scale, np.array([-8, -3]), np.array([7, 4])), power=power)
  q = [np.clip(np.rint(x / s), a, b) for s, a, b in zip(scale, (-8, -3), (7, 4))]
  expected = [(np.abs(x - s * q) ** power).sum() for s, q in zip(scale, q)]
  extent = edges[-1] - edges[0]
  np.testing.assert_allclose(errors * extent ** (power + 1), expected, rtol=0.01)


def test_a_larger_power_clips_less_and_two_is_mse():
  x = np.random.default_rng(0).laplace(size=50_000)
  widths = [np.ptp(lp_range(name, x, 4)) for name in ("mse", "lp", "lp:4", "lp:10", "minmax")]
  assert widths == sorted(widths) and widths[0] < 0.95 * widths[2]
  np.testing.assert_array_equal(lp_range("lp:2", x, 4), lp_range("mse", x, 4))
