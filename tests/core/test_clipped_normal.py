"""Moments of a clipped normal: by hand, by sampling, at the ends."""

import numpy as np
import pytest

from kquant.core.clipped_normal import clipped_normal


def test_half_of_a_standard_normal_by_hand():
  mean, variance = clipped_normal(np.zeros(1), np.ones(1), 0.0, np.inf)
  assert mean == pytest.approx(1 / np.sqrt(2 * np.pi))
  assert variance == pytest.approx(0.5 - 1 / (2 * np.pi))


@pytest.mark.parametrize("limits", [(0.0, np.inf), (0.0, 6.0), (-1.0, 0.5), (-np.inf, np.inf),
                                    (0.0, np.array([0.5, 6.0, np.inf, 3.0]))])
def test_sampling_agrees(limits):
  mean, deviation = np.array([-1.0, 0.3, 4.0, 9.0]), np.array([0.7, 2.0, 3.0, 1.0])
  x = np.clip(np.random.default_rng(0).normal(mean, deviation, (400_000, 4)), *limits)
  first, variance = clipped_normal(mean, deviation, *limits)
  np.testing.assert_allclose(first, x.mean(0), atol=0.02)
  np.testing.assert_allclose(variance, x.var(0), atol=0.03)


def test_without_limits_nothing_changes_and_constants_are_clipped():
  mean, variance = clipped_normal(np.array([3.0]), np.array([2.0]), -np.inf, np.inf)
  assert (mean, variance) == (pytest.approx(3.0), pytest.approx(4.0))
  mean, variance = clipped_normal(np.array([-2.0, 3.0, 8.0]), np.zeros(3), 0.0, 6.0)
  np.testing.assert_allclose(mean, [0.0, 3.0, 6.0], atol=1e-9)
  np.testing.assert_allclose(variance, 0.0, atol=1e-9)
