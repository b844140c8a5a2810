"""One pass over the data fills every range estimator and sets every activation grid."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from kquant.core.input_range import InputRange
from kquant.core.records import NarrowTensor
from kquant.graph.execution import Execution, Values, call_float
from kquant.graph.fused_lstm import FusedLSTM, one_step_later
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.qmodel.columns import Border, ColumnStatistics, borders, measure_columns
from kquant.qmodel.data_free import known_without_data
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.qmodel.tapering import cut_tapering_ends
from kquant.ranges.base import Estimator
from kquant.ranges.estimators import make_estimator


@dataclasses.dataclass
class Statistics:
  """What one pass of the float network over the data showed.

  Attributes:
    estimators: {QuantizeActivation layer: the range estimator of its tensors}.
    input_means: {QuantizeWeights layer: float64 mean of its input, [channels]}, over images,
      positions and calls.
    output_means: {QuantizeWeights layer: float32 mean of its output before the activation over the
      positions of each image, [images, channels]}; one block of images a call. Empty without images.
    columns: {input or output of the model: its columns}. Empty without images.
    cells: {fused recurrent layer: the largest |cell|}. Empty without images.
    state_means: {fused recurrent layer: float64 mean of the state that its steps read, [units]}. Empty
      without images.
  """

  estimators: dict[str, Estimator]
  input_means: dict[str, np.ndarray]
  output_means: dict[str, np.ndarray]
  columns: dict[Border, ColumnStatistics] = dataclasses.field(default_factory=dict)
  cells: dict[str, float] = dataclasses.field(default_factory=dict)
  state_means: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def calibrate(qmodel: keras.Model, calibration: Any, *, batch_size: int = 32) -> keras.Model:
  """Sets every activation range from the float values seen on the data, in place.

  The ranges depend neither on the order nor on the batch size of the data, but for the last bit of
  TensorFlow's own float sums.

  Args:
    qmodel: what `insert_quantizers` returned.
    calibration: arrays, a tf.data.Dataset, a generator ... (see `kquant.core.data.batches`); or an
      InputRange, with which ranges follow from batch norms (see `kquant.qmodel.data_free`).
    batch_size: images at once.

  Returns:
    qmodel.

  Raises:
    ValueError: the data do not fit the model, are empty or not finite; or qmodel has no quantizers.
    TypeError: data of another kind.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]))
    >>> low, high = kq.describe(kq.calibrate(qmodel, np.ones((8, 3), np.float32))).rows[0].output.range
    >>> low, round(high, 6)
    (0.0, 1.0)
  """
  graph = Graph.from_model(qmodel)
  set_ranges(qmodel, observe(qmodel, calibration, batch_size=batch_size, graph=graph), graph)
  return qmodel


def observe(qmodel: keras.Model, calibration: Any, *, batch_size: int = 32,
            graph: Graph | None = None) -> Statistics:
  """Runs the float network once over the data and returns its statistics; see `calibrate`.

  Args:
    graph: that qmodel was made of, where the caller has it.
  """
  layers = _activation_layers(qmodel)
  if isinstance(calibration, InputRange):
    ranges, means = known_without_data(qmodel, calibration, graph=graph)
    return Statistics({name: ranges[name] for name in layers if layers[name].fixed is None}, means, {})
  estimators = {name: make_estimator(layer.range) for name, layer in layers.items() if layer.fixed is None}
  input_means: dict[str, list[np.ndarray]] = {}
  output_means: dict[str, list[np.ndarray]] = {}
  state_means: dict[str, list[np.ndarray]] = {}
  taps = _Taps(qmodel, graph or Graph.from_model(qmodel))
  columns = {border: ColumnStatistics() for border in taps.borders}
  cells: dict[str, float] = {}
  step = taps.step(estimators)
  for batch in taps.execution.batches(calibration, batch_size=batch_size, what="calibrate"):
    count = len(batch[0])
    if count == 1 and taps.execution.images_at_once(batch, most=2) > 1:
      # alone, where others pass together, it would run in kernels whose sums differ in the last bit
      batch = [np.concatenate([array, array]) for array in batch]
    measured, *image_means, read_back, measured_columns, measured_cells = tf.nest.map_structure(
        np.asarray, step([tf.convert_to_tensor(array) for array in batch], tf.constant(count)))
    for (name, refs), values in zip(taps.activations.items(), measured):
      _absorb(estimators[name], values, refs[0].node.inputs[0])
    for border, values in zip(taps.borders, measured_columns):
      columns[border].absorb(*values)
    for name, limit in zip(taps.fused, measured_cells):
      cells[name] = max(float(limit), cells.get(name, 0.0))
    for means, names, values_of_side in ((input_means, taps.linear, image_means[0]),
                                         (output_means, taps.linear, image_means[1]),
                                         (state_means, taps.fused, read_back)):
      for name, values in zip(names, values_of_side):
        means.setdefault(name, []).append(values)
  return Statistics(estimators, {name: _mean_of_any_order(parts) for name, parts in input_means.items()},
                    {name: np.concatenate(parts) for name, parts in output_means.items()}, columns, cells,
                    {name: _mean_of_any_order(parts) for name, parts in state_means.items()})


def _absorb(estimator: Estimator, measured: dict[str, np.ndarray], ref: Ref) -> None:
  """Adds what was measured of a tensor; an error names the layer that made it."""
  try:
    estimator.absorb(measured)
  except ValueError as error:
    raise ValueError(f"Layer {ref.node.name!r}: {error}") from None


def set_ranges(qmodel: keras.Model, statistics: Statistics, graph: Graph) -> None:
  """Sets the grid of every activation quantizer from its estimator and turns it on.

  It notes where what reads a tensor ended its range, and which inputs and outputs have columns that use a few
  steps of their grid.

  Args:
    graph: that qmodel was made of.
  """
  layers, ranges = _activation_layers(qmodel), {}
  estimators = statistics.estimators.items()
  for name, estimator in tqdm(estimators, desc="ranges", unit="", delay=2.0, disable=None):
    quantizer = layers[name].quantizer
    ranges[name] = estimator.range(bits=quantizer.bits, symmetric=quantizer.symmetric)
    layers[name].set_range(*ranges[name])
  for name, (low, high) in cut_tapering_ends(graph, layers, ranges).items():
    (first, last), (lowest, highest) = ranges[name], layers[name].seen
    layers[name].cut = (low if low > first or low == lowest else None,
                        high if high < last or high == highest else None)
  for name, limit in statistics.cells.items():
    qmodel.get_layer(name).layer.cell_limit.assign(limit)
  for layer in layers.values():
    layer.narrow = ()
  for border, columns in statistics.columns.items():
    narrow = columns.narrow(border, layers[border.quantizer].encoding())
    if narrow is not None:
      layers[border.quantizer].narrow += (narrow,)


def narrow_tensors(qmodel: keras.Model) -> list[NarrowTensor]:
  """Returns the inputs and outputs some of whose columns use a few steps of the grid at calibration."""
  return [narrow for layer in _activation_layers(qmodel).values() for narrow in layer.narrow]


def _activation_layers(qmodel: keras.Model) -> dict[str, QuantizeActivation]:
  layers = {layer.name: layer for layer in qmodel.layers if isinstance(layer, QuantizeActivation)}
  if not layers:
    raise ValueError(f"Model {qmodel.name!r} has no quantizers; expected what kq.insert_quantizers returns.")
  return layers


class _Taps:
  """Runs the float network of a qmodel and looks at what is to be quantized.

  Attributes:
    activations: {QuantizeActivation layer: the tensors that its range is taken from}.
    linear: the calls of QuantizeWeights layers, by layer name.
    borders: inputs and outputs whose columns are looked at.
    fused: the fused recurrent layers, by name.
  """

  def __init__(self, qmodel: keras.Model, graph: Graph):
    self.execution = Execution(graph, qmodel, call=call_float)
    self.activations: dict[str, list[Ref]] = {}
    self._linear: list[Node] = []
    for node in graph.nodes:
      layer = self.execution.layers[node.layer.name]
      if isinstance(layer, QuantizeActivation):
        if layer.fixed is None and node.kwargs.get("observe", True):
          self.activations.setdefault(layer.name, []).append(Ref(node))
      elif type(layer) is QuantizeWeights:
        self._linear.append(node)
    self.linear = [node.layer.name for node in self._linear]
    self._fused = [node for node in self._linear
                   if isinstance(self.execution.layers[node.layer.name].layer, FusedLSTM)]
    self.fused = [node.layer.name for node in self._fused]
    self.borders = borders(graph)

  def step(self, estimators: dict[str, Estimator]) -> Callable[..., Any]:
    """Returns a traced function of one batch and its number of images.

    It returns what each estimator measures of its tensors, and means over the positions of each image of the
    inputs and of the outputs of the linear layers and of the states that fused ones read, and the columns of
    the borders and the largest cells. The network waits until a tensor has been looked at: else many of them
    would wait in memory for that.
    """
    parts, due = self._looks(estimators), {}
    places = {node: place for place, node in enumerate(self.execution.graph.nodes)}
    for look in itertools.chain(*parts):
      due.setdefault(max((ref.node for ref in look.refs), key=places.get), []).append(look)

    @tf.function(autograph=False)
    def run(arrays: list[tf.Tensor], count: tf.Tensor):
      seen: dict[_Look, Any] = {}

      def behind(node: Node, values: Values) -> None:
        for look in due.get(node, []):
          seen[look] = look.measure([values[ref][:count] for ref in look.refs])
        if node in due:
          with tf.control_dependencies(tf.nest.flatten([seen[look] for look in due[node]])):
            values.update({ref: tf.identity(values[ref]) for ref in node.outputs})

      self.execution.values(arrays, behind=behind)
      return [[seen[look] for look in looks] for looks in parts]

    specs = [spec.batch for spec in self.execution.specs]
    return run.get_concrete_function(specs, tf.TensorSpec((), tf.int32))

  def _looks(self, estimators: dict[str, Estimator]) -> list[list["_Look"]]:
    """What is looked at: ranges, inputs of linear layers, outputs, states, columns of the borders, cells."""
    ranges = [_Look(refs, lambda tensors, name=name: estimators[name].measure(as_one(tensors)))
              for name, refs in self.activations.items()]
    inputs, outputs = ([_Look([ref], lambda tensors: _mean_of_positions(*tensors)) for ref in refs]
                       for refs in ([node.inputs[0] for node in self._linear], map(Ref, self._linear)))
    columns = [_Look([border.ref], lambda tensors, moments=border.is_input:
                     measure_columns(*tensors, moments=moments)) for border in self.borders]
    states = [_Look([Ref(node)], lambda tensors: _mean_of_positions(one_step_later(*tensors)))
              for node in self._fused]
    cells = [_Look([node.inputs[0]], functools.partial(_largest_cell, self.execution.layers[name].layer))
             for node, name in zip(self._fused, self.fused)]
    return [ranges, inputs, outputs, states, columns, cells]


@dataclasses.dataclass(eq=False)
class _Look:
  """What is measured, in a trace, of some tensors [images, ...]."""

  refs: list[Ref]
  measure: Callable[[list[tf.Tensor]], Any]


def _largest_cell(layer: FusedLSTM, tensors: list[tf.Tensor]) -> tf.Tensor:
  return tf.reduce_max(tf.abs(layer.cells(*tensors)))


def _mean_of_positions(tensor: tf.Tensor) -> tf.Tensor:
  return tf.reduce_mean(tensor, list(range(1, tensor.shape.rank - 1)))


def as_one(tensors: list[tf.Tensor]) -> tf.Tensor:
  """Tensors on one grid, [images, ...] each, as one tensor: its statistics are those of the grid."""
  if len(tensors) == 1:
    return tensors[0]
  return tf.concat([tf.reshape(tensor, [tf.shape(tensor)[0], -1]) for tensor in tensors], axis=1)


def _mean_of_any_order(parts: list[np.ndarray]) -> np.ndarray:
  """Mean over images of parts [images, channels]: sorted first, so that their order cannot matter."""
  return np.sort(np.concatenate(parts), axis=0).astype(np.float64).mean(axis=0)
