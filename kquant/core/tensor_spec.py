"""TensorSpec: how one tensor is quantized, and the names of quantizers and range estimators."""

import dataclasses
from typing import Any

DEFAULT_RANGE = "minmax"
WEIGHT_QUANTIZERS = ("minmax", "moving_average", "lsq", "lsq_plus", "dorefa", "nested", "xnor")
ONE_BIT_QUANTIZERS = ("dorefa", "nested", "xnor")
"""Of weights: those whose integers are odd, so that 1 bit is {-1, 1} and 2 bits have four values."""
ACTIVATION_QUANTIZERS = ("minmax", "moving_average", "in_hindsight", "current_minmax", "lsq", "lsq_plus",
                         "pact")
GRADIENT_QUANTIZERS = ("in_hindsight", "current_minmax", "moving_average")
ROUNDINGS = ("nearest", "stochastic")

RANGES: dict[str, tuple[float, float, float] | None] = {
    "minmax": None, "mean_extrema": None, "percentile": (99.99, 50.0, 100.0), "mse": None,
    "lp": (2.4, 1.0, 10.0), "kl": None, "aciq": None, "octav": None, "cross_entropy": None}
"""Range estimators. Some take a number, "lp:4": its default, and limits, the lower one exclusive."""


def parse_range(text: str) -> tuple[str, float | None]:
  """Returns (name, number) of a range estimator such as "mse" or "percentile:99.9".

  Raises:
    ValueError: no such estimator, or a number that it does not take.
  """
  name, colon, number = str(text).partition(":")
  if name not in RANGES:
    raise ValueError(f"TensorSpec: unknown range {text!r}; expected one of {', '.join(RANGES)}.")
  if RANGES[name] is None:
    if colon:
      raise ValueError(f"TensorSpec: range {text!r} has a number, which {name} does not take; write "
                       f"{name!r}.")
    return name, None
  default, low, high = RANGES[name]
  try:
    value = float(number) if colon else default
  except ValueError:
    value = float("nan")
  if not low < value <= high:
    raise ValueError(f"TensorSpec: range {text!r} needs a number above {low:g} and up to {high:g}; write "
                     f"'{name}:{default:g}'.")
  return name, value


@dataclasses.dataclass(frozen=True)
class TensorSpec:
  """How one tensor is quantized.

  Attributes:
    bits: 2 to 8 (2 bits of weights are {-1, 0, 1} but with ONE_BIT_QUANTIZERS); 16 for activations,
      symmetric; 1 for weights with ONE_BIT_QUANTIZERS.
    symmetric: the grid is centred on 0 and its zero point is 0. None: what the tensor's role has by default,
      True for weights, False for activations but with 16 bits.
    per_channel: one scale an output channel (weights) or one for the tensor. None: True for weights, False
      for activations.
    quantizer: one of WEIGHT_QUANTIZERS, of ACTIVATION_QUANTIZERS or of GRADIENT_QUANTIZERS. None: minmax
      where ranges stay as they are, which is all that quantization after training takes; in a model that is
      to be trained what `for_training` says; of gradients in_hindsight.
    range: name of the range estimator, one of RANGES; of activations any ("cross_entropy" for logits
      alone), of weights "minmax", "mean_extrema", "percentile", "mse", "lp", "octav". Two take a number:
      "percentile:99.9" (99.99 per cent), "lp:4" (the power, 2.4).
    rounding: of gradients "nearest" or "stochastic", which None stands for; all others are rounded to the
      nearest integer.

  Raises:
    ValueError: an unknown quantizer or range, or bits and symmetry that do not go together.

  Example:
    >>> spec = kq.TensorSpec(bits=4, range="mse")
    >>> spec.for_weights().per_channel, spec.for_activations().per_channel
    (True, False)
  """

  bits: int = 8
  symmetric: bool | None = None
  per_channel: bool | None = None
  quantizer: str | None = None
  range: str = DEFAULT_RANGE
  rounding: str | None = None

  def __post_init__(self):
    quantizers = dict.fromkeys(WEIGHT_QUANTIZERS + ACTIVATION_QUANTIZERS)
    if self.quantizer is not None and self.quantizer not in quantizers:
      raise ValueError(f"TensorSpec: unknown quantizer {self.quantizer!r}; expected one of "
                       f"{', '.join(quantizers)}.")
    one_bit = self.bits == 1 and self.quantizer in ONE_BIT_QUANTIZERS
    if not 2 <= self.bits <= 8 and self.bits != 16 and not one_bit:
      raise ValueError(f"TensorSpec: bits must be 2 to 8, got {self.bits}; 16 for symmetric activations, "
                       f"1 for weights with one of the quantizers {', '.join(ONE_BIT_QUANTIZERS)}.")
    if self.bits == 16 and self.symmetric is False:
      raise ValueError("TensorSpec: grids of 16 bits must be symmetric; set symmetric=True.")
    if self.per_channel and self.symmetric is False:
      raise ValueError("TensorSpec: per_channel grids must be symmetric; set symmetric=True.")
    if self.rounding not in (None, *ROUNDINGS):
      raise ValueError(f"TensorSpec: unknown rounding {self.rounding!r}; expected one of "
                       f"{', '.join(ROUNDINGS)}.")
    parse_range(self.range)

  def for_weights(self) -> "TensorSpec":
    """Fills in what is left open (None) for weights.

    Returns:
      The spec, by default symmetric and per-channel; per-tensor where it is asymmetric.
    """
    return self._with_defaults(symmetric=True, per_channel=self.symmetric is not False)

  def for_activations(self) -> "TensorSpec":
    """Fills in what is left open (None) for activations.

    Returns:
      The spec, by default asymmetric, symmetric with 16 bits; per-tensor.
    """
    return self._with_defaults(symmetric=self.bits == 16 or bool(self.per_channel), per_channel=False)

  def for_gradients(self) -> "TensorSpec":
    """Fills in what is left open (None) for gradients.

    Returns:
      The spec, by default in_hindsight, asymmetric, symmetric with 16 bits, rounded stochastically.
    """
    return self.for_activations()._with_defaults(quantizer="in_hindsight", rounding="stochastic")

  def for_training(self) -> "TensorSpec":
    """Names a quantizer whose range follows the tensor, where none is named.

    Ranges over extrema follow these (moving_average); ranges that cut tails are where training starts (lsq).

    Returns:
      A new spec.
    """
    follows = parse_range(self.range)[0] in ("minmax", "mean_extrema")
    return self._with_defaults(quantizer="moving_average" if follows else "lsq")

  def _with_defaults(self, **defaults: Any) -> "TensorSpec":
    return dataclasses.replace(self, **{name: value for name, value in defaults.items()
                                        if getattr(self, name) is None})


INT8_WEIGHTS = TensorSpec().for_weights()
INT8_ACTIVATIONS = TensorSpec().for_activations()


def at_bits(spec: TensorSpec, bits: int) -> TensorSpec:
  """Returns a spec with other bits: with 16 it is symmetric, and its range is that of all that occurs.

  >>> at_bits(INT8_ACTIVATIONS, 16).symmetric, at_bits(at_bits(INT8_ACTIVATIONS, 16), 8).symmetric
  (True, False)
  """
  if bits == spec.bits:
    return spec
  if bits == 16:
    return dataclasses.replace(spec, bits=16, symmetric=True, range=DEFAULT_RANGE)
  symmetric = False if spec.bits == 16 else spec.symmetric
  return dataclasses.replace(spec, bits=bits, symmetric=symmetric)
