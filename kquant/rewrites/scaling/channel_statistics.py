"""What each channel of each tensor does on data: range, moments, and its weight in the output.

The noise gain of channel c of tensor t is g = E ||d out / d t_c||^2, summed over positions and outputs
and averaged over images: noise of variance v in that channel adds v g to the variance of the outputs.
One backward pass an image measures it without bias: for a random vector r of +-1,
E_r (d (r . out) / d t)^2 = ||d out / d t||^2. The gain of a weight is measured the same way, with the mean of
its input taken away: bias correction takes the mean of what its rounding does.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.core import numerics
from kquant.graph.execution import Execution
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.graph.sizes import BACKWARD_ROOM, backward_bytes

_OF_TENSORS = ("low", "high", "mean", "mean_square", "gain")
_SLOPE_MOMENTS = ("slope_squares", "slope_products", "bias_squares")


@dataclasses.dataclass
class ChannelStatistics:
  """Statistics of every tensor that has channels; each value is float64 [channels].

  Attributes:
    low, high: extrema over images and positions.
    mean, mean_square: over images and positions.
    gain: noise gain; empty where gains were not asked for.
    weight_gain: {linear layer: noise gain of its weights summed over the taps, the kernel's shape with
      spatial axes of length 1}; also empty then.
    images: how many were seen.
  """

  low: dict[Ref, np.ndarray] = dataclasses.field(default_factory=dict)
  high: dict[Ref, np.ndarray] = dataclasses.field(default_factory=dict)
  mean: dict[Ref, np.ndarray] = dataclasses.field(default_factory=dict)
  mean_square: dict[Ref, np.ndarray] = dataclasses.field(default_factory=dict)
  gain: dict[Ref, np.ndarray] = dataclasses.field(default_factory=dict)
  weight_gain: dict[LayerDef, np.ndarray] = dataclasses.field(default_factory=dict)
  images: int = 0

  def magnitude(self, ref: Ref) -> np.ndarray:
    """max |x| of each channel."""
    return np.maximum(self.high[ref], -self.low[ref])

  def deviation(self, ref: Ref) -> np.ndarray:
    """Standard deviation of each channel over images and positions."""
    return np.sqrt(np.maximum(self.mean_square[ref] - self.mean[ref] ** 2, 0.0))


def measure_channels(graph: Graph, calibration: Any, *, gains: bool = False, batch_size: int = 16,
                     seed: int = 0) -> ChannelStatistics:
  """Runs a float graph once over the data.

  Args:
    graph: standardized; it is normalized, its nodes stay.
    calibration: inputs, as `kquant.quantize` takes them.
    gains: also run backward, three times the work.
    batch_size: images at a time, fewer where memory asks for it.
    seed: of the random directions of the gains.

  Raises:
    ValueError: the data do not fit the model, or are empty.
  """
  running = RunningChannels(graph, gains=gains, batch_size=batch_size, seed=seed)
  running.absorb(calibration)
  return running.statistics()


class RunningChannels:
  """Channel statistics that are measured a part of the data at a time.

  Args:
    graph, gains, batch_size, seed: as `measure_channels` takes them.
  """

  def __init__(self, graph: Graph, *, gains: bool = False, batch_size: int = 16, seed: int = 0):
    self._graph, self._batch_size, self._seed = graph, batch_size, seed
    self._execution = Execution(graph, graph.to_model())
    if gains:
      self._execution.image_bytes, self._execution.room = backward_bytes(graph), BACKWARD_ROOM
    refs = [Ref(node, index) for node in graph.nodes for index in range(len(node.shapes))
            if len(node.shapes[index]) > 1]
    self._linear = list({node.layer: None for node in graph.nodes if node.facts.role == "linear" and gains})
    self._step = _measuring_step(self._execution, refs, self._linear)
    self._sums = _Sums(refs)

  def absorb(self, calibration: Any) -> None:
    """Runs the graph over some more data."""
    batches = self._execution.batches(calibration, batch_size=self._batch_size, what="channel statistics")
    for batch in batches:
      direction = tf.constant([self._seed, self._sums.batches], tf.int32)
      arrays = [tf.convert_to_tensor(array) for array in batch]
      self._sums.absorb(len(batch[0]), self._step(arrays, direction))

  def statistics(self, twin: Graph | None = None) -> ChannelStatistics:
    """Returns what was seen, of the tensors and layers of the graph, or of a copy of it (`Graph.copy`)."""
    statistics = self._sums.statistics()
    if self._linear:
      for layer, moments in zip(self._linear, zip(*(self._sums.totals(name) for name in _SLOPE_MOMENTS))):
        mean = statistics.mean[self._graph.calls(layer)[0].inputs[0]]
        statistics.weight_gain[layer] = _centred_gain(layer, mean, *moments)
    return statistics if twin is None else _of_twin(statistics, dict(zip(self._graph.nodes, twin.nodes)))


def _of_twin(statistics: ChannelStatistics, twins: dict[Node, Node]) -> ChannelStatistics:
  """Returns statistics of a graph as those of its copy; {node: the copy's}."""
  layers = {node.layer: twin.layer for node, twin in twins.items()}
  of_tensors = {name: {Ref(twins[ref.node], ref.index): values
                       for ref, values in getattr(statistics, name).items()} for name in _OF_TENSORS}
  weight_gain = {layers[layer]: values for layer, values in statistics.weight_gain.items()}
  return ChannelStatistics(**of_tensors, weight_gain=weight_gain, images=statistics.images)


def _centred_gain(layer: LayerDef, mean: np.ndarray, squares: np.ndarray, products: np.ndarray,
                  bias_squares: np.ndarray) -> np.ndarray:
  """Sum over taps of E (G - m B)^2: G the slope of a weight, B that of its bias, m the mean of its input."""
  facts, kernel = layer.facts, layer.params[layer.facts.kernel.name]
  mean = numerics.along_inputs(mean, squares.shape, facts.kernel.in_axes[0])
  bias_squares = numerics.along(bias_squares, squares.shape, facts.kernel.out_axes)
  taps = np.prod(kernel.shape[:facts.spatial])
  return np.maximum(squares - 2 * mean * products + taps * mean**2 * bias_squares, 0.0)


class _Sums:
  """Adds up batches in float64."""

  def __init__(self, refs: list[Ref]):
    self._refs = refs
    self._images = 0
    self.batches = 0
    self._parts: dict[str, list[list[np.ndarray]]] = {}

  def absorb(self, images: int, measured: dict[str, list[tf.Tensor]]) -> None:
    """Adds the results of one batch: extrema, and sums over its images."""
    self._images += images
    self.batches += 1
    for name, values in measured.items():
      self._parts.setdefault(name, []).append([value.numpy().astype(np.float64) for value in values])

  def totals(self, name: str) -> list[np.ndarray]:
    """The mean over images of each value of that name."""
    return [np.sum(values, axis=0) / self._images for values in zip(*self._parts[name])]

  def statistics(self) -> ChannelStatistics:
    """Returns what was seen."""
    combined = {name: [reduce([part[i] for part in parts], axis=0) for i in range(len(self._refs))]
                for name, parts in self._parts.items() if name not in _SLOPE_MOMENTS
                for reduce in [{"low": np.min, "high": np.max}.get(name, np.sum)]}
    for name in {"mean", "mean_square", "gain"} & combined.keys():
      combined[name] = [values / self._images for values in combined[name]]
    return ChannelStatistics(**{name: dict(zip(self._refs, values)) for name, values in combined.items()},
                             images=self._images)


def _measuring_step(execution: Execution, refs: list[Ref], linear: list[LayerDef]):
  """Returns a traced function of one batch: {statistic: one tensor a ref, or a layer of `linear`}."""
  layers = execution.layers
  wanted = [before_saturation(ref) for ref in execution.graph.output_refs]
  kernels = [getattr(layers[layer.name], layer.facts.kernel.name) for layer in linear]
  biases = [layers[layer.name].bias for layer in linear]

  @tf.function(autograph=False)
  def step(arrays, direction):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
      tape.watch([*arrays, *kernels, *biases] if linear else [])
      values = execution.values(arrays)
      outputs = [values[ref] for ref in wanted]
      projected = tf.add_n([tf.reduce_sum(out * random_signs(tf.shape(out), direction + index))
                            for index, out in enumerate(outputs)])
    measured = {"low": [], "high": [], "mean": [], "mean_square": []}
    for ref in refs:
      x = tf.cast(values[ref], tf.float32)
      rest = list(range(x.shape.rank - 1))
      measured["low"].append(tf.reduce_min(x, rest))
      measured["high"].append(tf.reduce_max(x, rest))
      measured["mean"].append(_image_sum(x))
      measured["mean_square"].append(_image_sum(tf.square(x)))
    if linear:
      of_tensors, of_kernels, of_biases = tape.gradient(
          projected, ([values[ref] for ref in refs], kernels, biases),
          unconnected_gradients=tf.UnconnectedGradients.ZERO)
      measured["gain"] = [tf.reduce_sum(tf.square(slope), list(range(slope.shape.rank - 1)))
                          for slope in of_tensors]
      measured.update(_slope_moments(linear, of_kernels, of_biases))
    return measured

  return step.get_concrete_function([spec.batch for spec in execution.specs], tf.TensorSpec((2,), tf.int32))


def _slope_moments(linear: list[LayerDef], of_kernels: list[tf.Tensor],
                   of_biases: list[tf.Tensor]) -> dict[str, list[tf.Tensor]]:
  """Sums over taps of G^2 and G B, and B^2, of one batch: its directions make images independent."""
  moments: dict[str, list[tf.Tensor]] = {name: [] for name in _SLOPE_MOMENTS}
  for layer, kernel, bias in zip(linear, of_kernels, of_biases):
    spatial, out_axes = list(range(layer.facts.spatial)), layer.facts.kernel.out_axes
    spread = tf.reshape(bias, numerics.channel_shape(kernel.shape, out_axes))
    moments["slope_squares"].append(tf.reduce_sum(tf.square(kernel), spatial, keepdims=True))
    moments["slope_products"].append(tf.reduce_sum(kernel * spread, spatial, keepdims=True))
    moments["bias_squares"].append(tf.square(bias))
  return moments


def before_saturation(ref: Ref) -> Ref:
  """An output of the model as the noise is counted: the input of a closing softmax or sigmoid."""
  return ref.node.inputs[0] if ref.node.facts.role == "fixed" else ref


def random_signs(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Returns +1 or -1, float32, drawn anew for each seed [2]."""
  return 2.0 * tf.cast(tf.random.stateless_uniform(shape, seed) < 0.5, tf.float32) - 1.0


def _image_sum(x: tf.Tensor) -> tf.Tensor:
  """Sum over images of the mean over positions, [channels]."""
  inner = list(range(1, x.shape.rank - 1))
  return tf.reduce_sum(tf.reduce_mean(x, inner) if inner else x, 0)
