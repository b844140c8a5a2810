"""What the rules of a kind see of a layer call; `kquant.graph.nodes.Node` is one."""

from typing import Any, Protocol

import numpy as np


class Tensor(Protocol):
  """A tensor that a call makes or reads; it can be a key of a dict."""

  @property
  def shape(self) -> tuple[int | None, ...]:
    """Its shape with the batch dimension, None where open."""

  @property
  def is_integer(self) -> bool:
    """Whether it is an input of the model that holds integers as they are."""


class Layer(Protocol):
  """A layer as data: its weights by name."""

  params: dict[str, np.ndarray]


class Call(Protocol):
  """One call of a layer."""

  name: str
  layer: Layer

  @property
  def kind(self) -> str:
    """The kind of its layer."""

  @property
  def facts(self) -> Any:
    """The record of its layer's kind."""

  @property
  def config(self) -> dict[str, Any]:
    """The config of its layer."""

  @property
  def inputs(self) -> list[Any]:
    """The tensors it reads, flat, in call order."""

  @property
  def outputs(self) -> list[Any]:
    """The tensors it makes, flat."""

  @property
  def operands(self) -> list[Any]:
    """The tensors it reads and the constants beside them, flat, in call order."""

  def argument(self, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument of the call, by keyword or by position."""

  def compute(self, values: np.ndarray) -> np.ndarray:
    """Returns what its layer makes of an array in the place of the tensor it reads."""


def cap_of(call: Call) -> np.ndarray | float | None:
  """Returns where a ReLU or CappedReLU ends, for all channels or [channels]; None where it does not."""
  return call.layer.params[call.facts.caps] if call.facts.caps else call.config.get("max_value")
