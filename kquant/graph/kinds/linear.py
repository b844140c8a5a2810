"""Kinds with a kernel: convolutions and dense layers."""

from kquant.graph.kinds import moment_rules, scale_rules
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, taken_apart
from kquant.graph.weights import WeightFacts


def _linear(name: str, out_axes: tuple[int, ...], in_axes: tuple[int, ...], **facts) -> LayerFacts:
  kernel = WeightFacts(name, out_axes, in_axes, key="kernel", bias="bias")
  return LayerFacts("linear", (kernel,), absorbs_relu=True, scale_rule=scale_rules.begin,
                    moment_rule=moment_rules.linear, **facts)


def _dilated(call: Call) -> Refusal | None:
  if max(call.config["dilation_rate"]) > 1:
    return Refusal("is dilated, which its operator is not", "use a dilation_rate of 1")
  return None


_THREE_DIMENSIONS = taken_apart(Refusal(
    "has an open shape or an output_padding", "fix the input's shape, and leave out output_padding"))
_LOCAL = taken_apart(Refusal("holds its weights as a large matrix", "build it with implementation=1"))

KINDS: dict[str, LayerFacts] = {
    # kernel [k, in / groups, out]
    "Conv1D": _linear("kernel", (2,), (1,), spatial=1, packs=True, size="filters"),
    # kernel [h, w, in / groups, out]
    "Conv2D": _linear("kernel", (3,), (2,), spatial=2, packs=True, size="filters"),
    # kernel [h, w, in, multiplier]; output channel = in * multipliers + multiplier
    "DepthwiseConv2D": _linear("depthwise_kernel", (2, 3), (2,), spatial=2, packs=True, depthwise=True),
    # kernel [h, w, out, in]
    "Conv2DTranspose": _linear("kernel", (2,), (3,), spatial=2, transposed=True, refused_form=_dilated),
    # kernel [in, out]
    "Dense": _linear("kernel", (1,), (0,), packs=True, size="units"),
    "Conv1DTranspose": taken_apart(),
    "DepthwiseConv1D": taken_apart(),
    "SeparableConv1D": taken_apart(),
    "SeparableConv2D": taken_apart(),
    "Conv3D": _THREE_DIMENSIONS,
    "Conv3DTranspose": _THREE_DIMENSIONS,
    "LocallyConnected1D": _LOCAL,
    "LocallyConnected2D": _LOCAL,
}
