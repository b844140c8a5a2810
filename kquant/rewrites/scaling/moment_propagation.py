"""Mean, variance and reach of every channel without data: from batch norms, carried through the graph.

A layer that a batch norm was folded into knows the moments of its output. From there they are carried
through the layers behind it, values taken as normal and channels as independent: sums through kernels,
ReLUs by the moments of a clipped normal, pools and padding as if a channel were alike at all positions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.core import numerics
from kquant.core.clipped_normal import clipped_normal
from kquant.core.errors import UnsupportedLayerError
from kquant.core.input_range import InputRange
from kquant.graph import keras_calls
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.scaling.channel_statistics import ChannelStatistics
from kquant.rewrites.scaling.scale_groups import cap_of

REACH = 6.0
"""Deviations from the mean that a normal channel is taken to reach (Nagel et al. 2021, section 3.1)."""
_POINTS = np.linspace(-REACH, REACH, 193)
_MANY_IMAGES = 10**6


@dataclasses.dataclass
class Moments:
  """What is known of a tensor's channels; each float64 [channels].

  Attributes:
    mean, variance: over images and positions.
    low, high: what a channel reaches: REACH deviations from the mean, within hard limits.
  """

  mean: np.ndarray
  variance: np.ndarray
  low: np.ndarray
  high: np.ndarray

  @property
  def deviation(self) -> np.ndarray:
    """Standard deviation."""
    return np.sqrt(self.variance)

  def each(self, change: Callable[[np.ndarray], np.ndarray]) -> "Moments":
    """Returns the moments of other channels, made of these by the same change to each part."""
    return Moments(*(change(getattr(self, field.name)) for field in dataclasses.fields(self)))


def normal(mean: np.ndarray, variance: np.ndarray) -> Moments:
  """Returns the moments of normal channels."""
  spread = REACH * np.sqrt(variance)
  return Moments(mean, variance, mean - spread, mean + spread)


def propagate_moments(graph: Graph, known: InputRange | None) -> dict[Ref, Moments]:
  """Returns the moments of the tensors of a standardized graph.

  Args:
    graph: its batch norms folded in this process: files do not hold what they knew.
    known: range of the inputs, each taken as evenly spread. With None nothing is known of them, and
      tensors of which nothing follows from batch norms are left out.

  Raises:
    ValueError: no layer knows of a batch norm.
    UnsupportedLayerError: with a `known` range, a layer that moments cannot be carried through.
  """
  if all(node.layer.output_moments is None for node in graph.nodes):
    raise ValueError(f"Model {graph.name!r} remembers no batch norms, from which ranges and means follow "
                     "without images; fold them in this process (kq.fold_batch_norm; files forget them), or "
                     "give calibration images.")
  found: dict[Ref, Moments] = {}
  for node in graph.nodes:
    moments = _moments_of(node, known, found)
    if moments is not None:
      found[Ref(node)] = moments
    elif known is not None:
      raise UnsupportedLayerError(
          f"Layer {node.name!r} ({node.kind}): what batch norms know cannot be carried through it; give "
          "calibration images.")
  return found


def as_statistics(moments: dict[Ref, Moments]) -> ChannelStatistics:
  """Returns the moments in the place of statistics of images, without gains."""
  parts = [{ref: getattr(of, name) for ref, of in moments.items()} for name in ("low", "high", "mean")]
  squares = {ref: of.variance + of.mean**2 for ref, of in moments.items()}
  return ChannelStatistics(*parts, squares, images=_MANY_IMAGES)


def _moments_of(node: Node, known: InputRange | None, found: dict[Ref, Moments]) -> Moments | None:
  """The moments of a call's output by its rule, mean and deviation as its batch norm knew them if it did."""
  if node.kind == "InputLayer":
    return _input(node, known)
  inputs = [found.get(ref) for ref in node.inputs]
  rule = _linear if node.facts.role == "linear" else _unary if node.facts.unary else _RULES.get(node.kind)
  carried = None if rule is None or None in inputs or len(node.shapes) > 1 else rule(node, *inputs)
  if node.layer.output_moments is None:
    return carried
  mean, deviation = node.layer.output_moments
  exact = normal(mean, deviation**2)
  if node.facts.role == "relu":
    exact.low, exact.high = np.maximum(exact.low, 0.0), np.minimum(exact.high, _cap(node))
  return exact


def _input(node: Node, known: InputRange | None) -> Moments | None:
  if known is None:
    return None
  ones = np.ones(node.shapes[0][-1] or 1)
  return Moments((known.low + known.high) / 2 * ones, (known.high - known.low) ** 2 / 12 * ones,
                 known.low * ones, known.high * ones)


# --- one rule a kind of layer ----------------------------------------------------------------------


def _linear(node: Node, x: Moments) -> Moments:
  """E[y] = sum over taps and inputs of W E[x], plus the bias; Var[y] = sum of W^2 Var[x]."""
  kernel, facts = node.layer.params[node.facts.kernel.name].astype(np.float64), node.facts
  taps = tuple(i for i in range(kernel.ndim) if i not in facts.kernel.out_axes)
  overlap = np.prod(node.config["strides"]) if node.kind == "Conv2DTranspose" else 1  # taps an output sees

  def through(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    spread = numerics.along_inputs(values, kernel.shape, facts.kernel.in_axes[0])
    return (weights * spread).sum(axis=taps).reshape(-1) / overlap

  mean = through(kernel, x.mean) + node.layer.params.get("bias", 0.0)
  return normal(mean, through(kernel**2, x.variance))


def _cap(node: Node) -> np.ndarray | float:
  cap = cap_of(node)
  return np.inf if cap is None else np.asarray(cap, np.float64)


def _relu(node: Node, x: Moments) -> Moments:
  cap = _cap(node)
  mean, variance = clipped_normal(x.mean, x.deviation, 0.0, cap)
  same = (x.low >= 0) & (x.high <= cap)
  return Moments(np.where(same, x.mean, mean), np.where(same, x.variance, variance),
                 np.clip(x.low, 0.0, cap), np.clip(x.high, 0.0, cap))


def _unary(node: Node, x: Moments) -> Moments:
  """A function of each element, on 193 points of a normal density cut at its reach."""
  layer = node.layer.cls.from_config(dict(node.config))
  points = np.clip(x.mean + _POINTS[:, None] * x.deviation, x.low, x.high)
  shape = [len(_POINTS), *[1] * (len(node.inputs[0].shape) - 2), -1]
  (y,) = keras_calls.call_node(layer, node, lambda ref: tf.reshape(tf.constant(points, tf.float32), shape))
  y = np.asarray(y, np.float64).reshape(points.shape)
  weights = np.exp(-(_POINTS**2) / 2)
  weights /= weights.sum()
  mean = weights @ y
  return Moments(mean, weights @ (y - mean) ** 2, y.min(axis=0), y.max(axis=0))


def _leaky(node: Node, x: Moments) -> Moments:
  """a x + (1 - a) relu(x): its square is x^2 above 0 and a^2 x^2 below."""
  slope = node.layer.params["alpha"] if node.kind == "PReLU" else node.config["alpha"]
  slope = np.asarray(slope, np.float64)
  slope = slope.mean(axis=tuple(range(slope.ndim - 1))) if slope.ndim else slope
  mean, variance = clipped_normal(x.mean, x.deviation, 0.0, np.inf)
  above, whole = variance + mean**2, x.variance + x.mean**2
  result = slope * x.mean + (1 - slope) * mean
  second = above + slope**2 * (whole - above)
  ends = [np.where(end < 0, slope * end, end) for end in (x.low, x.high)]
  return Moments(result, np.maximum(second - result**2, 0.0), np.minimum(*ends), np.maximum(*ends))


def _operands(node: Node, inputs: tuple[Moments, ...]) -> list[Moments]:
  """The operands of an elementwise call in their order; a constant has moments over its positions."""
  tensors, operands = iter(inputs), []
  for leaf in tf.nest.flatten((node.args, list(node.kwargs.values()))):
    if isinstance(leaf, Ref):
      operands.append(next(tensors))
    elif not isinstance(leaf, str | None):
      rows = np.asarray(leaf, np.float64).reshape(-1, np.shape(leaf)[-1] if np.ndim(leaf) else 1)
      operands.append(Moments(rows.mean(0), rows.var(0), rows.min(0), rows.max(0)))
  return operands


def _add(node: Node, *inputs: Moments) -> Moments:
  return _sum(_operands(node, inputs))


def _subtract(node: Node, *inputs: Moments) -> Moments:
  first, second = _operands(node, inputs)
  return _sum([first, Moments(-second.mean, second.variance, -second.high, -second.low)])


def _sum(terms: list[Moments]) -> Moments:
  """Independent terms; the sum reaches no further than the terms together."""
  total = normal(sum(t.mean for t in terms), sum(t.variance for t in terms))
  total.low = np.maximum(total.low, sum(t.low for t in terms))
  total.high = np.minimum(total.high, sum(t.high for t in terms))
  return total


def _multiply(node: Node, *inputs: Moments) -> Moments:
  first, *others = _operands(node, inputs)
  for other in others:
    mean = first.mean * other.mean
    second = (first.variance + first.mean**2) * (other.variance + other.mean**2)
    corners = [a * b for a in (first.low, first.high) for b in (other.low, other.high)]
    first = Moments(mean, np.maximum(second - mean**2, 0.0), np.min(corners, axis=0), np.max(corners, axis=0))
  return first


def _keep(node: Node, x: Moments) -> Moments | None:
  """Each output channel is the input channel of that number; behind a Flatten the channel is fastest."""
  channels = node.shapes[0][-1]
  if channels is None or channels % len(x.mean):
    return None
  return x.each(lambda values: np.tile(values, channels // len(values)))


def _pad(node: Node, x: Moments) -> Moments:
  return Moments(x.mean, x.variance, np.minimum(x.low, 0.0), np.maximum(x.high, 0.0))


def _spatial(node: Node, x: Moments) -> Moments | None:
  """A reduction that leaves the channels alone."""
  rank, axes = len(node.inputs[0].shape), node.argument(1, "axis")
  kept = axes is not None and not {rank - 1, 0} & {int(axis) % rank for axis in np.atleast_1d(axes)}
  return x if kept else None


def _concatenate(node: Node, *inputs: Moments) -> Moments:
  if node.config["axis"] in (-1, len(node.shapes[0]) - 1):
    return Moments(*(np.concatenate([getattr(x, field.name) for x in inputs])
                     for field in dataclasses.fields(Moments)))
  mean = np.mean([x.mean for x in inputs], axis=0)
  second = np.mean([x.variance + x.mean**2 for x in inputs], axis=0)
  return Moments(mean, np.maximum(second - mean**2, 0.0), np.min([x.low for x in inputs], axis=0),
                 np.max([x.high for x in inputs], axis=0))


def _permute(node: Node, x: Moments) -> Moments | None:
  return x if node.config["dims"][-1] == len(node.shapes[0]) - 1 else None


def _softmax(node: Node, x: Moments) -> Moments:
  share = np.full(len(x.mean), 1 / len(x.mean))
  return Moments(share, share * (1 - share), 0 * share, 0 * share + 1)


_KEEPING = ("Requantize", "MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D",
            "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D",
            "Cropping1D", "Cropping2D", "UpSampling2D", "UpSampling2DBilinear", "Resizing:nearest",
            "Resizing:bilinear", "Flatten", "Reshape")

_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("ReLU", "CappedReLU"), _relu),
    **dict.fromkeys(("LeakyReLU", "PReLU"), _leaky),
    **dict.fromkeys(("Sigmoid", "Tanh"), _unary),
    **dict.fromkeys(("Add", "tf.math.add"), _add),
    **dict.fromkeys(("Subtract", "tf.math.subtract"), _subtract),
    **dict.fromkeys(("Multiply", "tf.math.multiply"), _multiply),
    **dict.fromkeys(_KEEPING, _keep),
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D"), _pad),
    **dict.fromkeys(("tf.math.reduce_mean", "tf.math.reduce_max", "tf.math.reduce_min"), _spatial),
    "Concatenate": _concatenate, "Permute": _permute, "Softmax": _softmax,
}
