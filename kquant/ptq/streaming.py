"""One pass through the quantized network, layer by layer, for methods that change a layer in turn.

When a layer's turn comes, its inputs are what the network computes with everything before it
quantized and corrected. Only the integers of tensors that are still to be read are kept: one byte an
element at 8 bits, for all images.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from kquant.core import keras_calls
from kquant.core.encodings import Encoding
from kquant.core.graph import Graph
from kquant.core.nodes import Node, Ref
from kquant.qmodel.layers import QuantizeActivation, QuantizeWeights

_CHUNK_ELEMENTS = 2**25
"""As many elements of a stage's largest tensor are computed at a time."""


@dataclasses.dataclass
class _Stage:
  """From stored tensors to the next tensor that is stored.

  Attributes:
    nodes: calls to run, in order; the last is the quantizer, or makes an output of the model.
    sources: stored tensors that they read.
    linear: the one call of a QuantizeWeights layer among them, or None.
  """

  nodes: list[Node]
  sources: list[Ref]
  linear: Node | None


class LayerTurn:
  """A linear layer whose turn it is, with what reaches it.

  Attributes:
    layer: the QuantizeWeights layer; what is changed in it is what the rest of the pass computes with.
    shared: whether other calls use the layer too.
  """

  def __init__(self, stream: "_Stream", stage: _Stage, layer: QuantizeWeights, *, shared: bool):
    self.layer = layer
    self.shared = shared
    self._stream = stream
    self._stage = stage

  def inputs(self) -> Iterator[tf.Tensor]:
    """The layer's quantized inputs, a chunk of images at a time."""
    (source,) = self._stage.linear.inputs
    for values in self._stream.chunks(self._stage, until=self._stage.linear):
      yield values[source]

  def outputs(self) -> Iterator[tf.Tensor]:
    """The layer's outputs before its activation, with its weights as they are now."""
    for inputs in self.inputs():
      yield self.layer(inputs)

  def image_means(self) -> np.ndarray:
    """Mean of the outputs over positions, float64 [images, channels]."""
    return np.concatenate([tf.reduce_mean(output, list(range(1, output.shape.rank - 1)))
                           for output in self.outputs()]).astype(np.float64)


def layer_turns(qmodel: keras.Model, images: list[np.ndarray]) -> Iterator[LayerTurn]:
  """Yields the linear layers of a calibrated model in topological order, each on its quantized prefix.

  Args:
    qmodel: calibrated; layers may be changed when they are yielded.
    images: float inputs [n, ...], one array a model input.
  """
  graph = Graph.from_model(qmodel)
  stream = _Stream(graph, qmodel, images)
  for stage in tqdm(stream.stages, desc="layers", unit="", delay=2.0, disable=None):
    if stage.linear is not None:
      layer = stream.layers[stage.linear.layer.name]
      yield LayerTurn(stream, stage, layer, shared=len(graph.calls(stage.linear.layer)) > 1)
    stream.advance(stage)


class _Stream:
  """Stored integers of the tensors that are still to be read."""

  def __init__(self, graph: Graph, qmodel: keras.Model, images: list[np.ndarray]):
    self.layers = {layer.name: layer for layer in qmodel.layers}
    self.images = len(images[0])
    self._stored: dict[Ref, np.ndarray] = dict(zip(graph.input_refs, images))
    self._grids: dict[Ref, Encoding] = {}
    self.stages = self._plan(graph)
    self._last_read = {ref: index for index, stage in enumerate(self.stages) for ref in stage.sources}

  def _plan(self, graph: Graph) -> list[_Stage]:
    stored, stages = set(graph.input_refs), []
    for node in graph.nodes:
      if node.layer.cls is QuantizeActivation:
        stages.append(_stage_of(node, stored))
        stored.add(Ref(node))
    return stages

  def chunks(self, stage: _Stage, *, until: Node | None = None) -> Iterator[dict[Ref, tf.Tensor]]:
    """Runs a stage, up to but without the call `until`, on some images at a time."""
    nodes = stage.nodes if until is None else stage.nodes[:stage.nodes.index(until)]
    for part in self._parts(stage):
      values = {ref: self._load(ref, part) for ref in stage.sources}
      for node in nodes:
        results = keras_calls.call_node(self.layers[node.layer.name], node, values.__getitem__)
        values.update((Ref(node, index), tensor) for index, tensor in enumerate(results))
      yield values

  def _parts(self, stage: _Stage) -> list[slice]:
    """Cuts the images into chunks of bounded size."""
    shapes = [ref.shape for ref in stage.sources] + [shape for node in stage.nodes for shape in node.shapes]
    largest = max(int(np.prod([n or 1 for n in shape[1:]])) for shape in shapes)
    step = max(1, _CHUNK_ELEMENTS // largest)
    return [slice(start, min(start + step, self.images)) for start in range(0, self.images, step)]

  def _load(self, ref: Ref, part: slice) -> tf.Tensor:
    stored = self._stored[ref][part]
    if ref not in self._grids:
      return tf.constant(stored)
    grid = self._grids[ref]
    shifted = tf.cast(stored, tf.float32) - float(grid.zero_point[0])
    return shifted * float(grid.scale[0])

  def advance(self, stage: _Stage) -> None:
    """Stores the stage's result and forgets what no later stage reads."""
    result = Ref(stage.nodes[-1])
    grid = self.layers[result.node.layer.name].encoding()
    parts = [_integers(values[result], grid) for values in self.chunks(stage)]
    self._stored[result], self._grids[result] = np.concatenate(parts), grid
    index = self.stages.index(stage)
    for ref in [ref for ref in self._stored if self._last_read.get(ref, -1) <= index and ref != result]:
      del self._stored[ref]


def _integers(values: tf.Tensor, grid: Encoding) -> np.ndarray:
  """Values that lie on a grid as its integers, in the smallest type."""
  integers = tf.round(values / float(grid.scale[0])) + float(grid.zero_point[0])
  return tf.cast(integers, tf.int8 if grid.bits <= 8 else tf.int16).numpy()


def _stage_of(last: Node, stored: set[Ref]) -> _Stage:
  """Everything between the stored tensors and a quantizer."""
  order: dict[Node, None] = {}
  sources: dict[Ref, None] = {}

  def visit(node: Node) -> None:
    for ref in node.inputs:
      if ref in stored:
        sources[ref] = None
      elif ref.node not in order:
        visit(ref.node)
    order[node] = None

  visit(last)
  linear = [node for node in order if node.layer.cls is QuantizeWeights]
  assert len(linear) <= 1, f"{last!r} has {linear} before it"
  return _Stage(list(order), list(sources), linear[0] if linear else None)
