"""Stateful models: what they keep from one run to the next becomes inputs and outputs."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.graph import keras_calls
from kquant.graph.carry import CarryState
from kquant.graph.execution import Execution
from kquant.graph.graph import Graph
from kquant.graph.matching import carried_states
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
    ValueError: no layer has `stateful=True`, or the name of a state is taken.
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
  inputs = _by_name(graph.inputs, {node.layer.name: Ref(node) for node in graph.of_role("input")})
  outputs = _by_name(graph.outputs, dict(zip(graph.output_names, graph.output_refs)))
  for node in nodes:
    taken = {*inputs, *outputs, *(layer.name for layer in graph.layers)}
    for name, entered, left in _states(graph, node):
      if name in taken:
        raise ValueError(f"streaming: expected no input, output or layer named {name!r}: so is the state of "
                         f"layer {node.layer.name!r}; give one of the two another name.")
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
    model: what `kq.streaming` returned, each size of its inputs fixed but that of the batch.
    sequences: [sequences, steps, ...], or such an array for each input by name. The steps are a multiple of
      those that the model takes in one run. An input without steps gets what each run reads:
      [sequences, runs, ...].

  Returns:
    {input: array [sequences * runs, ...]}, the runs of one sequence one behind the other.

  Raises:
    ValueError: no such model, names or shapes that do not fit its inputs, or unequal numbers of sequences or
      runs.

  Example:
    >>> step = keras.Input(batch_shape=(1, 1, 4), name="step")
    >>> stream = kq.streaming(keras.Model(step, keras.layers.GRU(8, stateful=True, name="gru")(step)))
    >>> inputs = kq.stream_inputs(stream, np.zeros((16, 10, 4), np.float32))
    >>> {name: values.shape for name, values in inputs.items()}
    {'step': (160, 1, 4), 'gru_h': (160, 8)}
  """
  graph = Graph.from_model(model)
  carried = carried_states(graph)
  entered = {name: ref for name, ref in graph.inputs.items() if ref in carried} if carried else {}
  if not entered:
    raise ValueError(f"stream_inputs: expected a model that kq.streaming returned, {model.name!r} has no "
                     "state among its inputs; give its result here, of a model with stateful=True.")
  runs = _runs({name: ref for name, ref in graph.inputs.items() if ref not in carried}, sequences)
  first = next(iter(runs.values()))
  state = {name: np.zeros((len(first), *ref.shape[1:]), np.float32) for name, ref in entered.items()}
  run, seen = Execution(graph, model).tap([carried[ref] for ref in entered.values()]), []
  for place in range(first.shape[1]):
    seen.append({**{name: array[:, place] for name, array in runs.items()}, **state})
    state = dict(zip(entered, run(tf.nest.flatten(seen[-1]))))
  return {name: np.stack([values[name] for values in seen], 1).reshape(-1, *ref.shape[1:])
          for name, ref in graph.inputs.items()}


def _runs(inputs: dict[str, Ref],
          sequences: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns what the inputs that are no states get, checked: {name: [sequences, runs, ...]}."""
  if not isinstance(sequences, Mapping):
    sequences = dict.fromkeys(list(inputs)[:1], sequences)
  if sequences.keys() != inputs.keys():
    raise ValueError(f"stream_inputs: expected sequences for {sorted(inputs)}, got {sorted(sequences)}.")
  runs = {name: _cut(name, ref, sequences[name]) for name, ref in inputs.items()}
  counts = {name: array.shape[:2] for name, array in runs.items()}
  if len(set(counts.values())) > 1 or 0 in next(iter(counts.values())):
    raise ValueError("stream_inputs: expected as many sequences and runs of each input, at least one of "
                     f"both, got {counts}; repeat what has no steps for each run: [sequences, runs, ...].")
  return runs


def _cut(name: str, ref: Ref, sequences: np.ndarray) -> np.ndarray:
  """Returns the sequences of an input as [sequences, runs, ...]; so many steps are in one run as it has."""
  sizes = ref.shape[1:]
  if None in sizes:
    raise ValueError(f"stream_inputs: expected an input {name!r} of fixed sizes, got {list(sizes)} behind "
                     "the batch; build the model with a number of steps, such as 1.")
  array = runs = np.asarray(sequences, ref.node.config["dtype"])
  if sizes and array.ndim == len(ref.shape) and array.shape[1] % sizes[0] == 0:
    runs = array.reshape(len(array), array.shape[1] // sizes[0], sizes[0], *array.shape[2:])
  if runs.shape[2:] != sizes or runs.ndim < 2:
    each = ", ".join(map(str, ("sequences", "runs", *sizes)))
    raise ValueError(f"stream_inputs: expected of input {name!r} a multiple of the steps of one run, "
                     f"{list(sizes)}, or [{each}], got {list(array.shape)}; cut or pad the sequences.")
  return runs


def _by_name(nest: Any, named: dict[str, Ref]) -> dict[str, Ref]:
  """The inputs or outputs of a model by the keys of its dict, else as `named` has them."""
  return dict(zip(keras_calls.leaf_names(nest, list(named)), tf.nest.flatten(nest)))


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
