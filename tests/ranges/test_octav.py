"""OCTAV: a case by hand, the known optimum of a Laplacian, against the searched least error."""

import numpy as np
import pytest

from kquant.core import numerics
from kquant.ranges.estimators import make_estimator
from kquant.ranges.octav import Mass, affine_clip, symmetric_clip


def ranges(name, x, bits, symmetric=False):
  estimator = make_estimator(name)
  estimator.update(np.float32(x)[None])
  return np.array(estimator.range(bits=bits, symmetric=symmetric))


def test_mass_of_a_histogram_by_hand():
  mass = Mass(np.array([-1.0, 0.0, 2.0]), np.array([3.0, 4.0]))
  assert mass.below(0.0) == pytest.approx((3.0, -1.5))
  assert mass.above(1.0) == pytest.approx((2.0, 3.0))  # half of the 4, around 1.5
  assert mass.below(-0.5) == pytest.approx((1.5, -1.125))
  assert mass.above(9.0) == (0.0, 0.0) and mass.below(-9.0) == (0.0, 0.0)


def test_uniform_data_by_hand():
  """Density 1 on [0, 1]: h (k h + 1 - h) = (1 - h^2) / 2, so h^2 (1 - 2 k) - 2 h + 1 = 0."""
  mass, k = Mass(np.array([0.0, 1.0]), np.array([1.0])), 1 / (12 * 15**2)
  expected = (1 - np.sqrt(2 * k)) / (1 - 2 * k)
  assert affine_clip(mass, 15, 0.0, 1.0) == pytest.approx((0.0, expected))
  assert symmetric_clip(mass, 15) == pytest.approx(expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_fixed_point_holds_for_the_data_themselves(bits):
  x = np.random.default_rng(bits).laplace(size=20_000)
  s, qmax = ranges("octav", x, bits, symmetric=True)[1], 2 ** (bits - 1) - 1
  clipped = np.abs(x) > s
  expected = np.abs(x)[clipped].sum() / ((~clipped).sum() / (12 * qmax**2) + clipped.sum())
  assert s == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize("rectified", [False, True])
def test_the_error_is_nearly_the_least_there_is(bits, shift, rectified):
  x = np.random.default_rng(0).laplace(shift, 1.0, 100_000)
  x = np.maximum(x, 0) if rectified else x

  def error(name):
    scale, zero_point = numerics.affine_grid(*ranges(name, x, bits), bits)
    return ((numerics.dequantize(numerics.quantize(x, scale, zero_point, bits=bits), scale, zero_point)
             - x) ** 2).mean()

  assert error("octav") < 1.06 * error("mse") and error("octav") < error("minmax")


def test_zeros_do_not_count():
  x = np.abs(np.random.default_rng(0).laplace(size=40_000))
  np.testing.assert_allclose(ranges("octav", np.append(x, np.zeros(100_000)), 4)[1], ranges("octav", x, 4)[1])
