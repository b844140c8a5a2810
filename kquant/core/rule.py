"""Rule: which layers a pair of specs is for."""

import dataclasses
import re

from kquant.core.tensor_spec import (
  ACTIVATION_QUANTIZERS,
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

  Raises:
    TypeError: kinds is a string.
    ValueError: match is no regular expression; weights that are asymmetric or have 16 bits; a quantizer that
      is not for weights, or not for activations.

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
    for what, choices in (("weights", WEIGHT_QUANTIZERS), ("activations", ACTIVATION_QUANTIZERS)):
      if (name := getattr(self, what).quantizer) is not None and name not in choices:
        raise ValueError(f"Rule {self.match!r}: {what} take no quantizer {name!r}; expected one of "
                         f"{', '.join(choices)}.")
    if not self.weights.symmetric:
      raise ValueError(f"Rule {self.match!r}: weights must be symmetric; no runtime kernel takes a "
                       "weight zero point.")
    if self.weights.bits > 8:
      raise ValueError(f"Rule {self.match!r}: weights have 2 to 8 bits, got {self.weights.bits}; only "
                       "activations can have 16.")

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
