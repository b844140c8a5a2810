"""The noise of stochastic rounding: even, seeded, of any size."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.quantizers.noise import noise, noise_table


def drawn(count, *seed):
  return noise(tf.constant(count), tf.constant(seed, tf.int64), noise_table()).numpy()


@pytest.mark.parametrize("count", [0, 1, 1000, 2**19, 2**19 + 1, 3 * 2**20 + 5])
def test_any_count_is_even_from_minus_a_half_to_a_half(count):
  values = drawn(count, 1, 2)
  assert values.shape == (count,) and (np.abs(values) < 0.5).all()
  if count >= 1000:
    assert abs(values.mean()) < 3 / np.sqrt(12 * min(count, 2**20))
    shares, _ = np.histogram(values, 10, (-0.5, 0.5))
    np.testing.assert_allclose(shares / count, 0.1, atol=4 * np.sqrt(0.09 / count))


def test_each_place_is_even_over_seeds_and_independent_of_its_neighbour():
  values = np.stack([drawn(8, 3, step) for step in range(2000)])
  np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=4 / np.sqrt(12 * 2000))
  np.testing.assert_allclose(np.corrcoef(values.T) - np.eye(8), 0.0, atol=4 / np.sqrt(2000))


def test_the_same_seed_gives_the_same_noise_and_another_one_other_noise():
  np.testing.assert_array_equal(drawn(100, 1, 2), drawn(100, 1, 2))
  for other in ((1, 3), (2, 2)):
    assert (drawn(100, 1, 2) != drawn(100, *other)).all()
