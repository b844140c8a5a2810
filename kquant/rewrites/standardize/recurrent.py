"""Recurrent layers of a fixed length, step by step: layers that are called once a step (`cells`)."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.kinds.recurrent import MOST_STEPS
from kquant.graph.nodes import LayerDef, Node, Origin, Ref
from kquant.rewrites.standardize.building import add_join, add_merge, add_sequence, add_split, is_fixed
from kquant.rewrites.standardize.cell_table import CELLS
from kquant.rewrites.standardize.cells import ACTIVATIONS, GATES, Cell, State
from kquant.rewrites.standardize.masks import mask_of, masked_inputs

Made = dict[tuple[LayerDef, str, int], dict[str, LayerDef]]
"""{(recurrent layer, direction, place of the cell): {name: a layer that it is written as}}."""


@dataclasses.dataclass
class _Layer:
  """A recurrent layer, maybe one direction of a call.

  Attributes:
    name: of its parts.
    kind, config: of the layer.
    call: that reads the sequence.
    made: see `unroll`.
  """

  name: str
  kind: str
  config: dict[str, Any]
  call: Node
  made: Made

  def layers_of(self, number: int) -> dict[str, LayerDef]:
    """The layers that calls of one of its cells have made so far, by name."""
    direction = self.name.removeprefix(self.call.layer_name)
    return self.made.setdefault((self.call.layer, direction, number), {})


@dataclasses.dataclass
class _Run:
  """What a recurrent layer makes of a sequence.

  Attributes:
    outputs: of each step, [batch, ..., units], in the order in which they were made.
    state: behind the last step.
    carried: the state as the next run of the network gets it.
  """

  outputs: list[Ref]
  state: State
  carried: State


@dataclasses.dataclass(frozen=True)
class _Masks:
  """In which order steps are taken, and which count.

  Attributes:
    steps: the mask of each, [batch, 1], in the order of its sequence; none where all count.
    backwards: the last step is the first that is taken.
    zeroes: the output of a step that does not count is 0, else that of the step before.
  """

  steps: list[Ref]
  backwards: bool
  zeroes: bool


def unroll(graph: Graph, node: Node, *, made: Made) -> None:
  """Writes a call of a recurrent layer, or of two in both directions, as calls of layers of one step.

  Args:
    made: the layers that earlier calls of the same layer are written as: all calls have one set.
  """
  layers = layers_of(node)
  if len(layers) == 2:
    _unroll_both(graph, node, made)
  elif layers and _is_plain(node, node.config):
    run = _run(graph, _Layer(node.layer_name, node.kind, node.config, node, made),
               masked_inputs(node)[1:], list(node.layer.params.values()))
    _carry(graph, node, run.carried)
    _replace(graph, node, [_output(graph, node.layer_name, node.config, run)], run.state)


def _unroll_both(graph: Graph, node: Node, made: Made) -> None:
  """Runs one layer forward and one backward, and merges what they make."""
  forward, backward = _directions(node.config)
  if not all(kind in CELLS or kind == "RNN" for kind, _ in (forward, backward)) or not all(
      _is_plain(node, config, kind) for kind, config in (forward, backward)):
    return
  cells = _cells_of(*forward)
  params = parted(list(node.layer.params.values()), sum(map(len, map(_weights_of, cells))))
  states = parted(masked_inputs(node)[1:], sum(CELLS[kind].states for kind, _ in cells))
  outputs, behind = [], []
  for name, (kind, config), own, given in zip(("forward", "backward"), (forward, backward), params, states):
    layer = _Layer(f"{node.layer_name}/{name}", kind, config, node, made)
    run = _run(graph, layer, given, own)
    if name == "backward" and config["return_sequences"]:
      run.outputs.reverse()  # as Keras does, whichever way it went
    outputs.append(_output(graph, layer.name, config, run))
    behind += run.state
  _replace(graph, node, merged(graph, node, outputs), behind)


def layers_of(node: Node) -> list[tuple[str, dict[str, Any]]]:
  """(kind, config) of a recurrent layer, of both where there is one for each direction; none of another."""
  if node.kind == "Bidirectional":
    return list(_directions(node.config))
  return [(node.kind, node.config)] if node.kind in CELLS or node.kind == "RNN" else []


def _directions(config: dict[str, Any]) -> tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]:
  """(kind, config) of the layer that goes forward, and of that which goes backward.

  Keras lets the outputs of both be 0 where a step does not count, if they return them all.
  """
  forward = config["layer"]
  backward = config.get("backward_layer") or {**forward, "config": {
      **forward["config"], "go_backwards": not forward["config"]["go_backwards"]}}
  return tuple((layer["class_name"], {**layer["config"], "zero_output_for_mask": layer["config"][
      "return_sequences"]}) for layer in (forward, backward))


def parted(values: list[Any], count: int) -> tuple[list[Any], list[Any]]:
  """The first so many values, and the others."""
  return values[:count], values[count:]


def merged(graph: Graph, node: Node, outputs: list[Ref]) -> list[Ref]:
  """What a Bidirectional makes of the outputs of its two layers."""
  mode, name = node.config["merge_mode"], f"{node.layer_name}/merged"
  if mode is None:
    return outputs
  if mode != "concat":
    return [add_merge(graph, _MERGES[mode], name, outputs)]
  return [add_join(graph, name, outputs, -1)]


def _is_plain(node: Node, config: dict[str, Any], kind: str = "") -> bool:
  """Whether a call has no constants or state of its own, and a fixed length."""
  cells = _cells_of(kind or node.kind, config)
  rank = CELLS[cells[0][0]].rank if cells[0][0] in CELLS else 0
  return (is_fixed(*node.inputs) and not config.get("stateful") and not config.get("time_major")
          and config.get("data_format") != "channels_first"
          and node.kwargs.keys() <= (set() if rank else {"mask"})
          and len(node.inputs[0].shape) == 3 + rank and node.inputs[0].shape[1] <= MOST_STEPS
          and all(cell in CELLS and own.get("activation") in ACTIVATIONS
                  and own.get("recurrent_activation", GATES[0]) in GATES for cell, own in cells))


def _cells_of(kind: str, config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """(kind, config) of each cell, the first the one that reads the input."""
  cell = config.get("cell")
  if cell is None:
    return [(kind, {**config, **(CELLS[kind].fixed if kind in CELLS else {})})]
  inner = cell["config"].get("cells")
  return [(part["class_name"], part["config"]) for part in ([cell] if inner is None else inner)]


def _weights_of(cell: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
  """The weights of a cell, in the order of Keras."""
  return ("kernel", "recurrent_kernel", "bias")[:3 if cell[1]["use_bias"] else 2]


def _run(graph: Graph, layer: _Layer, given: Sequence[Ref], params: Sequence[np.ndarray]) -> _Run:
  """Runs the cells over the whole sequence, one after the other.

  Args:
    given: the states to start from, none for zeros.
    params: of all cells, in the order of Keras.
  """
  source, states, weights, behind = layer.call.inputs[0], list(given), list(params), _Run([], [], [])
  cells, run = _cells_of(layer.kind, layer.config), behind
  masks = _masks_of_steps(graph, layer, source)
  for number, (kind, config) in enumerate(cells):
    name = layer.name if len(cells) == 1 else f"{layer.name}/{number}"
    owner = dataclasses.replace(layer.call.layer, config=config)
    owner.origins = (*owner.origins, Origin(layer.name, kind))
    own = {key: weights.pop(0) for key in _weights_of((kind, config))}
    cell = CELLS[kind](graph, name, Node(layer.call.name, owner), own, layer.layers_of(number))
    state = [states.pop(0) if states else None for _ in range(cell.states)]
    with graph.in_place_of(cell.node):
      if number:
        source = add_sequence(graph, f"{name}/input", run.outputs)
      run = _steps(cell, source, state, masks)
    masks = dataclasses.replace(masks, backwards=False, steps=masks.steps[::-1 if masks.backwards else 1])
    behind = _Run(run.outputs, behind.state + run.state, behind.carried + run.carried)
  return behind


def _masks_of_steps(graph: Graph, layer: _Layer, source: Ref) -> _Masks:
  mask = mask_of(layer.call, source)
  steps = [] if mask is None else add_split(graph, f"{layer.name}/mask", mask, [1] * mask.shape[1])
  return _Masks(steps, layer.config["go_backwards"], bool(layer.config.get("zero_output_for_mask")))


def _steps(cell: Cell, source: Ref, state: State, masks: _Masks) -> _Run:
  """Calls a cell once a step; where a mask is 0 the state stays, and so does the output, at first 0."""
  steps = list(itertools.zip_longest(cell.project(source), masks.steps))
  started, outputs = state[0] is not None, []
  for parts, mask in reversed(steps) if masks.backwards else steps:
    new = cell.step(parts, state)
    state = new if mask is None else (cell.choose if outputs else cell.begin)(mask, new, state)
    output = state[0]
    if mask is not None and masks.zeroes:
      output = cell.choose_one("zeroed", mask, new[0])
    elif mask is not None and started:  # the state was given, an output was not
      output = cell.choose_one("output", mask, new[0], outputs[-1] if outputs else None)
    outputs.append(output)
  return _Run(outputs, state[:cell.states], state[-cell.states:])


def _output(graph: Graph, name: str, config: dict[str, Any], run: _Run) -> Ref:
  """The whole sequence, or what the last step made."""
  if config["return_sequences"]:
    return add_sequence(graph, f"{name}/sequence", run.outputs)
  return run.outputs[-1]


def _carry(graph: Graph, node: Node, states: State) -> None:
  """Lets what hands the states of a call to the next run of the network read these."""
  for old, new in zip(node.outputs[1:], states):
    graph.redirect(old, new, only=lambda reader: reader.facts.carries)


def _replace(graph: Graph, node: Node, outputs: list[Ref], states: list[Ref]) -> None:
  """Lets what reads a call read these tensors; the states where it returns them."""
  for old, new in zip(node.outputs, [*outputs, *states]):
    graph.redirect(old, new)
  if node.config.get("activity_regularizer"):
    graph.skip(node, "its activity_regularizer is left out of training")
  graph.edit(node, f"written as {node.inputs[0].shape[1]} steps")
  graph.drop(node)


_MERGES = {"sum": keras.layers.Add, "mul": keras.layers.Multiply, "ave": keras.layers.Average}
