"""Changes of a network, and the config that makes them."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from kquant.core.quant_config import QuantConfig
from kquant.core.rule import Rule
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.nodes import LayerDef


@dataclasses.dataclass(frozen=True)
class SpecChange:
  """Another spec for what a layer's rule decides.

  Attributes:
    layer: by which rules decide.
    part: "weights" or "activations".
    spec: the other spec.
  """

  layer: LayerDef
  part: str
  spec: TensorSpec


@dataclasses.dataclass
class Changes:
  """What is done otherwise.

  Attributes:
    specs: other specs.
    rounded: layers that are rounded in closed form.
    split: layers whose outlier channels are split.
    scales: {tensor: scale of each channel}.
  """

  specs: list[SpecChange] = dataclasses.field(default_factory=list)
  rounded: list[str] = dataclasses.field(default_factory=list)
  split: list[str] = dataclasses.field(default_factory=list)
  scales: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __bool__(self) -> bool:
    """Whether there is any."""
    return bool(self.specs or self.rounded or self.split or self.scales)


def rule_of(config: QuantConfig, layer: LayerDef) -> Rule:
  """Returns the rule that decides for a layer of a float graph."""
  return config.rule(layer.name, layer.kind, layer.origins)


def with_specs(config: QuantConfig, changes: Sequence[SpecChange]) -> QuantConfig:
  """Returns the config with a rule for each layer that something changes of, in front of the others."""
  rules: dict[str, Rule] = {}
  for change in changes:
    name = change.layer.name
    rule = rules.get(name) or dataclasses.replace(
        rule_of(config, change.layer), match=f"^{re.escape(name)}$", kinds=(), optional=False)
    rules[name] = dataclasses.replace(rule, **{change.part: change.spec})
  return dataclasses.replace(config, rules=(*rules.values(), *config.rules))
