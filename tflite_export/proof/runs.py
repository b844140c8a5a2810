"""A file and its Keras model, run side by side on the same images, a bounded number of bytes at a time."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.encodings import Encodings
from kquant.graph.execution import call_layer, live_layers
from kquant.graph.fused_lstm import FusedLSTM
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.graph.sizes import images_at_once, last_reads, live_bytes
from tflite_export.program.batch import RESIZED, is_dynamic
from tflite_export.program.program import IntProgram
from tflite_export.proof.borders import ELEMENTS_AT_ONCE, border_inputs, on_border, on_grid, sliced
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.watch import Watch

Values = np.ndarray | tf.Tensor
"""The integers of a tensor that has a grid, the numbers of one that has none."""


class Runs:
  """A file beside its Keras model.

  Args:
    data: the bytes of the file.
    stored: what the reader found in them.
    model: finalised.
    encodings: the grids of its tensors.

  Attributes:
    images: how many `compare` takes at most.
    layers: {tensor: how far the runtime's integers are from the Keras layer given the same inputs, in LSB}.
    outputs: how far those of each network output are from the free-running simulation's.
    differing: {output of the file: the tensor whose watched integers it does not give}.
  """

  def __init__(self, data: bytes, stored: IntProgram, model: keras.Model, encodings: Encodings):
    self._stored, self._encodings = stored, encodings
    self._graph, self._layers = Graph.from_model(model), live_layers(model)
    self._last = last_reads(self._graph, self._graph.output_refs)
    self._watch = Watch(stored, [ref.key for node in self._graph.nodes for ref in node.outputs
                                 if ref.key in encodings and node.facts.role != "input"])
    self._data, self._batches = data, (None, RESIZED) if is_dynamic(stored) else (None,)
    self._loaded: dict[int | None, Runtime] = {}
    self.images = images_at_once(live_bytes(self._graph), self._watch.images)
    self.layers: dict[str, int] = {}
    self.outputs: dict[str, int] = {}
    self.differing: dict[str, str] = {}

  def compare(self, images: Sequence[np.ndarray], progress: Callable[[], None]) -> None:
    """Runs each Keras layer twice, on the runtime's integers and on the simulation's own; then the file.

    Args:
      images: one array [n, ...] a model input, n <= `self.images`.
      progress: is called after each layer.
    """
    inputs = border_inputs(self._stored, self._encodings, images)
    watched = self._watch.read(inputs)
    first = {ref: image if ref.is_integer else on_grid(self._encodings[ref.key], image)
             for ref, image in zip(self._graph.input_refs, images)}
    given, free = _Simulation(self._encodings, first), _Simulation(self._encodings, first)
    for place, node in enumerate(self._graph.nodes):
      if node.facts.role != "input":
        layer = self._layers[node.layer.name]
        free.keep(node, free.call(layer, node))
        if isinstance(layer, FusedLSTM):
          given.keep(node, [self._compared_along(layer, node, given, watched)])
        else:
          computed = zip(node.outputs, given.call(layer, node))
          given.keep(node, [self._compared(ref, output, watched) for ref, output in computed])
      dead = [ref for ref in (*node.inputs, *node.outputs) if self._last.get(ref, -1) <= place]
      for simulation in (given, free):
        simulation.forget(dead)
      progress()
    self._compare_outputs(inputs, given, free)

  def _compared(self, ref: Ref, output: Values, watched: Iterator[tuple[str, np.ndarray]]) -> Values:
    """Notes how far a tensor is from the runtime's; returns the runtime's, where it has a grid."""
    if ref.key not in self._encodings:
      return output
    _, integers = next(watched)
    self.layers[ref.key] = max(self.layers.get(ref.key, 0), _distance(output, integers))
    return integers

  def _compared_along(self, layer: FusedLSTM, node: Node, given: "_Simulation",
                      watched: Iterator[tuple[str, np.ndarray]]) -> Values:
    """As `_compared`, of a layer that reads its own outputs: at every step it is given the runtime's."""
    key, (_, integers) = Ref(node).key, next(watched)
    grid = self._encodings[key]
    output = on_grid(grid, np.asarray(layer.call_along(given[node.inputs[0]], grid.dequantize(integers))))
    self.layers[key] = max(self.layers.get(key, 0), _distance(output, integers))
    return integers

  def _compare_outputs(self, inputs: list[np.ndarray], given: "_Simulation", free: "_Simulation") -> None:
    """What the file itself gives, against the watched tensors that are the model's outputs."""
    for batch in self._batches:
      outputs = self._file(batch).run_many(inputs)
      if len(outputs) != len(self._graph.output_refs):
        raise ValueError(f"{len(outputs)} outputs in the file, {len(self._graph.output_refs)} in the model")
      for ref, name, output in zip(self._graph.output_refs, self._stored.outputs, outputs):
        expected = on_border(given.integers[ref], self._encodings[ref.key], self._stored.tensors[name])
        if not np.array_equal(output, expected):
          self.differing[name] = ref.key
    for ref in self._graph.output_refs:
      if ref.node.facts.role != "input":
        distance = _distance(free.integers[ref], given.integers[ref])
        self.outputs[ref.key] = max(self.outputs.get(ref.key, 0), distance)

  def _file(self, batch: int | None) -> Runtime:
    """The file as users run it; stays loaded where all fits."""
    runtime = self._loaded.get(batch) or Runtime(self._data, batch=batch)
    if self._watch.whole:
      self._loaded[batch] = runtime
    return runtime


class _Simulation:
  """Tensors of some images as integers of their grids, which layers read as real numbers.

  Attributes:
    integers: {tensor: its values} of those that are still to be read.
  """

  def __init__(self, encodings: Encodings, inputs: dict[Ref, np.ndarray]):
    self._encodings = encodings
    self.integers: dict[Ref, Values] = dict(inputs)

  def __getitem__(self, ref: Ref) -> tf.Tensor:
    values = self.integers[ref]
    if ref.key not in self._encodings:
      return tf.convert_to_tensor(values)
    return tf.constant(sliced(self._encodings[ref.key].dequantize, values, np.float32))

  def call(self, layer: keras.layers.Layer, node: Node) -> list[Values]:
    """Calls a layer as a node says; outputs that have a grid are rounded to it."""
    return [on_grid(self._encodings[ref.key], np.asarray(output)) if ref.key in self._encodings else output
            for ref, output in zip(node.outputs, call_layer(layer, node, self))]

  def keep(self, node: Node, outputs: list[Values]) -> None:
    """Keeps the outputs of a node."""
    self.integers.update(zip(node.outputs, outputs))

  def forget(self, refs: list[Ref]) -> None:
    """Lets tensors go."""
    for ref in refs:
      self.integers.pop(ref, None)


def _distance(first: np.ndarray, second: np.ndarray) -> int:
  """The largest difference of integers, in LSB."""
  if first.shape != second.shape:
    raise ValueError(f"a tensor of shape {second.shape} in the file, {first.shape} in the model")
  largest, flat, other = 0, first.reshape(-1), second.reshape(-1)
  for start in range(0, flat.size, ELEMENTS_AT_ONCE):
    part = slice(start, start + ELEMENTS_AT_ONCE)
    largest = max(largest, int(np.abs(flat[part].astype(np.int32) - other[part]).max()))
  return largest
