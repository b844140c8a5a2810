"""Stateful models: what they keep from one run to the next becomes inputs and outputs."""

import copy
from collections.abc import Mapping

import numpy as np
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.carry import CarryState
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.graph.policies import float32_policy
from kquant.rewrites.standardize.masks import masked_inputs


def streaming(model: keras.Model) -> keras.Model:
  """Makes the state of each recurrent layer with `stateful=True` an input and an output of the model.

  The state of a layer "lstm" enters as "lstm_h" and "lstm_c" and leaves under the same names; that of a GRU
  or SimpleRNN is "gru_h". In a file both have one grid: the integers that a run returns are what the next
  one takes. A stream begins with zeros: the zero points of those inputs.

  Args:
    model: tf_keras model with a fixed number of steps, such as 1; it is not changed.

  Returns:
    A model that takes and returns dicts, of any batch size, with the same weights and no state of its own.

  Raises:
    ValueError: no layer has `stateful=True`.
    UnsupportedLayerError: one is called twice, is given a state, or has two directions or several cells.

  Example:
    >>> step = keras.Input(batch_shape=(1, 1, 4), name="step")
    >>> model = keras.Model(step, keras.layers.GRU(8, stateful=True, name="gru")(step))
    >>> stream = kq.streaming(model)
    >>> sequences = np.random.default_rng(0).normal(size=(16, 10, 4)).astype(np.float32)
    >>> result = kq.quantize(stream, kq.stream_inputs(stream, sequences))
    >>> result.encodings["gru_h"].bits
    16
  """
  graph = Graph.from_model(model)
  nodes = [node for node in graph.nodes if _is_stateful(node)]
  if not nodes:
    raise ValueError("streaming: expected a recurrent layer with stateful=True, model "
                     f"{model.name!r} has none; build its recurrent layers so and load its weights.")
  names = [node.layer.name for node in graph.nodes if node.facts.role == "input"]
  inputs = dict(zip(names, (Ref(node) for node in graph.nodes if node.facts.role == "input")))
  outputs = dict(zip(graph.output_names, graph.output_refs))
  for node in nodes:
    for name, entered, left in _states(graph, node):
      inputs[name], outputs[name] = entered, left
  for ref in inputs.values():
    ref.node.layer.config = {**ref.node.config, "batch_input_shape": (None, *ref.shape[1:])}
  graph.inputs, graph.outputs, graph.output_names = inputs, outputs, sorted(outputs)
  return graph.to_model()


def stream_inputs(model: keras.Model,
                  sequences: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Cuts whole sequences into what a streaming model is given run by run, the states of the float model too.

  Calibration with these sees what states become behind many steps.

  Args:
    model: what `kq.streaming` returned.
    sequences: [sequences, steps, ...], or such an array for each input by name. The steps are a multiple of
      those that the model takes in one run.

  Returns:
    {input: array [sequences * runs, ...]}, the runs of one sequence one behind the other.

  Raises:
    ValueError: a number of steps that is no such multiple, or inputs that do not fit.

  Example:
    >>> step = keras.Input(batch_shape=(1, 1, 4), name="step")
    >>> stream = kq.streaming(keras.Model(step, keras.layers.GRU(8, stateful=True, name="gru")(step)))
    >>> inputs = kq.stream_inputs(stream, np.zeros((16, 10, 4), np.float32))
    >>> {name: values.shape for name, values in inputs.items()}
    {'step': (160, 1, 4), 'gru_h': (160, 8)}
  """
  states = [name for name in model.input if name in model.output]
  taken = {name: tensor.shape[1] for name, tensor in model.input.items() if name not in states}
  if not isinstance(sequences, Mapping):
    sequences = dict.fromkeys(list(taken)[:1], sequences)
  if sequences.keys() != taken.keys():
    raise ValueError(f"stream_inputs: expected sequences for {sorted(taken)}, got {sorted(sequences)}.")
  count = len(next(iter(sequences.values())))
  lengths = {name: np.shape(array)[1] for name, array in sequences.items()}
  runs = {lengths[name] // steps for name, steps in taken.items()}
  if len(runs) > 1 or any(lengths[name] % steps for name, steps in taken.items()):
    raise ValueError(f"stream_inputs: expected a multiple of the steps of one run {taken}, got {lengths}; "
                     "cut or pad the sequences.")
  state = {name: np.zeros((count, *model.input[name].shape[1:]), np.float32) for name in states}
  seen: list[dict[str, np.ndarray]] = []
  for run in range(runs.pop()):
    seen.append({**{name: np.asarray(array)[:, run * taken[name]:(run + 1) * taken[name]]
                    for name, array in sequences.items()}, **state})
    result = model(seen[-1], training=False)
    state = {name: np.asarray(result[name]) for name in states}
  return {name: np.stack([values[name] for values in seen], 1).reshape(-1, *model.input[name].shape[1:])
          for name in model.input}


def _is_stateful(node: Node) -> bool:
  inner = node.config.get("layer")
  return bool(node.config.get("stateful") or isinstance(inner, dict) and inner["config"].get("stateful"))


def _states(graph: Graph, node: Node) -> list[tuple[str, Ref, Ref]]:
  """Makes a layer return the states that it is given; returns (name, entering, leaving) of each."""
  several = "layer" in node.config or "cells" in node.config.get("cell", {}).get("config", {})
  if several or len(masked_inputs(node)) > 1 or len(graph.calls(node.layer)) > 1:
    raise UnsupportedLayerError(
        f"Layer {node.name!r} ({node.kind}) is stateful, and has two directions or several cells, is called "
        "twice or given a state; use layers of one cell, each called once without initial_state.")
  node.layer.config = {**node.config, "stateful": False, "return_state": True}
  node.shapes = [(None, *shape[1:]) for shape in _output_shapes(node)]
  entered, result = [], []
  for letter, state in zip("hc", node.outputs[1:]):
    name = f"{node.layer.name}_{letter}"
    entered.append(_input(graph, name, state.shape))
    carry = graph.new_layer(CarryState, f"{name}/carried")
    result.append((name, entered[-1], graph.add_node(carry, ([state, entered[-1]],), state.shape)))
  graph.give(node, initial_state=entered)
  return result


@float32_policy()
def _output_shapes(node: Node) -> list[tuple[int | None, ...]]:
  layer = node.layer.cls.from_config(copy.deepcopy(node.config))
  return [tuple(shape) for shape in layer.compute_output_shape(node.inputs[0].shape)]


def _input(graph: Graph, name: str, shape: tuple[int | None, ...]) -> Ref:
  layer = keras.layers.InputLayer(shape[1:], name=name, dtype="float32")
  definition = LayerDef(name, type(layer), layer.get_config())
  definition.origins = definition.as_origins()
  return graph.add_node(definition, (), shape)
