"""The parts of a Graph: LayerDef (a layer as data), Node (one call of it), Ref (one tensor)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kquant.graph.kinds.record import LayerFacts
from kquant.graph.kinds.table import facts_of, kind_of, kind_of_class
from kquant.graph.weights import WeightFacts


class Origin(NamedTuple):
  """A layer of the user's model, as rules know it."""

  name: str
  kind: str


def weights_of_class(cls: type) -> tuple[WeightFacts, ...]:
  """Returns the quantized weights of a layer class; their variables do not depend on its config."""
  return facts_of(kind_of_class(cls)).weights


@dataclasses.dataclass(eq=False)
class LayerDef:
  """A layer as data: what `cls.from_config(config)` builds, with its weights by name.

  Attributes:
    params: {weight name: array}; the name of "conv/kernel:0" in layer "conv" is "kernel".
    output_moments: (mean, deviation) of its output on the training data, float64 [channels] each, where a
      batch norm that was folded knew them.
    origins: the layers of the user's model that it stands for; one layer may have two kinds, that of the
      table and that of its class ("Activation:gelu", "Activation").
  """

  name: str
  cls: type
  config: dict[str, Any]
  params: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  output_moments: tuple[np.ndarray, np.ndarray] | None = None
  origins: tuple[Origin, ...] = ()

  @property
  def kind(self) -> str:
    """The kind of this layer: the key of its record."""
    return kind_of(kind_of_class(self.cls), self.config)

  @property
  def facts(self) -> LayerFacts:
    """What kquant knows of this layer."""
    return facts_of(self.kind)

  def take_place_of(self, other: "LayerDef") -> None:
    """Stands for what another layer stands for, unless it stands for something; is frozen where that is."""
    self.origins = self.origins or other.origins
    if not other.config.get("trainable", True):
      self.config = {**self.config, "trainable": False}

  def as_origins(self) -> tuple[Origin, ...]:
    """Returns what it is called in the model that it is read from."""
    kinds = dict.fromkeys((self.kind, kind_of_class(self.cls)))
    return tuple(Origin(self.name, kind) for kind in kinds)


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
    """The kind of its layer."""
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

  @property
  def moved(self) -> list["Ref"]:
    """The tensors it reads that hold what it moves: all but a mask that it chooses by."""
    by_input = self.facts.chooses and self.config.get("condition_shape") is None
    return self.inputs[1:] if by_input else self.inputs

  @property
  def outputs(self) -> list["Ref"]:
    """The tensors it makes, flat."""
    return [Ref(self, index) for index in range(len(self.shapes))]

  @property
  def operands(self) -> list["Ref | np.ndarray"]:
    """The tensors it reads and the constants beside them, flat, in call order."""
    leaves = tf.nest.flatten((self.args, list(self.kwargs.values())))
    return [leaf if isinstance(leaf, Ref) else np.asarray(leaf) for leaf in leaves
            if not isinstance(leaf, str | None)]

  def compute(self, values: np.ndarray) -> np.ndarray:
    """Returns what its layer, which has no weights, makes of an array in the place of the tensor it reads."""
    layer = self.layer.cls.from_config(dict(self.config))
    args, kwargs = map_refs(lambda ref: tf.constant(values), (self.args, self.kwargs))
    return np.asarray(layer(*args, **kwargs))


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
    return self.node.facts.role == "input" and tf.as_dtype(self.node.config["dtype"]).is_integer

  @property
  def shape(self) -> tuple[int | None, ...]:
    """Its shape with the batch dimension, None where open."""
    return self.node.shapes[self.index]


def map_refs(function: Callable[[Ref], Any], tree: Any) -> Any:
  """Returns a nest with a function of each Ref in its place; other leaves stay."""
  return tf.nest.map_structure(lambda leaf: function(leaf) if isinstance(leaf, Ref) else leaf, tree)
