"""Cross-entropy ranges: by hand, independence of order to the last bit, bounded memory, refusals."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.ranges import cross_entropy
from kquant.ranges.cross_entropy import cross_entropies
from kquant.ranges.estimators import make_estimator
from kquant.ranges.search import Grids, grids_over


def run(*batches):
  estimator = make_estimator("cross_entropy")
  for batch in batches:
    estimator.update(np.float32(batch))
  return estimator


def found(estimator):
  return [estimator.range(bits=bits, symmetric=symmetric) for bits in (3, 8) for symmetric in (False, True)]


def logits(seed=0, images=24, classes=50):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(images, classes)) * rng.gamma(3, size=(images, 1))).astype(np.float32)


def test_cross_entropy_by_hand():
  """Two classes, log odds 2; on the grid {-1, 0, 1} they are 1 - -1 = 2, of scale .5 only 1."""
  odds = 1 / (1 + np.exp(-2.0))
  expected = [-(odds * np.log(1 / (1 + np.exp(-d))) + (1 - odds) * np.log(1 / (1 + np.exp(d))))
              for d in (2.0, 1.0)]
  grids = Grids(np.array([1.0, 0.5]), np.array([-1, -1]), np.array([1, 1]))
  errors = cross_entropies(np.array([[1.0, -1.0]]), grids)
  np.testing.assert_allclose(errors, expected)


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("seed", range(2))
def test_no_range_of_a_search_is_much_better(bits, seed):
  x = logits(seed)
  x[0, 0] = -60.0  # the low end matters to no softmax

  def loss(low, high):
    return cross_entropies(x.astype(np.float64), grids_over(low, high, bits, symmetric=False))[0]

  low, high = run(x).range(bits=bits, symmetric=False)
  searched = min(loss(x.min() * a, x.max() * b) for a in np.linspace(0.05, 1, 20)
                 for b in np.linspace(0.3, 1, 15))
  assert loss(low, high) < 1.05 * searched
  assert low > -50 and loss(low, high) < 0.99 * loss(x.min(), x.max())


@pytest.mark.parametrize("most", [1 << 20, 600])
def test_independent_of_order_batches_and_merging_also_where_rows_are_dropped(most, monkeypatch):
  monkeypatch.setattr(cross_entropy, "_MOST_ELEMENTS", most)
  x = np.concatenate([logits(), logits()[:5]])  # some rows twice
  expected = found(run(x))
  shuffled = x[np.random.default_rng(1).permutation(len(x))]
  assert found(run(*shuffled[:, None])) == expected
  first, second = run(x[:9]), run(x[9:20], x[20:])
  second.merge(first)
  assert found(second) == expected


def test_memory_is_bounded(monkeypatch):
  monkeypatch.setattr(cross_entropy, "_MOST_ELEMENTS", 500)
  estimator = run(*(logits(seed) for seed in range(4)))
  assert sum(len(rows) for rows in estimator._rows.values()) == 10  # 500 over 50 classes
  assert estimator.images == 96


def test_axes_of_length_one_are_no_obstacle():
  x = logits()
  assert found(run(x[:, None, None])) == found(run(x))


@pytest.mark.parametrize("shape", [(4,), (4, 3, 5), (4, 2, 2, 5)])
def test_what_is_no_logits_is_refused_in_a_trace_too(shape):
  estimator = make_estimator("cross_entropy")
  for measure in (estimator.measure, tf.function(estimator.measure)):
    with pytest.raises(ValueError, match=r"expected logits \[images, classes\], got a tensor of shape"):
      measure(tf.zeros(shape))
