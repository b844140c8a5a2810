"""Looking at the float tensors that pass the quantizers of a model."""

import contextlib
import dataclasses
from collections.abc import Iterator

import tensorflow as tf


@dataclasses.dataclass
class Seen:
  """Float tensors that passed by: (layer name, tensor), one entry a call.

  Attributes:
    activations: inputs of QuantizeActivation layers, that is, tensors to be quantized.
    linear_inputs, linear_outputs: inputs and outputs of QuantizeWeights layers.
  """

  activations: list[tuple[str, tf.Tensor]] = dataclasses.field(default_factory=list)
  linear_inputs: list[tuple[str, tf.Tensor]] = dataclasses.field(default_factory=list)
  linear_outputs: list[tuple[str, tf.Tensor]] = dataclasses.field(default_factory=list)


_seen: list[Seen] = []


@contextlib.contextmanager
def observing() -> Iterator[Seen]:
  """While it lasts every quantizer passes its float tensor through and notes it in what is yielded."""
  _seen.append(Seen())
  try:
    yield _seen[-1]
  finally:
    _seen.pop()


def observer() -> Seen | None:
  """Returns what notes float tensors now, see `observing`; None where quantizers quantize."""
  return _seen[-1] if _seen else None
