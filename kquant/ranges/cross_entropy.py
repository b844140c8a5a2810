"""Cross-entropy ranges for logits: argmin H(softmax(v), softmax(v_hat)) (Nagel et al. 2021, section 3.1).

The softmax of a row depends on all of its logits, so whole rows are kept. If there are too many, those
with the smallest hashes are kept: a sample that does not depend on the order and merges exactly.
"""

import hashlib
import math

import numpy as np
import tensorflow as tf

from kquant.ranges.base import Estimator
from kquant.ranges.search import Grids, RangeCandidates, search_range

_MOST_ELEMENTS = 1 << 20


class CrossEntropy(Estimator):
  """The range whose grid least changes the softmax of logits [images, classes].

  Axes of length 1 may stand between. At most 2^20 logits are kept, 8 MB. The ends of the range are
  searched together and then one by one; of equally good ranges the widest is taken.
  """

  needs_logits = True

  def __init__(self):
    super().__init__()
    self._rows: dict[bytes, list[np.ndarray]] = {}

  def measure(self, x):
    """Returns the extrema of each image and its "rows", float32 [images, classes].

    Args:
      x: logits, [images, classes]; axes of length 1 may stand between.

    Raises:
      ValueError: x is not [images, classes].
    """
    if x.shape.rank < 2 or any(n != 1 for n in x.shape[1:-1]):
      raise ValueError(f"CrossEntropy: expected logits [images, classes], got a tensor of shape {x.shape}; "
                       "use it for the last layer of a classifier alone.")
    rows = tf.reshape(tf.cast(x, tf.float32), [-1, x.shape[-1]])
    return {**super().measure(x), "rows": rows}

  def absorb(self, measured):
    """Keeps the rows beside the state of the base."""
    super().absorb(measured)
    for row in measured["rows"] + np.float32(0):  # -0 and 0 are alike
      self._rows.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), []).append(row)
    self._bound()

  def merge(self, other):
    """Adds the rows of the other estimator."""
    super().merge(other)
    for key, rows in other._rows.items():
      self._rows[key] = self._rows.get(key, []) + rows
    self._bound()

  def _bound(self) -> None:
    """Forgets the rows of the largest hashes beyond what is kept."""
    room = self._most_rows()
    if sum(map(len, self._rows.values())) <= room:
      return
    by_hash, self._rows = sorted(self._rows.items()), {}
    for key, rows in by_hash:
      if room > 0:
        self._rows[key] = rows[:room]
      room -= len(rows)

  def _most_rows(self) -> int:
    classes = next((len(rows[0]) for rows in self._rows.values()), 1)
    return max(1, _MOST_ELEMENTS // classes)

  def _find(self, bits, symmetric):
    logits = np.concatenate([rows for _, rows in sorted(self._rows.items())]).astype(np.float64)
    return search_range(lambda grids: cross_entropies(logits, grids),
                        RangeCandidates(self.low, self.high, bits, symmetric), coupled=True)


def cross_entropies(logits: np.ndarray, grids: Grids) -> np.ndarray:
  """Returns the mean H(softmax(v), softmax(v_hat)) in nats over rows v, for each of many grids: [grids].

  Args:
    logits: [images, classes].
    grids: to be judged.
  """
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  weights /= weights.sum(axis=1, keepdims=True)
  result = np.empty(len(grids.scale))
  for index, step in enumerate(np.asarray(grids.scale, np.float64)):
    v = step * np.clip(np.rint(logits / step), grids.first[index], grids.last[index])
    v -= v.max(axis=1, keepdims=True)
    losses = np.log(np.exp(v).sum(axis=1)) - np.einsum("nc,nc->n", weights, v)
    result[index] = math.fsum(losses) / len(losses)
  return result
