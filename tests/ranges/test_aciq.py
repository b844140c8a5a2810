"""ACIQ: the clips of the paper, the choice of the family, one-sided data."""

import numpy as np
import pytest

from kquant.ranges.aciq import absolute_moment, gauss_clip, laplace_clip
from kquant.ranges.estimators import make_estimator


def aciq_range(x, bits, symmetric=False):
  estimator = make_estimator("aciq")
  estimator.update(np.float32(x)[None])
  return estimator.range(bits=bits, symmetric=symmetric)


def test_clips_are_those_of_the_paper():
  laplace, gauss = ([clip(bits) for bits in range(2, 9)] for clip in (laplace_clip, gauss_clip))
  np.testing.assert_allclose(laplace, [2.83, 3.90, 5.03, 6.21, 7.41, 8.65, 9.90], atol=0.006)
  np.testing.assert_allclose(gauss, [1.71, 2.15, 2.56, 2.94, 3.29, 3.62, 3.92], atol=0.006)


def test_moments_of_a_histogram_by_hand():
  """Half of the data evenly in [-1, 0], half in [0, 2]; the extent is 2."""
  edges, counts = np.array([-1.0, 0.0, 2.0]), np.array([5, 5])
  assert absolute_moment(edges, counts, 1) == pytest.approx((0.5 + 1.0) / 2 / 2)
  assert absolute_moment(edges, counts, 2) == pytest.approx((1 / 3 + 4 / 3) / 2 / 4)
  assert absolute_moment(edges, counts, 4) == pytest.approx((1 / 5 + 16 / 5) / 2 / 16)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("draw, clip", [("laplace", laplace_clip), ("normal", gauss_clip)])
def test_the_family_is_told_by_its_kurtosis(bits, draw, clip):
  x = getattr(np.random.default_rng(bits), draw)(0.25, 0.5, 400_000)
  low, high = aciq_range(x, bits)
  assert (high - 0.25, 0.25 - low) == pytest.approx((0.5 * clip(bits),) * 2, rel=0.02)
  _, high = aciq_range(x - 0.25, bits, symmetric=True)
  assert high == pytest.approx(0.5 * clip(bits), rel=0.02)


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("sign", [1, -1])
def test_rectified_data_are_half_of_a_distribution_with_a_bit_more(bits, sign):
  x = sign * np.maximum(np.random.default_rng(0).normal(size=400_000), 0)  # half of them are zero
  ends = sorted(aciq_range(x, bits), key=abs)
  assert ends == pytest.approx([0.0, sign * gauss_clip(bits + 1)], rel=0.02)
  _, high = aciq_range(x, bits, symmetric=True)
  assert high == pytest.approx(gauss_clip(bits), rel=0.02)


def test_sixteen_bits_are_min_max_and_the_extrema_bound_the_rest():
  x = np.random.default_rng(0).uniform(-1, 3, 1000)
  assert aciq_range(x, 16, symmetric=True)[1] == pytest.approx(x.max())
  assert aciq_range(x, 8) == pytest.approx((x.min(), x.max()))
