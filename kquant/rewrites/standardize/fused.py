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
  replace,
)
from kquant.rewrites.standardize.recurrent import CELLS, directions, merged, parted

_TRAINED_WITH = ("dropout", "recurrent_dropout", "kernel_regularizer", "recurrent_regularizer",
                 "bias_regularizer", "activity_regularizer", "kernel_constraint", "recurrent_constraint",
                 "bias_constraint")


def fuse(graph: Graph, node: Node, *, required: bool = False) -> None:
  """Writes a call of an LSTM, or of two in both directions, as FusedLSTM.

  Args:
    required: whether to refuse a recurrent layer that has no such form; else it is left, and the reason noted.

  Raises:
    UnsupportedLayerError: it is required, and a layer has no such form.
  """
  if node.kind not in (*CELLS, "RNN", "Bidirectional"):
    return
  reason = _obstacle(graph, node)
  if reason and required:
    raise UnsupportedLayerError(f"Layer {node.name!r} ({node.kind}) {reason}: it has no fused operator; "
                                "quantize with QuantConfig(recurrent='auto'), which unrolls it.")
  if reason:
    graph.skip(node, f"unrolled, not fused: it {reason}")
    return
  layers = _layers(node)
  if any(config.get(key) for _, config in layers for key in _TRAINED_WITH):
    graph.skip(node, "its dropout, regularizers and constraints are left out of training")
  if len(layers) == 1:
    result = _fused(graph, node, node.layer_name, node.config, list(node.layer.params.values()))
  else:
    (result,) = _both(graph, node, [config for _, config in layers])
  replace(graph, node, result, "written as a fused operator")


def _layers(node: Node) -> list[tuple[str, dict[str, Any]]]:
  """(kind, config) of the layer, or of those of both directions."""
  return list(directions(node.config)) if node.kind == "Bidirectional" else [(node.kind, node.config)]


def _obstacle(graph: Graph, node: Node) -> str:
  """Why a recurrent layer has no fused operator, behind the words "it" or its name; "" where it has one."""
  kinds, configs = zip(*_layers(node))
  expected = {"activation": "tanh", "recurrent_activation": "sigmoid", "return_state": False,
              "stateful": False, "time_major": False}
  wrong = [f"{key}={config.get(key, value)!r}" for config in configs for key, value in expected.items()
           if config.get(key, value) != value]
  if set(kinds) != {"LSTM"}:
    return "is no LSTM"
  if wrong:
    return f"has {wrong[0]}"
  if node.kind == "Bidirectional" and node.config["merge_mode"] is None:
    return "returns what both directions make"
  if node.kwargs.get("mask") is not None:
    return "has a mask"
  if len(node.inputs) > 1:
    return "is given a state to start from"
  if len(graph.calls(node.layer)) > 1:
    return "is called more than once"
  return "" if len(node.inputs[0].shape) == 3 and is_fixed(*node.inputs) else "reads a sequence of open length"


def _both(graph: Graph, node: Node, configs: list[dict[str, Any]]) -> list[Ref]:
  params, outputs = list(node.layer.params.values()), []
  count = 3 if configs[0]["use_bias"] else 2
  for name, config, own in zip(("forward", "backward"), configs, parted(params, count)):
    output = _fused(graph, node, f"{node.layer_name}/{name}", config, own)
    if name == "backward" and config["return_sequences"]:
      output = _reversed(graph, f"{node.layer_name}/{name}/forward", output)
    outputs.append(output)
  return merged(graph, node, outputs)


def _fused(graph: Graph, node: Node, name: str, config: dict[str, Any], params: list[np.ndarray]) -> Ref:
  """Calls one layer; returns its sequence, or its last step.

  Args:
    params: kernel [features, 4 * units], recurrent kernel [units, 4 * units], maybe a bias [4 * units].
  """
  (source,), units = node.inputs, config["units"]
  if config["go_backwards"]:
    source = _reversed(graph, f"{name}/backwards", source)
  joined = dict(zip(("kernel", "recurrent", "bias"), [*params, np.zeros(4 * units, np.float32)]))
  weights = {f"{key}_{gate}": part for key, values in joined.items()
             for gate, part in zip(GATES, np.split(values, len(GATES), axis=-1))}
  layer = graph.new_layer(FusedLSTM, name, {"units": units}, weights)
  layer.origins = (*node.layer.origins, Origin(name, "LSTM"))
  result = graph.add_node(layer, (source,), (*source.shape[:2], units))
  if config["return_sequences"]:
    return result
  steps = source.shape[1]
  last = add_slice(graph, f"{name}/last", result, {1: range(steps - 1, steps)})
  return add_reshape(graph, f"{name}/last/state", last, (units,))


def _reversed(graph: Graph, name: str, source: Ref) -> Ref:
  return add_sequence(graph, name, add_steps(graph, name, source)[::-1])
