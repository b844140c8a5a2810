"""Scale rules: which channels of a call's inputs and outputs must share one scale (see scale_groups)."""

from collections.abc import Callable

import numpy as np

from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.channel_ties import ChannelTies

ScaleRule = Callable[[ChannelTies, Call], None]


def stop(ties: ChannelTies, call: Call) -> None:
  """Nothing is known to pass: the tensors on both sides are fixed."""
  reason = f"{call.name!r} ({call.kind}) is not homogeneous in its channels"
  for tensor in (*call.inputs, *call.outputs):
    ties.fix(tensor, reason)


def begin(ties: ChannelTies, call: Call) -> None:
  """The output has scales of its own."""


def model_input(ties: ChannelTies, call: Call) -> None:
  """What the user gives is not scaled."""
  ties.fix(call.outputs[0], "input of the model")


def keep(ties: ChannelTies, call: Call) -> None:
  """Each output channel is the input channel of that number; behind a Flatten the channel is fastest."""
  (source,) = call.inputs
  channels = ties.index[source]
  for tensor in call.outputs:
    result = ties.index[tensor]
    if not len(channels) or len(result) % len(channels):
      stop(ties, call)
      return
    ties.tie(np.tile(channels, len(result) // len(channels)), result)


def rectify(ties: ChannelTies, call: Call) -> None:
  """A ReLU; a threshold or a capped negative slope stops."""
  if call.config.get("threshold") or (call.config.get("negative_slope") and call.config.get("max_value")):
    stop(ties, call)
  else:
    keep(ties, call)


def reduce(ties: ChannelTies, call: Call) -> None:
  """A reduction: passes where it leaves the channels alone."""
  rank = len(call.inputs[0].shape)
  axes = call.argument(1, "axis")
  passes = axes is not None and not {rank - 1, 0} & {int(axis) % rank for axis in np.atleast_1d(axes)}
  (keep if passes else stop)(ties, call)


def permute(ties: ChannelTies, call: Call) -> None:
  """Passes where the channels stay last."""
  last = len(call.outputs[0].shape) - 1
  (keep if call.config["dims"][-1] == last else stop)(ties, call)


def add(ties: ChannelTies, call: Call) -> None:
  """Sums, maxima: all operands and the result share their scales; a constant operand is not scaled."""
  (result,) = call.outputs
  channels = len(ties.index[result])
  if len(call.inputs) < 2 or any(len(ties.index[tensor]) != channels for tensor in call.inputs):
    stop(ties, call)
    return
  for tensor in call.inputs:
    ties.tie(ties.index[tensor], ties.index[result])


def multiply(ties: ChannelTies, call: Call) -> None:
  """The largest factor passes its scales on, the others (a gate) are fixed."""
  (result,) = call.outputs
  sizes = [np.prod([n or 1 for n in tensor.shape[1:]]) for tensor in call.inputs]
  main = call.inputs[int(np.argmax(sizes))]
  for tensor in call.inputs:
    if tensor is not main:
      ties.fix(tensor, f"gate of {call.name!r}")
  if len(ties.index[main]) != len(ties.index[result]):
    stop(ties, call)
    return
  ties.tie(ties.index[main], ties.index[result])


def concatenate(ties: ChannelTies, call: Call) -> None:
  """Along the channels: slices; along another axis: the inputs share the scales of their channels."""
  (result,) = call.outputs
  if call.config["axis"] not in (-1, len(result.shape) - 1):
    add(ties, call)
    return
  ties.tie(np.concatenate([ties.index[tensor] for tensor in call.inputs]), ties.index[result])


def split(ties: ChannelTies, call: Call) -> None:
  """Along the channels: slices; along another axis: the inputs share the scales of their channels."""
  rank = len(call.inputs[0].shape)
  if int(call.argument(2, "axis", 0)) % rank != rank - 1:
    keep(ties, call)
    return
  ties.tie(ties.index[call.inputs[0]], np.concatenate([ties.index[tensor] for tensor in call.outputs]))
