"""Whether a model that was made of another one computes the same: both run on random inputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.graph.keras_calls import as_inputs

LARGEST_DIFFERENCE, LARGEST_HALF_DIFFERENCE = 1e-4, 3e-2
"""Of the outputs, over the largest value; the second for what computes in half precision."""
OPEN_SIZE = 32
"""What an open dimension has while outputs are compared."""


def check_equal(name: str, made: keras.Model, bound: float,
                answers: Callable[[list[np.ndarray]], list[Any]]) -> None:
  """Raises ValueError unless two models compute the same.

  Args:
    name: what the model was made of, as messages call it.
    made: the model.
    bound: of a difference, over the largest value of the output.
    answers: flat inputs -> the flat outputs of what it was made of.
  """
  for seed in range(2):
    rng = np.random.default_rng(seed)
    inputs = [_random(tensor, rng, positive=seed == 1) for tensor in made.inputs]
    theirs = [np.asarray(value, np.float64) for value in answers(inputs)]
    mine = [np.asarray(value, np.float64)
            for value in tf.nest.flatten(made(as_inputs(made, inputs), training=False))]
    if all(np.isfinite(value).all() for value in theirs):
      break
  for index, (a, b) in enumerate(zip(theirs, mine, strict=True)):
    off = np.abs(a - b).max() if a.shape == b.shape and a.size else np.inf
    if not off <= bound * max(np.abs(a).max(), 1e-6):
      raise ValueError(f"{name}: output {index} of its tf_keras form differs by {off:.3g} from values up to "
                       f"{np.abs(a).max():.3g} on random inputs, more than {bound:g} of them; please report "
                       "the layers that it is made of.")


def _random(tensor: Any, rng: np.random.Generator, *, positive: bool) -> np.ndarray:
  batch, *shape = tensor.shape
  shape = (batch or 2, *(OPEN_SIZE if size is None else size for size in shape))
  if not tensor.dtype.is_floating:
    return rng.integers(0, 2, shape).astype(tensor.dtype.as_numpy_dtype)
  values = rng.uniform(0.1, 1.0, shape) if positive else rng.normal(size=shape)
  return values.astype(np.float32)
