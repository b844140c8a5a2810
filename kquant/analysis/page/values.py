"""What the figures show that no record holds: distributions of activations, ranges of kernels."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.analysis.calls import Params, calls_with
from kquant.analysis.layer_errors import network_of
from kquant.analysis.results import AnalysisRow
from kquant.analysis.sites import ACTIVATION, WEIGHTS, Site, sites
from kquant.core.encodings import Encoding
from kquant.graph.execution import Execution, live_layers
from kquant.graph.kinds.table import facts_of
from kquant.graph.nodes import Ref, kind_of_class

MOST_IMAGES = 16
_BINS = 120
_VALUES = 50_000
"""Of a tensor in a batch, at most: evenly spread ones stand for all."""


@dataclasses.dataclass(frozen=True)
class Histogram:
  """How the float values of an activation are distributed over its grid.

  Attributes:
    name: of the tensor; of those that share the grid the one with the largest local noise.
    counts: [bins], values in each bin.
    edges: [bins + 1], real numbers.
    range: (low, high) that the grid reaches.
    step, bits: of the grid.
    row: what the analysis says of it.
  """

  name: str
  counts: np.ndarray
  edges: np.ndarray
  range: tuple[float, float]
  step: float
  bits: int
  row: AnalysisRow


@dataclasses.dataclass(frozen=True)
class KernelRange:
  """The smallest and the largest weight of each output channel.

  Attributes:
    name: of the layer.
    before: (low, high), [channels] each, of the float weights.
    after: the same of the weights on their grid.
    limit: the largest magnitude that the grid reaches, [channels].
    row: what the analysis says of it.
  """

  name: str
  before: tuple[np.ndarray, np.ndarray]
  after: tuple[np.ndarray, np.ndarray]
  limit: np.ndarray
  row: AnalysisRow


def histograms(qmodel: keras.Model, float_params: Params | None, rows: Sequence[AnalysisRow],
               images: list[np.ndarray]) -> list[Histogram]:
  """Returns how the tensors of some rows are distributed in the float network, on a few images.

  Args:
    qmodel: calibrated, with its quantizers.
    float_params: {layer: its weights and biases before rounding}; None: those of qmodel.
    rows: of an analysis; those of weights, and of tensors that qmodel has not, are left out.
    images: one array [n, ...] a model input; the first of them are run.
  """
  network = network_of(qmodel, float_params)
  found = {site.name: site for site in sites(network.graph) if site.part == ACTIVATION}
  rows = [row for row in rows if row.part == ACTIVATION and row.name in found]
  chosen = [found[row.name] for row in rows]
  execution = Execution(network.graph, qmodel, call=calls_with(float_params or {}))
  values = _samples(execution, [_loudest(site, row) for site, row in zip(chosen, rows)],
                    [array[:MOST_IMAGES] for array in images])
  layers = live_layers(qmodel)
  grids = [layers[site.nodes[0].layer.name].encoding() for site in chosen]
  return [_histogram(*triple) for triple in zip(rows, values, grids)]


def _loudest(site: Site, row: AnalysisRow) -> Ref:
  """The tensor on the grid that has the largest local noise."""
  return next(call.inputs[0] for call in site.nodes if site.name_of(call) == row.loudest)


def _samples(execution: Execution, refs: list[Ref], images: list[np.ndarray]) -> list[np.ndarray]:
  """Some values of each tensor, its smallest and its largest among them."""
  run = execution.traced(lambda values: [_spread(values[ref]) for ref in refs])
  batches = [[part.numpy() for part in run([tf.constant(array, spec.dtype)
                                            for array, spec in zip(batch, execution.specs)])]
             for batch in execution.batches(images, batch_size=MOST_IMAGES, what="distributions")]
  return [np.concatenate(parts) for parts in zip(*batches)]


def _spread(tensor: tf.Tensor) -> tf.Tensor:
  """At most so many values of a tensor, evenly spread, and its limits."""
  flat = tf.reshape(tensor, [-1])
  step = tf.size(flat) // _VALUES + 1
  return tf.concat([flat[::step], [tf.reduce_min(flat), tf.reduce_max(flat)]], 0)


def _histogram(row: AnalysisRow, values: np.ndarray, grid: Encoding) -> Histogram:
  (low,), (high,) = grid.range
  counts, edges = np.histogram(values, bins=_BINS,
                               range=(min(values.min(), low), max(values.max(), high)))
  return Histogram(row.loudest, counts, edges, (float(low), float(high)), float(grid.scale[0]), grid.bits,
                   row)


def kernel_ranges(qmodel: keras.Model, float_params: Params | None,
                  rows: Sequence[AnalysisRow]) -> list[KernelRange]:
  """Returns the ranges of the first weight of each layer of qmodel that some rows are of, as `histograms`."""
  layers = live_layers(qmodel)
  return [_kernel_range(layers[row.name], (float_params or {}).get(row.name, {}), row)
          for row in rows if row.part == WEIGHTS and row.name in layers]


def _kernel_range(layer: keras.layers.Layer, before: dict[str, np.ndarray], row: AnalysisRow) -> KernelRange:
  facts = facts_of(kind_of_class(type(layer.layer))).weights[0]
  after = layer.simulated_weights()[facts.name].numpy()
  values = before.get(facts.name, layer.weight_values()[facts.name])
  inner = tuple(axis for axis in range(values.ndim) if axis not in facts.out_axes)
  ranges = [_limits(array, inner) for array in (values, after)]
  reach = np.abs(np.asarray(layer.weight_encodings()[facts.name].range)).max(0)
  return KernelRange(row.name, *ranges, np.broadcast_to(reach, ranges[0][0].shape), row)


def _limits(values: np.ndarray, inner: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """(low, high) of each channel."""
  return values.min(inner).reshape(-1), values.max(inner).reshape(-1)
