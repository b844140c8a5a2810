"""Oscillations: sequences worked by hand, what freezing keeps, the dampening gradient."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.qat import oscillation


def run(sequence, momentum=0.5):
  """Returns the histories after each entry of a sequence of integers, the first being the start."""
  histories = [oscillation.start(tf.constant([sequence[0]]))]
  for value in sequence[1:]:
    histories.append(oscillation.follow(histories[-1], tf.constant([value]), momentum))
  return histories


def steps_that_oscillate(sequence):
  frequencies = [float(history.frequency[0]) for history in run(sequence)]
  return [i + 1 for i in range(1, len(sequence)) if frequencies[i] > frequencies[i - 1]]


@pytest.mark.parametrize("sequence, steps", [
    ([0, 1, 0, 1], [3, 4]), ([0, 1, 2, 3], []), ([0, 1, 1, 0], [4]), ([0, -1, -1, -1, 0, 0, -1], [5, 7]),
    ([2, 2, 2], []), ([0, 2, 1, 3], [3, 4])])
def test_a_step_oscillates_where_its_change_undoes_the_last_one(sequence, steps):
  assert steps_that_oscillate(sequence) == steps


def test_averages_by_hand():
  """m = 1/2: f 0, 1/2, 3/4 and the integers' 0, 1/2, 1/4, 5/8."""
  histories = run([0, 1, 0, 1])
  assert [float(h.frequency[0]) for h in histories] == [0, 0, 0.5, 0.75]
  assert [float(h.average[0]) for h in histories] == [0, 0.5, 0.25, 0.625]
  assert [int(h.direction[0]) for h in histories] == [0, 1, -1, 1]


def test_frozen_weights_keep_the_integer_they_had_most_of_the_time():
  history = oscillation.start(tf.constant([0, 0]))
  for value in (3, 3, 2, 3, 3, 2, 3):
    history = oscillation.follow(history, tf.constant([value, 0]), 0.5)
  history = oscillation.freeze(history, 0.2)
  assert history.frozen.numpy().tolist() == [True, False] and int(history.integers[0]) == 3
  kept = [np.array(field[0]) for field in history]
  for value in (1, -2, 7):
    history = oscillation.freeze(oscillation.follow(history, tf.constant([value, value]), 0.5), 1.5)
    assert [np.array(field[0]) for field in history] == kept
  assert int(history.integers[1]) == 7


def test_above_one_nothing_freezes():
  history = run([0, 1] * 50)[-1]
  assert not oscillation.freeze(history, 1.01).frozen.numpy().any()


@pytest.mark.parametrize("seed", range(3))
def test_frequency_of_random_flips(seed):
  """A weight that changes with probability p oscillates in each change: f settles at p."""
  rng = np.random.default_rng(seed)
  probability = np.linspace(0, 1, 5)
  integers, history = np.zeros(5, int), oscillation.start(tf.zeros(5))
  follow = tf.function(lambda history, now: oscillation.follow(history, now, 0.01))
  for _ in range(1500):
    integers = np.where(rng.random(5) < probability, 1 - integers, integers)
    history = follow(history, tf.constant(integers))
  np.testing.assert_allclose(history.frequency, probability, atol=0.12)


def test_dampening_by_hand():
  """Step 1, ends -1 and 1; sum over 2 outputs of (0.3^2, 0.1^2), (0, 0.4^2), mean over 2 inputs: 0.13."""
  weight = tf.constant([[0.3, -0.9], [1.7, 0.4]])
  with tf.GradientTape() as tape:
    tape.watch(weight)
    loss = oscillation.dampening(weight, 1.0, -1.0, 1.0, (1,))
  assert float(loss) == pytest.approx((0.09 + 0.01 + 0.0 + 0.16) / 2)
  np.testing.assert_allclose(tape.gradient(loss, weight), [[0.3, 0.1], [0.0, 0.4]], rtol=1e-5)


def test_dampening_of_a_depthwise_kernel_sums_over_all_its_channels():
  weight = tf.fill((3, 3, 4, 2), 0.25)
  assert float(oscillation.dampening(weight, 1.0, -1.0, 1.0, (2, 3))) == pytest.approx(8 * 0.0625)


def test_the_target_has_no_gradient_and_the_ends_have():
  scale, weight = tf.constant(1.0), tf.constant([[0.3, 5.0]])
  with tf.GradientTape() as tape:
    tape.watch(scale)
    loss = oscillation.dampening(weight, scale, -2 * scale, 3 * scale, (1,))
  assert float(tape.gradient(loss, scale)) == 0  # 5 is clipped onto the grid: its distance is 0


def test_cosine_by_hand():
  values = [oscillation.cosine(p, 0.1, 0.01) for p in (0, 0.25, 0.625, 1.0, 2.0)]
  np.testing.assert_allclose(values, [0.1, 0.1, 0.055, 0.01, 0.01])
  assert oscillation.cosine(0.5, 0.0, 1.0, begin=0.0) == pytest.approx(0.5)


def test_toy_regression_freezes_after_its_first_flips():
  """min (w_q - 0.4)^2 / 2 by straight-through steps: a weight flips between 0 and 1 until it is frozen."""
  weight, history, flips = 0.6, oscillation.start(tf.constant([1])), []
  for _ in range(200):
    integer = int(history.integers[0]) if history.frozen[0] else round(weight)
    weight -= 0.05 * (integer - 0.4)
    history = oscillation.freeze(oscillation.follow(history, tf.constant([round(weight)]), 0.1), 0.15)
    flips.append(int(history.integers[0]))
  assert history.frozen[0]
  changes = np.flatnonzero(np.diff(flips))
  assert 2 <= len(changes) <= 20 and changes[-1] < 150
