"""The closed-form rounding: cases worked by hand, brute force, properties over seeds, edges."""

import itertools

import numpy as np
import pytest

from kquant.ptq.layerwise import rounding


def problem(seed, blocks=1, inputs=12, outputs=5, correlation=0.9):
  rng = np.random.default_rng(seed)
  mixing = np.eye(inputs) + correlation * rng.normal(size=(blocks, inputs, inputs))
  gram = mixing @ np.swapaxes(mixing, 1, 2) / inputs + 0.01 * np.eye(inputs)
  return rng.normal(size=(blocks, inputs, outputs)), gram


def errors(found, kernel, gram, scale):
  return rounding.output_error(found, kernel, gram, scale)


def test_two_inputs_by_hand():
  """x_1 = x_2 nearly: 0.4 + 0.4 is best rounded to 0 + 1, not to 0 + 0."""
  gram = np.array([[[1.0, 0.9], [0.9, 1.0]]])
  kernel, scale = np.array([[[0.4], [0.4]]]), np.ones((1, 1, 1))
  np.testing.assert_array_equal(rounding.nearest(kernel, scale, 7)[0, :, 0], [0, 0])
  # 0.4 -> 0; what is lost, 0.4 * H_12 / H_22 = 0.36, goes to the second: 0.76 -> 1.
  np.testing.assert_array_equal(rounding.compensated(kernel, gram, scale, 7)[0, :, 0], [0, 1])
  # e = (-0.4, 0.6): 0.16 + 0.36 - 2 * 0.9 * 0.24
  np.testing.assert_allclose(errors(np.array([[[0.0], [1.0]]]), kernel, gram, scale), 0.088)
  enumerated, _ = rounding.enumerated(kernel, gram, scale, 7, per_channel=False)
  assert sorted(enumerated[0, :, 0]) == [0, 1]
  descended = rounding.descend(np.zeros((1, 2, 1)), kernel, gram, scale, 7)
  assert sorted(descended[0, :, 0]) == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_enumeration_is_brute_force(seed):
  kernel, gram = problem(seed, blocks=3, inputs=4, outputs=2)
  scale = np.full((3, 1, 2), 0.3)
  found, _ = rounding.enumerated(kernel, gram, scale, 7, per_channel=False)
  lower = np.clip(np.floor(kernel / scale), -7, 6)
  least = np.min([errors(lower + np.reshape(up, (1, 4, 1)), kernel, gram, scale)
                  for up in itertools.product((0, 1), repeat=4)], axis=0)
  np.testing.assert_allclose(errors(found, kernel, gram, scale), least)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_step_lowers_the_error(seed, bits):
  kernel, gram = problem(seed, blocks=2, inputs=90, outputs=8)  # more inputs than are worked on at once
  qmax = 2 ** (bits - 1) - 1
  scale = rounding.weighted_scale(kernel, np.diagonal(gram, axis1=1, axis2=2), qmax, per_channel=True)
  near = rounding.nearest(kernel, scale, qmax)
  first = rounding.compensated(kernel, gram, scale, qmax)
  second = rounding.descend(first, kernel, gram, scale, qmax)
  third, refit = rounding.rounded(kernel, gram, scale, qmax)
  found = [errors(q, kernel, gram, s).sum() for q, s in ((near, scale), (first, scale), (second, scale),
                                                         (third, refit))]
  assert found[0] > found[1] >= found[2] * 0.9999 and found[1] >= found[3]
  for integers in (first, second, third):
    assert np.abs(integers).max() <= qmax and (integers == np.rint(integers)).all()


def test_descent_ends_where_no_single_step_helps():
  kernel, gram = problem(1, inputs=20, outputs=3)
  scale = np.full((1, 1, 3), 0.2)
  found = rounding.descend(rounding.nearest(kernel, scale, 7), kernel, gram, scale, 7, sweeps=50)
  reached = errors(found, kernel, gram, scale)
  for k in range(20):
    for step in (-1, 1):
      moved = found.copy()
      moved[0, k] = np.clip(moved[0, k] + step, -7, 7)
      assert (errors(moved, kernel, gram, scale) >= reached * (1 - 1e-5)).all()


def test_the_input_of_largest_variance_is_rounded_first():
  """Of two alike inputs the second is louder: it keeps its nearest integer, the first makes up for it."""
  gram = np.array([[[1.0, 1.1], [1.1, 1.3]]])
  kernel, scale = np.array([[[0.4], [0.4]]]), np.ones((1, 1, 1))
  # 0.4 -> 0 with H_22; what is lost, 0.4 * H_12 / H_11 = 0.44, goes to the first: 0.84 -> 1.
  np.testing.assert_array_equal(rounding.compensated(kernel, gram, scale, 7)[0, :, 0], [1, 0])


@pytest.mark.parametrize("bits", [3, 4])
def test_scales_are_chosen_an_output_or_for_all(bits):
  kernel, gram = problem(5, inputs=40, outputs=6)
  qmax = 2 ** (bits - 1) - 1
  for per_channel in (True, False):
    weight = np.diagonal(gram, axis1=1, axis2=2)
    scale = rounding.weighted_scale(kernel, weight, qmax, per_channel=per_channel)
    integers, found = rounding.rounded(kernel, gram, scale, qmax)
    assert found.shape == scale.shape
    kept, same = rounding.rounded(kernel, gram, scale, qmax, keep_scale=True)
    assert (same == scale).all() and (found != scale).any()
    assert errors(integers, kernel, gram, found).sum() < errors(kept, kernel, gram, scale).sum()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("most_elements", [1, 2**20])
def test_the_best_of_nine_scales_is_found(shared, most_elements, monkeypatch):
  monkeypatch.setattr(rounding, "_MOST_ELEMENTS", most_elements)
  kernel, gram = problem(6, blocks=2, inputs=20, outputs=4)
  scale = np.full((1, 1, 1) if shared else (2, 1, 4), 0.5)
  factors = rounding._factors(gram)
  every = [rounding.compensated(kernel, gram, scale * ratio, 3) for ratio in rounding._RATIOS]
  found = np.array([rounding.output_error(q, kernel, gram, scale * ratio)
                    for q, ratio in zip(every, rounding._RATIOS)])
  _, told = rounding._compensated(kernel, factors, scale * np.reshape(rounding._RATIOS, (-1, 1, 1, 1)), 3)
  np.testing.assert_allclose(told, found, rtol=1e-6)
  assert max(np.abs(q).max() for q in every) == 3  # clipped ones too
  integers, best = rounding._best_of_scales(kernel, factors, scale, 3)
  least = found.sum((1, 2)).min() if shared else found.min(0)
  reached = rounding.output_error(integers, kernel, gram, best)
  np.testing.assert_allclose(reached.sum() if shared else reached, least, rtol=1e-6)
  assert best.shape == scale.shape and (shared or len(np.unique(best)) > 1)


def test_independent_inputs_are_rounded_to_nearest():
  kernel, _ = problem(2, inputs=9)
  gram, scale = np.eye(9)[None] * np.arange(1, 10), np.full((1, 1, 5), 0.25)
  near = rounding.nearest(kernel, scale, 127)
  np.testing.assert_array_equal(rounding.compensated(kernel, gram, scale, 127), near)
  np.testing.assert_array_equal(rounding.descend(near, kernel, gram, scale, 127), near)
  np.testing.assert_array_equal(rounding.enumerated(kernel, gram, scale, 127, per_channel=False)[0], near)


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
  scale = rounding.refitted_scale(integers, kernel, gram, np.ones((1, 1, 2)))
  # (2 * 1 * 1 + 2 * 2.2) / (2 * 1 + 4); a channel of zeros keeps its scale
  np.testing.assert_allclose(scale[0, 0], [6.4 / 6, 1.0])
  shared = rounding.refitted_scale(integers, kernel, gram, np.ones((1, 1, 1)))
  np.testing.assert_allclose(shared, 6.4 / 6)


def test_dead_inputs_and_zero_channels_round_to_zero_error():
  kernel, gram = problem(3, inputs=12)
  gram[:, 3] = gram[:, :, 3] = 0.0
  kernel[:, :, 2] = 0.0
  damped = rounding.damped(gram, 0.05)
  integers, scale = rounding.rounded(kernel, damped, np.full((1, 1, 5), 0.3), 7)
  assert np.isfinite(integers).all() and (scale > 0).all() and not integers[:, :, 2].any()
