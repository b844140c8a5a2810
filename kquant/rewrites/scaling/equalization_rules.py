"""Closed-form equalization: one-step, two-step (Meller et al. 2019) and pairwise (Nagel et al. 2019).

All work on log-scales t, one a scale group; layer l's kernel is |W_jo| e^(t_o - t_j). A group takes the
smallest scale that one of its producers wishes for, and a concatenation counts as one tensor.
"""

import dataclasses

import numpy as np

from kquant.core import numerics
from kquant.graph.graph import Graph
from kquant.graph.matching import fuses_into_reader, grid_groups
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.scaling.channel_statistics import ChannelStatistics
from kquant.rewrites.scaling.scale_groups import ScaleGroups

LARGEST_SCALE = 16.0
"""No channel is amplified further: its maximum on the calibration data may be an accident."""
_NEGLIGIBLE = 1e-8


@dataclasses.dataclass
class KernelExtent:
  """The largest |W| of one kernel over its taps, with the groups of its sides.

  Attributes:
    largest: [inputs of one output, outputs].
    inputs, outputs: groups, broadcast to the shape of `largest`.
  """

  largest: np.ndarray
  inputs: np.ndarray
  outputs: np.ndarray

  def by_output(self, t: np.ndarray) -> np.ndarray:
    """max |W| of each output channel at log-scales t, [O]."""
    return (self.largest * np.exp(t[self.outputs] - t[self.inputs])).max(axis=0)

  def by_group(self, t: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """max |W| of the channels of each group, [groups]; 0 where the kernel has none of it."""
    largest = np.zeros(count)
    np.maximum.at(largest, groups, self.largest * np.exp(t[self.outputs] - t[self.inputs]))
    return largest


def kernel_extent(node: Node, groups: ScaleGroups) -> KernelExtent:
  """Returns the extent of the kernel that a call uses."""
  facts = node.facts
  kernel = np.abs(node.layer.params[facts.kernel.name].astype(np.float64))
  kernel = kernel.max(axis=tuple(range(facts.spatial)), keepdims=True)
  inputs = numerics.along_inputs(groups.index[node.inputs[0]], kernel.shape, facts.kernel.in_axes[0])
  outputs = numerics.along(groups.index[Ref(node)], kernel.shape, facts.kernel.out_axes)
  return KernelExtent(*(flat_kernel(np.broadcast_to(values, kernel.shape), node)
                        for values in (kernel, inputs, outputs)))


def flat_kernel(kernel: np.ndarray, node: Node) -> np.ndarray:
  """A kernel whose spatial axes have length 1 as [inputs of one output, outputs]."""
  if node.facts.depthwise:
    return kernel.reshape(1, -1)
  matrix = kernel.reshape(kernel.shape[node.facts.spatial:])
  return matrix.T if node.facts.kernel.out_axes[0] < node.facts.kernel.in_axes[0] else matrix


@dataclasses.dataclass
class _Producers:
  """Calls whose outputs share groups, with the kernels that make and read them."""

  nodes: list[Node]
  readers: list[Node]


class _Network:
  """What the rules need of a graph: its kernels, its tensors, and who shares a scale with whom."""

  def __init__(self, graph: Graph, groups: ScaleGroups, statistics: ChannelStatistics | None = None):
    linear = [node for node in graph.nodes if node.facts.role == "linear"]
    self.graph = graph
    self.groups = groups
    self.statistics = statistics
    self.grid_group = {ref: refs for refs in grid_groups(graph) for ref in refs}
    self.extents = {node: kernel_extent(node, groups) for node in linear}
    self.stages = [self._stage(nodes, linear) for nodes in self._sharing(linear)]

  def _sharing(self, linear: list[Node]) -> list[list[Node]]:
    """Producers joined by common free groups, in topological order of the first."""
    stages: list[list[Node]] = []
    owner: dict[int, int] = {}
    for node in linear:
      ids = set(self.groups.index[Ref(node)].tolist())
      met = sorted({owner[i] for i in ids if i in owner})
      home = met[0] if met else len(stages)
      if not met:
        stages.append([])
      stages[home].append(node)
      for other in met[1:]:
        stages[home] += stages[other]
        stages[other] = []
      owner.update({i: home for i in ids} | {i: home for i, where in owner.items() if where in met[1:]})
    return [nodes for nodes in stages
            if nodes and any(self.groups.free[self.groups.index[Ref(node)]].any() for node in nodes)]

  def _stage(self, nodes: list[Node], linear: list[Node]) -> _Producers:
    ids = np.unique(np.concatenate([self.groups.index[Ref(node)] for node in nodes]))
    return _Producers(nodes, [node for node in linear if np.isin(self.extents[node].inputs, ids).any()])

  def made(self, stage: _Producers, t: np.ndarray) -> np.ndarray:
    """max |W| over the producers of each group, [groups]."""
    return np.max([self.extents[node].by_group(t, self.extents[node].outputs, self.groups.count)
                   for node in stage.nodes], axis=0)

  def read(self, stage: _Producers, t: np.ndarray) -> np.ndarray:
    """max |W| over the readers of each group, [groups]."""
    return np.max([self.extents[node].by_group(t, self.extents[node].inputs, self.groups.count)
                   for node in stage.readers] or [np.zeros(self.groups.count)], axis=0)


def pairwise(graph: Graph, groups: ScaleGroups, *, sweeps: int = 20) -> np.ndarray:
  """Cross-layer equalization: r_made = r_read for every group, t = log(r_read / r_made) / 2, swept.

  A pointwise-depthwise-pointwise triple converges to (r1 r2 r3)^(1/3) for all three. Needs no data.
  """
  network, t = _Network(graph, groups), np.zeros(groups.count)
  for _ in range(sweeps):
    largest_move = 0.0
    for stage in network.stages:
      made, read = network.made(stage, t), network.read(stage, t)
      move = np.where(groups.free & (made > _NEGLIGIBLE) & (read > _NEGLIGIBLE),
                      0.5 * np.log(np.maximum(read, 1e-30) / np.maximum(made, 1e-30)), 0.0)
      t += move
      largest_move = max(largest_move, np.abs(move).max())
    if largest_move < 1e-3:
      break
  return t


def one_step(graph: Graph, groups: ScaleGroups, statistics: ChannelStatistics | None) -> np.ndarray:
  """Amplifies each channel until its kernel or its tensor reaches the layer's maximum (Meller, 4.1).

  s_c = min(k / k_c, a / a_c, 16), a pre-activation bound max(a / |m_c|, 1), layer after layer.
  """
  return _amplify(graph, groups, statistics, headroom=False)


def two_step(graph: Graph, groups: ScaleGroups, statistics: ChannelStatistics | None) -> np.ndarray:
  """First lowers dominant channels as far as the next layer has headroom, then as `one_step` (4.2).

  u_c = max over readers of max|W_next[c]| / max|W_next|; k' = max k_c u_c and a' = max a_c u_c take the
  places of k and a, and s_c >= u_c: no reader's kernel grows.
  """
  return _amplify(graph, groups, statistics, headroom=True)


def _amplify(graph: Graph, groups: ScaleGroups, statistics: ChannelStatistics | None, *,
             headroom: bool) -> np.ndarray:
  network, t = _Network(graph, groups, statistics), np.zeros(groups.count)
  for stage in network.stages:
    room = _headroom(network, stage, t) if headroom else np.ones(groups.count)
    wish = np.full(groups.count, np.inf)
    for node in stage.nodes:
      ids = groups.index[Ref(node)]
      scales = _wished_scales(network, node, t, room)
      np.minimum.at(wish, ids, np.maximum(scales, room[ids]))
    wish = np.where(np.isfinite(wish) & groups.free, wish, 1.0)
    t += np.log(wish)
  return t


def _headroom(network: _Network, stage: _Producers, t: np.ndarray) -> np.ndarray:
  """u of each group: how far it may be lowered without any reader's largest weight growing."""
  room, count = np.zeros(network.groups.count), network.groups.count
  for node in stage.readers:
    extent = network.extents[node]
    mine = extent.by_group(t, extent.inputs, count)
    room = np.maximum(room, mine / max(extent.by_output(t).max(), 1e-30))
  return np.where(room > _NEGLIGIBLE, np.minimum(room, 1.0), 1.0)


def _wished_scales(network: _Network, node: Node, t: np.ndarray, room: np.ndarray) -> np.ndarray:
  """What one producer wishes for its output channels, [O]."""
  graph, statistics = network.graph, network.statistics
  ids = network.groups.index[Ref(node)]
  kernel = network.extents[node].by_output(t)
  alive = kernel > _NEGLIGIBLE * kernel.max(initial=0)
  scale = (kernel * room[ids]).max(initial=0) / np.where(alive, kernel, 1.0)
  if statistics is not None:
    ref = Ref(graph.readers(Ref(node))[0]) if fuses_into_reader(graph, Ref(node)) else Ref(node)
    reach = statistics.magnitude(ref) * np.exp(t[ids])
    active = reach > _NEGLIGIBLE * reach.max(initial=0)
    target = max(_largest_of(network, other, t, room) for other in network.grid_group.get(ref, [ref])
                 if other.node.facts.role != "move")
    below = np.maximum(-statistics.low[Ref(node)], 0) * np.exp(t[ids])
    scale = np.minimum(scale, np.minimum(target / np.where(active, reach, 1.0), LARGEST_SCALE))
    scale = np.minimum(scale, np.maximum(target / np.maximum(below, 1e-30), 1.0))
    alive &= active
  return np.where(alive, scale, 1.0)


def _largest_of(network: _Network, ref: Ref, t: np.ndarray, room: np.ndarray) -> float:
  """a of a tensor, lowered as far as the readers of its largest channels have headroom."""
  ids = network.groups.index[ref]
  return float((network.statistics.magnitude(ref) * np.exp(t[ids]) * room[ids]).max(initial=0))
