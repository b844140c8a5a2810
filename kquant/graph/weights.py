"""WeightFacts: what kquant knows of one quantized weight of a layer."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class WeightFacts:
  """One quantized weight W of a layer: the layer computes W x + b with it, x being its one input.

  Attributes:
    name: of the variable, and of the layer's attribute that holds it, e.g. "depthwise_kernel".
    out_axes, in_axes: channel axes of the weight, ascending; row-major over out_axes is the output channel,
      the one axis of in_axes is along the input's last one.
    key: its name in Encodings, `<layer>/<key>`; by default that of the variable.
    bias: name of the variable [output channels] that is added to W x, and in Encodings, `<call>/<bias>`;
      "" for none.
    one_grid: all its channels have one scale, whatever a rule says.

  Example:
    >>> tflite_export.WeightFacts("kernel", out_axes=(1,), in_axes=(0,), bias="bias").key
    'kernel'
  """

  name: str
  out_axes: tuple[int, ...]
  in_axes: tuple[int, ...]
  key: str = ""
  bias: str = ""
  one_grid: bool = False

  def __post_init__(self):
    object.__setattr__(self, "key", self.key or self.name)

  def scale_axes(self, per_channel: bool) -> tuple[int, ...] | None:
    """Finds the axes along which its scales lie.

    Args:
      per_channel: what its rule says.

    Returns:
      The channel axes; None for one scale.
    """
    return self.out_axes if per_channel and not self.one_grid else None


def check_weights(weights: Sequence[WeightFacts]) -> None:
  """Raises ValueError where two weights of a layer have one name, or one has no output or input axis."""
  for weight in weights:
    if not weight.out_axes or len(weight.in_axes) != 1:
      raise ValueError(f"Weight {weight.name!r} must have at least one output axis and one input axis, got "
                       f"{weight.out_axes} and {weight.in_axes}.")
  biases = [weight.bias for weight in weights if weight.bias]
  for own in ([weight.name for weight in weights], [weight.key for weight in weights]):
    names = own + biases
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
      raise ValueError("Weights of one layer must have different names, keys and biases, got twice: "
                       f"{', '.join(twice)}.")
