"""Predicted output noise of a quantized network as a function of its channel scales.

Rounding with step D adds noise of variance D^2 / 12 to each weight of a kernel and each element of a
tensor; noise gains carry both to the outputs of the network. Scaling the channels by e^t multiplies
weights and ranges and divides gains, so that every term is a posynomial in e^t, and the sum is convex
in t: its minimum over all scales at once is the joint equalization. The maxima that set the steps are
smoothed to P-norms.
"""

import dataclasses

import numpy as np

from kquant.core import numerics
from kquant.core.quant_config import QuantConfig
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.graph import Graph
from kquant.graph.matching import grid_groups
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.scaling.channel_statistics import ChannelStatistics
from kquant.rewrites.scaling.equalization_rules import flat_kernel, kernel_extent
from kquant.rewrites.scaling.scale_groups import ScaleGroups

SMOOTHNESS = 40.0
"""P of the P-norms that stand for maxima."""
_SMALLEST_POWER = 1e-200
_HEADROOM = 2.0
"""Room above a channel's maximum on the data, where a cap bounds what no image was seen to reach."""


@dataclasses.dataclass
class WeightNoise:
  """The rounding noise of one kernel: inputs [J], outputs [O]; J counts the inputs of one output.

  Attributes:
    powers: (|W| / max|W|)^P, the largest over taps, [J, O]; the maximum of the kernel, or of each output.
    inputs: group of each input: [J, 1], or [J, O] where outputs read inputs of their own.
    outputs: groups of the output channels, [O].
    gain: noise gain of the weights times max|W|^2 / 12 / qmax^2, [J, O].
    per_channel: one step an output channel, or one for the kernel.
  """

  powers: np.ndarray
  inputs: np.ndarray
  outputs: np.ndarray
  gain: np.ndarray
  per_channel: bool

  def value_and_slope(self, t: np.ndarray, slope: np.ndarray) -> float:
    """Returns the noise at log-scales t, [groups], and adds its derivative to `slope`."""
    t_in, t_out = t[self.inputs], t[self.outputs]
    if self.inputs.shape[1] == 1:
      return self._dense(t_in[:, 0], t_out, slope)
    return self._grouped(t_in, t_out, slope)

  def _dense(self, t_in: np.ndarray, t_out: np.ndarray, slope: np.ndarray) -> float:
    """Every output reads every input: matrix-vector products do."""
    shrink, grow = np.exp(-SMOOTHNESS * t_in), np.exp(SMOOTHNESS * t_out)
    received, sent = np.exp(2 * t_in), np.exp(-2 * t_out)
    column = shrink @ self.powers
    if self.per_channel:
      step = column ** (2 / SMOOTHNESS)  # the step grows with its output's scale as the gain falls
      noise = step * (received @ self.gain)
      spread = received * (self.gain @ step)
      shares = shrink * (self.powers @ (noise / column))
      np.add.at(slope, self.inputs[:, 0], 2 * spread - 2 * shares)
      return noise.sum()
    whole = column @ grow
    step = whole ** (2 / SMOOTHNESS)
    by_output = step * sent * (received @ self.gain)
    by_input = step * received * (self.gain @ sent)
    total = by_output.sum()
    np.add.at(slope, self.outputs, 2 * total * column * grow / whole - 2 * by_output)
    np.add.at(slope, self.inputs[:, 0], 2 * by_input - 2 * total * shrink * (self.powers @ grow) / whole)
    return total

  def _grouped(self, t_in: np.ndarray, t_out: np.ndarray, slope: np.ndarray) -> float:
    """Outputs that read inputs of their own: depthwise and grouped kernels."""
    parts = self.powers * np.exp(SMOOTHNESS * (t_out - t_in))
    gain = self.gain * np.exp(2 * (t_in - t_out))
    whole = parts.sum(axis=0) if self.per_channel else parts.sum()
    noise = whole ** (2 / SMOOTHNESS) * gain
    total = noise.sum(axis=0) if self.per_channel else noise.sum()
    moved = 2 * parts * (total / whole) - 2 * noise
    np.add.at(slope, np.broadcast_to(self.outputs, moved.shape), moved)
    np.add.at(slope, self.inputs, -moved)
    return noise.sum()


@dataclasses.dataclass
class ActivationNoise:
  """The rounding noise of the tensors on one grid.

  Attributes:
    groups: group of each channel of each tensor, [C].
    low, high: powers of the relative ends of the range, (max(-x, 0) / w)^P and (max(x, 0) / w)^P, [C].
    gain: noise gain times w^2 / 12 / levels^2, [C].
  """

  groups: np.ndarray
  low: np.ndarray
  high: np.ndarray
  gain: np.ndarray

  def value_and_slope(self, t: np.ndarray, slope: np.ndarray) -> float:
    """Returns the noise at log-scales t, [groups], and adds its derivative to `slope`."""
    t = t[self.groups]
    spread = np.exp(SMOOTHNESS * t)
    ends = []
    for powers in (self.low, self.high):
      parts = powers * spread
      whole = parts.sum()
      ends.append((whole ** (1 / SMOOTHNESS), parts / whole) if whole else (0.0, parts))
    width = ends[0][0] + ends[1][0]
    noise = width**2 * self.gain * np.exp(-2 * t)
    total = noise.sum()
    shares = sum(end * part for end, part in ends) / width
    np.add.at(slope, self.groups, 2 * total * shares - 2 * noise)
    return total


@dataclasses.dataclass
class NoiseModel:
  """The noise of a whole network: call it with log-scales, [groups]."""

  terms: list[WeightNoise | ActivationNoise]
  groups: int

  def __call__(self, t: np.ndarray) -> float:
    """Returns the predicted noise power at the outputs."""
    return self.value_and_slope(t)[0]

  def value_and_slope(self, t: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the predicted noise power and its derivative, [groups]."""
    slope = np.zeros(self.groups)
    return sum(term.value_and_slope(t, slope) for term in self.terms), slope


def noise_model(graph: Graph, groups: ScaleGroups, statistics: ChannelStatistics,
                config: QuantConfig) -> NoiseModel:
  """Returns the noise model of a standardized float graph.

  Args:
    statistics: with gains.
    config: the grids that the network will get.
  """
  terms: list[WeightNoise | ActivationNoise | None] = [
      _weight_noise(node, groups, statistics,
                    config.rule(node.layer.name, node.kind, node.layer.origins).weights)
      for node in graph.nodes if node.facts.role == "linear"]
  for refs in grid_groups(graph):
    refs = [ref for ref in refs if ref.node.facts.role not in ("move", "fixed")]
    if any(groups.free[groups.index[ref]].any() for ref in refs):
      node = refs[0].node
      rule = config.rule(node.layer.name, node.kind, node.layer.origins)
      terms.append(_activation_noise(refs, groups, statistics, rule.activations))
  return NoiseModel([term for term in terms if term is not None and term.gain.any()], groups.count)


def _weight_noise(node: Node, groups: ScaleGroups, statistics: ChannelStatistics,
                  spec: TensorSpec) -> WeightNoise | None:
  extent = kernel_extent(node, groups)
  alive = extent.largest.max(axis=0) > 0
  if not alive.any():
    return None
  largest, inputs = extent.largest[:, alive], extent.inputs[:, alive]
  if (inputs == inputs[:, :1]).all():
    inputs = inputs[:, :1]
  peak = largest.max(axis=0 if spec.per_channel else None)
  _, qmax = numerics.grid_limits(spec.bits, narrow=True)
  gain = flat_kernel(statistics.weight_gain[node.layer], node)[:, alive] * peak**2 / 12 / qmax**2
  return WeightNoise(_powers(largest / peak), inputs, groups.index[Ref(node)][alive], gain, spec.per_channel)


def _powers(relative: np.ndarray) -> np.ndarray:
  """relative^P, without what is too small ever to count: products with denormal numbers are slow."""
  powers = relative**SMOOTHNESS
  powers[powers < _SMALLEST_POWER] = 0.0
  return powers


def _activation_noise(refs: list[Ref], groups: ScaleGroups, statistics: ChannelStatistics,
                      spec: TensorSpec) -> ActivationNoise:
  index, low, high, gain = (np.concatenate([part[ref] for ref in refs]) for part in (
      groups.index, statistics.low, statistics.high, statistics.gain))
  capped = np.concatenate([np.full(len(groups.index[ref]), ref.node.config.get("max_value") is not None)
                           for ref in refs])
  low, high = np.maximum(-low, 0.0), np.maximum(high, 0.0)
  high = np.where(capped, np.minimum(_HEADROOM * high, high[capped].max(initial=0.0)), high)
  width = max(low.max(), high.max(), 1e-30)
  return ActivationNoise(index, _powers(low / width), _powers(high / width),
                         gain * width**2 / 12 / (2**spec.bits - 1) ** 2)
