"""Cells of recurrent layers as ordinary layers, each called once a step: one layer, one set of integers.

The gates are one product with the input of all steps and one with the state of the step before; so is the
candidate. x [batch, steps, features], h and c [batch, units]. The first step has no state: it is 0.
"""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.masks import Select
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.rewrites.standardize.building import add_split, add_steps
from kquant.rewrites.standardize.training_config import training_config

State = list[Ref | None]
"""The state between two steps, None for zeros."""

_PLAIN = ("elu", "exponential", "gelu", "mish", "selu", "sigmoid", "softplus", "softsign", "tanh")
_HARD = ("hard_sigmoid",)
_RECTIFIERS = {"relu": {}, "relu6": {"max_value": 6.0}}
GATES = ("sigmoid", *_HARD)
ACTIVATIONS = (None, "linear", *_PLAIN, *_RECTIFIERS)
_SLOPE, _MIDDLE = 0.2, 0.5
"""Of Keras' hard_sigmoid(x) = clip(0.2 x + 0.5, 0, 1)."""


class Cell(abc.ABC):
  """The layers of a recurrent cell, under the name of the layer that they come of.

  Args:
    graph: that they are added to.
    name: of the recurrent layer.
    node: its call; `node.config` is that of the cell.
    params: kernel [..., features, gates * units], recurrent_kernel [..., units, gates * units], bias or none.
    layers: those of earlier calls of the recurrent layer, by name; what this call adds goes there.
  """

  order: tuple[int, ...]
  """The gates as Keras orders them in its kernels, those of the sigmoid first, the candidate last."""
  states = 1
  """How many tensors Keras calls the state."""
  fixed: dict[str, Any] = {}
  """What the config of its layers leaves out, as it is always so."""
  rank = 0
  """Axes that its kernels slide over."""
  remembered: tuple[bool, ...] = (True,)
  """Of each tensor that goes from step to step: whether the first step makes it by the layer of all steps."""

  def __init__(self, graph: Graph, name: str, node: Node, params: dict[str, np.ndarray],
               layers: dict[str, LayerDef]):
    self.graph, self.name, self.node, self.params, self._layers = graph, name, node, params, layers
    self.units = params["recurrent_kernel"].shape[-2]

  @abc.abstractmethod
  def step(self, inputs: Sequence[Ref], state: State) -> State:
    """Adds one step; returns the new state, its first tensor the output, its first `states` those of Keras.

    Args:
      inputs: what `project` made for the step.
      state: what the step before returned, or the state that is given to the first one.
    """

  def project(self, source: Ref) -> list[tuple[Ref, ...]]:
    """Multiplies all steps of the input by the kernel at once; returns a step's parts for each step."""
    source = self._dropped(source)
    parts = [self._steps(f"kernel_{part}", source, columns) for part, columns in self.parts().items()]
    return list(zip(*parts))

  def _dropped(self, source: Ref) -> Ref:
    """The input behind its dropout, one mask for all steps."""
    config = self.node.config
    if config.get("recurrent_dropout"):
      self.graph.skip(self.node, "its recurrent_dropout is left out of training")
    if not config.get("dropout"):
      return source
    positions = (None,) * (len(source.shape) - 2)
    layer = self.graph.new_layer(keras.layers.Dropout, f"{self.name}/dropout", {
        "rate": config["dropout"], "noise_shape": (None, 1, *positions)})
    return self.graph.add_node(layer, (source,), source.shape)

  def _steps(self, name: str, source: Ref, columns: np.ndarray) -> list[Ref]:
    bias = self.input_bias()
    product = self.product(name, source, self.params["kernel"][..., columns],
                           None if bias is None else bias[columns])
    return add_steps(self.graph, f"{self.name}/{name}", product)

  def parts(self) -> dict[str, np.ndarray]:
    """{part: the columns of Keras' kernels}: the gates, which go through the sigmoid, and the candidate."""
    columns = np.arange(self.params["kernel"].shape[-1]).reshape(-1, self.units)[list(self.order)]
    parts = {"gates": columns[:-1].reshape(-1), "candidate": columns[-1]}
    return {name: chosen for name, chosen in parts.items() if len(chosen)}

  def input_bias(self) -> np.ndarray | None:
    """The bias that is added to the product with the input, [gates * units]."""
    return self.params.get("bias")

  # --- layers that every step calls --------------------------------------------------------------

  def product(self, name: str, source: Ref, kernel: np.ndarray, bias: np.ndarray | None = None) -> Ref:
    """Multiplies by a kernel [..., in, out], that of a hard sigmoid in its slope."""
    hard = name.endswith("gates") and self.node.config.get("recurrent_activation") in _HARD
    factor, shift = (_SLOPE, _MIDDLE if name.startswith("kernel") else 0.0) if hard else (1.0, 0.0)
    if hard and bias is None and shift:
      bias = np.zeros(kernel.shape[-1])
    params = {"kernel": (factor * kernel).astype(np.float32)}
    if bias is not None:
      params["bias"] = (factor * bias + shift).astype(np.float32)
    if name not in self._layers:
      self._layers[name] = self.product_layer(name, params, factor)
    shape = (*self.positions(name, source), kernel.shape[-1])
    return self.graph.add_node(self._layers[name], (source,), shape)

  def product_layer(self, name: str, params: dict[str, np.ndarray], factor: float) -> LayerDef:
    """Returns the layer that multiplies by a kernel, which is larger than Keras' by a factor."""
    config = training_config(self.graph, self.node, weights_of(name), factor=factor)
    return self.graph.new_layer(keras.layers.Dense, f"{self.name}/{name}", {
        "units": params["kernel"].shape[-1], "use_bias": "bias" in params, **config}, params)

  def positions(self, name: str, source: Ref) -> tuple[int | None, ...]:
    """The shape of a product of a tensor, without its channels."""
    return source.shape[:-1]

  def recurrent(self, part: str, state: Ref, bias: np.ndarray | None = None) -> Ref:
    """Multiplies a state by the recurrent kernel of a part."""
    kernel = self.params["recurrent_kernel"][..., self.parts()[part]]
    return self.product(f"recurrent_{part}", state, kernel, bias)

  def merge(self, cls: type, name: str, inputs: list[Ref]) -> Ref:
    """Calls Add, Subtract or Multiply on two tensors."""
    return self._call(cls, name, {}, (inputs,), inputs[0].shape)

  def split(self, name: str, source: Ref, count: int) -> list[Ref]:
    """Cuts a tensor in equal parts along its channels."""
    parts = add_split(self.graph, self._layers.get(name, f"{self.name}/{name}"), source,
                      [source.shape[-1] // count] * count)
    self._layers[name] = parts[0].node.layer
    return parts

  def activate(self, name: str, activation: str | None, source: Ref) -> Ref:
    """Calls an activation; a hard sigmoid is a clamp, as its line is in the kernels."""
    if activation in (None, "linear"):
      return source
    if activation in _HARD or activation in _RECTIFIERS:
      config = _RECTIFIERS.get(activation, {"max_value": 1.0})
      return self._call(keras.layers.ReLU, name, config, (source,), source.shape)
    return self._call(keras.layers.Activation, name, {"activation": activation}, (source,), source.shape)

  def gates(self, source: Ref, count: int) -> list[Ref]:
    """The gates out of their sums."""
    gates = self.activate("gates", self.node.config["recurrent_activation"], source)
    return self.split("each_gate", gates, count)

  def total(self, part: str, ours: Ref, recurrent: Ref | None) -> Ref:
    """Adds what comes of the input and of the state."""
    return ours if recurrent is None else self.merge(keras.layers.Add, f"sum_{part}", [ours, recurrent])

  def choose(self, mask: Ref, new: State, old: State) -> State:
    """The new state where the mask of the step, [batch, 1], is 1, else the old one."""
    return [self.choose_one(f"masked_state{place}", mask, *pair) for place, pair in enumerate(zip(new, old))]

  def begin(self, mask: Ref, new: State, given: State) -> State:
    """What `choose` does in the first step; the state before it is given, or 0.

    What the other steps do not make by the same layer is multiplied by the mask: so it need not have their
    grid.
    """
    chosen, merge = [], self.merge
    for place, alike in enumerate(self.remembered):
      first, old = (state[min(place, len(state) - 1)] for state in (new, given))
      if alike and old is None:
        chosen.append(self.choose_one(f"masked_state{place}", mask, first))
        continue
      result = merge(keras.layers.Multiply, f"first_state{place}", [first, mask])
      if old is not None:
        replaced = merge(keras.layers.Multiply, f"given_state{place}/replaced", [old, mask])
        rest = merge(keras.layers.Subtract, f"given_state{place}", [old, replaced])
        result = merge(keras.layers.Add, f"begun_state{place}", [result, rest])
      chosen.append(result)
    return chosen

  def choose_one(self, name: str, mask: Ref, new: Ref, old: Ref | None = None) -> Ref:
    """A new tensor where the mask is 1, else the old one, or 0."""
    return self._call(Select, name, {}, ([mask, new, *([] if old is None else [old])],), new.shape)

  def _call(self, cls: type, name: str, config: dict[str, Any], args: tuple, shape: tuple) -> Ref:
    if name not in self._layers:
      self._layers[name] = self.graph.new_layer(cls, f"{self.name}/{name}", config)
    return self.graph.add_node(self._layers[name], args, shape)


def weights_of(name: str) -> dict[str, str]:
  """{weight of a product: what Keras calls it}."""
  return {"kernel": "recurrent" if name.startswith("recurrent") else "kernel", "bias": "bias"}


class LstmCell(Cell):
  """i, f, o = sigmoid(...), g = tanh(...); c' = f c + i g; h' = o tanh(c')."""

  order, states, remembered = (0, 1, 3, 2), 2, (True, False)

  def step(self, inputs: Sequence[Ref], state: State) -> State:
    """Returns [h', c']."""
    h, c = state
    multiply, function = keras.layers.Multiply, self.node.config["activation"]
    sums = [self.total(part, ours, None if h is None else self.recurrent(part, h))
            for part, ours in zip(self.parts(), inputs)]
    enter, keep, leave = self.gates(sums[0], 3)
    candidate = self.activate("candidate", function, sums[1])
    cell = self.merge(multiply, "entering", [enter, candidate])
    if c is not None:
      cell = self.merge(keras.layers.Add, "cell", [self.merge(multiply, "kept", [keep, c]), cell])
    return [self.merge(multiply, "state", [leave, self.activate("cell_activation", function, cell)]), cell]


class GruCell(Cell):
  """z, r = sigmoid(...), g = tanh(... r ...); h' = g + z (h - g)."""

  order, remembered = (0, 1, 2), (False, False)

  def input_bias(self) -> np.ndarray | None:
    """With `reset_after`, of two biases [2, 3 * units] all but that inside of the reset gate."""
    bias = self.params.get("bias")
    if bias is None or bias.ndim == 1:
      return bias
    return bias[0] + np.where(np.arange(bias.shape[1]) < 2 * self.units, bias[1], 0.0)

  def step(self, inputs: Sequence[Ref], state: State) -> State:
    """Returns [h', h' once more for the next step alone]: that may have more bits."""
    h, memory = state[0], state[-1]
    sums = self.total("gates", inputs[0], None if h is None else self.recurrent("gates", h))
    update, reset = self.gates(sums, 2)
    candidate = self.activate("candidate", self.node.config["activation"],
                              self.total("candidate", inputs[1], self._reset(reset, h)))
    if memory is None:
      kept = self.merge(keras.layers.Multiply, "first_kept", [update, candidate])
      return [self.merge(keras.layers.Subtract, "first_state", [candidate, kept])]
    change = self.merge(keras.layers.Subtract, "change", [memory, candidate])
    kept = self.merge(keras.layers.Multiply, "kept", [update, change])
    return [self.merge(keras.layers.Add, name, [candidate, kept]) for name in ("state", "memory")]

  def _reset(self, reset: Ref, h: Ref | None) -> Ref | None:
    """What the state adds to the candidate, through the reset gate."""
    bias = self.params.get("bias")
    inner = bias[1][2 * self.units:] if bias is not None and bias.ndim == 2 else None
    if not self.node.config.get("reset_after"):
      return None if h is None else self.recurrent("candidate", self.merge(
          keras.layers.Multiply, "reset", [reset, h]))
    if h is not None:
      return self.merge(keras.layers.Multiply, "reset", [reset, self.recurrent("candidate", h, inner)])
    return None if inner is None or not inner.any() else self.product("first_reset", reset, np.diag(inner))


class SimpleCell(Cell):
  """h' = tanh(...)."""

  order = (0,)

  def step(self, inputs: Sequence[Ref], state: State) -> State:
    """Returns [h']."""
    (h,) = state
    total = self.total("candidate", inputs[0], None if h is None else self.recurrent("candidate", h))
    return [self.activate("state", self.node.config["activation"], total)]
