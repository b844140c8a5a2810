"""Dead channels: constant or always cut off, they lose their weights, which would set the grid of a tensor.

Folding a batch norm whose variance is near zero leaves weights of 30 to 80 where the others are below 1,
on a channel that is constant or that its ReLU always cuts off. Such a row is set to zero; the function
stays the same wherever the channel is as silent as it was on the data.
"""

from typing import Any

import numpy as np

from kquant.core import numerics
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.graph.passes import graph_pass
from kquant.rewrites.scaling.channel_statistics import ChannelStatistics, measure_channels
from kquant.rewrites.scaling.scale_groups import ScaleGroups, scale_groups

_CONSTANT = 1e-5
"""A channel is constant where its extrema lie this near to one another, relative to its size."""


@graph_pass
def prune_dead_channels(graph: Graph, *, calibration: Any = None, margin: float = 0.1,
                        minimum_images: int = 64, statistics: ChannelStatistics | None = None) -> None:
  """Zeroes the weights of output channels that are constant, or cut off by the ReLU behind them.

  Args:
    graph: a standardized Graph whose batch norms are folded, which is edited; or such a tf_keras model, which
      is not changed.
    calibration: inputs, as `kquant.quantize` takes them; needed where there are no statistics.
    margin: a channel is cut off where its maximum stays below 0 by this many standard deviations.
    minimum_images: with fewer nothing is pruned, and that is recorded.
    statistics: of this graph, where they were measured already; a pruned channel's are set to what they
      become.

  Returns:
    The Graph, or a new model. Called with keywords alone: the pass with these options, for `kq.rewrite`.

  Raises:
    ValueError: neither calibration nor statistics.

  Example:
    >>> layers = [keras.layers.Dense(4, input_shape=(3,)), keras.layers.ReLU(), keras.layers.Dense(2)]
    >>> model = kq.standardize(keras.Sequential(layers))
    >>> images = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    >>> _ = model.layers[1].bias.assign([-99.0, 0.0, 0.0, 0.0])  # its ReLU never lets channel 0 pass
    >>> bool(kq.prune_dead_channels(model, calibration=images).layers[1].kernel.numpy()[:, 0].any())
    False
  """
  if statistics is None:
    if calibration is None:
      raise ValueError("prune_dead_channels: give calibration=images; without data no channel is known to "
                       "be silent.")
    statistics = measure_channels(graph, calibration)
  if statistics.images < minimum_images:
    graph.skip(graph.output_refs[0].node, f"only {statistics.images} images, {minimum_images} are needed to "
                                          "call a channel dead")
    return
  groups = scale_groups(graph)
  made, silent = np.zeros(groups.count, int), np.zeros(groups.count, int)
  for node in graph.nodes:
    if node.facts.role == "linear" and len(graph.calls(node.layer)) == 1:
      cut_off = _cut_off(graph, node, statistics, margin)
      constant = _constant(node, statistics) & ~cut_off
      _silence(node, cut_off, constant, statistics)
      np.add.at(silent, groups.index[Ref(node)][cut_off], 1)
      if cut_off.any() or constant.any():
        graph.edit(node, f"{cut_off.sum()} channels never pass the ReLU, {constant.sum()} are constant: "
                         "their weights are zero now")
    for index in range(len(node.shapes)):
      if node.facts.role in ("linear", "input", "opaque"):
        np.add.at(made, groups.index[Ref(node, index)], 1)
  _cut_readers(graph, groups, groups.free & (made > 0) & (silent == made))


def _cut_off(graph: Graph, node: Node, statistics: ChannelStatistics, margin: float) -> np.ndarray:
  ref, readers = Ref(node), graph.readers(Ref(node))
  if ref in graph.output_refs or not readers or any(reader.facts.role != "relu" for reader in readers):
    return np.zeros(ref.shape[-1], bool)
  return statistics.high[ref] + margin * statistics.deviation(ref) <= 0


def _constant(node: Node, statistics: ChannelStatistics) -> np.ndarray:
  ref = Ref(node)
  spread = statistics.high[ref] - statistics.low[ref]
  return spread <= _CONSTANT * np.maximum(statistics.magnitude(ref), 1e-30)


def _silence(node: Node, cut_off: np.ndarray, constant: np.ndarray, statistics: ChannelStatistics) -> None:
  kernel, bias = node.layer.params[node.facts.kernel.name], node.layer.params["bias"]
  dead = cut_off | constant
  keep = numerics.along(~dead, kernel.shape, node.facts.kernel.out_axes)
  bias = np.where(cut_off, 0.0, np.where(constant, statistics.mean[Ref(node)], bias))
  node.layer.params = {**node.layer.params, node.facts.kernel.name: kernel * keep,
                       "bias": bias.astype(np.float32)}
  if node.layer.output_moments is not None:
    mean, deviation = node.layer.output_moments
    node.layer.output_moments = np.where(dead, bias, mean).astype(np.float64), np.where(dead, 0.0, deviation)
  ref = Ref(node)
  for values in (statistics.low, statistics.high, statistics.mean, statistics.mean_square):
    values[ref] = np.where(cut_off, 0.0, values[ref])


def _cut_readers(graph: Graph, groups: ScaleGroups, silent: np.ndarray) -> None:
  """Zeroes the weights that read a channel which is zero everywhere."""
  for layer in {node.layer: None for node in graph.nodes if node.facts.role == "linear"}:
    source, facts = graph.calls(layer)[0].inputs[0], layer.facts
    heard = ~silent[groups.index[source]]
    if not heard.all():
      kernel = layer.params[facts.kernel.name]
      keep = numerics.along_inputs(heard, kernel.shape, facts.kernel.in_axes[0])
      layer.params = {**layer.params, facts.kernel.name: kernel * keep}
