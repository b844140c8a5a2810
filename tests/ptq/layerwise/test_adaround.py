"""AdaRound: its functions by hand, and what it finds against nearest and closed-form rounding."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.ptq.layerwise import rounding
from kquant.ptq.layerwise.adaround import adaround, inverse_sigmoid, rectified_sigmoid
from kquant.ptq.layerwise.rounding import RoundingProblem


def test_start_is_the_fraction():
  fraction = np.array([0.0, 0.25, 0.5, 0.999, 1.0])
  np.testing.assert_allclose(rectified_sigmoid(tf.constant(inverse_sigmoid(fraction))), fraction, atol=1e-12)
  # sigmoid(0) = 0.5 -> 0.5 * 1.2 - 0.1
  np.testing.assert_allclose(rectified_sigmoid(tf.constant([0.0, 20.0, -20.0])), [0.5, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_it_beats_nearest_and_rounds_to_a_neighbour(seed):
  rng = np.random.default_rng(seed)
  mixing = rng.normal(size=(1, 16, 16)) + np.eye(16)
  kernel, gram = rng.normal(size=(1, 16, 6)), mixing @ np.swapaxes(mixing, 1, 2) / 16
  problem, scale = RoundingProblem(kernel, gram, qmax=7), np.full((1, 1, 6), 0.4)
  integers = adaround(problem, scale, iterations=600)
  nearest = problem.output_error(rounding.nearest(kernel, scale, 7), scale).sum()
  assert problem.output_error(integers, scale).sum() < 0.55 * nearest
  inside = np.abs(kernel / scale) < 7
  assert (np.abs(integers - kernel / scale)[inside] < 1).all() and np.abs(integers).max() <= 7
  np.testing.assert_array_equal(integers, adaround(problem, scale, iterations=600))


def test_whole_numbers_stay():
  problem = RoundingProblem(np.array([[[2.0], [-3.0], [9.0]]]), np.eye(3)[None], qmax=7)
  integers = adaround(problem, np.ones((1, 1, 1)), iterations=60)
  np.testing.assert_array_equal(integers[0, :, 0], [2, -3, 7])
