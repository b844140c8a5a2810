"""Ranges of kernels: worked cases, properties, edges."""

import numpy as np
import pytest

from kquant.core import numerics
from kquant.core.tensor_spec import RANGES
from kquant.ranges import weights
from kquant.ranges.weights import WEIGHT_METHODS, weight_range


def test_weight_range_by_hand():
  kernel = np.float32([[1, -4], [-3, 2]])
  low, high = weight_range(kernel, (1,))
  np.testing.assert_array_equal(high, [3, 4])
  np.testing.assert_array_equal(low, [-3, -4])
  np.testing.assert_array_equal(weight_range(kernel, (0,), method="mean_extrema")[1], [4, 3])
  np.testing.assert_array_equal(weight_range(kernel, None)[1], [4])


def test_weight_mse_by_hand():
  # 2 bits: {-m, 0, m}; the squared error of 99 ones and one 1.5 is least at their mean, 1.005.
  kernel = np.float32([1.0] * 99 + [-1.5])[:, None]
  assert weight_range(kernel, (1,), method="mse", bits=2)[1] == pytest.approx([1.005], abs=8e-4)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_depthwise_channels_are_row_major(method):
  kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype(np.float32)
  low, high = weight_range(kernel, (2, 3), method=method, bits=4)
  one_by_one = [weight_range(kernel[:, :, i, m], None, method=method, bits=4)[1][0]
                for i in range(4) for m in range(2)]
  np.testing.assert_array_equal(high, one_by_one)
  np.testing.assert_array_equal(low, np.negative(one_by_one))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [(3,), None])
@pytest.mark.parametrize("seed", range(2))
def test_weight_mse_is_the_best_of_its_candidates(bits, axis, seed):
  kernel = np.random.default_rng(seed).laplace(size=(3, 3, 8, 5)).astype(np.float32)

  def error(high):
    scale = numerics.symmetric_grid(high, bits)
    zero = np.zeros(scale.shape, np.int64)
    q = numerics.quantize(kernel, scale, zero, bits=bits, narrow=True, axis=axis)
    gap = (numerics.dequantize(q, scale, zero, axis=axis).astype(np.float64) - kernel) ** 2
    return gap.sum(axis=None if axis is None else (0, 1, 2))

  largest = weight_range(kernel, axis)[1]
  best = error(weight_range(kernel, axis, method="mse", bits=bits)[1])
  assert np.all(best <= error(largest) * (1 + 1e-6))
  for ratio in (0.9, 0.75, 0.5, 0.25):
    assert np.all(best <= error(largest * ratio) * (1 + 1e-6))


def test_weight_mse_scales_with_powers_of_two_and_does_not_depend_on_blocks(monkeypatch):
  kernel = np.random.default_rng(0).laplace(size=(40, 6)).astype(np.float32)
  high = weight_range(kernel, (1,), method="mse", bits=4)[1]
  np.testing.assert_array_equal(
      weight_range(kernel * 64, (1,), method="mse", bits=4)[1], high * 64)
  monkeypatch.setattr(weights, "_WEIGHTS_AT_ONCE", 16)
  np.testing.assert_allclose(weight_range(kernel, (1,), method="mse", bits=4)[1], high)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_weight_edges(method):
  kernel = np.zeros((3, 3, 2, 3), np.float32)
  kernel[..., 1] = 0.25
  kernel[..., 2] = -1e-40
  low, high = weight_range(kernel, (3,), method=method, bits=4)
  np.testing.assert_array_equal(high[:2], [0, 0.25])
  assert 0 < high[2] <= 1.1e-40
  assert not np.signbit(low[0])
  np.testing.assert_array_equal(weight_range([[2.0]], (1,), method=method)[1], [2])


def test_weight_errors():
  kernel = np.ones((2, 2), np.float32)
  for method in RANGES.keys() - WEIGHT_METHODS:
    with pytest.raises(ValueError, match=f"minmax, .*octav, got '{method}'; choose one"):
      weight_range(kernel, (1,), method=method)
  with pytest.raises(ValueError, match="unknown range 'best'"):
    weight_range(kernel, (1,), method="best")
  with pytest.raises(ValueError, match="at least 2 bits"):
    weight_range(kernel, (1,), method="mse", bits=1)
  with pytest.raises(ValueError, match="expected finite weights"):
    weight_range(kernel * np.nan, (1,))
  with pytest.raises(ValueError, match=r"kernel of shape \(0, 3\) that is empty"):
    weight_range(np.ones((0, 3)), (1,))


def test_percentile_and_lp_by_hand():
  kernel = np.float32(np.r_[0:100, -100])[:, None]  # percentile p of |w| is p
  assert weight_range(kernel, (1,), method="percentile:90")[1] == pytest.approx([90])
  # 2 bits, {-m, 0, m}: 8 |1 - m|^p = (1.5 - m)^p where the slopes meet; p = 3 gives 8 a^2 = (0.5 - a)^2.
  kernel = np.float32([1.0] * 8 + [-1.5])[:, None]
  expected = 1 + 0.5 / (1 + np.sqrt(8))
  assert weight_range(kernel, (1,), method="lp:3", bits=2)[1] == pytest.approx([expected], abs=1.5e-3)


def test_a_larger_power_clips_less():
  kernel = np.random.default_rng(0).laplace(size=(2000, 3)).astype(np.float32)
  clips = [weight_range(kernel, (1,), method=name, bits=4)[1] for name in ("mse", "lp", "lp:4", "minmax")]
  assert all((first < second).all() for first, second in zip(clips, clips[1:]))


def test_octav_by_hand():
  # One step a side (2 bits): k = 1 / 12. With the 4 at or beyond the end the error is 9 s^2 / 12 + (4 - s)^2:
  # 12 at s = 4, and least, 6.86, at s = 4 / (9 / 12 + 1) = 2.29.
  kernel = np.float32([1.0] * 9 + [-4.0, 0.0, 0.0])[:, None]
  assert weight_range(kernel, (1,), method="octav", bits=2)[1] == pytest.approx([4 / 1.75])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_octav_has_the_least_predicted_error_of_all_clips(bits, seed):
  rows = np.abs(np.random.default_rng(seed).laplace(size=(6, 9 + 200 * seed)))
  rows[:, 3] = 0.0
  qmax = 2 ** (bits - 1) - 1

  def error(s):
    clipped = rows >= s
    inside = (rows > 0) & ~clipped
    return (inside.sum(1) * s[:, 0] ** 2 / (12 * qmax**2)
            + (clipped * (rows - s) ** 2).sum(1))

  best = weights.octav_clip(rows, qmax)[:, None]
  for ratio in (*np.linspace(0.3, 1.5, 25), 0.999, 1.001):
    assert (error(best) <= error(np.minimum(best * ratio, rows.max(1, keepdims=True))) + 1e-12).all()
