"""Whether a model computes what its .tflite file does, as LiteRT runs it."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.text import first_line
from kquant.graph.equality import LARGEST_DIFFERENCE, LARGEST_HALF_DIFFERENCE, OPEN_SIZE
from kquant.graph.keras_calls import as_inputs
from kquant.graph.readers.tflite.running import run

_SAMPLES = 2


def check_equal(model: keras.Model, data: bytes, *, batch: int | None, half: bool) -> str:
  """Returns how near the outputs of model and file are on random inputs.

  A model with an open batch is run on more samples than the file holds: each then has to stand for itself.

  Raises:
    ValueError: they differ, by more than float arithmetic does, or the file cannot be run. The message
      continues "FILE ".
  """
  bound = LARGEST_HALF_DIFFERENCE if half else LARGEST_DIFFERENCE
  largest, compared, count = 0.0, 0, 1 if batch is None else 2
  samples = [_random(model, seed, batch) for seed in range(_SAMPLES)]
  results = run(data, [part for inputs in samples for part in _parts(inputs, count)])
  for index, inputs in enumerate(samples):
    parts = results[index * count:(index + 1) * count]
    theirs = [np.concatenate([np.atleast_1d(value) for value in values]) for values in zip(*parts)]
    if not all(np.isfinite(values).all() for values in theirs):
      continue
    mine = _outputs(model, inputs)
    compared += 1
    for output, (a, b) in enumerate(zip(theirs, mine, strict=True)):
      largest = max(largest, _difference(a, b))
      if not largest <= bound:
        raise ValueError(f"computes something else than its Keras form: output {output} differs by "
                         f"{largest:.3g} of its largest value on random inputs, more than {bound:g}; please "
                         "report the operators that it is made of")
  return f"outputs within {largest:.2g} of their largest value on random inputs" if compared else (
      "not compared: its outputs are not finite on random inputs")


def _outputs(model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
  try:
    return [np.asarray(values) for values in
            tf.nest.flatten(model(as_inputs(model, inputs), training=False))]
  except tf.errors.OpError as error:
    raise ValueError(f"cannot be run as a Keras model: {first_line(error).rstrip('.')}; please report the "
                     "operators that it is made of") from error


def _difference(a: np.ndarray, b: np.ndarray) -> float:
  """The largest difference over the largest value; infinite for another number of values.

  A file may have merged the batch of an output with other axes.
  """
  if a.size != b.size:
    return float("inf")
  a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
  return float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-6))


def _random(model: keras.Model, seed: int, batch: int | None) -> list[np.ndarray]:
  """Normal inputs for even seeds, positive ones for odd seeds; 0 and 1 for integers."""
  rng, inputs = np.random.default_rng(seed), []
  for tensor in model.inputs:
    shape = [OPEN_SIZE if size is None else size for size in tensor.shape]
    if batch is not None:
      shape[0] = 2 * batch
    values = rng.normal(size=shape) if tensor.dtype.is_floating else rng.integers(0, 2, shape)
    inputs.append((abs(values) if seed % 2 else values).astype(tensor.dtype.as_numpy_dtype))
  return inputs


def _parts(inputs: list[np.ndarray], count: int) -> list[list[np.ndarray]]:
  """Inputs cut along the first axis into as many batches."""
  return list(map(list, zip(*(np.split(values, count) if count > 1 else [values] for values in inputs))))
