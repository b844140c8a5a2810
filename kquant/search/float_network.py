"""The float network that a search starts from, and its scaling, for which each image is measured once."""

import numpy as np

from kquant.core import data
from kquant.core.input_range import InputRange
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report
from kquant.graph.graph import Graph
from kquant.rewrites.scaling.channel_statistics import RunningChannels
from kquant.rewrites.scaling.dead_channels import prune_dead_channels
from kquant.rewrites.scaling.equalize import equalize
from kquant.rewrites.scaling.moment_propagation import as_statistics, propagate_moments


class FloatNetwork:
  """What a search starts from.

  Args:
    graph: of the float model, standardized and folded; it stays as it is.
    images: to calibrate on, one array a model input; an InputRange where nothing is searched.
    seed: of the images held back and of every other random choice.

  Attributes:
    graph, images, seed: these.
  """

  def __init__(self, graph: Graph, images: list[np.ndarray] | InputRange, seed: int = 0):
    self.graph, self.images, self.seed = graph, images, seed
    self._channels: RunningChannels | None = None
    self._not_seen: list[list[np.ndarray]] = []  # by _channels

  def split(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns (images to choose by, images that are held back to judge by)."""
    return data.hold_back(self.images, seed=self.seed)

  def scaled(self, config: QuantConfig, report: Report, *, tried: bool = False) -> Graph:
    """Returns a copy of the graph, its channels scaled as a config says.

    Dead channels are pruned first. Each image is measured once: the scales of a trial follow from those that
    are not held back, for others these join them.

    Args:
      config: with the method.
      report: takes the seconds.
      tried: for a trial, before any other scaling.
    """
    twin, method = self.graph.copy(), config.recipe.equalize
    if method != "none":
      with report.stage("equalize"):
        channels = (as_statistics(propagate_moments(twin, self.images)) if isinstance(self.images, InputRange)
                    else self._measured(tried).statistics(twin))
        prune_dead_channels(twin, statistics=channels)
        equalize(twin, method=method, config=config, statistics=channels)
    return twin

  def _measured(self, tried: bool) -> RunningChannels:
    if self._channels is None:
      self._channels = RunningChannels(self.graph.copy(), gains=True)
      self._not_seen = list(self.split()) if tried else [self.images]
    while self._not_seen[1 if tried else 0:]:
      self._channels.absorb(self._not_seen.pop(0))
    return self._channels
