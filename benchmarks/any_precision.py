"""Any-precision networks: trained ones against dedicated ones, and families after training.

    python benchmarks/any_precision.py [--shared=../shared] [--table=training|step|family|bundle]
                                       [--rows="any;dedicated"] [--seeds=0,1,2] [--epochs=30] [--write]

training  resnet8 on 5,000 CIFAR-10 images, top-1 on the 3,000 of x_test at every width. "any": nested codes,
          recursive distillation; "any, labels": without distillation; "any, both": all widths learn
          from the labels too; "paper": the authors' quantizers;
          "dedicated": one training for each width with the same quantizer and steps; "shifted": the dedicated
          8 bits truncated, batch norms as they are and estimated again. Widths in brackets were not trained.
          Seconds are those of the processor, in `fit`. `--write` writes each row when it is there and leaves
          other rows of the same epochs as they are.
step      processor time of a training step of resnet8, five widths and one, in turn in one process
family    config any8 after training, against closed-form rounding for each width alone; bundle and extraction
bundle    resnet8 trained at eight widths: its bundle against the file of 8 bits

`--write` puts a table into benchmarks/results.md. `--picture=docs/any_precision.png` draws the first as it
stands there, top-1 against the bytes of the kernels.
"""

import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
from ptq import arguments, data_of, describe, images_of, judge, load, scores_of, write_section, written_rows
from qat import BATCH, augmented, cifar, compiled, fit, scores
from step_time import build, step_of

CALIBRATION, REESTIMATED = 256, 1600
TRAINED, ADDED = (32, 8, 4, 2, 1), (7, 6, 5, 3)
TITLES = {"training": "Any-precision training, resnet8 on 5,000 images",
          "step": "Any-precision training, processor time of a step",
          "family": "Any-precision families after training",
          "bundle": "Any-precision bundle of eight trained widths"}


def trained(data: pathlib.Path, widths, epochs: int, seed: int, **options):
  """Returns (an AnyPrecisionModel of resnet8, trained, batch norms estimated again; processor seconds)."""
  import tf_keras as keras

  import kquant as kq
  keras.utils.set_random_seed(seed)
  x, y, _, _ = cifar(data)
  steps = len(x) // BATCH
  anymodel = kq.AnyPrecisionModel(load("resnet8", data), widths, **options)
  anymodel.calibrate(x[:CALIBRATION].astype(np.float32))
  compiled(anymodel, epochs=epochs, steps=steps, learning_rate=1e-3, loss="sparse_categorical_crossentropy")
  start = time.process_time()
  fit(anymodel, augmented(x, y, pad=4, size=32, seed=seed), epochs=epochs, steps=steps)
  seconds = time.process_time() - start
  anymodel.reestimate_batch_norms(x[:REESTIMATED].astype(np.float32))
  return anymodel, seconds


def top1_of(anymodel, data: pathlib.Path) -> dict[int, float]:
  """Returns {bits: top-1 on x_test}."""
  from kquant.core import metrics
  _, _, x, y = cifar(data)
  return {bits: metrics.top1(scores(anymodel.at(bits), x), y) for bits in anymodel.widths}


def any_row(data: pathlib.Path, epochs: int, seed: int, **options) -> tuple[dict[int, float], float]:
  """Top-1 of all widths of one training, those that were not trained too; processor seconds."""
  x, _, _, _ = cifar(data)
  anymodel, seconds = trained(data, TRAINED, epochs, seed, **options)
  for bits in ADDED:
    anymodel.add_width(bits, x[:REESTIMATED].astype(np.float32))
  return top1_of(anymodel, data), seconds


def dedicated_row(data: pathlib.Path, epochs: int, seed: int) -> tuple[dict[int, float], float]:
  """Top-1 of one training for each width; 32 bits beside 8, whose gradients are their own labels'."""
  found, times = {}, []
  for bits in TRAINED[1:]:
    anymodel, seconds = trained(data, (bits,), epochs, seed)
    found.update(top1_of(anymodel, data))
    times.append(seconds)
  from kquant.core import metrics
  x, y, x_test, y_test = cifar(data)
  model, steps = load("resnet8", data), len(x) // BATCH
  compiled(model, epochs=epochs, steps=steps, learning_rate=1e-3, loss="sparse_categorical_crossentropy")
  fit(model, augmented(x, y, pad=4, size=32, seed=seed), epochs=epochs, steps=steps)
  return {32: metrics.top1(scores(model, x_test), y_test), **found}, sum(times)


def shifted_row(data: pathlib.Path, epochs: int, seed: int) -> tuple[dict[int, float], float]:
  """Top-1 of the dedicated 8 bits truncated, batch norms estimated again."""
  x, _, _, _ = cifar(data)
  anymodel, seconds = trained(data, (8,), epochs, seed)
  for bits in (*ADDED, 4, 2, 1):
    anymodel.add_width(bits, x[:REESTIMATED].astype(np.float32))
  return top1_of(anymodel, data), seconds


ROWS = {"any": any_row, "dedicated": dedicated_row, "shifted": shifted_row,
        "any, labels": lambda *args: any_row(*args, distill=None),
        "any, both": lambda *args: any_row(*args, labels="all"),
        "paper": lambda *args: any_row(*args, mode="paper")}


WIDTHS = sorted((*TRAINED, *ADDED), reverse=True)
HEAD = ["row", "seed", *(f"{bits}" if bits in TRAINED else f"({bits})" for bits in WIDTHS), "seconds"]
MEAN, ERROR = "mean", "its s.e."


def measure_rows(data: pathlib.Path, names: list[str], epochs: int, seeds: list[int], write: bool) -> None:
  """Measures rows; each is printed, and written, when it is there."""
  rows = {}
  for seed in seeds:
    for name in names:
      found, seconds = ROWS[name](data, epochs, seed)
      cells = [*(f"{found[bits]:.4f}" if bits in found else "" for bits in WIDTHS), f"{seconds:.0f}"]
      rows[name, str(seed)] = cells
      print(f"| {name} | {seed} | {' | '.join(cells)} |", flush=True)
      if write:
        write_training(rows, epochs)


def measured_rows(settings: str = "") -> dict[tuple[str, str], list[str]]:
  """Returns {(row, seed): cells} of the training table in results.md, without the means."""
  lines = [[cell.strip() for cell in line.strip("|").split("|")]
           for line in written_rows(TITLES["training"], settings=settings)]
  return {(name, seed): cells for name, seed, *cells in lines if seed not in (MEAN, ERROR)}


def write_training(rows: dict[tuple[str, str], list[str]], epochs: int) -> None:
  """Writes rows and those that the same number of epochs gave before, with the means over seeds."""
  settings = f"--epochs={epochs}"
  every = {**measured_rows(settings), **rows}
  names, seeds = list(dict.fromkeys(name for name, _ in every)), sorted({int(seed) for _, seed in every})
  lines = []
  for name in names:
    own = [[name, str(seed), *every[name, str(seed)]] for seed in seeds if (name, str(seed)) in every]
    lines += own + (means([row[2:-1] for row in own], name) if len(own) > 1 else [])
  command = (f"python benchmarks/any_precision.py --table=training --rows=\"{';'.join(names)}\" "
             f"--seeds={','.join(map(str, seeds))} {settings}")
  body = "\n".join([f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD),
                    *(f"| {' | '.join(cells)} |" for cells in lines)])
  write_section(TITLES["training"], f"{describe(command)}\n\n{body}")


def means(rows: list[list[str]], name: str) -> list[list[str]]:
  """Returns the mean over seeds and its standard error, a row each."""
  values = [[float(row[index]) for row in rows] if rows[0][index] else [] for index in range(len(rows[0]))]
  cells = {MEAN: [statistics.mean(own) if own else None for own in values],
           ERROR: [statistics.stdev(own) / len(own)**0.5 if own else None for own in values]}
  return [[name, kind, *("" if value is None else f"{value:.4f}" for value in found), ""]
          for kind, found in cells.items()]


def step_table(data: pathlib.Path, count: int = 20) -> str:
  """Measures processor time of training steps in turn: medians of `count` each, after 5 to warm up."""
  import kquant as kq
  _, images = build("resnet8", data)
  steps = {"float model": step_of(load("resnet8", data), images)}
  for name, widths in (("8 bits alone", (8,)), ("five widths", TRAINED)):
    steps[name] = step_of(kq.AnyPrecisionModel(load("resnet8", data), widths).calibrate(images), images)
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(count + 5):
    for name, step in steps.items():
      start = time.process_time()
      step()
      seconds[name].append(time.process_time() - start)
  medians = {name: 1000 * statistics.median(values[5:]) for name, values in seconds.items()}
  one = medians["8 bits alone"]
  lines = [f"| {name} | {value:.0f} | {value / one:.2f} |" for name, value in medians.items()]
  return "\n".join(["| step | processor ms | times 8 bits alone |", "|---|---|---|", *lines])


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
    note = f"{name}: quantized in {seconds:.1f} s; {bundle_in_words(written)}"
  return rows, note


def bundle_in_words(written) -> str:
  """Returns the size of a bundle, and how long one width takes, which is taken out here."""
  from tflite_export.family.bundle import Bundle
  start = time.perf_counter()
  Bundle(written.bundle).tflite(4)
  seconds = time.perf_counter() - start
  return (f"bundle of {len(written.files)} widths {written.bytes:,} bytes, "
          f"{written.bytes / written.files[8].bytes:.3f} times the file of 8 bits; one width taken out in "
          f"{seconds:.2f} s.")


def bundle_table(data: pathlib.Path, epochs: int, seed: int) -> str:
  """Trains resnet8 at eight widths; returns what its bundle and files take, and what they are."""
  import tflite_export
  anymodel, _ = trained(data, WIDTHS[1:], epochs, seed)
  calibration, x, labels = images_of("resnet8", data)
  simulated = top1_of(anymodel, data)
  lines = ["| bits | top-1 in Keras | top-1 of the file | bytes | certified |", "|---|---|---|---|---|"]
  with tempfile.TemporaryDirectory() as folder:
    written = tflite_export.export_family(anymodel, folder, verify=calibration[:2].astype(np.float32))
    for bits, file in written.files.items():
      found = judge(pathlib.Path(file.path).read_bytes(), x, labels, scores(anymodel.at(bits), x))
      lines.append(f"| {bits} | {simulated[bits]:.4f} | {found['top1']:.4f} | {file.bytes:,} | "
                   f"{'yes' if file.certificate['exact'] else 'no'} |")
    return "\n".join([*lines, "", f"resnet8: {bundle_in_words(written)}"])


def kernel_bytes(data: pathlib.Path, bits: int) -> float:
  """Returns the bytes of the kernels of resnet8 at a width; the first and the last have 8 bits."""
  sizes = [weight.shape.num_elements() for weight in load("resnet8", data).weights if "kernel" in weight.name]
  return (sizes[0] + sizes[-1]) + sum(sizes[1:-1]) * bits / 8


def draw(data: pathlib.Path, path: str) -> None:
  """Draws the means over seeds of each row of the training table in results.md."""
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot
  widths = WIDTHS[1:]
  points: dict[str, list[list[float]]] = {}
  for (name, _), cells in measured_rows().items():
    points.setdefault(name, []).append([float(cell) if cell else np.nan for cell in cells[1:-1]])
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
  axes.legend(loc="lower right", bbox_to_anchor=(1, 0.06))
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
  names = flags.rows.split(";") if flags.rows else {"training": list(ROWS), "family": ["resnet8", "v2"]}.get(
      flags.table, [])
  seeds = [int(seed) for seed in flags.seeds.split(",")]
  if flags.table == "training":
    measure_rows(data, names, flags.epochs, seeds, flags.write)
    return
  body, said = {"family": lambda: (family_table(data, names), f" --rows=\"{';'.join(names)}\""),
                "bundle": lambda: (bundle_table(data, flags.epochs, seeds[0]),
                                   f" --epochs={flags.epochs} --seeds={seeds[0]}"),
                "step": lambda: (step_table(data), "")}[flags.table]()
  print(body, flush=True)
  if flags.write:
    command = f"python benchmarks/any_precision.py --table={flags.table}{said}"
    write_section(TITLES[flags.table], f"{describe(command)}\n\n{body}")


if __name__ == "__main__":
  main()
