"""Metrics by hand, and what they must not depend on."""

import numpy as np
import pytest

from kquant.core import metrics


def test_top1_by_hand():
  scores = np.float32([[0, 2, 1], [3, 0, 0], [0, 0, 1], [1, 0, 0]])
  assert metrics.top1(scores, np.array([1, 0, 2, 1])) == 0.75
  assert metrics.top1(scores, np.array([0, 1, 0, 1])) == 0.0


def test_agreement_by_hand():
  scores = np.float32([[0, 2], [3, 0], [0, 1], [1, 0]])
  assert metrics.agreement(scores, scores * 7 + 1) == 1.0
  assert metrics.agreement(scores, -scores) == 0.0
  assert metrics.agreement(scores, np.float32([[0, 1], [1, 0], [1, 0], [0, 1]])) == 0.5


def test_agreement_takes_maps_of_scores():
  scores = np.zeros((2, 3, 3, 4))
  other = scores.copy()
  other[0, 0, 0, 3] = other[1, 1, 1, 2] = 1
  assert metrics.agreement(scores, other) == pytest.approx(16 / 18)


def test_sqnr_by_hand():
  reference = np.float32([[3, 4]])  # power 25
  assert metrics.sqnr_db(reference + np.float32([[0.5, 0]]), reference) == pytest.approx(20.0)
  assert metrics.sqnr_db(np.zeros((1, 2)), reference) == 0.0
  assert metrics.sqnr_db(reference.copy(), reference) == float("inf")


def test_sqnr_does_not_overflow_small_integer_types():
  assert metrics.sqnr_db(np.uint8([[1, 0]]), np.uint8([[0, 200]])) == pytest.approx(
      10 * np.log10(40000 / 40001))
  assert metrics.sqnr_db(np.int8([[-128]]), np.int8([[127]])) == pytest.approx(
      10 * np.log10(127**2 / 255**2))


@pytest.mark.parametrize("seed", range(5))
def test_sqnr_grows_by_six_decibels_when_the_noise_halves_and_ignores_the_unit(seed):
  rng = np.random.default_rng(seed)
  reference, noise = rng.normal(size=(2, 50, 10))
  whole, half = (metrics.sqnr_db(reference + noise * share, reference) for share in (0.02, 0.01))
  assert half - whole == pytest.approx(20 * np.log10(2))
  assert metrics.sqnr_db((reference + noise) * 1e3, reference * 1e3) == pytest.approx(
      metrics.sqnr_db(reference + noise, reference))


def test_tied_counts_images_whose_largest_score_is_shared():
  scores = np.int8([[127, 127, 0], [1, 0, 0], [5, 5, 5], [0, 0, 1], [-1, -2, -1]])
  assert metrics.tied(scores) == 3
  assert metrics.tied(scores[1:2]) == 0
  assert metrics.tied(np.zeros((4, 1))) == 0
