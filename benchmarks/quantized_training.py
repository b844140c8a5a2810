"""Training from scratch with 8-bit weights, activations and gradients: how the ranges are found.

    python benchmarks/quantized_training.py [--part=accuracy|rounding|step_time|jump] [--seeds=0,1,2]
        [--networks=resnet8,mobile] [--rows="float;in-hindsight"] [--epochs=12] [--shared=../shared] [--write]

accuracy    top-1 on CIFAR-10 for each way to find ranges, mean of the seeds
rounding    in-hindsight ranges, gradients of 8 and 4 bits, rounded to nearest and stochastically
step_time   milliseconds of a step, all taken in turn in one run
jump        share of values beyond their ranges around a jump of the learning rate, as a picture

Each row is printed when it is there; `--write` puts it into its table in benchmarks/results.md and leaves
the other rows of the same settings as they are; of `jump` it writes docs/quantized_training_jump.png.
"""

import functools
import pathlib
import statistics
import sys

import numpy as np
from ptq import arguments, data_of, describe, write_section, written_rows
from qat import augmented, cifar, scores

ROOT = pathlib.Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "quantized_training_jump.png"
BATCH = 64
LEARNING_RATE = 0.1
RANGES = {"float": None, "current min-max": "current_minmax", "running min-max": "moving_average",
          "in-hindsight": "in_hindsight"}
ROUNDINGS = ("8 bits, stochastic", "8 bits, nearest", "6 bits, stochastic", "6 bits, nearest",
             "4 bits, stochastic", "4 bits, nearest")
TITLES = {"accuracy": "Quantized training: ranges", "rounding": "Quantized training: rounding of gradients",
          "step_time": "Quantized training: time of a step"}
NETWORKS = ("resnet8", "mobile")


def network(name: str, data: pathlib.Path, seed: int):
  """Returns a network with new weights: ResNet-8, or a MobileNetV2-style one; inputs from 0 to 1."""
  import tf_keras as keras

  from kquant.graph.model_files import load_model
  keras.utils.set_random_seed(seed)
  if name == "resnet8":
    return keras.models.clone_model(load_model(data / "models" / "resnet8_cifar10.h5"))
  return mobile()


def mobile():
  """Returns inverted residual blocks over 32 x 32 pixels, under 100,000 parameters."""
  import tf_keras as keras
  layers = keras.layers

  def normalized(x, layer, relu=True):
    x = layers.BatchNormalization(momentum=0.95)(layer(x))
    return layers.ReLU(6.0)(x) if relu else x

  def block(x, channels, strides):
    inner = normalized(x, layers.Conv2D(6 * x.shape[-1], 1, use_bias=False))
    inner = normalized(inner, layers.DepthwiseConv2D(3, strides, "same", use_bias=False))
    inner = normalized(inner, layers.Conv2D(channels, 1, use_bias=False), relu=False)
    return layers.Add()([x, inner]) if strides == 1 and x.shape[-1] == channels else inner

  image = keras.Input((32, 32, 3))
  x = normalized(image, layers.Conv2D(16, 3, 2, "same", use_bias=False))
  for channels, strides in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)):
    x = block(x, channels, strides)
  x = normalized(x, layers.Conv2D(128, 1, use_bias=False))
  x = layers.GlobalAveragePooling2D()(x)
  return keras.Model(image, layers.Dense(10, activation="softmax")(x))


def quantized(model, ranges: str | None, *, bits: int = 8, rounding: str | None = None):
  """Returns the model with quantized weights, activations and gradients; itself where ranges is None."""
  import kquant as kq
  if ranges is None:
    return model
  gradients = kq.TensorSpec(bits=bits, quantizer=ranges, rounding=rounding)
  rule = kq.Rule(activations=kq.TensorSpec(quantizer=ranges), gradients=gradients)
  return kq.insert_quantizers(model, kq.QuantConfig((rule,)), batch_norm="absorb")


@functools.cache
def images(data: pathlib.Path):
  """Returns x_train, y_train, x_test, y_test, images from 0 to 1."""
  x, y, x_test, y_test = cifar(data)
  return x.astype(np.float32) / 255, y, x_test / 255, y_test


def trained(model, data: pathlib.Path, epochs: int, seed: int, callbacks=()) -> float:
  """Trains a model; returns its top-1 on the test images."""
  import tf_keras as keras

  from kquant.core import metrics
  x, y, x_test, y_test = images(data)
  steps = len(x) // BATCH
  schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * steps)
  model.compile(keras.optimizers.SGD(schedule, momentum=0.9, jit_compile=False),
                "sparse_categorical_crossentropy")
  model.fit(augmented(x, y, pad=4, size=32, batch=BATCH, seed=seed), epochs=epochs, steps_per_epoch=steps,
            verbose=0, callbacks=list(callbacks))
  return metrics.top1(scores(model, x_test), y_test)


def row_of(name: str, network_name: str, data: pathlib.Path, epochs: int, seeds: list[int]) -> list[str]:
  """Trains one row with each seed."""
  import kquant as kq
  if name in RANGES:
    options = {"ranges": RANGES[name]}
  else:
    bits, rounding = name.split(" bits, ")
    options = {"ranges": "in_hindsight", "bits": int(bits), "rounding": rounding}
  found, saturated = [], []
  for seed in seeds:
    watch = [kq.QuantizedTraining()] if options["ranges"] else []
    top1 = trained(quantized(network(network_name, data, seed), **options), data, epochs, seed, watch)
    found.append(100 * top1)
    saturated += [100 * row.saturated for callback in watch for row in callback.rows
                  if row.kind == "gradient"]
    print(network_name, name, seed, f"{top1:.4f}", file=sys.stderr, flush=True)
  spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else "-"
  return [f"{network_name}, {name}", f"{statistics.mean(found):.2f}", spread,
          f"{statistics.mean(saturated):.4f}" if saturated else "-"]


def step_times(network_name: str, data: pathlib.Path, count: int) -> list[str]:
  """Returns the row of a network: milliseconds of a step, and times the float one."""
  from step_time import step_of, time_in_turn
  x = images(data)[0][:BATCH]
  steps = {name: step_of(quantized(network(network_name, data, 0), ranges), x)
           for name, ranges in RANGES.items()}
  found = time_in_turn(steps, count)
  return [network_name, *(f"{ms:.1f} ms ({ms / found['float']:.2f})" for ms in found.values())]


def jump(data: pathlib.Path, path: pathlib.Path | None) -> None:
  """Trains ResNet-8 for 60 steps at 0.001, and for 60 at 100 times that; draws what saturates."""
  import tf_keras as keras
  from matplotlib.figure import Figure

  import kquant as kq
  x, y, _, _ = images(data)
  figure = Figure(figsize=(8, 4), layout="constrained")
  axes = figure.subplots()
  watch = kq.QuantizedTraining(every=1)
  qmodel = quantized(network("resnet8", data, 0), "in_hindsight")
  schedule = keras.optimizers.schedules.PiecewiseConstantDecay([60], [0.01 * LEARNING_RATE, LEARNING_RATE])
  qmodel.compile(keras.optimizers.SGD(schedule, momentum=0.9, jit_compile=False),
                 "sparse_categorical_crossentropy")
  qmodel.fit(augmented(x, y, pad=4, size=32, batch=BATCH), epochs=1, steps_per_epoch=120, verbose=0,
             callbacks=[watch])
  for kind in ("activation", "gradient"):
    shares = [[100 * row.saturated for row in watch.rows if row.kind == kind and row.step == step]
              for step in range(1, 121)]
    for label, reduce in (("mean", np.mean), ("largest", np.max)):
      axes.plot(range(1, 121), [reduce(found) for found in shares], "-" if label == "mean" else ":",
                label=f"{kind}s, {label} of the quantizers")
    before, after = shares[40:60], shares[60:80]
    print(f"{kind}: {np.mean(before):.4f} % of 20 steps before the jump, {np.mean(after):.4f} % of 20 after, "
          f"largest {max(map(max, before)):.3f} % and {max(map(max, after)):.3f} %", flush=True)
  axes.axvline(60.5, color="0.7")
  axes.set_yscale("symlog", linthresh=0.01)
  axes.set_ylim(bottom=0)
  axes.set_xlabel("step (ResNet-8, W8A8G8 in-hindsight; 100 times the learning rate from step 61 on)")
  axes.set_ylabel("% of values beyond the range")
  axes.legend(fontsize="small")
  if path is not None:
    figure.savefig(path, dpi=100)


def write_rows(part: str, head: list[str], rows: dict[str, list[str]], settings: str) -> None:
  """Puts rows into the table of a part, beside those of the same settings."""
  lines = [line.strip("| ").split(" | ") for line in written_rows(TITLES[part], settings=settings)]
  every = {**{cells[0]: cells for cells in lines}, **rows}
  command = describe(f"python benchmarks/quantized_training.py --part={part} {settings}")
  lines = [f"| {' | '.join(cells)} |" for cells in (head, *every.values())]
  lines.insert(1, "|---" * len(head) + "|")
  write_section(TITLES[part], command + "\n\n" + "\n".join(lines))


def main() -> None:
  """Measures what the flags say."""
  parser = arguments(__doc__)
  parser.add_argument("--part", default="accuracy", choices=("accuracy", "rounding", "step_time", "jump"))
  parser.add_argument("--networks", default=None)
  parser.add_argument("--rows", default=None, help="which, separated by semicolons")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--epochs", type=int, default=12)
  parser.add_argument("--steps", type=int, default=60, help="of step_time")
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  if flags.part == "jump":
    jump(data, PICTURE if flags.write else None)
    return
  networks = flags.networks.split(",") if flags.networks else NETWORKS[:1 + (flags.part != "rounding")]
  names = flags.rows.split(";") if flags.rows else RANGES if flags.part == "accuracy" else ROUNDINGS
  seeds = [int(seed) for seed in flags.seeds.split(",")]
  if flags.part == "step_time":
    head, settings, names = ["network", *RANGES], f"--steps={flags.steps}", [""]
  else:
    head = ["row", "top-1, mean of seeds", "deviation of seeds", "% of gradient values beyond the range"]
    settings = f"--seeds={flags.seeds} --epochs={flags.epochs}"
  for network_name in networks:
    for name in names:
      row = (step_times(network_name, data, flags.steps) if flags.part == "step_time"
             else row_of(name, network_name, data, flags.epochs, seeds))
      print(f"| {' | '.join(row)} |", flush=True)
      if flags.write:
        write_rows(flags.part, head, {row[0]: row}, settings)


if __name__ == "__main__":
  main()
