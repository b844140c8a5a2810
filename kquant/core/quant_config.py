"""QuantConfig: what a user asks for, and the presets. Frozen, validated, JSON both ways."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from kquant.core import target as targets
from kquant.core.recipe import DEFAULT, Recipe
from kquant.core.rule import Rule
from kquant.core.tensor_spec import DEFAULT_RANGE, TensorSpec

NAMED_PRESETS = ("int8", "int8_per_tensor", "int8_tflm", "int16x8")
RECURRENT_FORMS = ("unrolled", "fused", "auto")


@dataclasses.dataclass(frozen=True)
class QuantConfig:
  """WHICH grids a network gets, and the methods that go with them where the user asks for no others.

  Attributes:
    rules: in order; the first match decides, the last should match everything.
    target: name of the runtime whose limits hold (core/target.py).
    recipe: how integers are chosen by default; what it leaves open is that of `recipe.DEFAULT`.
    split_outputs: the tensors that a Concatenate joins at the end of an output "y" are outputs "y:0", "y:1",
      ... of their own, each on its own grid: boxes beside scores.
    memory_bits: of what goes from step to step in a recurrent layer without a matrix product, the cell of an
      LSTM and its gates: its rounding errors add up over the steps. 16, or 8 to let the rules decide.
    recurrent: how a file holds recurrent layers: "unrolled", operators for each step; "fused", each as one
      operator, or an error; "auto", fused where that is possible, else unrolled, and the report says why. The
      operator takes activations of 8 bits alone: where a rule asks for 16, "auto" unrolls all.

  Raises:
    ValueError: an unknown target, other memory_bits, or another value of `recurrent`.

  Example:
    >>> config = kq.QuantConfig(rules=(kq.Rule(kinds=("Dense",)), kq.Rule(weights=kq.TensorSpec(bits=4))))
    >>> config.rule("head", "Dense").weights.bits, config.rule("stem", "Conv2D").weights.bits
    (8, 4)
  """

  rules: tuple[Rule, ...] = (Rule(),)
  target: str = "litert"
  recipe: Recipe = Recipe()
  split_outputs: bool = False
  memory_bits: int = 16
  recurrent: str = "unrolled"

  def __post_init__(self):
    if self.memory_bits not in (8, 16):
      raise ValueError(f"QuantConfig: memory_bits must be 8 or 16, got {self.memory_bits!r}.")
    if self.recurrent not in RECURRENT_FORMS:
      raise ValueError(f"QuantConfig: recurrent must be one of {', '.join(RECURRENT_FORMS)}, got "
                       f"{self.recurrent!r}.")
    object.__setattr__(self, "rules", tuple(self.rules))
    object.__setattr__(self, "recipe", self.recipe.over(DEFAULT))
    targets.target(self.target)

  @property
  def recurrent_form(self) -> str:
    """`recurrent`, or what "auto" comes to where rules ask for 16 bits."""
    wide = any(rule.activations.bits > 8 for rule in self.rules)
    return "unrolled" if wide and self.recurrent == "auto" else self.recurrent

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
    raise ValueError(f"Unknown preset {name!r}; expected {', '.join(NAMED_PRESETS)}, or w<bits>a<bits> with "
                     "2 to 8 bits of weights and 2 to 8 of activations, such as w4a8 or w4a8_unpacked (no "
                     "packed INT4). 16 bits of activations beside other weights take a Rule.")

  def following(self, recipe: Recipe) -> "QuantConfig":
    """Puts the methods that a recipe decides in the place of the config's own.

    Args:
      recipe: the methods; those that it leaves open stay.

    Returns:
      A new config.
    """
    merged = dataclasses.replace(self, recipe=recipe.over(self.recipe))
    if recipe.ranges is None:
      return merged

    def estimated(spec: TensorSpec) -> TensorSpec:
      return dataclasses.replace(spec, range=recipe.ranges) if spec.range == DEFAULT_RANGE else spec

    return merged._with_specs(lambda spec: spec, estimated)

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
    specs = ("weights", "activations", "gradients")
    rules = tuple(Rule(**{**rule, **{name: TensorSpec(**rule[name]) for name in specs if rule.get(name)}})
                  for rule in fields["rules"])
    methods = {field.name: fields.get(field.name) for field in dataclasses.fields(Recipe)}
    return cls(rules, fields["target"], Recipe(**fields.get("recipe", methods)),
               fields.get("split_outputs", False), fields.get("memory_bits", 16),
               fields.get("recurrent", "unrolled"))
