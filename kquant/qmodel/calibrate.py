"""One pass over the data fills every range estimator and sets every activation grid."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from kquant.core import data
from kquant.core.input_range import InputRange
from kquant.graph import keras_calls
from kquant.qmodel.data_free import known_without_data
from kquant.qmodel.layers import QuantizeActivation
from kquant.qmodel.observation import observing
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
  """

  estimators: dict[str, Estimator]
  input_means: dict[str, np.ndarray]
  output_means: dict[str, np.ndarray]


def calibrate(qmodel: keras.Model, calibration: Any, *, batch_size: int = 32) -> keras.Model:
  """Sets every activation range from the float values seen on the data, in place; returns qmodel.

  The ranges depend neither on the order nor on the batch size of the data, but for the last bit of
  TensorFlow's own float sums.

  Args:
    qmodel: what `insert_quantizers` returned.
    calibration: arrays, a tf.data.Dataset, a generator ... (see `kquant.core.data.batches`); or an
      InputRange, with which ranges follow from batch norms (see `kquant.qmodel.data_free`).

  Raises:
    ValueError: the data do not fit the model, are empty or not finite; or qmodel has no quantizers.
  """
  set_ranges(qmodel, observe(qmodel, calibration, batch_size=batch_size))
  return qmodel


def observe(qmodel: keras.Model, calibration: Any, *, batch_size: int = 32) -> Statistics:
  """Runs the float network once over the data and returns its statistics; see `calibrate`."""
  layers = _activation_layers(qmodel)
  if isinstance(calibration, InputRange):
    ranges, means = known_without_data(qmodel, calibration)
    return Statistics({name: ranges[name] for name in layers if layers[name].fixed is None}, means, {})
  estimators = {name: make_estimator(layer.range) for name, layer in layers.items() if layer.fixed is None}
  input_means: dict[str, list[np.ndarray]] = {}
  output_means: dict[str, list[np.ndarray]] = {}
  specs = keras_calls.input_specs(qmodel)
  step, names = _observing_step(qmodel, estimators, specs)
  for batch in _with_progress(data.batches(calibration, specs, batch_size=batch_size)):
    count = len(batch[0])  # one image alone would run in kernels whose sums differ in the last bit
    batch = [np.concatenate([array, array]) if count == 1 else array for array in batch]
    measured, image_means = tf.nest.map_structure(
        np.asarray, step([tf.convert_to_tensor(array) for array in batch], tf.constant(count)))
    for name, values in zip(names["activations"], measured):
      estimators[name].absorb(values)
    for means, values_of_side in zip((input_means, output_means), image_means):
      for name, values in zip(names["linear"], values_of_side):
        means.setdefault(name, []).append(values)
  return Statistics(estimators, {name: _mean_of_any_order(parts) for name, parts in input_means.items()},
                    {name: np.concatenate(parts) for name, parts in output_means.items()})


def set_ranges(qmodel: keras.Model, statistics: Statistics) -> None:
  """Sets the grid of every activation quantizer from its estimator and turns it on."""
  layers = _activation_layers(qmodel)
  estimators = statistics.estimators.items()
  for name, estimator in tqdm(estimators, desc="ranges", unit="", delay=2.0, disable=None):
    quantizer = layers[name].quantizer
    layers[name].set_range(*estimator.range(bits=quantizer.bits, symmetric=quantizer.symmetric))


def _activation_layers(qmodel: keras.Model) -> dict[str, QuantizeActivation]:
  layers = {layer.name: layer for layer in qmodel.layers if isinstance(layer, QuantizeActivation)}
  if not layers:
    raise ValueError(f"Model {qmodel.name!r} has no quantizers; expected what kq.insert_quantizers returns.")
  return layers


def _observing_step(qmodel: keras.Model, estimators: dict[str, Estimator], specs: list[data.InputSpec]):
  """Returns a traced function of one batch and its number of images, and the names of its results."""
  names: dict[str, list[str]] = {}

  @tf.function(autograph=False)
  def step(arrays, count):
    with observing() as seen:
      keras_calls.call(qmodel, arrays)
    sharing: dict[str, list[tf.Tensor]] = {}
    for name, tensor in seen.activations:
      sharing.setdefault(name, []).append(tensor[:count])
    names["activations"] = list(sharing)
    names["linear"] = [name for name, _ in seen.linear_inputs]
    means = [[tf.reduce_mean(tensor[:count], list(range(1, tensor.shape.rank - 1))) for _, tensor in side]
             for side in (seen.linear_inputs, seen.linear_outputs)]
    return [estimators[name].measure(_as_one(tensors)) for name, tensors in sharing.items()], means

  return step.get_concrete_function([spec.batch for spec in specs], tf.TensorSpec((), tf.int32)), names


def _as_one(tensors: list[tf.Tensor]) -> tf.Tensor:
  """Tensors on one grid, [images, ...] each, as one tensor: its statistics are those of the grid."""
  if len(tensors) == 1:
    return tensors[0]
  return tf.concat([tf.reshape(tensor, [tf.shape(tensor)[0], -1]) for tensor in tensors], axis=1)


def _mean_of_any_order(parts: list[np.ndarray]) -> np.ndarray:
  """Mean over images of parts [images, channels]: sorted first, so that their order cannot matter."""
  return np.sort(np.concatenate(parts), axis=0).astype(np.float64).mean(axis=0)


def _with_progress(batches: Iterator[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
  """Shows images and rate on a terminal, from the second second on."""
  with tqdm(desc="calibrate", unit=" images", delay=2.0, disable=None) as bar:
    for batch in batches:
      yield batch
      bar.update(len(batch[0]))
