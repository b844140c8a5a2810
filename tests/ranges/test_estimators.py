"""Ranges: worked cases, independence of batching and order to the last bit, edges."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.core import numerics
from kquant.core.tensor_spec import RANGES
from kquant.ranges.estimators import ESTIMATORS, make_estimator

NAMES = [name for name in (*ESTIMATORS, "lp:4") if name != "cross_entropy"]  # which takes logits alone
HISTOGRAM_NAMES = [name for name in NAMES if make_estimator(name).needs_histogram]


def laplace(seed, images=12, shape=(6, 5, 3)):
  """Images of very different size, float32."""
  rng = np.random.default_rng(seed)
  scales = 2.0 ** rng.uniform(-6, 6, (images,) + (1,) * len(shape))
  return (rng.laplace(size=(images, *shape)) * scales).astype(np.float32)


def run(name, batches):
  estimator = make_estimator(name)
  for batch in batches:
    estimator.update(batch)
  return estimator


def ranges(estimator):
  """Every range of an estimator, to compare to the last bit."""
  return [estimator.range(bits=bits, symmetric=symmetric)
          for bits in (4, 8, 16) for symmetric in (False, True)]


def affine_error(x, low, high, bits):
  scale, zero_point = numerics.affine_grid(low, high, bits)
  q = numerics.quantize(x, scale, zero_point, bits=bits)
  return np.mean((numerics.dequantize(q, scale, zero_point).astype(np.float64) - x) ** 2)


# Cases worked by hand.


def test_minmax_by_hand():
  estimator = run("minmax", [np.float32([[1, -2], [3, 0]]), np.float32([[4, 2]])])
  assert estimator.range(bits=8, symmetric=False) == (-2.0, 4.0)
  assert estimator.range(bits=8, symmetric=True) == (-4.0, 4.0)
  assert estimator.images == 3


def test_mean_extrema_by_hand():
  estimator = run("mean_extrema", [np.float32([[1, -2], [3, 0]]), np.float32([[5, 2]])])
  assert estimator.range(bits=8, symmetric=False) == (0.0, 3.0)  # (-2 + 0 + 2) / 3, (1 + 3 + 5) / 3
  assert run("mean_extrema", [np.float32([[-6, 1], [-2, 5]])]).range(
      bits=8, symmetric=True) == (-4.0, 4.0)


def test_percentile_by_hand():
  x = np.arange(101, dtype=np.float32)[None]  # percentile p of it is p
  low, high = run("percentile:90", [x]).range(bits=8, symmetric=False)
  assert low == pytest.approx(10, abs=2 ** -5) and high == pytest.approx(90, abs=2 ** -5)
  assert run("percentile:100", [x]).range(bits=8, symmetric=False) == (0.0, 100.0)


def test_mse_by_hand():
  # 2 bits symmetric: {-m, 0, m}; 99 (1 - m)^2 + (1.5 - m)^2 is least at the mean, m = 1.005.
  x = np.float32([[1.0] * 99 + [1.5]])
  low, high = run("mse", [x]).range(bits=2, symmetric=True)
  assert high == pytest.approx(1.005, rel=4e-3) and low == -high


def test_mse_finds_the_known_optimum_of_a_gaussian():
  x = np.random.default_rng(0).normal(size=(1, 1_000_000)).astype(np.float32)
  for bits, clip in ((6, 3.29), (8, 3.92)):  # ACIQ, Gauss: clip over sigma
    low, high = run("mse", [x]).range(bits=bits, symmetric=False)
    assert high == pytest.approx(clip, rel=0.06) and low == pytest.approx(-clip, rel=0.06)


# Properties.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_independent_of_batch_size_order_and_merging(name, seed):
  x = laplace(seed)
  expected = ranges(run(name, [x]))
  shuffled = x[np.random.default_rng(seed).permutation(len(x))]
  assert ranges(run(name, np.split(x, 12))) == expected
  assert ranges(run(name, [x[:5], x[5:10], x[10:]])) == expected
  assert ranges(run(name, [shuffled])) == expected
  assert ranges(run(name, np.split(shuffled, 6))) == expected
  for cut in (1, 6):
    first, second = run(name, [x[:cut]]), run(name, np.split(x[cut:], 12 - cut))
    second.merge(first)
    assert ranges(second) == expected
    assert second.images == 12


@pytest.mark.parametrize("name", NAMES)
def test_merging_with_an_empty_one_changes_nothing(name):
  x = laplace(0)
  empty, full = make_estimator(name), run(name, [x])
  full.merge(make_estimator(name))
  empty.merge(full)
  assert ranges(empty) == ranges(full) == ranges(run(name, [x]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exponent", [-7, 1, 20])
def test_scales_with_powers_of_two(name, exponent):
  x, factor = laplace(3), 2.0 ** exponent
  scaled = ranges(run(name, [x * np.float32(factor)]))
  assert scaled == [(low * factor, high * factor) for low, high in ranges(run(name, [x]))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_ranges_stay_within_the_data(name, seed):
  x = laplace(seed) + np.float32(seed - 1)
  for low, high in ranges(run(name, [x]))[::2]:
    assert x.min() <= low <= high <= x.max()
  for low, high in ranges(run(name, [x]))[1::2]:
    assert 0 < high <= np.abs(x).max() and low == -high


@pytest.mark.parametrize("percentile", [75, 99, 99.9, 99.99])
@pytest.mark.parametrize("make", [np.positive, np.abs, lambda x: np.maximum(x, 0), np.cbrt])
def test_percentile_is_numpys_within_a_bin(percentile, make):
  x = make(np.random.default_rng(1).laplace(size=(4, 5000)).astype(np.float32))
  estimator = run(f"percentile:{percentile}", [x])
  bin_width = 2.0 ** estimator.histogram.exponent
  assert bin_width <= np.abs(x).max() / 2048
  expected = np.percentile(x, [100 - percentile, percentile])
  np.testing.assert_allclose(estimator.range(bits=8, symmetric=False), expected, rtol=0,
                             atol=2 * bin_width)  # bin 0 is twice as wide


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("seed", range(2))
def test_mse_beats_min_max_and_is_near_the_best_of_a_search(bits, seed):
  x = np.random.default_rng(seed).laplace(size=(8, 4000)).astype(np.float32) + 0.5
  error = affine_error(x, *run("mse", [x]).range(bits=bits, symmetric=False), bits)
  low, high = x.min(), x.max()
  assert error < 0.96 * affine_error(x, low, high, bits)
  searched = min(affine_error(x, low * a, high * b, bits)
                 for a in np.linspace(0.1, 1, 24) for b in np.linspace(0.1, 1, 24))
  assert error < 1.02 * searched


def test_mse_at_16_bits_is_finer_than_its_bins():
  x = np.random.default_rng(0).laplace(size=(4, 5000)).astype(np.float32)
  low, high = run("mse", [x]).range(bits=16, symmetric=False)
  assert affine_error(x, low, high, 16) <= 1.05 * affine_error(x, x.min(), x.max(), 16)


# Edges.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 6.0, -3.0, 1e-30, 3e38])
def test_constant_input(name, value):
  estimator = run(name, [np.full((3, 4), value, np.float32)] * 2)
  expected = float(np.float32(value))
  assert estimator.range(bits=8, symmetric=False) == pytest.approx((expected, expected), rel=1e-12)
  assert estimator.range(bits=8, symmetric=True) == pytest.approx((-abs(expected), abs(expected)),
                                                                  rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_one_element(name):
  assert run(name, [np.float32([2.5])]).range(bits=8, symmetric=False) == (2.5, 2.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_range_that_excludes_zero_and_one_below_zero(name):
  x = np.random.default_rng(0).uniform(4, 5, (4, 500)).astype(np.float32)
  low, high = run(name, [x]).range(bits=8, symmetric=False)
  assert 4 <= low < 4.1 and 4.9 < high <= 5
  assert run(name, [-x]).range(bits=8, symmetric=False) == pytest.approx((-high, -low), rel=1e-3)


@pytest.mark.parametrize("name", HISTOGRAM_NAMES)
def test_an_outlier_doubles_the_bins_without_losing_a_count(name):
  x = np.random.default_rng(0).normal(size=(4, 2000)).astype(np.float32)
  outlier = np.float32([[1e6]])
  estimator = run(name, [x, outlier])
  assert estimator.histogram.exponent == 8  # 2^8 * 4096 > 1e6 >= 2^7 * 4096
  assert estimator.histogram.counts.sum() == 8001
  assert ranges(estimator) == ranges(run(name, [outlier, x]))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_too_small_to_matter(name):
  tiny = np.float32([[1e-40, -1e-40, 0.0, -0.0]])  # denormal
  assert run(name, [tiny]).range(bits=8, symmetric=False) == (0.0, 0.0)
  assert run(name, [tiny, np.float32([[1.0, 0.5]])]).high == 1.0
  small = np.float32([[-3e-37, 1e-37, 2e-37]])
  low, high = run(name, [small]).range(bits=8, symmetric=False)
  assert small.min() <= low < high <= small.max()


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_counts_for_nothing(name):
  x = laplace(0)
  assert ranges(run(name, [x[:0], x, x[:0]])) == ranges(run(name, [x]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.int32])
def test_other_number_types(name, dtype):
  x = np.arange(24).reshape(2, 12).astype(dtype)
  assert ranges(run(name, [x])) == ranges(run(name, [x.astype(np.float32)]))


@pytest.mark.parametrize("name", NAMES)
def test_measure_is_traced_once_for_all_batch_sizes(name):
  traces = []
  estimator, x = make_estimator(name), laplace(0)

  @tf.function(input_signature=[tf.TensorSpec([None, 6, 5, 3])])
  def measure(batch):
    traces.append(1)
    return estimator.measure(batch)

  for batch in (x[:5], x[5:6], x[6:]):
    estimator.absorb({key: value.numpy() for key, value in measure(batch).items()})
  assert len(traces) == 1
  assert ranges(estimator) == ranges(run(name, [x]))


# Errors.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(name, bad):
  x = laplace(0)
  estimator = run(name, [x])
  before = ranges(estimator)
  x[4, 2, 2, 1] = bad
  with pytest.raises(ValueError, match="finite activations.*image 16 of the data"):
    estimator.update(x)
  assert ranges(estimator) == before


@pytest.mark.parametrize("name", NAMES)
def test_no_data(name):
  with pytest.raises(ValueError, match="expected data before range.., got none"):
    make_estimator(name).range(bits=8, symmetric=False)


def test_merging_different_kinds():
  with pytest.raises(TypeError, match="expected another MinMax, got MeanExtrema"):
    make_estimator("minmax").merge(make_estimator("mean_extrema"))
  with pytest.raises(ValueError, match="expected the number 99.0, got 99.9"):
    make_estimator("percentile:99").merge(make_estimator("percentile:99.9"))


def test_the_table_holds_what_specs_may_name_and_the_default_numbers():
  assert list(ESTIMATORS) == list(RANGES)
  assert (make_estimator("percentile").number, make_estimator("lp").number) == (99.99, 2.4)
  assert make_estimator("lp:4").number == 4.0
