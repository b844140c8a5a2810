"""One pass through the quantized network, layer by layer, for methods that change a layer in turn.

When a layer's turn comes, its inputs are what the network computes with everything before it
quantized and corrected. Only the integers of tensors that are still to be read are kept: one byte an
element at 8 bits, for all images; two more, for fixed-point values, where the float network runs beside it.
Their memory is used again.
"""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from kquant.core.encodings import Encoding
from kquant.graph.execution import FEWEST_TRACED, call_float, call_layer, live_layers, run_nodes
from kquant.graph.fused_lstm import FusedLSTM
from kquant.graph.graph import Graph
from kquant.graph.kinds.table import facts_of
from kquant.graph.nodes import LayerDef, Node, Ref, kind_of_class
from kquant.ptq.layerwise.patches import Patches
from kquant.ptq.layerwise.stages import Stage, ancestors, stage_of
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights, call_with_weights

_CHUNK_ELEMENTS = 2**22
"""As many elements of a stage's largest tensor are computed at a time: some megabytes, for the cache."""
_MOST_SPACE = 4
"""Times its size that a tensor may take up."""


class LayerTurn:
  """A layer with quantized weights whose turn it is, with what reaches it.

  Attributes:
    layer: the QuantizeWeights layer; what is changed in it is what the rest of the pass computes with.
    patches: how its inputs and its kernel make a matrix product; None where it is not linear.
    float_params: its float weights by name; None where the turns do without float inputs.
    calls: of the layer, in their order; where there are several, it has a turn at each of them, and what
      reaches the later ones depends on its weights.
    images: number of images that pass.
  """

  def __init__(self, stream: "_Stream", stage: Stage, layer: QuantizeWeights, calls: list[Node]):
    self.layer = layer
    self.patches = _patches(layer.layer, stage.linear.inputs[0].shape[1:])
    self.float_params = stream.float_params and stream.float_params[layer.name]
    self.calls = calls
    self.images = stream.images
    self._stream = stream
    self._stage = stage
    self._patch_means: np.ndarray | None = None

  def inputs(self) -> Iterator[tf.Tensor]:
    """The layer's quantized inputs, a chunk of images at a time; `image_means` notes them on the way."""
    means = []
    for inputs in self._stream.inputs(self._stage, floating=False):
      if self.patches is not None:
        means.append(self.patches.means(inputs))
      yield inputs
    self._patch_means = np.concatenate(means) if means else None

  def float_inputs(self) -> Iterator[tf.Tensor]:
    """The inputs that the layer has in the float network, the same chunks."""
    return self._stream.inputs(self._stage, floating=True)

  @property
  def is_fused(self) -> bool:
    """Whether the layer is a FusedLSTM."""
    return isinstance(self.layer.layer, FusedLSTM)

  @property
  def is_known(self) -> bool:
    """Whether it is known what the layer computes with its weights."""
    return self.patches is not None or self.is_fused

  @property
  def is_shared(self) -> bool:
    """Whether the layer has turns at other calls too."""
    return len(self.calls) > 1

  def call_inputs(self) -> Iterator[tf.Tensor]:
    """The inputs that all calls of the layer have in the float network, some images of one call at a time."""
    return self._stream.call_inputs([call.inputs[0] for call in self.calls])

  def image_means(self) -> np.ndarray:
    """Mean over positions of the outputs before the activation, as its weights are now: float64
    [images, channels]."""
    ((name, grid),) = self.layer.weight_encodings().items()  # of a linear layer
    kernel = grid.dequantize(grid.quantize(self.layer.weight_values()[name]))
    return self.means_with(kernel) + self.layer.layer.bias.numpy()

  def means_with(self, kernel: np.ndarray) -> np.ndarray:
    """Mean over positions of what a kernel in Keras layout makes of the inputs, without a bias: float64
    [images, channels]."""
    matrix = self.patches.matrix(kernel).astype(np.float64)
    if self._patch_means is None:
      collections.deque(self.inputs(), maxlen=0)
    return np.einsum("nbk,bko->nbo", self._patch_means, matrix, optimize=True).reshape(self.images, -1)


def _patches(layer: keras.layers.Layer, shape: tuple[int, ...]) -> Patches | None:
  """Returns the patches of a linear layer over inputs of a shape without batch; None for another layer."""
  facts = facts_of(kind_of_class(type(layer)))
  if facts.role != "linear":
    return None
  kernel = getattr(layer, facts.kernel.name)
  return Patches(type(layer).__name__, layer.get_config(), kernel.shape, shape)


def layer_turns(qmodel: keras.Model, images: list[np.ndarray], *,
                float_params: dict[str, dict[str, np.ndarray]] | None = None,
                graph: Graph | None = None) -> Iterator[LayerTurn]:
  """Yields the layers with weights of a calibrated model in topological order, each on its quantized prefix.

  Args:
    qmodel: calibrated; layers may be changed when they are yielded.
    images: float inputs [n, ...], one array a model input.
    float_params: {layer: its float weights by name}, where turns need their float inputs.
    graph: that qmodel was made of, where the caller has it.

  Raises:
    ValueError: a batch norm is left in a layer of qmodel: its weights then are not those that are rounded.
  """
  graph = graph or Graph.from_model(qmodel)
  for node in graph.nodes:
    if issubclass(node.layer.cls, QuantizeWeights) and node.layer.cls is not QuantizeWeights:
      raise ValueError(f"Layer {node.name!r} still has its batch norm; insert the quantizers with "
                       "batch_norm='fold' before methods that change weights layer after layer.")
  stream = _Stream(graph, qmodel, images, float_params)
  calls: dict[LayerDef, list[Node]] = {}
  for node in graph.nodes:
    calls.setdefault(node.layer, []).append(node)
  for stage in tqdm(stream.stages, desc="layers", unit="", delay=2.0, disable=None):
    if stage.linear is not None:
      layer = stream.layers[stage.linear.layer.name]
      yield LayerTurn(stream, stage, layer, calls[stage.linear.layer])
    stream.advance(stage)


class _Stream:
  """Stored integers of the tensors that are still to be read, and their float values if need be."""

  def __init__(self, graph: Graph, qmodel: keras.Model, images: list[np.ndarray],
               float_params: dict[str, dict[str, np.ndarray]] | None):
    self.layers = live_layers(qmodel)
    self.images = len(images[0])
    self._graph, self._inputs = graph, images
    self.float_params = float_params
    self._stored: dict[Ref, np.ndarray] = dict(zip(graph.input_refs, images))
    self._floating: dict[Ref, np.ndarray] = dict(self._stored) if float_params is not None else {}
    self._grids: dict[Ref, Encoding] = {}
    self._spare: list[np.ndarray] = []  # memory that is written again: fresh pages take longer than sums
    self.stages = self._plan(graph)
    self._last_read = {ref: index for index, stage in enumerate(self.stages) for ref in stage.sources}

  def _plan(self, graph: Graph) -> list[Stage]:
    stored, stages = set(graph.input_refs), []
    for node in graph.nodes:
      if node.layer.cls is QuantizeActivation:
        stages.append(stage_of(node, stored))
        stored.add(Ref(node))
    return stages

  def inputs(self, stage: Stage, *, floating: bool) -> Iterator[tf.Tensor]:
    """The input of a stage's linear layer, some images at a time."""
    (wanted,) = stage.linear.inputs
    between = stage.nodes[:stage.nodes.index(stage.linear)]
    for part in self._chunks(stage.nodes, stage.sources):
      values = {ref: _dequantized(*self._load(ref, part, floating)) for ref in stage.sources}
      run_nodes(between, self.layers, values)
      yield values[wanted]

  def call_inputs(self, wanted: list[Ref]) -> Iterator[tf.Tensor]:
    """Some tensors of the float network, which is run from the start, some images of one tensor at a time."""
    needed = ancestors(wanted)
    nodes = [node for node in self._graph.nodes if node in needed]
    with self._float_weights(nodes):
      for part in self._chunks(nodes):
        values = {ref: tf.constant(array[part]) for ref, array in zip(self._graph.input_refs, self._inputs)}
        run_nodes(nodes, self.layers, values, call=call_float)
        yield from (values[ref] for ref in wanted)

  def _chunks(self, nodes: list[Node], sources: Sequence[Ref] = ()) -> list[slice]:
    """Cuts the images into chunks of bounded size."""
    shapes = [ref.shape for ref in sources] + [shape for node in nodes for shape in node.shapes]
    largest = max(int(np.prod([n or 1 for n in shape[1:]])) for shape in shapes)
    step = max(1, _CHUNK_ELEMENTS // largest)
    return [slice(start, min(start + step, self.images)) for start in range(0, self.images, step)]

  def _load(self, ref: Ref, part: slice, floating: bool) -> tuple[np.ndarray, np.float32, np.float32]:
    """Returns (stored, scale, zero point) of some images: the tensor is (stored - zero point) * scale."""
    if ref not in self._grids:
      return self._stored[ref][part], np.float32(1), np.float32(0)
    grid = self._grids[ref]
    if floating:
      return self._floating[ref][part], _float_step(grid), np.float32(0)
    return self._stored[ref][part], grid.scale[0], np.float32(grid.zero_point[0])

  def advance(self, stage: Stage) -> None:
    """Stores the stage's result and forgets what no later stage reads."""
    result = Ref(stage.nodes[-1])
    grid = self.layers[result.node.layer.name].encoding()
    if self.float_params is not None:
      with self._float_weights(stage.nodes):
        self._floating[result] = self._run(stage, _fixed_point(grid), floating=True)
    self._stored[result] = self._run(stage, _integers(grid), floating=False)
    self._grids[result] = grid
    index = self.stages.index(stage)
    for ref in [ref for ref in self._stored if self._last_read.get(ref, -1) <= index and ref != result]:
      for values in (self._stored.pop(ref), self._floating.pop(ref, None)):
        if values is not None and ref in self._grids:  # not the user's images
          owner = values if values.base is None else values.base
          self._spare.append(owner.reshape(-1).view(np.uint8))

  def _empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array for results, in the smallest memory that is free and large enough, not much larger."""
    size = math.prod(shape) * dtype.itemsize
    fitting = [i for i, spare in enumerate(self._spare) if size <= spare.size <= _MOST_SPACE * size]
    if not fitting:
      self._spare.clear()
      return np.empty(shape, dtype)
    spare = self._spare.pop(min(fitting, key=lambda i: self._spare[i].size))
    return spare[:size].view(dtype).reshape(shape)

  @contextlib.contextmanager
  def _float_weights(self, nodes: list[Node]) -> Iterator[None]:
    """Puts the float weights into the linear layers of some calls for a while."""
    current = []
    for name in dict.fromkeys(node.layer.name for node in nodes if node.layer.cls is QuantizeWeights):
      layer = self.layers[name].layer
      current += [(getattr(layer, key), getattr(layer, key).numpy()) for key in self.float_params[name]]
      for key, value in self.float_params[name].items():
        getattr(layer, key).assign(value)
    try:
      yield
    finally:
      for variable, value in current:
        variable.assign(value)

  def _run(self, stage: Stage, store: Callable[[tf.Tensor], tf.Tensor], *, floating: bool) -> np.ndarray:
    """Computes what a stage's quantizer reads and stores it for all images."""
    *nodes, last = stage.nodes
    seen = self.layers[last.layer.name].float_call  # a symmetric grid reaches beyond it, floats do not
    weights = {} if floating or stage.linear is None else (
        self.layers[stage.linear.layer.name].simulated_weights())  # once: not with each chunk

    def compute(loaded, weights):
      values = {ref: _dequantized(*stored) for ref, stored in zip(stage.sources, loaded)}
      if floating:
        run_nodes(stage.nodes, self.layers, values, call=call_float)
        return store(values[Ref(last)])
      run_nodes(nodes, self.layers, values, call=lambda layer, node, values: call_with_weights(
          layer, node, values, weights) if node is stage.linear else call_layer(layer, node, values))
      return store(seen(values[last.inputs[0]]))

    chunks = self._chunks(stage.nodes, stage.sources)
    if len(chunks) >= FEWEST_TRACED:
      specs = [[tf.TensorSpec((None, *stored.shape[1:]), stored.dtype), tf.TensorSpec((), tf.float32),
                tf.TensorSpec((), tf.float32)]
               for stored, _, _ in (self._load(ref, slice(1), floating) for ref in stage.sources)]
      compute = tf.function(compute, autograph=False, input_signature=[
          specs, {name: tf.TensorSpec(value.shape, value.dtype) for name, value in weights.items()}])
    results = None
    for part in chunks:
      outputs = compute([list(self._load(ref, part, floating)) for ref in stage.sources],
                        weights).numpy()
      results = self._empty((self.images, *outputs.shape[1:]), outputs.dtype) if results is None else results
      results[part] = outputs
    return results


def _dequantized(stored, scale, zero_point) -> tf.Tensor:
  return (tf.cast(stored, tf.float32) - zero_point) * scale


def _integers(grid: Encoding) -> Callable[[tf.Tensor], tf.Tensor]:
  """Values -> their integers on a grid, as `fake_quantization.fake_quantize` rounds them."""
  qmin, qmax = grid.limits
  scale, zero_point = tf.constant(grid.scale[0]), float(grid.zero_point[0])  # eager: divided by, not folded

  dtype = tf.int8 if grid.bits <= 8 else tf.int16
  return lambda values: tf.cast(tf.clip_by_value(tf.round(values / scale) + zero_point, qmin, qmax), dtype)


def _float_step(grid: Encoding) -> np.float32:
  """The step in which float values are stored as int16: 1/64 of an 8-bit one, 4 times its range."""
  return np.float32(grid.scale[0] * 2.0 ** (grid.bits - 14))


def _fixed_point(grid: Encoding) -> Callable[[tf.Tensor], tf.Tensor]:
  """Float values -> int16 multiples of `_float_step`."""
  step = tf.constant(_float_step(grid))
  return lambda values: tf.cast(tf.clip_by_value(tf.round(values / step), -32767.0, 32767.0), tf.int16)
