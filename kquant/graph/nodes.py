"""The parts of a Graph: LayerDef (a layer as data), Node (one call of it), Ref (one tensor)."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.graph import layers as facts_table
from kquant.graph.layers import LayerFacts
from kquant.graph.weights import WeightFacts


def kind_of_class(cls: type) -> str:
  """Returns the name LAYERS uses for a class: a user's own bears its module, even if it borrows a name."""
  if cls.__module__.split(".")[0] not in ("tf_keras", "keras", "kquant"):
    return f"{cls.__module__}.{cls.__name__}"
  if cls.__name__ in ("BatchNormalizationV1", "BatchNormalizationBase", "SyncBatchNormalization"):
    return "BatchNormalization"
  return cls.__name__


def weights_of_class(cls: type) -> tuple[WeightFacts, ...]:
  """Returns the quantized weights of a layer class; their variables do not depend on its config."""
  return facts_table.facts_of(kind_of_class(cls)).weights


@dataclasses.dataclass(eq=False)
class LayerDef:
  """A layer as data: what `cls.from_config(config)` builds, with its weights by name.

  Attributes:
    params: {weight name: array}; the name of "conv/kernel:0" in layer "conv" is "kernel".
    output_moments: (mean, deviation) of its output on the training data, float64 [channels] each, where a
      batch norm that was folded knew them.
  """

  name: str
  cls: type
  config: dict[str, Any]
  params: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  output_moments: tuple[np.ndarray, np.ndarray] | None = None

  @property
  def kind(self) -> str:
    """The key of this layer in LAYERS."""
    return facts_table.kind_of(kind_of_class(self.cls), self.config)

  @property
  def facts(self) -> LayerFacts:
    """What kquant knows of this layer."""
    return facts_table.facts_of(self.kind)


@dataclasses.dataclass(eq=False)
class Node:
  """One call of a layer. `args` and `kwargs` hold Refs where tensors were.

  Attributes:
    name: the layer's name for its first call in the graph, "name@1" for the second, and so on.
    shapes: one a flat output, with None for an open dimension.
  """

  name: str
  layer: LayerDef
  args: tuple = ()
  kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
  shapes: list[tuple[int | None, ...]] = dataclasses.field(default_factory=list)

  def __repr__(self) -> str:
    return f"Node({self.name!r}, {self.layer.kind})"

  @property
  def kind(self) -> str:
    """The key of its layer in LAYERS."""
    return self.layer.kind

  @property
  def facts(self) -> LayerFacts:
    """What kquant knows of its layer."""
    return self.layer.facts

  @property
  def config(self) -> dict[str, Any]:
    """The config of its layer."""
    return self.layer.config

  @property
  def layer_name(self) -> str:
    """The node's name as a layer may bear it: Keras takes no "@"."""
    return self.name.replace("@", "_call")

  def argument(self, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument of the call, by keyword or by position."""
    if name in self.kwargs:
      return self.kwargs[name]
    return self.args[position] if len(self.args) > position else default

  @property
  def inputs(self) -> list["Ref"]:
    """The tensors it reads, flat, in call order."""
    return [leaf for leaf in tf.nest.flatten((self.args, list(self.kwargs.values())))
            if isinstance(leaf, Ref)]


@dataclasses.dataclass(frozen=True)
class Ref:
  """One tensor: flat output `index` of a call."""

  node: Node
  index: int = 0

  @property
  def key(self) -> str:
    """Its key in Encodings: the node's name, and ":index" behind it for a further output."""
    return self.node.name if self.index == 0 else f"{self.node.name}:{self.index}"

  @property
  def is_integer(self) -> bool:
    """Whether it is an input of the model that holds integers as they are, on no grid."""
    return self.node.kind == "InputLayer" and tf.as_dtype(self.node.config["dtype"]).is_integer

  @property
  def shape(self) -> tuple[int | None, ...]:
    """Its shape with the batch dimension, None where open."""
    return self.node.shapes[self.index]
