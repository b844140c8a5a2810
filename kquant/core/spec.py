"""What a user asks for: TensorSpec, Rule and QuantConfig. Frozen, validated, JSON both ways."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from kquant.core import target as targets
from kquant.core.recipe import DEFAULT, Recipe

DEFAULT_RANGE = "minmax"
WEIGHT_QUANTIZERS = ("minmax", "moving_average", "lsq", "lsq_plus", "dorefa")
ACTIVATION_QUANTIZERS = ("minmax", "moving_average", "lsq", "lsq_plus", "pact")

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
    bits: 2 to 8 (2 bits of weights are {-1, 0, 1} but with dorefa); 16 for activations, symmetric; 1 for
      weights with dorefa.
    symmetric: the grid is centred on 0 and its zero point is 0. None: what the tensor's role has by default,
      True for weights, False for activations but with 16 bits.
    per_channel: one scale an output channel (weights) or one for the tensor. None: True for weights, False
      for activations.
    quantizer: one of WEIGHT_QUANTIZERS, or of ACTIVATION_QUANTIZERS. None: minmax where ranges stay as they
      are, which is all that quantization after training takes; in a model that is to be trained what
      `for_training` says.
    range: name of the range estimator, one of RANGES; of activations any ("cross_entropy" for logits
      alone), of weights "minmax", "mean_extrema", "percentile", "mse", "lp", "octav". Two take a number:
      "percentile:99.9" (99.99 per cent), "lp:4" (the power, 2.4).

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

  def __post_init__(self):
    quantizers = dict.fromkeys(WEIGHT_QUANTIZERS + ACTIVATION_QUANTIZERS)
    if self.quantizer is not None and self.quantizer not in quantizers:
      raise ValueError(f"TensorSpec: unknown quantizer {self.quantizer!r}; expected one of "
                       f"{', '.join(quantizers)}.")
    if not 2 <= self.bits <= 8 and self.bits != 16 and (self.bits, self.quantizer) != (1, "dorefa"):
      raise ValueError(f"TensorSpec: bits must be 2 to 8, got {self.bits}; 16 for symmetric activations, "
                       "1 for weights with quantizer='dorefa'.")
    if self.bits == 16 and self.symmetric is False:
      raise ValueError("TensorSpec: grids of 16 bits must be symmetric; set symmetric=True.")
    if self.per_channel and self.symmetric is False:
      raise ValueError("TensorSpec: per_channel grids must be symmetric; set symmetric=True.")
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


@dataclasses.dataclass(frozen=True)
class QuantConfig:
  """WHICH grids a network gets, and the methods that go with them where the user asks for no others.

  Attributes:
    rules: in order; the first match decides, the last should match everything.
    target: name of the runtime whose limits hold (core/target.py).
    recipe: how integers are chosen by default; what it leaves open is that of `recipe.DEFAULT`.

  Raises:
    ValueError: an unknown target.

  Example:
    >>> config = kq.QuantConfig(rules=(kq.Rule(kinds=("Dense",)), kq.Rule(weights=kq.TensorSpec(bits=4))))
    >>> config.rule("head", "Dense").weights.bits, config.rule("stem", "Conv2D").weights.bits
    (8, 4)
  """

  rules: tuple[Rule, ...] = (Rule(),)
  target: str = "litert"
  recipe: Recipe = Recipe()

  def __post_init__(self):
    object.__setattr__(self, "rules", tuple(self.rules))
    object.__setattr__(self, "recipe", self.recipe.over(DEFAULT))
    targets.target(self.target)

  def rule(self, name: str, kind: str, origins: Sequence[tuple[str, str]] = ()) -> Rule:
    """Finds the rule of a layer: the first that matches it or one of its origins.

    Args:
      name, kind: of the layer, as `Rule.matches` takes them.
      origins: (name, kind) of the user's layers that it was made from.

    Returns:
      The rule.

    Raises:
      ValueError: no rule matches it.
    """
    for rule in self.rules:
      if any(rule.matches(*layer) for layer in ((name, kind), *origins)):
        return rule
    raise ValueError(f"QuantConfig: no rule matches layer {name!r} ({kind}); end the rules with Rule().")

  @classmethod
  def preset(cls, name: str) -> "QuantConfig":
    """Makes a preset: int8, int8_per_tensor, int8_tflm, int16x8, or w<bits>a<bits> such as w4a8.

    Weights of 2 to 4 bits are stored as packed INT4, two in a byte, those of 5 to 7 bits in int8 tensors.
    With `_unpacked` behind it, w4a8_unpacked, a file holds the same integers in int8 tensors throughout:
    larger, and where the default delegate takes int8 kernels alone, as on x86, faster. int16x8 has 16-bit
    symmetric activations and 8-bit weights. Activations of fewer than 8 bits are simulation only: no file
    holds them; their ranges are those of least squared error, as clipping pays where steps are wide
    (ResNet-8, w4a4, rounded in closed form: agreement with float 0.706, from extrema 0.590).

    int8_per_tensor has per-tensor weights, and with them joint equalization and iterative bias correction:
    without them MobileNets are lost (benchmarks/results.md).

    int8_tflm is int8 but for Dense layers, whose weights get one scale: FULLY_CONNECTED of TensorFlow Lite
    Micro had one multiplier for all channels. With per-channel scales it gave wrong outputs, since its pull
    request 2602 (May 2024) an error; 2673 (August 2024) taught its reference and CMSIS-NN kernels, others
    may still have one. Its convolutions take per-channel scales.

    Args:
      name: of the preset.

    Returns:
      Its config.

    Raises:
      ValueError: no such preset.

    Example:
      >>> rule = kq.QuantConfig.preset("w4a8").rule("stem", "Conv2D")
      >>> rule.weights.bits, rule.activations.bits
      (4, 8)
    """
    if name == "int8":
      return cls()
    if name == "int8_per_tensor":
      return cls(rules=(Rule(weights=TensorSpec(per_channel=False)),),
                 recipe=Recipe(equalize="joint", bias="iterative"))
    if name == "int8_tflm":
      return cls(rules=(Rule(kinds=("Dense",), weights=TensorSpec(per_channel=False), optional=True), Rule()))
    if name == "int16x8":
      return cls(rules=(Rule(activations=TensorSpec(bits=16)),))
    if widths := re.fullmatch(r"w([2-8])a([2-8])(_unpacked)?", name):
      weights, activations = int(widths[1]), int(widths[2])
      of_activations = TensorSpec(bits=activations, range=DEFAULT_RANGE if activations == 8 else "mse")
      return cls(rules=(Rule(weights=TensorSpec(bits=weights), activations=of_activations),),
                 target=f"litert{widths[3] or ''}")
    raise ValueError(f"Unknown preset {name!r}; expected int8, int8_per_tensor, int8_tflm, int16x8, or "
                     "w<bits>a<bits> such as w4a8 or w4a8_unpacked (no packed INT4).")

  def following(self, recipe: Recipe) -> "QuantConfig":
    """Puts the methods that a recipe decides in the place of the config's own.

    Args:
      recipe: the methods; those that it leaves open stay.

    Returns:
      A new config.
    """
    return dataclasses.replace(self, recipe=recipe.over(self.recipe))

  def with_quantizers(self, *, weights: str | None = None, activations: str | None = None) -> "QuantConfig":
    """Puts other quantizers into every rule, for training.

    Args:
      weights: one of WEIGHT_QUANTIZERS; None leaves those there are.
      activations: one of ACTIVATION_QUANTIZERS; None leaves those there are.

    Returns:
      A new config.

    Raises:
      ValueError: an unknown quantizer, or one that weights or activations do not take.

    Example:
      >>> config = kq.QuantConfig.preset("w4a4").with_quantizers(weights="lsq", activations="lsq_plus")
      >>> config.rules[0].weights.quantizer
      'lsq'
    """
    def replaced(name: str | None) -> Callable[[TensorSpec], TensorSpec]:
      return lambda spec: spec if name is None else dataclasses.replace(spec, quantizer=name)

    return self._with_specs(replaced(weights), replaced(activations))

  def for_training(self) -> "QuantConfig":
    """Names quantizers that follow what they quantize, where rules name none.

    Returns:
      A new config.
    """
    return self._with_specs(TensorSpec.for_training, TensorSpec.for_training)

  def _with_specs(self, of_weights: Callable[[TensorSpec], TensorSpec],
                  of_activations: Callable[[TensorSpec], TensorSpec]) -> "QuantConfig":
    return dataclasses.replace(self, rules=tuple(
        dataclasses.replace(rule, weights=of_weights(rule.weights),
                            activations=of_activations(rule.activations)) for rule in self.rules))

  def to_json(self) -> dict[str, Any]:
    """Makes what `from_json` reads.

    Returns:
      A JSON-ready dict.
    """
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> "QuantConfig":
    """Reads what `to_json` made; in earlier files the methods stand beside the rules.

    Args:
      fields: the dict.

    Returns:
      The config.

    Raises:
      ValueError: values that the config, its rules or its specs do not take.
    """
    rules = tuple(Rule(**{**rule, "weights": TensorSpec(**rule["weights"]),
                          "activations": TensorSpec(**rule["activations"])})
                  for rule in fields["rules"])
    methods = {field.name: fields.get(field.name) for field in dataclasses.fields(Recipe)}
    return cls(rules, fields["target"], Recipe(**fields.get("recipe", methods)))
