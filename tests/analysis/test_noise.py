"""The measures, on numbers worked out by hand."""

import numpy as np
import pytest

from kquant.analysis import noise


def test_a_ratio_of_powers():
  assert noise.noise_to_signal(3.0, 12.0) == 0.25
  assert noise.noise_to_signal(0.0, 0.0) == 0.0
  assert noise.noise_to_signal(1e-30, 0.0) == np.inf


def test_what_float32_rounds_counts_as_no_noise():
  assert noise.noise_to_signal(0.9e-12, 1.0) == 0.0
  assert noise.noise_to_signal(1.1e-12, 1.0) == 1.1e-12


def test_signal_is_what_differs_between_images():
  """Images 1, 5 about their mean 3, and 2, 2 about 2: 4 + 4 + 0 + 0."""
  outputs = np.array([[1.0, 2.0], [5.0, 2.0]])
  assert noise.varying_power(outputs.sum(0), np.square(outputs).sum(0), 2) == 8.0


def test_signal_of_many_images_is_their_variance():
  outputs = np.random.default_rng(0).normal(5.0, 2.0, (1000, 3))
  power = noise.varying_power(outputs.sum(0), np.square(outputs).sum(0), len(outputs))
  assert power == pytest.approx(1000 * outputs.var(0).sum())


def test_mean_shift_of_errors_by_hand():
  """Errors (3, 1) have mean 2: 2 * 4 of 10; (1, -1) have mean 0, of 2: together 8 of 12."""
  errors = np.array([[3.0, 1.0], [1.0, -1.0]])  # [values, channels]
  assert noise.mean_shift(errors.sum(0), np.square(errors).sum(0), 2) == pytest.approx(8 / 12)


@pytest.mark.parametrize("shift, share", [(0.0, 0.0), (3.0, 0.9), (1000.0, 1.0)])
def test_mean_shift_splits_mean_and_variance(shift, share):
  """E[e^2] = mean^2 + variance, of variance 1."""
  errors = np.tile([-1.0, 1.0], 500) + shift
  found = noise.mean_shift(np.array([errors.sum()]), np.array([np.square(errors).sum()]), 1000)
  assert found == pytest.approx(share, abs=1e-5)


def test_no_errors_have_no_shift():
  assert noise.mean_shift(np.zeros(2), np.zeros(2), 4) == 0.0


def test_divergence_by_hand():
  """p = (3/4, 1/4) beside q = (1/4, 3/4): 1/2 ln 3; a level of the logits is free."""
  reference, scores = np.log([[0.75, 0.25]]), np.log([[0.25, 0.75]]) + 7.0
  assert noise.divergence(scores, reference)[0] == pytest.approx(0.5 * np.log(3))
  assert noise.divergence(reference + 5.0, reference)[0] == pytest.approx(0.0, abs=1e-15)


def test_divergence_of_large_logits_is_finite():
  assert noise.divergence(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]]))[0] == pytest.approx(1e4)


def test_additivity():
  assert noise.additivity([0.1, 0.3], 0.2) == pytest.approx(2.0)
  assert noise.additivity([0.0], 0.0) is None


def test_independent_noises_add_up_and_coherent_ones_do_not():
  rng = np.random.default_rng(0)
  first, second = rng.normal(size=(2, 100_000))
  alone = [np.square(first).sum(), np.square(second).sum()]
  assert noise.additivity(alone, np.square(first + second).sum()) == pytest.approx(1.0, abs=0.02)
  assert noise.additivity([alone[0]] * 2, np.square(first + first).sum()) == pytest.approx(0.5)


def test_the_largest_channels():
  assert noise.largest(np.array([0.0, 1.0, 3.0]), 3) == ((2, 0.75), (1, 0.25))
  assert noise.largest(np.zeros(3), 3) == ()


def test_the_widest_channels_over_the_median_of_those_that_live():
  assert noise.widest(np.array([0.0, 1.0, 2.0, 60.0]), 2) == ((3, 30.0), (2, 1.0))
  assert noise.widest(np.zeros(2), 3) == noise.widest(np.zeros(0), 3) == ()
