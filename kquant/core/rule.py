"""Rule: which layers a pair of specs is for."""

import dataclasses
import re

from kquant.core.tensor_spec import (
  ACTIVATION_QUANTIZERS,
  DEFAULT_RANGE,
  GRADIENT_QUANTIZERS,
  INT8_ACTIVATIONS,
  INT8_WEIGHTS,
  WEIGHT_QUANTIZERS,
  TensorSpec,
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """Where a pair of specs applies: the first rule that matches a layer decides.

  A rule matches by the layers of the user's model, and so all that a rewrite makes of one of them, or by the
  layers that a rewrite made. Names say it as well: "up/image" is a part of "up", so that a rule by name also
  holds for a model that `kquant.rewrite` made; of kinds such a model has only its own.

  Attributes:
    match: regular expression, searched in the layer's name.
    kinds: layer kinds ("Conv2D", "Dense"); empty means any.
    weights, activations: the specs of the kernel and of the output. What they leave open (None) gets the
      default of weights and of activations.
    optional: the rule may match no layer of a model; any other rule that does is an error.
    gradients: in training, the spec of the gradient that flows back into the output of a layer with weights;
      None: it stays float. The gradients of weights are float.

  Raises:
    TypeError: kinds is a string.
    ValueError: match is no regular expression; weights that are asymmetric or have 16 bits; a quantizer that
      is not for weights, for activations or for gradients; gradients that are per-channel or name a range
      estimator; stochastic rounding of weights or activations.

  Example:
    >>> rule = kq.Rule(match="^stem", weights=kq.TensorSpec(bits=4))
    >>> rule.matches("stem/conv", "Conv2D"), rule.matches("head", "Dense")
    (True, False)
  """

  match: str = ""
  kinds: tuple[str, ...] = ()
  weights: TensorSpec = INT8_WEIGHTS
  activations: TensorSpec = INT8_ACTIVATIONS
  optional: bool = False
  gradients: TensorSpec | None = None

  def __post_init__(self):
    object.__setattr__(self, "weights", self.weights.for_weights())
    object.__setattr__(self, "activations", self.activations.for_activations())
    if isinstance(self.kinds, str):
      raise TypeError(f"Rule: kinds must be a tuple of layer kinds, got {self.kinds!r}; write "
                      f"kinds=({self.kinds!r},).")
    object.__setattr__(self, "kinds", tuple(self.kinds))
    try:
      re.compile(self.match)
    except re.error as error:
      raise ValueError(f"Rule: match {self.match!r} is no regular expression: {error}.") from error
    if self.gradients is not None:
      object.__setattr__(self, "gradients", self.gradients.for_gradients())
    self._check_methods()
    if not self.weights.symmetric:
      raise ValueError(f"Rule {self.match!r}: weights must be symmetric; no runtime kernel takes a "
                       "weight zero point.")
    if self.weights.bits > 8:
      raise ValueError(f"Rule {self.match!r}: weights have 2 to 8 bits, got {self.weights.bits}; only "
                       "activations can have 16.")

  def _check_methods(self) -> None:
    """Raises ValueError for a method that the tensor does not take."""
    for what, choices in (("weights", WEIGHT_QUANTIZERS), ("activations", ACTIVATION_QUANTIZERS),
                          ("gradients", GRADIENT_QUANTIZERS)):
      spec = getattr(self, what)
      if spec is not None and spec.quantizer is not None and spec.quantizer not in choices:
        raise ValueError(f"Rule {self.match!r}: {what} take no quantizer {spec.quantizer!r}; expected one of "
                         f"{', '.join(choices)}.")
      if what != "gradients" and spec.rounding == "stochastic":
        raise ValueError(f"Rule {self.match!r}: {what} are rounded to the nearest integer; stochastic "
                         "rounding is for gradients.")
    if self.gradients is not None and (self.gradients.per_channel or self.gradients.range != DEFAULT_RANGE):
      raise ValueError(f"Rule {self.match!r}: a gradient has one grid, over extrema; leave per_channel and "
                       "range of its TensorSpec out.")

  def matches(self, name: str, kind: str) -> bool:
    """Whether the rule applies to a layer of that name and kind, or to that which it is a part of.

    "a/b" is a part of "a": "^a$" matches it. "expanded_conv/project" is none of "conv$".

    Args:
      name: of the layer.
      kind: of the layer: "Conv2D"; of a function its symbol, "tf.math.add".

    Returns:
      True where it applies.
    """
    return (not self.kinds or kind in self.kinds) and (
        re.search(self.match, name) is not None or any(
            re.fullmatch(self.match, outer) for outer in _outer_names(name)))

  def __str__(self) -> str:
    """Where it applies, in a few words."""
    name = f"match {self.match!r}" if self.match else ""
    kinds = f"kinds {', '.join(self.kinds)}" if self.kinds else ""
    return " and ".join(filter(None, (name, kinds))) or "any layer"


def _outer_names(name: str) -> list[str]:
  """Returns "a/b", "a" of the name "a/b/c"."""
  parts = name.split("/")
  return ["/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
