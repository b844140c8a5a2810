"""Time of a training step: float, tfmot.quantize_model, and kquant's quantizers, in turn in one run.

    python benchmarks/step_time.py [--shared=../shared] [--models=resnet8,v1] [--quantizers=minmax,lsq]
        [--steps=60] [--write]

Adam, cross-entropy, random images held in memory, w8a8; medians of steps taken in turn. kquant's networks
have their batch norms folded, as they train; the float and the tfmot ones keep theirs.
"""

import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODELS = {"resnet8": "resnet8, batch 32", "v1": "MobileNetV1 0.25, 128 px, batch 16"}


def build(name: str, data: pathlib.Path):
  """Returns (float model, images of one batch); MobileNet with random weights, whose time is the same."""
  import tf_keras as keras

  from kquant.graph.model_files import load_model
  rng = np.random.default_rng(0)
  if name == "resnet8":
    return (load_model(data / "models" / "resnet8_cifar10.h5"),
            rng.uniform(0, 255, (32, 32, 32, 3)).astype(np.float32))
  keras.utils.set_random_seed(0)
  return (keras.applications.MobileNet(input_shape=(128, 128, 3), alpha=0.25, weights=None),
          rng.uniform(-1, 1, (16, 128, 128, 3)).astype(np.float32))


def quantized(model, images: np.ndarray, quantizer: str):
  """Returns kquant's model of it at w8a8, to train."""
  import kquant as kq
  folded = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  activations = "minmax" if quantizer == "dorefa" else quantizer
  weights = "minmax" if quantizer == "pact" else quantizer
  config = kq.QuantConfig.preset("int8").with_quantizers(weights=weights, activations=activations)
  return kq.calibrate(kq.insert_quantizers(folded, config), images)


def step_of(model, images: np.ndarray) -> Callable[[], object]:
  """Returns a function that takes one compiled training step."""
  import tensorflow as tf
  model.compile("adam", "sparse_categorical_crossentropy")
  batch = (images, np.arange(len(images)) % model(images[:1]).shape[-1])
  batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
  train = model.make_train_function()
  return lambda: train(batches)


def time_in_turn(steps: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
  """Returns the median milliseconds of each step, after 5 to warm up."""
  from tqdm import tqdm
  seconds = {name: [] for name in steps}
  for index in tqdm(range(count + 5), desc="steps", delay=2.0, disable=None):
    for name, step in steps.items():
      start = time.perf_counter()
      step()
      if index >= 5:
        seconds[name].append(time.perf_counter() - start)
  return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def measure(name: str, data: pathlib.Path, quantizers: list[str], count: int) -> dict[str, float]:
  """Returns {"float" | "tfmot" | quantizer: median milliseconds} of a model."""
  import tensorflow_model_optimization as tfmot
  model, images = build(name, data)
  steps = {"float": step_of(model, images),
           "tfmot": step_of(tfmot.quantization.keras.quantize_model(model), images)}
  steps.update((quantizer, step_of(quantized(model, images, quantizer), images)) for quantizer in quantizers)
  return time_in_turn(steps, count)


def table(found: dict[str, dict[str, float]]) -> str:
  """The results as Markdown: milliseconds, and times the float step."""
  names = list(next(iter(found.values())))
  lines = ["| model | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
  for model, row in found.items():
    cells = [f"{ms:.1f} ms ({ms / row['float']:.2f})" for ms in row.values()]
    lines.append("| " + " | ".join([MODELS[model], *cells]) + " |")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  from ptq import arguments, data_of, describe, write_section
  parser = arguments(__doc__)
  parser.add_argument("--models", default=",".join(MODELS))
  parser.add_argument("--quantizers", default="minmax,moving_average,lsq,lsq_plus")
  parser.add_argument("--steps", type=int, default=60)
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  found = {name: measure(name, data, flags.quantizers.split(","), flags.steps)
           for name in flags.models.split(",")}
  head = describe(f"python benchmarks/step_time.py --models={flags.models} "
                  f"--quantizers={flags.quantizers} --steps={flags.steps}")
  note = "Median step, and times the float one; w8a8, all taken in turn in one run."
  body = f"{head}\n\n{note}\n\n{table(found)}"
  print(body)
  if flags.write:
    write_section("Time of a training step", body)


if __name__ == "__main__":
  main()
