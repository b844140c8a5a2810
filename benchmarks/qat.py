"""Quantization-aware training of real models: accuracy against float fine-tuning, and oscillations.

    python benchmarks/qat.py [--shared=../shared] [--table=accuracy|resnet8|mobilenet] [--rows="W4A8;W4A4"]
                             [--epochs=30] [--write]

accuracy    resnet8 on the shared CIFAR-10 images, with labels, against the float model fine-tuned likewise
resnet8     oscillations of resnet8 at W3A3 (both ends W8A8), with labels
mobilenet   oscillations of MobileNetV1 0.25 at W4A4 (both ends W8A8), by distillation from the float model

A row of the last two may end in a seed, "LSQ, seed 1"; without it is 0.
Each row is printed when it is there; `--write` puts it into its table in benchmarks/results.md and leaves
the other rows of the same epochs and learning rate as they are.
"""

import functools
import os
import pathlib
import re
import tempfile
import time
from typing import NamedTuple

import numpy as np
from ptq import arguments, data_of, describe, images_of, judge, load, write_section, written_rows

BATCH = 32
CALIBRATION = 256
HEADS = {"accuracy": ["row", "top-1 before", "top-1", "file", "agreement with it", "float, same training",
                      "seconds", "ms a step"],
         "resnet8": ["row", "top-1", "oscillating %", "frozen %", "seconds", "ms a step"],
         "mobilenet": ["row", "agreement with float", "top-1", "oscillating %", "frozen %", "seconds",
                       "ms a step"]}
TITLES = {"accuracy": "Quantization-aware training, resnet8 on 5,000 images",
          "resnet8": "Oscillating weights, resnet8 W3A3",
          "mobilenet": "Oscillating weights, MobileNetV1 0.25 W4A4 by distillation"}


class Setting(NamedTuple):
  """What a row of the first table trains."""

  weights: int
  activations: int
  batch_norm: str = "absorb"
  ends: bool = False  # input, first and last layer at 8 bits
  distilled: bool = False  # features and outputs of the float model, beside the labels


CONFIGS = {"W8A8": Setting(8, 8), "W4A8": Setting(4, 8), "W4A4": Setting(4, 4),
           "W4A4, distilled": Setting(4, 4, distilled=True), "W4A4, ends W8A8": Setting(4, 4, ends=True),
           "W4A8, batch norm folded": Setting(4, 8, "fold"),
           "W4A8, batch norm in kernels": Setting(4, 8, "train")}
METHODS = ("LSQ", "dampening", "dampening, ten times", "freezing", "late freezing")


def config_of(model, weights: int, activations: int, ends: bool):
  """LSQ throughout, from ranges of least squared error; `ends`: input, first and last layer at 8 bits."""
  import kquant as kq
  from kquant.graph.graph import Graph

  def rule(weights, activations, **where):
    return kq.Rule(
        weights=kq.TensorSpec(bits=weights, symmetric=True, per_channel=True, quantizer="lsq", range="mse"),
        activations=kq.TensorSpec(bits=activations, quantizer="lsq", range="mse"), **where)

  linear = [node.name for node in Graph.from_model(model).nodes if node.facts.role == "linear"]
  outer = [rule(8, 8, kinds=("InputLayer",)), rule(8, activations, match=f"^{re.escape(linear[0])}$"),
           rule(8, 8, match=f"^{re.escape(linear[-1])}$")]
  return kq.QuantConfig(rules=(*(outer if ends else ()), rule(weights, activations)))


def augmented(x: np.ndarray, y: np.ndarray | None, *, pad: int, size: int, batch: int = BATCH, seed: int = 0):
  """Returns a dataset of shuffled batches, each image mirrored by chance and cropped after padding."""
  import tensorflow as tf

  def augment(index, item):
    image = tf.pad(tf.cast(item[0], tf.float32), [[pad, pad], [pad, pad], [0, 0]], "REFLECT")
    key = tf.stack([tf.constant(seed, tf.int64), index])
    image = tf.image.stateless_random_crop(image, (size, size, 3), key)
    image = tf.image.stateless_random_flip_left_right(image, key + 1)
    return (image, *item[1:])

  parts = (x,) if y is None else (x, y)
  images = tf.data.Dataset.from_tensor_slices(parts).shuffle(len(x), seed=seed).repeat()
  return (images.enumerate().map(lambda i, item: augment(i, item), num_parallel_calls=2)
          .batch(batch, drop_remainder=True).prefetch(4))


def compiled(model, *, epochs: int, steps: int, learning_rate: float, loss=None) -> None:
  """Adam, the learning rate falling to 0 along a half cosine."""
  import tf_keras as keras
  schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
  optimizer = keras.optimizers.Adam(schedule, jit_compile=False)
  model.compile(optimizer, loss, metrics=["accuracy"] if loss else None)


def fit(model, dataset, *, epochs: int, steps: int, callbacks=()) -> tuple[dict, float]:
  """Returns (last logs, seconds)."""
  start = time.perf_counter()
  history = model.fit(dataset, epochs=epochs, steps_per_epoch=steps, verbose=2, callbacks=list(callbacks))
  return {name: values[-1] for name, values in history.history.items()}, time.perf_counter() - start


def scores(model, x: np.ndarray) -> np.ndarray:
  """Returns what a model gives, before a softmax layer at its end, float32 [images, classes]."""
  from kquant.qmodel.outputs import network_outputs
  return network_outputs(model, [x], batch_size=100)[0].reshape(len(x), -1)


def cifar(data: pathlib.Path):
  """Returns x_train, y_train, x_test, y_test of the shared CIFAR-10 images."""
  with np.load(data / "cifar10.npz") as stored:
    return (stored["x_train"], stored["y_train"].reshape(-1), stored["x_test"].astype(np.float32),
            stored["y_test"].reshape(-1))


def quantized(model, x: np.ndarray, weights: int, activations: int, batch_norm: str, ends: bool = False):
  """Returns the calibrated model, its mean errors corrected: in biases, or in the statistics."""
  import kquant as kq
  qmodel = kq.insert_quantizers(model, config_of(model, weights, activations, ends), batch_norm=batch_norm)
  kq.calibrate(qmodel, x)
  if batch_norm == "fold":
    return kq.correct_bias(qmodel, model, x, method="iterative")
  kq.reestimate_batch_norm(qmodel, x)
  return qmodel


@functools.cache
def float_row(data: pathlib.Path, epochs: int, learning_rate: float) -> float:
  """Returns top-1 of the float model fine-tuned on the same images, trained once a run."""
  import tf_keras as keras

  from kquant.core import metrics
  keras.utils.set_random_seed(0)
  x, y, x_test, y_test = cifar(data)
  model, steps = load("resnet8", data), len(x) // BATCH
  compiled(model, epochs=epochs, steps=steps, learning_rate=learning_rate,
           loss="sparse_categorical_crossentropy")
  fit(model, augmented(x, y, pad=4, size=32), epochs=epochs, steps=steps)
  return metrics.top1(scores(model, x_test), y_test)


def teacher(data: pathlib.Path, x: np.ndarray):
  """Returns the float model, the statistics of its batch norms taken anew on training images."""
  import kquant as kq
  model = load("resnet8", data)
  kq.reestimate_batch_norm(model, x[:1600].astype(np.float32))
  return model


def accuracy_row(name: str, data: pathlib.Path, epochs: int, learning_rate: float) -> list[str]:
  """One training of resnet8 with labels; a file where its activations have 8 bits."""
  import tf_keras as keras

  import kquant as kq
  import tflite_export
  from kquant.core import metrics
  keras.utils.set_random_seed(0)
  weights, activations, batch_norm, ends, distilled = CONFIGS[name]
  x, y, x_test, y_test = cifar(data)
  calibration, steps = x[:CALIBRATION].astype(np.float32), len(x) // BATCH
  qmodel = quantized(load("resnet8", data), calibration, weights, activations, batch_norm, ends)
  before = metrics.top1(scores(qmodel, x_test), y_test)
  trainer = kq.DistillationModel(qmodel, teacher(data, x), output_loss="kl") if distilled else qmodel
  compiled(trainer, epochs=epochs, steps=steps, learning_rate=learning_rate,
           loss="sparse_categorical_crossentropy")
  callbacks = [kq.FreezeBatchNorm(epochs=epochs // 2)] if batch_norm == "train" else []
  callbacks += [kq.ReestimateBatchNorm(x[:1600].astype(np.float32))] if batch_norm == "absorb" else []
  _, seconds = fit(trainer, augmented(x, y, pad=4, size=32), epochs=epochs, steps=steps, callbacks=callbacks)
  simulated = scores(qmodel, x_test)
  in_file = agreement = "simulation only"
  if activations == 8:
    with tempfile.TemporaryDirectory() as folder:
      written = tflite_export.export(kq.finalize(qmodel), os.path.join(folder, "m.tflite"), verify=x_test[:2])
      judged = judge(written.path.read_bytes(), x_test, y_test, simulated)
    in_file, agreement = f"{judged['top1']:.4f}", f"{judged['agreement']:.4f}"
  reference = float_row(data, epochs, learning_rate)
  return [name, f"{before:.4f}", f"{metrics.top1(simulated, y_test):.4f}", in_file,
          agreement, f"{reference:.4f}", f"{seconds:.0f}", f"{1000 * seconds / (epochs * steps):.1f}"]


def controls(method: str) -> list:
  """The callbacks of a method; all count weights above 0.005 with momentum 0.001, as the paper does."""
  import kquant as kq
  if method.endswith("freezing"):
    return [kq.FreezeOscillations(threshold=(0.1, 0.005), begin=0.7 if method.startswith("late") else 0.25)]
  last = {"dampening": 0.1, "dampening, ten times": 1.0}
  return [kq.TrackOscillations(), *([kq.DampenOscillations(last=last[method])] if method in last else [])]


def method_and_seed(name: str) -> tuple[str, int]:
  """Splits the name of a row."""
  method, _, seed = name.partition(", seed ")
  return method, int(seed or 0)


def resnet8_row(name: str, data: pathlib.Path, epochs: int, learning_rate: float) -> list[str]:
  """W3A3 with labels."""
  import tf_keras as keras

  from kquant.core import metrics
  method, seed = method_and_seed(name)
  keras.utils.set_random_seed(seed)
  x, y, x_test, y_test = cifar(data)
  steps = len(x) // BATCH
  qmodel = quantized(load("resnet8", data), x[:CALIBRATION].astype(np.float32), 3, 3, "absorb", True)
  compiled(qmodel, epochs=epochs, steps=steps, learning_rate=learning_rate,
           loss="sparse_categorical_crossentropy")
  logs, seconds = fit(qmodel, augmented(x, y, pad=4, size=32, seed=seed), epochs=epochs, steps=steps,
                      callbacks=controls(method))
  return [name, f"{metrics.top1(scores(qmodel, x_test), y_test):.4f}", f"{100 * logs['oscillating']:.3f}",
          f"{100 * logs['frozen']:.3f}", f"{seconds:.0f}", f"{1000 * seconds / (epochs * steps):.1f}"]


def mobilenet_row(name: str, data: pathlib.Path, epochs: int, learning_rate: float) -> list[str]:
  """W4A4 by distillation from the float model, on crops of the images that calibrate."""
  import tf_keras as keras

  import kquant as kq
  from kquant.core import metrics
  method, seed = method_and_seed(name)
  keras.utils.set_random_seed(seed)
  x, x_test, y_test = images_of("v1", data)
  model, steps = load("v1", data), 32
  qmodel = quantized(model, x, 4, 4, "absorb", True)
  trainer = kq.DistillationModel(qmodel, model, output_loss="kl")
  compiled(trainer, epochs=epochs, steps=steps, learning_rate=learning_rate)
  images = augmented(x, None, pad=24, size=224, batch=16, seed=seed)
  logs, seconds = fit(trainer, images, epochs=epochs, steps=steps,
                      callbacks=[*controls(method), kq.ReestimateBatchNorm(x)])
  found, reference = scores(qmodel, x_test), scores(model, x_test)
  return [name, f"{metrics.agreement(found, reference):.4f}", f"{metrics.top1(found, y_test):.4f}",
          f"{100 * logs['oscillating']:.3f}", f"{100 * logs['frozen']:.3f}", f"{seconds:.0f}",
          f"{1000 * seconds / (epochs * steps):.1f}"]


ROWS = ("W8A8", "W4A8", "W4A4", "W4A4, distilled", "W4A4, ends W8A8")
TABLES = {"accuracy": (accuracy_row, ROWS, 1e-3, 80),
          "resnet8": (resnet8_row, METHODS, 1e-3, 40),
          "mobilenet": (mobilenet_row, METHODS, 1e-3, 30)}


def with_older(table: str, settings: str, rows: dict[str, list[str]]) -> dict[str, list[str]]:
  """Returns the rows, and those of the table in results.md that the same settings gave, in its order."""
  lines = [line.strip("| ").split(" | ") for line in written_rows(TITLES[table], settings=settings)]
  older = {cells[0]: cells for cells in lines}
  return {**older, **rows}


def markdown(table: str, rows: list[list[str]]) -> str:
  """The rows under the table's head."""
  head = HEADS[table]
  lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
  return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def main() -> None:
  """Measures what the flags say."""
  parser = arguments(__doc__)
  parser.add_argument("--table", default="accuracy", choices=TABLES)
  parser.add_argument("--rows", default=None, help="which, separated by semicolons")
  parser.add_argument("--epochs", type=int, default=None)
  parser.add_argument("--learning_rate", type=float, default=None)
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  measure, names, learning_rate, epochs = TABLES[flags.table]
  learning_rate, epochs = flags.learning_rate or learning_rate, flags.epochs or epochs
  names = flags.rows.split(";") if flags.rows else names
  settings = f"--epochs={epochs} --learning_rate={learning_rate}"
  rows = {}
  for name in names:
    rows[name] = measure(name, data, epochs, learning_rate)
    print(markdown(flags.table, [rows[name]]), flush=True)
    if flags.write:
      every = with_older(flags.table, settings, rows)
      head = describe(f"python benchmarks/qat.py --table={flags.table} --rows=\"{';'.join(every)}\" "
                      f"{settings}")
      write_section(TITLES[flags.table], f"{head}\n\n{markdown(flags.table, list(every.values()))}")


if __name__ == "__main__":
  main()
