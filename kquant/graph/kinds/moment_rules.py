"""Moment rules: mean, variance and reach of a call's output channels, from those of its inputs.

Values are taken as normal and channels as independent (see rewrites.scaling.moment_propagation).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from kquant.core import numerics
from kquant.core.clipped_normal import clipped_normal
from kquant.graph.kinds.calls import Call, cap_of

REACH = 6.0
"""Deviations from the mean that a normal channel is taken to reach (Nagel et al. 2021, section 3.1)."""
_POINTS = np.linspace(-REACH, REACH, 193)


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


MomentRule = Callable[..., Moments | None]
"""Called with a call that has one output, and the Moments of each tensor it reads; None: nothing is known."""


def normal(mean: np.ndarray, variance: np.ndarray) -> Moments:
  """Returns the moments of normal channels."""
  spread = REACH * np.sqrt(variance)
  return Moments(mean, variance, mean - spread, mean + spread)


def linear(call: Call, x: Moments) -> Moments:
  """E[y] = sum over taps and inputs of W E[x], plus the bias; Var[y] = sum of W^2 Var[x]."""
  kernel, facts = call.layer.params[call.facts.kernel.name].astype(np.float64), call.facts
  taps = tuple(i for i in range(kernel.ndim) if i not in facts.kernel.out_axes)
  overlap = np.prod(call.config["strides"]) if facts.transposed else 1  # taps an output sees

  def through(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    spread = numerics.along_inputs(values, kernel.shape, facts.kernel.in_axes[0])
    return (weights * spread).sum(axis=taps).reshape(-1) / overlap

  mean = through(kernel, x.mean) + call.layer.params.get("bias", 0.0)
  return normal(mean, through(kernel**2, x.variance))


def limit_of(call: Call) -> np.ndarray | float:
  """Returns where a ReLU ends, infinity where it does not."""
  cap = cap_of(call)
  return np.inf if cap is None else np.asarray(cap, np.float64)


def rectify(call: Call, x: Moments) -> Moments:
  """The moments of a clipped normal."""
  cap = limit_of(call)
  mean, variance = clipped_normal(x.mean, x.deviation, 0.0, cap)
  same = (x.low >= 0) & (x.high <= cap)
  return Moments(np.where(same, x.mean, mean), np.where(same, x.variance, variance),
                 np.clip(x.low, 0.0, cap), np.clip(x.high, 0.0, cap))


def sample(call: Call, x: Moments) -> Moments:
  """A function of each element, on 193 points of a normal density cut at its reach."""
  points = np.clip(x.mean + _POINTS[:, None] * x.deviation, x.low, x.high)
  shape = [len(_POINTS), *[1] * (len(call.inputs[0].shape) - 2), -1]
  y = call.compute(points.astype(np.float32).reshape(shape)).astype(np.float64).reshape(points.shape)
  weights = np.exp(-(_POINTS**2) / 2)
  weights /= weights.sum()
  mean = weights @ y
  return Moments(mean, weights @ (y - mean) ** 2, y.min(axis=0), y.max(axis=0))


def leak(call: Call, x: Moments) -> Moments:
  """a x + (1 - a) relu(x): its square is x^2 above 0 and a^2 x^2 below."""
  slope = call.layer.params[call.facts.slopes] if call.facts.slopes else call.config["alpha"]
  slope = np.asarray(slope, np.float64)
  slope = slope.mean(axis=tuple(range(slope.ndim - 1))) if slope.ndim else slope
  mean, variance = clipped_normal(x.mean, x.deviation, 0.0, np.inf)
  above, whole = variance + mean**2, x.variance + x.mean**2
  result = slope * x.mean + (1 - slope) * mean
  second = above + slope**2 * (whole - above)
  ends = [np.where(end < 0, slope * end, end) for end in (x.low, x.high)]
  return Moments(result, np.maximum(second - result**2, 0.0), np.minimum(*ends), np.maximum(*ends))


def _operands(call: Call, inputs: tuple[Moments, ...]) -> list[Moments]:
  """The operands of an elementwise call in their order; a constant has moments over its positions."""
  tensors, operands = iter(inputs), []
  for operand in call.operands:
    if isinstance(operand, np.ndarray):
      rows = operand.astype(np.float64).reshape(-1, operand.shape[-1] if operand.ndim else 1)
      operands.append(Moments(rows.mean(0), rows.var(0), rows.min(0), rows.max(0)))
    else:
      operands.append(next(tensors))
  return operands


def add(call: Call, *inputs: Moments) -> Moments:
  """A sum of independent terms."""
  return _sum(_operands(call, inputs))


def subtract(call: Call, *inputs: Moments) -> Moments:
  """A difference of independent terms."""
  first, second = _operands(call, inputs)
  return _sum([first, Moments(-second.mean, second.variance, -second.high, -second.low)])


def _sum(terms: list[Moments]) -> Moments:
  """Independent terms; the sum reaches no further than the terms together."""
  total = normal(sum(t.mean for t in terms), sum(t.variance for t in terms))
  total.low = np.maximum(total.low, sum(t.low for t in terms))
  total.high = np.minimum(total.high, sum(t.high for t in terms))
  return total


def multiply(call: Call, *inputs: Moments) -> Moments:
  """A product of independent factors."""
  first, *others = _operands(call, inputs)
  for other in others:
    mean = first.mean * other.mean
    second = (first.variance + first.mean**2) * (other.variance + other.mean**2)
    corners = [a * b for a in (first.low, first.high) for b in (other.low, other.high)]
    first = Moments(mean, np.maximum(second - mean**2, 0.0), np.min(corners, axis=0), np.max(corners, axis=0))
  return first


def keep(call: Call, x: Moments) -> Moments | None:
  """Each output channel is the input channel of that number; behind a Flatten the channel is fastest."""
  channels = call.outputs[0].shape[-1]
  if channels is None or channels % len(x.mean):
    return None
  return x.each(lambda values: np.tile(values, channels // len(values)))


def pad(call: Call, x: Moments) -> Moments:
  """Zeros beside the values: they lie within the reach."""
  return Moments(x.mean, x.variance, np.minimum(x.low, 0.0), np.maximum(x.high, 0.0))


def reduce(call: Call, x: Moments) -> Moments | None:
  """A reduction that leaves the channels alone."""
  rank, axes = len(call.inputs[0].shape), call.argument(1, "axis")
  channels_stay = axes is not None and not {rank - 1, 0} & {int(axis) % rank for axis in np.atleast_1d(axes)}
  return x if channels_stay else None


def concatenate(call: Call, *inputs: Moments) -> Moments:
  """Along the channels: one after the other; along another axis: the mixture."""
  if call.config["axis"] in (-1, len(call.outputs[0].shape) - 1):
    return Moments(*(np.concatenate([getattr(x, field.name) for x in inputs])
                     for field in dataclasses.fields(Moments)))
  mean = np.mean([x.mean for x in inputs], axis=0)
  second = np.mean([x.variance + x.mean**2 for x in inputs], axis=0)
  return Moments(mean, np.maximum(second - mean**2, 0.0), np.min([x.low for x in inputs], axis=0),
                 np.max([x.high for x in inputs], axis=0))


def permute(call: Call, x: Moments) -> Moments | None:
  """Known where the channels stay last."""
  return x if call.config["dims"][-1] == len(call.outputs[0].shape) - 1 else None


def softmax(call: Call, x: Moments) -> Moments:
  """Shares between 0 and 1 that sum to 1, taken as alike."""
  share = np.full(len(x.mean), 1 / len(x.mean))
  return Moments(share, share * (1 - share), 0 * share, 0 * share + 1)
