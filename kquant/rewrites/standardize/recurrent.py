"""Recurrent layers of a fixed length, step by step: layers that are called once a step (`cells`)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Origin, Ref
from kquant.rewrites.standardize.building import add_merge, add_reshape, is_fixed
from kquant.rewrites.standardize.cells import ACTIVATIONS, CELLS, GATES, Cell, State


@dataclasses.dataclass
class _Run:
  """What a recurrent layer makes of a sequence.

  Attributes:
    outputs: of each step, [batch, units], in the order of time.
    state: behind the last step that is taken.
  """

  outputs: list[Ref]
  state: State


def unroll(graph: Graph, node: Node) -> None:
  """Writes a call of a recurrent layer, or of two in both directions, as calls of layers of one step."""
  if (node.kind in CELLS or node.kind == "RNN") and _is_plain(node):
    params = list(node.layer.params.values())
    run = _run(graph, node, node.layer_name, node.config, params)
    results = _results(graph, node, node.config, run)
    _replace(graph, node, results)


def _is_plain(node: Node) -> bool:
  """Whether a call has no masks, constants or state of its own, and a fixed length."""
  config = node.config
  cells = _cells_of(node.kind, config)
  return (is_fixed(*node.inputs) and not config.get("stateful") and not config.get("time_major")
          and not node.kwargs and len(node.inputs[0].shape) == 3
          and all(kind in CELLS and cell.get("activation") in ACTIVATIONS
                  and cell.get("recurrent_activation", GATES[0]) in GATES for kind, cell in cells))


def _cells_of(kind: str, config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """(kind, config) of each cell, the first the one that reads the input."""
  cell = config.get("cell")
  if cell is None:
    return [(kind, config)]
  inner = cell["config"].get("cells")
  return [(part["class_name"], part["config"]) for part in ([cell] if inner is None else inner)]


def _run(graph: Graph, node: Node, name: str, config: dict[str, Any], params: Sequence[np.ndarray]) -> _Run:
  """Runs the cells over the whole sequence, one after the other.

  Args:
    params: of all cells, in the order of Keras.
  """
  source, *given = node.inputs
  cells, weights, state = _cells_of(node.kind, config), list(params), []
  for number, (kind, own) in enumerate(cells):
    names = ("kernel", "recurrent_kernel", "bias")[:3 if own["use_bias"] else 2]
    own_params = {key: weights.pop(0) for key in names}
    owner = Node(node.name, dataclasses.replace(node.layer, config=own))
    cell = CELLS[kind](graph, name if len(cells) == 1 else f"{name}/{number}", owner, own_params)
    if number:
      source = _sequence(graph, f"{name}/{number}/input", run.outputs)
    run = _steps(cell, source, [given.pop(0) for _ in range(cell.states)] if given else [None] * cell.states,
                 backwards=config["go_backwards"] and not number)
    state += run.state
  return _Run(run.outputs, state)


def _steps(cell: Cell, source: Ref, state: State, *, backwards: bool) -> _Run:
  """Calls a cell once a step."""
  inputs = cell.project(source)
  outputs = []
  for parts in reversed(inputs) if backwards else inputs:
    state = cell.step(parts, state)  # a mask of the step would choose between the new state and the old
    outputs.append(state[0])
  return _Run(outputs, state[:cell.states])


def _sequence(graph: Graph, name: str, outputs: list[Ref]) -> Ref:
  """Puts the outputs of the steps, [batch, units] each, into one tensor [batch, steps, units]."""
  batch, units = outputs[0].shape
  joined = outputs[0]
  if len(outputs) > 1:
    layer = graph.new_layer(keras.layers.Concatenate, f"{name}/joined")
    joined = graph.add_node(layer, (outputs,), (batch, len(outputs) * units))
  return add_reshape(graph, name, joined, (len(outputs), units))


def _results(graph: Graph, node: Node, config: dict[str, Any], run: _Run) -> list[Ref]:
  whole = config["return_sequences"]
  output = _sequence(graph, f"{node.layer_name}/sequence", run.outputs) if whole else run.outputs[-1]
  return [output, *run.state] if config["return_state"] else [output]


def _replace(graph: Graph, node: Node, results: list[Ref]) -> None:
  for old, new in zip(node.outputs, results, strict=True):
    graph.redirect(old, new)
  graph.edit(node, f"written as {node.inputs[0].shape[1]} steps")
  graph.drop(node)
