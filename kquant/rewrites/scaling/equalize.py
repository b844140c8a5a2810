"""Cross-layer scaling as a graph pass: the channel scales that make per-tensor grids waste least.

  one_step, two_step  closed forms of Meller et al. 2019
  pairwise            cross-layer equalization (Nagel et al. 2019), on weights alone
  joint               the scales that minimize the predicted output noise of the whole network
"""

import dataclasses
from typing import Any

import numpy as np
import tf_keras as keras
from absl import logging
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from kquant.core import numerics
from kquant.core.quant_config import QuantConfig
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.graph.passes import graph_pass
from kquant.rewrites.scaling.channel_statistics import ChannelStatistics, measure_channels
from kquant.rewrites.scaling.equalization_rules import one_step, pairwise, two_step
from kquant.rewrites.scaling.noise_model import NoiseModel, noise_model
from kquant.rewrites.scaling.scale_groups import ScaleGroups, scale_channels, scale_groups

METHODS = ("one_step", "two_step", "pairwise", "joint")
CAPS = ("exact", "calibrated", "drop", "range")
_LARGEST_LOG_SCALE = np.log(64.0)
_ITERATIONS = 150
_ON_GRID = 0.5
_CAP_WORTH = 0.25
"""dB of predicted noise that the caps left out may cost together."""
_CAP_MARGIN = 0.999
"""A channel whose largest pre-activation comes this near to its cap reaches it."""


@graph_pass
def equalize(graph: Graph, *, method: str = "joint", calibration: Any = None, cap: str = "exact",
             config: QuantConfig | str = "int8_per_tensor", guard: bool = True,
             statistics: ChannelStatistics | None = None) -> None:
  """Scales the channels of a standardized float graph whose batch norms are folded.

  Args:
    graph: a Graph, which is edited; or a tf_keras model, which is not changed.
    method: "joint": the scales of least predicted output noise of the whole network; "one_step" or "two_step"
      (Meller et al. 2019), which without data see weights alone; "pairwise" (Nagel et al. 2019, section 4.1),
      which needs no data.
    calibration: inputs, as `kquant.quantize` takes them; None: no data.
    cap: what becomes of a ReLU6 whose channels are scaled by different factors:
      "exact"       min(max(x, 0), 6 s_c), one MINIMUM in the file; the function stays the same
      "calibrated"  ReLU6 is kept: channels that reach it are not scaled, others not beyond it; the
                    function stays the same on the calibration data
      "drop"        ReLU6 becomes ReLU, as AIMET does; changes the function
      "range"       one cap max(6 s_c) for all channels, the end of the grid; changes the function
    config: the grids that the network will get, a QuantConfig or a preset.
    guard: leave the network as it is where the predicted output noise would rise; needs data.
    statistics: of this graph, with gains, where they were measured already.

  Returns:
    The Graph, or a new model. Called with keywords alone: the pass with these options, for `kq.rewrite`.

  Raises:
    ValueError: an unknown method, cap or preset; "joint" or cap="calibrated" without data.

  Example:
    >>> layers = [keras.layers.Dense(4, input_shape=(3,)), keras.layers.ReLU(), keras.layers.Dense(2)]
    >>> model = kq.standardize(keras.Sequential(layers))
    >>> equal, image = kq.equalize(model, method="pairwise"), np.ones((1, 3), np.float32)
    >>> bool(np.allclose(model(image), equal(image), rtol=1e-4, atol=1e-5))
    True
  """
  _check(method, cap, calibration is not None or statistics is not None)
  config = QuantConfig.preset(config) if isinstance(config, str) else config
  if statistics is None and calibration is not None:
    statistics = measure_channels(graph, calibration, gains=guard or method == "joint")
  groups = scale_groups(graph)
  _fix_dead_groups(graph, groups)
  _fix_rounded_kernels(graph, groups, config)
  if not groups.free.any():
    return
  noise = noise_model(graph, groups, statistics, config) if statistics and statistics.gain else None
  if noise is not None and not noise.terms:  # nothing that could be scaled reaches the outputs
    return
  bounds = _bounds(graph, groups, statistics, cap)
  if method == "joint":
    t = _joint(noise, bounds)
    if cap == "exact":
      t = _spare_caps(graph, groups, noise, bounds, t)
  elif method == "pairwise":
    t = pairwise(graph, groups)
  else:
    t = {"one_step": one_step, "two_step": two_step}[method](graph, groups, statistics)
  t = np.clip(t, bounds.low, bounds.high)
  if noise is not None and not _lowers_noise(graph, noise, t, method) and guard:
    graph.skip(graph.output_refs[0].node, f"scales of {method} not applied: they would raise the noise")
    return
  _warn_of_depthwise(graph, config)
  if cap == "drop":
    _drop_caps(graph)
  scale_channels(graph, groups, np.exp(t), move_caps=cap != "calibrated")
  if cap == "range":
    _cap_by_range(graph)
  _report(graph, groups, np.exp(t), method)


def _check(method: str, cap: str, has_data: bool) -> None:
  for name, value, choices in (("method", method, METHODS), ("cap", cap, CAPS)):
    if value not in choices:
      raise ValueError(f"equalize: {name} must be one of {', '.join(choices)}, got {value!r}.")
  for what in (f"method={method!r}",) * (method == "joint") + (f"cap={cap!r}",) * (cap == "calibrated"):
    if not has_data:
      raise ValueError(f"equalize: {what} needs calibration images; give calibration=images, or use "
                       "method='pairwise' and cap='exact', which need none.")


def _fix_dead_groups(graph: Graph, groups: ScaleGroups) -> None:
  """A channel without weights, which pruning leaves, has no scale to choose."""
  alive = np.zeros(groups.count, bool)
  for node in graph.nodes:
    if node.facts.role == "linear":
      kernel = node.layer.params[node.facts.kernel.name]
      taps = tuple(i for i in range(kernel.ndim) if i not in node.facts.kernel.out_axes)
      alive[groups.index[Ref(node)][kernel.any(axis=taps).reshape(-1)]] = True
  groups.free &= alive


def _fix_rounded_kernels(graph: Graph, groups: ScaleGroups, config: QuantConfig) -> None:
  """Kernels that lie on their grid already, as those of a model that was quantized once, stay on it."""
  for node in graph.nodes:
    if node.facts.role != "linear":
      continue
    spec = config.rule(node.layer.name, node.kind, node.layer.origins).weights
    if _relative_rounding_error(node, spec) < _ON_GRID:
      if not spec.per_channel:
        groups.free[groups.index[Ref(node)]] = False
      if not spec.per_channel or not node.facts.depthwise:
        groups.free[groups.index[node.inputs[0]]] = False
        graph.skip(node, "its weights lie on the grid already; its inputs are not scaled")


def _relative_rounding_error(node: Node, spec: TensorSpec) -> float:
  """Power of the kernel's rounding error over what a uniform error within each step would have."""
  kernel, out_axes = node.layer.params[node.facts.kernel.name].astype(np.float64), node.facts.kernel.out_axes
  taps = tuple(i for i in range(kernel.ndim) if i not in out_axes)
  largest = np.abs(kernel).max(axis=taps if spec.per_channel else None)
  scale = numerics.symmetric_grid(largest.reshape(-1), spec.bits)
  axis = out_axes if spec.per_channel else None
  zero = np.zeros(len(scale), int)
  integers = numerics.quantize(kernel, scale, zero, bits=spec.bits, narrow=True, axis=axis)
  error = numerics.dequantize(integers, scale, zero, axis=axis) - kernel
  alive = np.broadcast_to(kernel.any(axis=taps, keepdims=True), kernel.shape)
  uniform = (alive * numerics.along(scale.astype(np.float64) ** 2 / 12, kernel.shape, axis)).sum()
  return float((error**2).sum() / max(uniform, 1e-30))


@dataclasses.dataclass(frozen=True, eq=False)
class _Bounds:
  """Least and largest log-scale of each group, [groups]."""

  low: np.ndarray
  high: np.ndarray


def _bounds(graph: Graph, groups: ScaleGroups, statistics: ChannelStatistics | None, cap: str) -> _Bounds:
  """Returns how far the channels of each group may be scaled."""
  high = np.where(groups.free, _LARGEST_LOG_SCALE, 0.0)
  low = -high
  if cap == "calibrated":
    for node in _capped(graph):
      ids, limit = groups.index[Ref(node)], node.config["max_value"]
      reach = np.maximum(statistics.high[node.inputs[0]], 1e-30)
      room = np.where(reach < _CAP_MARGIN * limit, np.log(_CAP_MARGIN * limit / reach), 0.0)
      np.minimum.at(high, ids, room)
      low[ids[room == 0]] = 0.0
  return _Bounds(np.minimum(low, high), high)


def _capped(graph: Graph) -> list[Node]:
  return [node for node in graph.of_role("relu") if node.config.get("max_value") is not None]


def _joint(noise: NoiseModel, bounds: _Bounds) -> np.ndarray:
  """The log-scales of least predicted noise: a geometric program, convex, by L-BFGS-B."""
  low, high = bounds.low, bounds.high
  (free,) = np.nonzero(high > low)
  if not len(free):
    return np.zeros(len(low))

  def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
    t = np.zeros(len(low))
    t[free] = x
    value, slope = noise.value_and_slope(t)
    return np.log(value), slope[free] / value

  with threadpool_limits(1, user_api="blas"):  # the vectors are short: threads would only wait
    minimum = minimize(objective, np.clip(0.0, low, high)[free], jac=True, method="L-BFGS-B",
                       bounds=np.stack([low, high], axis=1)[free], options={"maxiter": _ITERATIONS})
  t = np.zeros(len(low))
  t[free] = minimum.x
  return t


def _spare_caps(graph: Graph, groups: ScaleGroups, noise: NoiseModel, bounds: _Bounds,
                t: np.ndarray) -> np.ndarray:
  """Leaves the tensors unscaled whose own cap a channel, an operator in the file, buys next to nothing."""
  best, losses = noise(t), []
  for node in _capped(graph):
    without = t.copy()
    without[groups.index[Ref(node)]] = 0.0
    losses.append((10 * np.log10(noise(without) / best), node))
  spent, low, high = 0.0, bounds.low.copy(), bounds.high.copy()
  for loss, node in sorted(losses, key=lambda entry: entry[0]):
    spent += loss
    if spent > _CAP_WORTH:
      break
    low[groups.index[Ref(node)]] = high[groups.index[Ref(node)]] = 0.0
  return _joint(noise, _Bounds(low, high))


def _lowers_noise(graph: Graph, noise: NoiseModel, t: np.ndarray, method: str) -> bool:
  """Whether the predicted noise falls; records by how much."""
  before, after = noise(np.zeros(len(t))), noise(t)
  what = f"predicted output noise {10 * np.log10(after / before):+.1f} dB by {method}"
  graph.edit(graph.output_refs[0].node, what)
  if after > before:
    logging.warning("equalize: %s.", what)
  return after <= before


def _warn_of_depthwise(graph: Graph, config: QuantConfig) -> None:
  """Per-channel weights into a depthwise layer: the scale cancels in both kernels."""
  helpless = []
  for node in graph.nodes:
    if (node.facts.role != "linear"
        or not config.rule(node.layer.name, node.kind, node.layer.origins).weights.per_channel):
      continue
    readers = graph.readers(Ref(node))
    if len(readers) == 1 and readers[0].facts.role == "relu":
      readers = graph.readers(Ref(readers[0]))
    if readers and all(reader.facts.depthwise for reader in readers):
      graph.skip(node, "per-channel weights into a depthwise layer: scales change its activations alone")
      helpless.append(node.name)
  if helpless:
    logging.warning("equalize: weights are per-channel, so scaling cannot help the kernels of %d "
                    "layers before depthwise convolutions (%s, ...), only their activations.",
                    len(helpless), helpless[0])


def _drop_caps(graph: Graph) -> None:
  for node in _capped(graph):
    graph.recall(node, graph.new_layer(keras.layers.ReLU, node.layer_name), (node.inputs[0],))


def _cap_by_range(graph: Graph) -> None:
  for node in [node for node in graph.nodes if node.facts.caps]:
    highest = float(node.layer.params[node.facts.caps].max())
    graph.recall(node, graph.new_layer(keras.layers.ReLU, node.layer_name, {"max_value": highest}),
                 (node.inputs[0],))


def _report(graph: Graph, groups: ScaleGroups, scale: np.ndarray, method: str) -> None:
  """One line a layer whose channels were scaled, with what became of its cap."""
  for node in graph.nodes:
    if node.facts.role == "linear":
      own = scale[groups.index[Ref(node)]]
      if (own != 1).any():
        (reader, *_) = graph.readers(Ref(node))
        cap = ""
        if reader.facts.role == "relu":
          cap = "; one cap a channel" if reader.facts.caps else f"; cap {reader.config.get('max_value')}"
        graph.edit(node, f"channels scaled by {own.min():.3g} to {own.max():.3g} ({method}){cap}")
