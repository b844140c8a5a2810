"""Runs the calls of a graph on the live layers of its model, whole or in part, with every tensor at hand.

How a node is called is given with the run: as its layer computes at inference (`call_layer`) or in training
(`call_in_mode`), in float past its quantizers (`call_float`), or by a function of the caller's that rounds,
compares or replaces tensors on the way.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from kquant.core import data
from kquant.graph import keras_calls
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.graph.sizes import images_at_once, last_reads, live_bytes, open_size

Values = dict[Ref, Any]
"""{tensor: what it holds}."""
NodeCall = Callable[[keras.layers.Layer, Node, Values], list[Any]]
"""Calls a layer as a node says, on values; returns the outputs, flat."""

FEWEST_TRACED = 5
"""Batches from which on tracing a network is faster than running its operators one by one."""


def call_layer(layer: keras.layers.Layer, node: Node, values: Values) -> list[Any]:
  """Calls a layer as a node says, at inference: augmenting layers of Keras train unless they are told."""
  return keras_calls.call_node(layer, node, values.__getitem__, training=False)


def call_in_mode(layer: keras.layers.Layer, node: Node, values: Values) -> list[Any]:
  """Calls a layer as a node says, in the mode of the Keras call that it takes place in."""
  return keras_calls.call_node(layer, node, values.__getitem__)


def call_float(layer: keras.layers.Layer, node: Node, values: Values) -> list[Any]:
  """Calls a layer as a node says; layers with quantizers pass float tensors through (`float_call`)."""
  return keras_calls.call_node(getattr(layer, "float_call", layer), node, values.__getitem__,
                               training=False)


def live_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
  """Returns {name: layer} of a model."""
  return {layer.name: layer for layer in model.layers}


def run_nodes(nodes: Iterable[Node], layers: dict[str, keras.layers.Layer], values: Values, *,
              call: NodeCall = call_layer, behind: Callable[[Node, Values], None] | None = None) -> None:
  """Runs calls in their order; adds each result to `values`, which holds the tensors that they start from.

  Args:
    behind: is called behind each call, inputs too; it may replace what the call made.
  """
  for node in nodes:
    if node.facts.role != "input":
      results = call(layers[node.layer.name], node, values)
      values.update(zip(node.outputs, results))
    if behind is not None:
      behind(node, values)


class Execution:
  """A graph with the live layers of the model that it was read from.

  Attributes:
    graph: its nodes are run in their order.
    layers: {name: layer}, with the weights that they have when a run takes place.
    specs: of the model's inputs.
    image_bytes: of one image's tensors in a run, at most; open sizes count as 1.
    room: bytes that the tensors of a run may take; None: as many as in other stages.
  """

  def __init__(self, graph: Graph, model: keras.Model, *, call: NodeCall = call_layer):
    self.graph = graph
    self.layers = live_layers(model)
    self.specs = keras_calls.input_specs(model)
    self.image_bytes = live_bytes(graph)
    self.room: int | None = None
    self._call = call

  def values(self, inputs: Sequence[Any], *,
             behind: Callable[[Node, Values], None] | None = None) -> Values:
    """Runs the whole graph on flat inputs; returns every tensor. See `run_nodes` for `behind`."""
    values = dict(zip(self.graph.input_refs, inputs))
    run_nodes(self.graph.nodes, self.layers, values, call=self._call, behind=behind)
    return values

  def traced(self, compute: Callable[..., Any], *more: tf.TensorSpec) -> Callable[..., Any]:
    """Returns a function (input batches, *more) -> compute(values, *more), traced once for any batch size.

    Args:
      compute: what to make of the values of all tensors, inside the trace.
      more: specs of further tensors.
    """
    @tf.function(autograph=False)
    def run(arrays, *others):
      return compute(self.values(arrays), *others)

    return run.get_concrete_function([spec.batch for spec in self.specs], *more)

  def tap(self, wanted: Sequence[Ref]) -> Callable[..., list[np.ndarray]]:
    """Returns a function (images, batch size = 32) -> the wanted tensors, one array each, traced once."""
    run = self.traced(lambda values: [values[ref] for ref in wanted])

    def outputs(images: list[np.ndarray], batch_size: int = 32) -> list[np.ndarray]:
      step = self.images_at_once(images, batch_size)
      parts = [run([tf.constant(array[start:start + step], spec.dtype)
                    for array, spec in zip(images, self.specs, strict=True)])
               for start in range(0, len(images[0]), step)]
      return [np.concatenate(batches) for batches in zip(*parts)]

    return outputs

  def run_once(self, wanted: Sequence[Ref], images: list[np.ndarray],
               batch_size: int = 32) -> list[np.ndarray]:
    """Returns the wanted tensors of all images, one array each.

    Few batches run operator by operator: that takes less time than a trace.
    """
    step = self.images_at_once(images, batch_size)
    starts = range(0, len(images[0]), step)
    if len(starts) >= FEWEST_TRACED:
      return self.tap(wanted)(images, batch_size)
    forget, parts = self._forget(wanted), []
    for start in starts:
      values = self.values([tf.constant(array[start:start + step], spec.dtype)
                            for array, spec in zip(images, self.specs, strict=True)], behind=forget)
      parts.append([values[ref].numpy() for ref in wanted])
    return [np.concatenate(batches) for batches in zip(*parts)]

  def _forget(self, wanted: Sequence[Ref]) -> Callable[[Node, Values], None]:
    """Returns what takes tensors out of the values of a run behind the last call that reads them."""
    nodes, due = self.graph.nodes, {}
    for ref, place in last_reads(self.graph, wanted).items():
      if place < len(nodes):
        due.setdefault(nodes[place], []).append(ref)

    def forget(node: Node, values: Values) -> None:
      for ref in due.get(node, ()):
        del values[ref]

    return forget

  def images_at_once(self, images: list[np.ndarray], most: int) -> int:
    """Returns how many images of these sizes a run takes within bounded memory, `most` at most."""
    return images_at_once(self.image_bytes * open_size(self.specs, images), most, self.room)

  def batches(self, calibration: Any, *, batch_size: int, what: str) -> Iterator[list[np.ndarray]]:
    """Yields data as batches, one array an input; a terminal shows images and rate after two seconds.

    Args:
      calibration: as `kquant.core.data.batches` takes it.
      batch_size: largest number of images; fewer where memory asks for it.
      what: is done, for the bar.
    """
    with tqdm(desc=what, unit=" images", delay=2.0, disable=None) as bar:
      for batch in data.batches(calibration, self.specs, batch_size=batch_size):
        step = self.images_at_once(batch, batch_size)
        for start in range(0, len(batch[0]), step):
          part = [array[start:start + step] for array in batch]
          yield part
          bar.update(len(part[0]))
