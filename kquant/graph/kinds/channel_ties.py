"""Numbers the channels of tensors, and notes which of them are tied and which are fixed."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kquant.graph.kinds.calls import Tensor


class ChannelTies:
  """Which channels must share one scale, and which must have the scale 1.

  Attributes:
    index: {tensor: number of each channel}, int64 [channels]; none for tensors without channels.
    obstacles: {tensor: why its channels are fixed}.
  """

  def __init__(self):
    self.index: dict[Tensor, np.ndarray] = {}
    self.obstacles: dict[Tensor, str] = {}
    self._count = 0
    self._ties: list[tuple[np.ndarray, np.ndarray]] = []
    self._fixed: list[np.ndarray] = []

  def add(self, tensor: Tensor) -> None:
    """Gives a tensor channels of its own."""
    shape = tensor.shape
    channels = shape[-1] if len(shape) > 1 and shape[-1] is not None else 0
    self.index[tensor] = np.arange(self._count, self._count + channels)
    self._count += channels

  def tie(self, first: np.ndarray, second: np.ndarray) -> None:
    """Demands one scale for each pair."""
    self._ties.append((first, second))

  def fix(self, tensor: Tensor, reason: str) -> None:
    """Demands s = 1 for all channels of a tensor."""
    self.obstacles.setdefault(tensor, reason)
    self._fixed.append(self.index[tensor])

  def joined(self) -> tuple[dict[Tensor, np.ndarray], np.ndarray]:
    """Joins what is tied; returns ({tensor: group of each channel}, whether each group is not fixed)."""
    first, second = (np.concatenate([np.zeros(0, int), *side]) for side in zip(([], []), *self._ties))
    first, second = first.astype(int), second.astype(int)
    links = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(self._count, self._count))
    count, label = connected_components(links, directed=False)
    free = np.ones(count, bool)
    for ids in self._fixed:
      free[label[ids]] = False
    return {tensor: label[ids] for tensor, ids in self.index.items()}, free
