"""Every model that kquant returns saves and loads in every format, and predicts the same.

    python -m tests.qmodel.saving_sweep [--models=100]

goes over the zoo, every layer case, functions of TensorFlow and fuzzed models, and prints a line for each
failure; exits with 1 where one failed. `make test` runs a part of it.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from tests import layer_cases, models
from tests.tflite_export import random_models

layers = keras.layers
FORMATS = ("m.keras", "m.h5", "saved_model")
FUNCTIONS: dict[str, Callable] = {
    "roll": lambda x: tf.roll(x, 1, axis=2),
    "gather": lambda x: tf.gather(x, np.array([0, 2, 1]), axis=2),
    "ellipsis": lambda x: x[..., 1:3],
    "a new axis and an index": lambda x: x[:, None, 1:4, 2],
    "split": lambda x: layers.Add()(tf.split(x, 2, axis=2)),
    "split by sizes": lambda x: tf.split(x, [2, 6], axis=2)[1],
    "pad": lambda x: tf.pad(x, np.array([[0, 0], [1, 1], [0, 0], [0, 0]])),
    "tile": lambda x: tf.tile(x, [1, 2, 1, 1]),
    "plus a constant": lambda x: tf.nn.bias_add(x + np.arange(4, dtype=np.float32), [1.0, 2.0, 3.0, 4.0]),
    "times a constant": lambda x: x * tf.constant([1.0, 2.0, 3.0, 4.0]),
    "matmul by a constant": lambda x: tf.matmul(x, tf.ones((4, 3))),
    "reshape and transpose": lambda x: tf.transpose(tf.reshape(x, [-1, 48, 4]), [0, 2, 1]),
    "clip": lambda x: tf.clip_by_value(x, np.float32(-1), np.float32(1)),
    "mean over an array of axes": lambda x: tf.reduce_mean(x, axis=np.array([1, 2])),
    "stack": lambda x: tf.stack([x, x], axis=1),
    "depth": lambda x: tf.nn.space_to_depth(x, 2),
    "a join of one": lambda x: tf.concat([x], 1),
    "repeated once": lambda x: layers.RepeatVector(1)(layers.Flatten()(x)),
}
SHAPE = (6, 8, 4)


def of_function(name: str) -> keras.Model:
  """A model of a Dense layer, a function of TensorFlow, and a Dense layer."""
  x = keras.Input(SHAPE)
  return keras.Model(x, layers.Dense(3)(FUNCTIONS[name](layers.Dense(4)(x))))


def failures(model: keras.Model, inputs: list[np.ndarray], folder: pathlib.Path,
             formats: tuple[str, ...] = FORMATS) -> Iterator[str]:
  """Yields what goes wrong with the final model, the quantized and the rewritten one.

  A layer that has no integer form is no failure. Files of models with quantizers keep the names of the
  outputs; of models of plain Keras layers they keep the names of the layers alone.
  """
  try:
    result = kq.quantize(model, inputs, effort=None)
  except kq.UnsupportedLayerError:
    return
  made = {"final": result.model, "qmodel": result.qmodel,
          "rewritten": kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])}
  for name, network in made.items():
    for file in formats:
      try:
        network.save(folder / file)
        again = kq.load_model(folder / file)
        same = all(np.array_equal(a, b) for a, b in zip(*(
            tf.nest.flatten(kept.predict(inputs, verbose=0)) for kept in (network, again)), strict=True))
      except Exception as error:
        yield f"{name} {file}: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
      else:
        if not same:
          yield f"{name} {file}: predicts something else"
        if name == "qmodel" and list(again.output_names) != list(network.output_names):
          yield f"{name} {file}: names its outputs {again.output_names}, not {network.output_names}"


def cases(count: int) -> Iterator[tuple[str, keras.Model, list[np.ndarray]]]:
  """Yields (name, model, inputs) of the zoo, the functions, the layers and of so many fuzzed models."""
  for name in models.ZOO:
    model = models.build(name)
    yield name, model, models.sample_inputs(model, images=8)
  for name in FUNCTIONS:
    model = of_function(name)
    yield name, model, models.sample_inputs(model, images=8)
  for name in layer_cases.HANDLED:
    model = models.randomized(layer_cases.HANDLED[name]())
    yield name, model, layer_cases.inputs_of(model)
  for number, recipe in enumerate(_recipes(count)):
    model = random_models.build(recipe)
    yield f"fuzz {number}", model, random_models.inputs_of(model, recipe)


def _recipes(count: int) -> list[random_models.Recipe]:
  """So many recipes of models, the same in every run."""
  drawn: list[random_models.Recipe] = []

  @hypothesis.seed(0)
  @hypothesis.settings(max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
                       suppress_health_check=list(hypothesis.HealthCheck))
  @hypothesis.given(random_models.recipes())
  def draw(recipe):
    drawn.append(recipe)

  draw()
  return drawn


def main() -> int:
  """Runs the sweep; returns 1 where a case failed."""
  parser = argparse.ArgumentParser(description="Every model saves and loads in every format.")
  parser.add_argument("--models", type=int, default=100, help="how many fuzzed models")
  flags, failed, count = parser.parse_args(), 0, 0
  with tempfile.TemporaryDirectory() as folder:
    for name, model, inputs in cases(flags.models):
      count += 1
      for line in failures(model, inputs, pathlib.Path(folder)):
        print(f"{name}: {line}", flush=True)
        failed += 1
      keras.backend.clear_session()
  print(f"{count} models, {failed} failures")
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main())
