"""LSTM layers as FusedLSTM, which a file holds as one operator."""

from typing import Any

import numpy as np

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.fused_lstm import GATES, FusedLSTM
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Origin, Ref
from kquant.rewrites.standardize.building import (
  add_reshape,
  add_sequence,
  add_slice,
  add_steps,
  is_fixed,
)
from kquant.rewrites.standardize.cell_table import CELLS
from kquant.rewrites.standardize.cells import LstmCell
from kquant.rewrites.standardize.recurrent import layers_of, merged, parted

_TRAINED_WITH = ("dropout", "recurrent_dropout", "kernel_regularizer", "recurrent_regularizer",
                 "bias_regularizer", "activity_regularizer", "kernel_constraint", "recurrent_constraint",
                 "bias_constraint")
_EXPECTED = {"activation": "tanh", "recurrent_activation": "sigmoid"}

Layer = tuple[str, dict[str, Any]]
"""(kind, config) of a recurrent layer."""


def fuse(graph: Graph, node: Node, *, required: bool = False) -> None:
  """Writes a call of an LSTM, or of two in both directions, as FusedLSTM.

  Args:
    required: whether to refuse a recurrent layer that has no such form; else it is left and the reason noted.

  Raises:
    UnsupportedLayerError: it is required, and a layer has no such form.
  """
  layers = layers_of(node)
  if not layers or _is_refused(node, layers):
    return
  reason = _obstacle(graph, node, layers)
  if reason and required:
    raise UnsupportedLayerError(f"Layer {node.name!r} ({node.kind}) {reason}: it has no fused operator; "
                                "quantize with QuantConfig(recurrent='auto'), which unrolls it.")
  if reason:
    graph.skip(node, f"unrolled, not fused: it {reason}")
    return
  if any(config.get(key) for _, config in layers for key in _TRAINED_WITH):
    graph.skip(node, "its dropout, regularizers and constraints are left out of training")
  outputs, states = _written(graph, node, layers)
  for old, new in zip([*node.outputs[:len(outputs)], *node.outputs[len(outputs)::2]], [*outputs, *states]):
    graph.redirect(old, new)
  graph.edit(node, "written as a fused operator")
  graph.drop(node)


def _is_refused(node: Node, layers: list[Layer]) -> bool:
  """Whether a call has no unrolled form either, whatever its length: its kind says what to do."""
  return bool(not is_fixed(*node.inputs) or node.kwargs.keys() - {"mask"} or any(
      config.get("stateful") or config.get("time_major") for _, config in layers))


def _written(graph: Graph, node: Node, layers: list[Layer]) -> tuple[list[Ref], list[Ref]]:
  """Adds the layers of a call; returns what it makes, and the state behind the last step of each layer."""
  params, outputs, states = list(node.layer.params.values()), [], []
  for name, layer in zip(("forward", "backward") if layers[1:] else ("",), layers):
    own, params = parted(params, 3 if layer[1]["use_bias"] else 2)
    name = f"{node.layer_name}/{name}" if name else node.layer_name
    output = _fused(graph, node, name, layer, own)
    states.append(_last(graph, name, output))
    if not layer[1]["return_sequences"]:
      output = states[-1]
    elif outputs:
      output = _reversed(graph, f"{name}/in_order", output)
    outputs.append(output)
  return merged(graph, node, outputs) if layers[1:] else outputs, states


def _obstacle(graph: Graph, node: Node, layers: list[Layer]) -> str:
  """Why a recurrent layer has no fused operator, behind "it" or its name; "" where it has one."""
  wrong = [f"{key}={config.get(key)!r}" for _, config in layers for key, value in _EXPECTED.items()
           if config.get(key, value) != value]
  if any(CELLS.get(kind) is not LstmCell for kind, _ in layers):
    return "is no plain LSTM layer"
  if wrong:
    return f"has {wrong[0]}"
  if node.kwargs.get("mask") is not None:
    return "has a mask"
  if len(node.inputs) > 1:
    return "is given a state to start from"
  cells = node.outputs[3 if layers[1:] and node.config["merge_mode"] is None else 2::2]
  if any(graph.readers(cell) or cell in graph.output_refs for cell in cells):
    return "returns its cell, which something reads"
  return "is called more than once" if len(graph.calls(node.layer)) > 1 else ""


def _fused(graph: Graph, node: Node, name: str, layer: Layer, params: list[np.ndarray]) -> Ref:
  """Calls one layer; returns the state behind each step, in the order in which they were made.

  Args:
    params: kernel [features, 4 * units], recurrent kernel [units, 4 * units], maybe a bias [4 * units].
  """
  kind, config = layer
  (source,), units = node.inputs, config["units"]
  if config["go_backwards"]:
    source = _reversed(graph, f"{name}/backwards", source)
  joined = dict(zip(("kernel", "recurrent", "bias"), [*params, np.zeros(4 * units, np.float32)]))
  weights = {f"{key}_{gate}": part for key, values in joined.items()
             for gate, part in zip(GATES, np.split(values, len(GATES), axis=-1))}
  fused = graph.new_layer(FusedLSTM, name, {"units": units}, weights)
  fused.origins = (*node.layer.origins, Origin(name, kind))
  return graph.add_node(fused, (source,), (*source.shape[:2], units))


def _last(graph: Graph, name: str, states: Ref) -> Ref:
  _, steps, units = states.shape
  last = add_slice(graph, f"{name}/last", states, {1: range(steps - 1, steps)})
  return add_reshape(graph, f"{name}/last/state", last, (units,))


def _reversed(graph: Graph, name: str, source: Ref) -> Ref:
  return add_sequence(graph, name, add_steps(graph, name, source)[::-1])
