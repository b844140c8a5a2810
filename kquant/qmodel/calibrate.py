"""One pass over the data fills every range estimator and sets every activation grid."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from kquant.core import data, keras_calls
from kquant.qmodel.layers import QuantizeActivation, observing
from kquant.ranges.estimators import ESTIMATORS


def calibrate(qmodel: keras.Model, calibration: Any, *, batch_size: int = 32) -> keras.Model:
  """Sets every activation range from the float values seen on the data, in place; returns qmodel.

  The result depends neither on the order nor on the batch size of the data.

  Args:
    qmodel: what `insert_quantizers` returned.
    calibration: arrays, a tf.data.Dataset, a generator ... (see `kquant.core.data.batches`).

  Raises:
    ValueError: the data do not fit the model, are empty or not finite; or qmodel has no quantizers.
  """
  layers = {layer.name: layer for layer in qmodel.layers if isinstance(layer, QuantizeActivation)}
  if not layers:
    raise ValueError(f"Model {qmodel.name!r} has no quantizers; expected what kq.insert_quantizers returns.")
  estimators = {name: ESTIMATORS[layer.range]() for name, layer in layers.items() if layer.fixed is None}
  measure = _measuring_step(qmodel, estimators)
  specs = keras_calls.input_specs(qmodel)
  for batch in _with_progress(data.batches(calibration, specs, batch_size=batch_size)):
    for name, measured in measure(batch):
      estimators[name].absorb(measured)
  for name, estimator in estimators.items():
    quantizer = layers[name].quantizer
    layers[name].set_range(*estimator.range(bits=quantizer.bits, symmetric=quantizer.symmetric))
  return qmodel


def _measuring_step(qmodel: keras.Model, estimators: dict):
  """Returns a function of one batch: the float network runs once and each tensor is measured there."""
  names = []

  @tf.function(reduce_retracing=True)
  def step(arrays):
    with observing() as seen:
      keras_calls.call(qmodel, arrays)
    names[:] = [name for name, _ in seen]
    return [estimators[name].measure(tensor) for name, tensor in seen]

  def measure(arrays: list[np.ndarray]) -> list[tuple[str, dict]]:
    results = step([tf.convert_to_tensor(array) for array in arrays])
    return list(zip(names, tf.nest.map_structure(np.asarray, results)))

  return measure


def _with_progress(batches: Iterator[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
  """Shows images and rate on a terminal, from the second second on."""
  with tqdm(desc="calibrate", unit=" images", delay=2.0, disable=None) as bar:
    for batch in batches:
      yield batch
      bar.update(len(batch[0]))
