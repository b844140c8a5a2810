"""The closed-form rounding: cases worked by hand, brute force, properties over seeds, edges."""

import itertools

import numpy as np
import pytest

from kquant.ptq.layerwise import rounding
from kquant.ptq.layerwise.rounding import RoundingProblem


def problem(seed, qmax=7, blocks=1, inputs=12, outputs=5):
  rng = np.random.default_rng(seed)
  mixing = np.eye(inputs) + 0.9 * rng.normal(size=(blocks, inputs, inputs))
  gram = mixing @ np.swapaxes(mixing, 1, 2) / inputs + 0.01 * np.eye(inputs)
  return RoundingProblem(rng.normal(size=(blocks, inputs, outputs)), gram, qmax)


def test_two_inputs_by_hand():
  """x_1 = x_2 nearly: 0.4 + 0.4 is best rounded to 0 + 1, not to 0 + 0."""
  alike = RoundingProblem(np.array([[[0.4], [0.4]]]), np.array([[[1.0, 0.9], [0.9, 1.0]]]), qmax=7)
  scale = np.ones((1, 1, 1))
  np.testing.assert_array_equal(rounding.nearest(alike.kernel, scale, 7)[0, :, 0], [0, 0])
  # 0.4 -> 0; what is lost, 0.4 * H_12 / H_22 = 0.36, goes to the second: 0.76 -> 1.
  np.testing.assert_array_equal(rounding.compensated(alike, scale)[0, :, 0], [0, 1])
  # e = (-0.4, 0.6): 0.16 + 0.36 - 2 * 0.9 * 0.24
  np.testing.assert_allclose(alike.output_error(np.array([[[0.0], [1.0]]]), scale), 0.088)
  enumerated, _ = rounding.enumerated(alike, scale, per_channel=False)
  assert sorted(enumerated[0, :, 0]) == [0, 1]
  descended = rounding.descend(alike, np.zeros((1, 2, 1)), scale)
  assert sorted(descended[0, :, 0]) == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_enumeration_is_brute_force(seed):
  three = problem(seed, blocks=3, inputs=4, outputs=2)
  scale = np.full((3, 1, 2), 0.3)
  integers, _ = rounding.enumerated(three, scale, per_channel=False)
  lower = np.clip(np.floor(three.kernel / scale), -7, 6)
  least = np.min([three.output_error(lower + np.reshape(up, (1, 4, 1)), scale)
                  for up in itertools.product((0, 1), repeat=4)], axis=0)
  np.testing.assert_allclose(three.output_error(integers, scale), least)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_step_lowers_the_error(seed, bits):
  qmax = 2 ** (bits - 1) - 1
  large = problem(seed, qmax, blocks=2, inputs=90, outputs=8)  # more inputs than are worked on at once
  weight = np.diagonal(large.gram, axis1=1, axis2=2)
  scale = rounding.weighted_scale(large.kernel, weight, qmax, per_channel=True)
  near = rounding.nearest(large.kernel, scale, qmax)
  first = rounding.compensated(large, scale)
  second = rounding.descend(large, first, scale)
  third, refit = rounding.rounded(large, scale)
  errors = [large.output_error(q, s).sum() for q, s in ((near, scale), (first, scale), (second, scale),
                                                        (third, refit))]
  assert errors[0] > errors[1] >= errors[2] * 0.9999 and errors[1] >= errors[3]
  for integers in (first, second, third):
    assert np.abs(integers).max() <= qmax and (integers == np.rint(integers)).all()


def test_descent_ends_where_no_single_step_helps():
  small = problem(1, inputs=20, outputs=3)
  scale = np.full((1, 1, 3), 0.2)
  integers = rounding.descend(small, rounding.nearest(small.kernel, scale, 7), scale, sweeps=50)
  reached = small.output_error(integers, scale)
  for k in range(20):
    for step in (-1, 1):
      moved = integers.copy()
      moved[0, k] = np.clip(moved[0, k] + step, -7, 7)
      assert (small.output_error(moved, scale) >= reached * (1 - 1e-5)).all()


def test_the_input_of_largest_variance_is_rounded_first():
  """Of two alike inputs the second is louder: it keeps its nearest integer, the first makes up for it."""
  alike = RoundingProblem(np.array([[[0.4], [0.4]]]), np.array([[[1.0, 1.1], [1.1, 1.3]]]), qmax=7)
  # 0.4 -> 0 with H_22; what is lost, 0.4 * H_12 / H_11 = 0.44, goes to the first: 0.84 -> 1.
  np.testing.assert_array_equal(rounding.compensated(alike, np.ones((1, 1, 1)))[0, :, 0], [1, 0])


@pytest.mark.parametrize("bits", [3, 4])
def test_scales_are_chosen_an_output_or_for_all(bits):
  gains = []
  for per_channel, seed in itertools.product((True, False), range(5)):
    layer = problem(seed, 2 ** (bits - 1) - 1, inputs=40, outputs=6)
    weight = np.diagonal(layer.gram, axis1=1, axis2=2)
    scale = rounding.weighted_scale(layer.kernel, weight, layer.qmax, per_channel=per_channel)
    integers, chosen = rounding.rounded(layer, scale)
    assert chosen.shape == scale.shape
    on_scale, same = rounding.rounded(layer, scale, keep_scale=True)
    assert (same == scale).all() and (chosen != scale).any()
    gains.append(layer.output_error(on_scale, scale).sum() / layer.output_error(integers, chosen).sum())
  assert np.mean(gains[:5]) > 1.05 and np.mean(gains[5:]) > 1.0


def test_grids_of_several_widths_share_the_factors(monkeypatch):
  made, factors = [], rounding._factors
  monkeypatch.setattr(rounding, "_factors", lambda gram: made.append(gram) or factors(gram))
  layer, scale = problem(7, qmax=127), np.full((1, 1, 5), 0.3)
  widths = [rounding.rounded(layer.at(qmax), scale) for qmax in (1, 7)]
  assert len(made) == 1
  for qmax, (integers, chosen) in zip((1, 7), widths):
    alone, same = rounding.rounded(RoundingProblem(layer.kernel, layer.gram, qmax), scale)
    np.testing.assert_array_equal(integers, alone)
    np.testing.assert_array_equal(chosen, same)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("most_elements", [1, 2**20])
def test_the_best_of_nine_scales_is_found(shared, most_elements, monkeypatch):
  monkeypatch.setattr(rounding, "_MOST_ELEMENTS", most_elements)
  few = problem(6, 3, blocks=2, inputs=20, outputs=4)
  scale = np.full((1, 1, 1) if shared else (2, 1, 4), 0.5)
  scales = scale * np.reshape(rounding._RATIOS, (-1, 1, 1, 1))
  every = [rounding.compensated(few, one) for one in scales]
  errors = np.array([few.output_error(q, one) for q, one in zip(every, scales)])
  _, summed = rounding._compensated(few, scales)
  np.testing.assert_allclose(summed, errors, rtol=1e-6)
  assert max(np.abs(q).max() for q in every) == 3  # clipped ones too
  integers, best = rounding._best_of_scales(few, scale)
  least = errors.sum((1, 2)).min() if shared else errors.min(0)
  reached = few.output_error(integers, best)
  np.testing.assert_allclose(reached.sum() if shared else reached, least, rtol=1e-6)
  assert best.shape == scale.shape and (shared or len(np.unique(best)) > 1)


def test_independent_inputs_are_rounded_to_nearest():
  apart = RoundingProblem(problem(2, inputs=9).kernel, np.eye(9)[None] * np.arange(1, 10), qmax=127)
  scale = np.full((1, 1, 5), 0.25)
  near = rounding.nearest(apart.kernel, scale, 127)
  np.testing.assert_array_equal(rounding.compensated(apart, scale), near)
  np.testing.assert_array_equal(rounding.descend(apart, near, scale), near)
  np.testing.assert_array_equal(rounding.enumerated(apart, scale, per_channel=False)[0], near)


def test_scale_search_by_hand():
  """Ternary: the large weight sees no input, so that the scale is the other one."""
  kernel = np.array([[[2.0], [1.0]]])
  scale = rounding.weighted_scale(kernel, np.array([[0.0, 1.0]]), 1, per_channel=True)
  assert 0.98 < scale[0, 0, 0] < 1.02
  scale = rounding.weighted_scale(kernel, np.array([[1.0, 0.0]]), 1, per_channel=True)
  assert 1.96 < scale[0, 0, 0] < 2.04
  np.testing.assert_allclose(rounding.weighted_scale(np.zeros((1, 2, 1)), np.ones((1, 2)), 7,
                                                     per_channel=True), 0, atol=1e-10)


def test_refit_is_the_least_squares_scale():
  gram = np.array([[[2.0, 0.0], [0.0, 1.0]]])
  kernel, integers = np.array([[[1.0, 0.0], [2.2, 0.0]]]), np.array([[[1.0, 0.0], [2.0, 0.0]]])
  layer = RoundingProblem(kernel, gram, qmax=7)
  scale = rounding.refitted_scale(layer, integers, np.ones((1, 1, 2)))
  # (2 * 1 * 1 + 2 * 2.2) / (2 * 1 + 4); a channel of zeros keeps its scale
  np.testing.assert_allclose(scale[0, 0], [6.4 / 6, 1.0])
  shared = rounding.refitted_scale(layer, integers, np.ones((1, 1, 1)))
  np.testing.assert_allclose(shared, 6.4 / 6)


def test_dead_inputs_and_zero_channels_round_to_zero_error():
  layer = problem(3, inputs=12)
  layer.gram[:, 3] = layer.gram[:, :, 3] = 0.0
  layer.kernel[:, :, 2] = 0.0
  damped = RoundingProblem(layer.kernel, rounding.damped(layer.gram, 0.05), layer.qmax)
  integers, scale = rounding.rounded(damped, np.full((1, 1, 5), 0.3))
  assert np.isfinite(integers).all() and (scale > 0).all() and not integers[:, :, 2].any()


def test_moments_with_eigenvalues_below_zero_are_factorized():
  """Of diag(3, 4, -0.12), of norm 5.0014, 0.1 of it is the first power of ten above 0.12."""
  gram = np.diag([3.0, 4.0, -0.12])
  factor = rounding.cholesky(gram)
  np.testing.assert_allclose(factor @ factor.T, gram + 0.1 * np.sqrt(25.0144) * np.eye(3), rtol=1e-9)
  fine = np.array([[2.0, 1.0], [1.0, 2.0]])
  np.testing.assert_array_equal(rounding.cholesky(fine), np.linalg.cholesky(fine))


def test_descend_stays_within_the_limits_of_each_integer():
  # H = I: each weight goes to its nearest integer, 5 and -3, within its own limits.
  kernel = np.array([[[5.2], [-3.1]]])
  problem = rounding.RoundingProblem(kernel, np.eye(2)[None], 7)
  limits = np.array([[[-7.0], [-2.0]]]), np.array([[[4.0], [7.0]]])
  assert rounding.descend(problem, np.zeros((1, 2, 1)), np.ones((1, 1, 1))).reshape(-1).tolist() == [5, -3]
  within = rounding.descend(problem, np.zeros((1, 2, 1)), np.ones((1, 1, 1)), limits=limits)
  assert within.reshape(-1).tolist() == [4, -2]
