"""One operator of a file on its way to Keras: what it reads, and how it makes layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.keras_calls import is_symbol
from kquant.graph.readers.tflite.file import Operator
from kquant.graph.readers.tflite.names import Names

_ACTIVATIONS = {0: None, 1: "relu", 2: "relu_n1_to_1", 3: "relu6", 4: "tanh"}
"""ActivationFunctionType of the schema."""
FUSED = ("relu", "tanh")
"""Those that a Keras layer takes as its own activation."""


class Call:
  """An operator with the values that it reads.

  Attributes:
    kind: its name in the schema.
    name: of the layer that gives its result.
    batch: the first size of the inputs in the file, which stands for the batch; None: it stays as it is.
    inputs: tensors of Keras, views of them (`views`), NumPy arrays for constants, None where left out.
  """

  def __init__(self, operator: Operator, name: str, names: Names, batch: int | None):
    """Its layers are named by `names`, which may hold `name` for it already."""
    self.kind, self.index, self.count = operator.kind, operator.index, len(operator.outputs)
    self.name, self.batch = name, batch
    self.inputs: list[Any] = []
    self._operator, self._names = operator, names

  def error(self, reason: str) -> UnsupportedLayerError:
    """Returns the error that names the operator; `reason` continues its name."""
    return UnsupportedLayerError(f"Operator {self.index} ({self.kind}, output {self.name!r}) {reason}.")

  def damaged(self, what: str) -> UnsupportedLayerError:
    """Returns the error that names what no converter writes."""
    return self.error(f"has {what}: the file is damaged; copy or convert it again")

  # --- reading -------------------------------------------------------------------------------

  def option(self, field: str, default: Any = None) -> Any:
    """Returns a field of its options.

    Raises:
      UnsupportedLayerError: it has none and there is no default.
    """
    value = self._operator.option(field)
    value = default if value is None else value
    if value is None:
      raise self.damaged(f"no option {field}")
    return value

  def input(self, place: int) -> Any:
    """Returns an input; None where it is left out."""
    return self.inputs[place] if place < len(self.inputs) else None

  def constant(self, place: int, what: str) -> np.ndarray:
    """Returns an input that has to be a constant.

    Raises:
      UnsupportedLayerError: it is computed, or left out.
    """
    value = self.input(place)
    if not isinstance(value, np.ndarray):
      raise self.error(f"has no constant {what}: give the file constant ones, of inputs of fixed shape "
                       "(input_shape=)")
    return value

  def integers(self, place: int, what: str) -> list[int]:
    """Returns the elements of a constant of integers, flat."""
    values = self.constant(place, what).reshape(-1)
    if values.dtype.kind not in "iu":
      raise self.error(f"has {what} of type {values.dtype}; expected integers")
    return [int(value) for value in values]

  @property
  def activation(self) -> str | None:
    """The activation that is fused into it."""
    number = self.option("fusedActivationFunction", 0)
    if number not in _ACTIVATIONS:
      raise self.error(f"has the fused activation {number}, which no Keras layer computes")
    return _ACTIVATIONS[number]

  # --- making --------------------------------------------------------------------------------

  def layer(self, cls: type, x: Any, *, weights: Sequence[np.ndarray] = (), part: str = "",
            **config: Any) -> Any:
    """Makes a Keras layer and calls it; `part` says which of several it is. Constants give constants."""
    made = cls(name=self._name(part), **config)
    result = made(x)
    if weights:
      made.set_weights(list(weights))
    return result if is_symbol(result) else np.asarray(result)

  def function(self, symbol: str, *args: Any, part: str = "", **kwargs: Any) -> Any:
    """Calls a function of TensorFlow such as "math.add" as a layer; on constants alone, at once."""
    made = keras.layers.deserialize(
        {"class_name": "TFOpLambda", "config": {"name": self._name(part), "function": symbol}})
    if any(is_symbol(leaf) for arg in args for leaf in (arg if isinstance(arg, list) else [arg])):
      return made(*args, **kwargs)
    result = made.function(*args, **kwargs)
    if isinstance(result, (list, tuple)):
      return [np.asarray(value) for value in result]
    return np.asarray(result)

  def cut(self, x: Any, items: Sequence[slice | int | None], part: str = "") -> Any:
    """Returns x[items]."""
    if not is_symbol(x):
      return x[tuple(items)]
    made = keras.layers.deserialize({"class_name": "SlicingOpLambda", "config": {
        "name": self._name(part), "function": "__operators__.getitem"}})
    return made(x, tuple({"start": item.start, "stop": item.stop, "step": item.step}
                         if isinstance(item, slice) else item for item in items))

  def activated(self, x: Any) -> Any:
    """Applies the activation that is fused into it."""
    name = self.activation
    if name is None:
      return x
    if not is_symbol(x):
      raise self.error("computes a constant with a fused activation")
    if name == "relu_n1_to_1":
      return self.function("clip_by_value", x, -1.0, 1.0, part="activation")
    if name == "tanh":
      return self.layer(keras.layers.Activation, x, activation="tanh", part="activation")
    return self.layer(keras.layers.ReLU, x, part="activation", max_value=6.0 if name == "relu6" else None)

  def _name(self, part: str) -> str:
    return self._names.unique(f"{self.name}/{part}" if part else self.name, self.index)


Convert = Callable[[Call], Any]


def sizes_of(call: Call, x: Any) -> tuple[int, ...]:
  """Returns the shape of a tensor without its first axis.

  Raises:
    UnsupportedLayerError: one of them is open.
  """
  if None in x.shape[1:]:
    raise call.error(f"reads a tensor of the open shape {tuple(x.shape)}; fix the input's with input_shape=")
  return tuple(int(size) for size in x.shape[1:])


def same_dtype(value: np.ndarray, x: Any) -> np.ndarray | float | int:
  """Returns a constant beside a tensor: one element as a number, in the dtype of the tensor."""
  value = value.astype(x.dtype.as_numpy_dtype, copy=False)
  return value.item() if value.size == 1 and value.ndim <= len(x.shape) else value


def product(sizes: Sequence[int]) -> int:
  """Returns the number of elements of a shape."""
  return math.prod(int(size) for size in sizes)
