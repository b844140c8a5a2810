"""Any-precision networks: trained ones against dedicated ones, and families after training.

    python benchmarks/any_precision.py [--shared=../shared] [--table=training|family] [--rows="any;dedicated"]
                                       [--epochs=30] [--seeds=0,1,2] [--write]

training  resnet8 on 5,000 CIFAR-10 images, top-1 on the 3,000 of x_test at every width. "any": nested codes,
          recursive distillation; "any, labels": without distillation; "paper": the authors' quantizers;
          "dedicated": one training for each width with the same quantizer and steps; "shifted": the dedicated
          8 bits truncated, batch norms as they are and estimated again. Widths in brackets were not trained.
family    config any8 after training, against closed-form rounding for each width alone; bundle and extraction

`--write` puts a table into benchmarks/results.md. `--picture=docs/any_precision.png` draws the first as it
stands there, top-1 against the bytes of the kernels.
"""

import os
import pathlib
import tempfile
import time

import numpy as np
from ptq import arguments, data_of, describe, images_of, judge, load, scores_of, write_section, written_rows
from qat import BATCH, augmented, cifar, compiled, fit, scores

CALIBRATION, REESTIMATED = 256, 1600
TRAINED, ADDED = (32, 8, 4, 2, 1), (7, 6, 5, 3)
TITLES = {"training": "Any-precision training, resnet8 on 5,000 images",
          "family": "Any-precision families after training"}


def trained(data: pathlib.Path, widths, epochs: int, seed: int, **options):
  """Returns (an AnyPrecisionModel of resnet8, trained, its batch norms estimated again; ms a step)."""
  import tf_keras as keras

  import kquant as kq
  keras.utils.set_random_seed(seed)
  x, y, _, _ = cifar(data)
  steps = len(x) // BATCH
  anymodel = kq.AnyPrecisionModel(load("resnet8", data), widths, **options)
  anymodel.calibrate(x[:CALIBRATION].astype(np.float32))
  compiled(anymodel, epochs=epochs, steps=steps, learning_rate=1e-3, loss="sparse_categorical_crossentropy")
  _, seconds = fit(anymodel, augmented(x, y, pad=4, size=32, seed=seed), epochs=epochs, steps=steps)
  anymodel.reestimate_batch_norms(x[:REESTIMATED].astype(np.float32))
  return anymodel, 1000 * seconds / (epochs * steps)


def top1_of(anymodel, data: pathlib.Path) -> dict[int, float]:
  """Returns {bits: top-1 on x_test}."""
  from kquant.core import metrics
  _, _, x, y = cifar(data)
  return {bits: metrics.top1(scores(anymodel.at(bits), x), y) for bits in anymodel.widths}


def any_row(data: pathlib.Path, epochs: int, seed: int, **options) -> tuple[dict[int, float], float]:
  """Top-1 of all widths of one training, those that were not trained too, and ms a step."""
  x, _, _, _ = cifar(data)
  anymodel, milliseconds = trained(data, TRAINED, epochs, seed, **options)
  for bits in ADDED:
    anymodel.add_width(bits, x[:REESTIMATED].astype(np.float32))
  return top1_of(anymodel, data), milliseconds


def dedicated_row(data: pathlib.Path, epochs: int, seed: int) -> tuple[dict[int, float], float]:
  """Top-1 of one training for each width; 32 bits beside 8, whose gradients are their own labels'."""
  found, times = {}, []
  for bits in TRAINED[1:]:
    anymodel, milliseconds = trained(data, (bits,), epochs, seed)
    found.update(top1_of(anymodel, data))
    times.append(milliseconds)
  from kquant.core import metrics
  x, y, x_test, y_test = cifar(data)
  model, steps = load("resnet8", data), len(x) // BATCH
  compiled(model, epochs=epochs, steps=steps, learning_rate=1e-3, loss="sparse_categorical_crossentropy")
  fit(model, augmented(x, y, pad=4, size=32, seed=seed), epochs=epochs, steps=steps)
  return {32: metrics.top1(scores(model, x_test), y_test), **found}, float(np.mean(times))


def shifted_row(data: pathlib.Path, epochs: int, seed: int) -> tuple[dict[int, float], float]:
  """Top-1 of the dedicated 8 bits truncated, batch norms estimated again."""
  x, _, _, _ = cifar(data)
  anymodel, milliseconds = trained(data, (8,), epochs, seed)
  for bits in (*ADDED, 4, 2, 1):
    anymodel.add_width(bits, x[:REESTIMATED].astype(np.float32))
  return top1_of(anymodel, data), milliseconds


ROWS = {"any": any_row, "dedicated": dedicated_row, "shifted": shifted_row,
        "any, labels": lambda *args: any_row(*args, distill=None),
        "paper": lambda *args: any_row(*args, mode="paper")}


def training_table(data: pathlib.Path, names: list[str], epochs: int, seeds: list[int]) -> str:
  """Measures rows; each is printed when it is there."""
  widths = sorted((*TRAINED, *ADDED), reverse=True)
  head = ["row", "seed", *(f"{bits}" if bits in TRAINED else f"({bits})" for bits in widths), "ms a step"]
  lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
  for seed in seeds:
    for name in names:
      found, milliseconds = ROWS[name](data, epochs, seed)
      cells = [f"{found[bits]:.4f}" if bits in found else "" for bits in widths]
      lines.append(f"| {name} | {seed} | {' | '.join(cells)} | {milliseconds:.0f} |")
      print(lines[-1], flush=True)
  return "\n".join(lines)


def family_table(data: pathlib.Path, names: list[str]) -> str:
  """Measures config any8 on models."""
  lines = ["| model | bits | top-1 | agreement | dedicated top-1 | agreement | bytes | certified |",
           "|---|---|---|---|---|---|---|---|"]
  notes = []
  for name in names:
    rows, note = family_rows(name, data)
    print("\n".join([*rows, note]), flush=True)
    lines += rows
    notes.append(note)
  return "\n".join([*lines, "", *notes])


def family_rows(name: str, data: pathlib.Path) -> tuple[list[str], str]:
  """Returns the rows of a model, and what there is to say of its bundle."""
  import kquant as kq
  import tflite_export
  from tflite_export.family.bundle import Bundle
  model, (calibration, x, labels) = load(name, data), images_of(name, data)
  reference = scores_of(model, x)
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    result = kq.quantize(model, calibration, config="any8")
    seconds = time.perf_counter() - start
    written = tflite_export.export_family(result, folder, verify=calibration[:2])
    for bits, file in written.files.items():
      config = "int8" if bits == 8 else f"w{bits}a8"
      alone = kq.quantize(model, calibration, config=config, recipe=kq.Recipe(rounding="closed_form"),
                          effort=None)
      path = os.path.join(folder, "alone.tflite")
      tflite_export.export(alone, path)
      judged = [judge(pathlib.Path(p).read_bytes(), x, labels, reference) for p in (file.path, path)]
      cells = [f"{one[key]:.4f}" for one in judged for key in ("top1", "agreement")]
      rows.append(f"| {name} | {bits} | {' | '.join(cells)} | {file.bytes:,} | "
                  f"{'yes' if file.certificate['exact'] else 'no'} |")
    start = time.perf_counter()
    Bundle(written.bundle).tflite(4)
    extraction = time.perf_counter() - start
  note = (f"{name}: quantized in {seconds:.1f} s; bundle of {len(written.files)} widths {written.bytes:,} "
          f"bytes, {written.bytes / written.files[8].bytes:.3f} times the file of 8 bits; one width taken "
          f"out in {extraction:.2f} s.")
  return rows, note


def kernel_bytes(data: pathlib.Path, bits: int) -> float:
  """Returns the bytes of the kernels of resnet8 at a width; the first and the last have 8 bits."""
  sizes = [weight.shape.num_elements() for weight in load("resnet8", data).weights if "kernel" in weight.name]
  return (sizes[0] + sizes[-1]) + sum(sizes[1:-1]) * bits / 8


def draw(data: pathlib.Path, path: str) -> None:
  """Draws the means over seeds of each row of the training table in results.md."""
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  widths = sorted((*TRAINED, *ADDED), reverse=True)[1:]
  points: dict[str, list[list[float]]] = {}
  for line in written_rows(TITLES["training"]):
    name, _, _, *cells, _ = [cell.strip() for cell in line.strip("|").split("|")]
    points.setdefault(name, []).append([float(cell) if cell else np.nan for cell in cells])
  figure, axes = pyplot.subplots(figsize=(7, 4.5))
  sizes = np.array([kernel_bytes(data, bits) for bits in widths]) / 1000
  for name, rows in points.items():
    mean = np.mean(rows, axis=0)
    there = ~np.isnan(mean)
    axes.plot(sizes[there], 100 * mean[there], marker="o", label=name)
  for bits, size in zip(widths, sizes):
    axes.annotate(f"{bits}", (size, axes.get_ylim()[0]), ha="center", va="bottom")
  axes.set(xlabel="kB of kernels (bits below)", ylabel="top-1, %", title=TITLES["training"])
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
  """Measures what the flags say."""
  parser = arguments(__doc__)
  parser.add_argument("--table", default="training", choices=TITLES)
  parser.add_argument("--rows", default=None, help="which rows or models, separated by semicolons")
  parser.add_argument("--epochs", type=int, default=30)
  parser.add_argument("--seeds", default="0")
  parser.add_argument("--picture", default=None, help="draw what --write wrote, and measure nothing")
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  if flags.picture:
    draw(data, flags.picture)
    return
  every = list(ROWS) if flags.table == "training" else ["resnet8", "v2"]
  names = flags.rows.split(";") if flags.rows else every
  command = f"python benchmarks/any_precision.py --table={flags.table} --rows=\"{';'.join(names)}\""
  if flags.table == "training":
    command += f" --epochs={flags.epochs} --seeds={flags.seeds}"
    body = training_table(data, names, flags.epochs, [int(seed) for seed in flags.seeds.split(",")])
  else:
    body = family_table(data, names)
  if flags.write:
    write_section(TITLES[flags.table], f"{describe(command)}\n\n{body}")


if __name__ == "__main__":
  main()
