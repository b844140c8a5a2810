"""What tiles of squeeze-and-excite cost in accuracy and save in buffers, without training.

    python benchmarks/squeeze_excite.py [--parts=float,buffers,integers] [--rows=7,14,28] [--limits=0.02,0.05]
                                        [--pixels=224] [--shared=../shared] [--write]

With --write each part writes its section of results.md, and float and buffers the pictures of
docs/squeeze_excite.md.
"""

import argparse
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TITLES = {"float": "Tiled squeeze-and-excite", "buffers": "Buffers of tiled squeeze-and-excite",
          "integers": "Tiled squeeze-and-excite in int8 files"}
MODEL = "mobilenet_v3_small_224.h5"
CHOSEN_BY = 48
"""Calibration images, every second or third, that tiles are chosen by; a quarter of them is held back."""
PIXELS = 224
NOTE = ("MobileNetV3-Small, no training; the first 128 images in label order calibrate, the "
        f"other 372 judge. Tiles are chosen by {CHOSEN_BY} of the 128, a quarter of them held back. int8: "
        "effort auto, run by LiteRT; milliseconds of one image, XNNPACK, one thread, a shared machine.")
BACKBONES = {"EfficientNetB0": (224, 512, 768), "EfficientNetB2": (224, 512, 768)}


def variants(model, calibration, rows: list[int], limits: list[float]) -> dict:
  """Returns {label: (model, elements of all blocks)}."""
  import kquant as kq
  found = {"whole": model, **{f"{n} rows": kq.tile_squeeze_excite(model, rows=n) for n in rows}}
  found = {label: (tiled, kq.pipeline_buffer(tiled).squeeze_excite) for label, tiled in found.items()}
  few = calibration[np.linspace(0, len(calibration) - 1, CHOSEN_BY).astype(int)]
  for limit in limits:
    choice = kq.choose_tiles(model, few, max_change=limit)
    print(choice, file=sys.stderr, flush=True)
    found[f"chosen, change {100 * limit:.0f} %"] = choice.model, choice.buffer
  return found


def enlarged(model, images: list[np.ndarray], pixels: int) -> tuple:
  """Returns the network for images of that size, its weights as they are, and the images enlarged to it."""
  import tensorflow as tf
  import tf_keras as keras
  size = (pixels, pixels)
  if model.input_shape[1:3] == size:
    return model, images
  large = keras.models.clone_model(model, input_tensors=keras.Input((*size, 3)))
  large.set_weights(model.get_weights())
  return large, [np.concatenate([tf.image.resize(x[i:i + 32], size) for i in range(0, len(x), 32)])
                 for x in images]


def measure(data: pathlib.Path, rows: list[int], limits: list[float], pixels: int, *,
            integers: bool) -> list[dict]:
  """Measures variants of MobileNetV3-Small without training, in float or as int8 files."""
  from ptq import images_of, judge, latency, scores_of

  import kquant as kq
  from kquant.core import metrics
  from kquant.doctor.files import contents
  model = kq.load_model(data / "models" / MODEL)
  calibration, x, labels = images_of("v3", data)
  model, (calibration, x) = enlarged(model, [calibration, x], pixels)
  reference, found, first = scores_of(model, x), [], None
  for label, (tiled, elements) in variants(model, calibration, rows, limits).items():
    if integers:
      file = contents(kq.quantize(tiled, calibration))
      first = first or file
      row = {**judge(file, x, labels, reference), "ms": latency(first, file)[1]}
    else:
      scores = scores_of(tiled, x)
      row = {"top1": metrics.top1(scores, labels), "agreement": metrics.agreement(scores, reference),
             "sqnr": metrics.sqnr_db(scores, reference)}
    found.append({"tiles": label, "elements": elements, **row})
    print(found[-1], file=sys.stderr, flush=True)
  return found


def buffers(name: str, size: int) -> dict:
  """Returns the elements that a backbone holds, whole and in tiles of 7 rows."""
  from tf_keras import applications

  import kquant as kq
  model = getattr(applications, name)(weights=None, include_top=False, input_shape=(size, size, 3))
  whole, tiled = kq.pipeline_buffer(model), kq.pipeline_buffer(kq.tile_squeeze_excite(model, rows=7))
  return {"name": name, "size": size, "whole": whole, "tiled": tiled}


def accuracy_table(rows: list[dict]) -> str:
  """The variants of MobileNetV3-Small as Markdown."""
  digits = {"elements": ",", "top1": ".3f", "agreement": ".3f", "sqnr": ".1f", "ms": ".2f", "bytes": ","}
  digits = {key: form for key, form in digits.items() if key in rows[0]}
  titles = {"elements": "elements held by the blocks", "top1": "top-1", "sqnr": "SQNR dB",
            "agreement": "agreement with the float model without tiles"}
  lines = ["| ".join(["", "tiles ", *(f"{titles.get(key, key)} " for key in digits)]) + "|",
           "|---" * (len(digits) + 1) + "|"]
  for row in rows:
    cells = [row["tiles"], *(format(row[key], form) for key, form in digits.items())]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def buffer_table(rows: list[dict]) -> str:
  """The backbones as Markdown."""
  lines = ["| backbone | pixels | blocks, whole | blocks, 7 rows | ratio | residuals, whole | "
           "residuals, 7 rows | windows of kernels |", "|---|---|---|---|---|---|---|---|"]
  for r in rows:
    whole, tiled = r["whole"], r["tiled"]
    lines.append(f"| {r['name']} | {r['size']} | {whole.squeeze_excite:,} | {tiled.squeeze_excite:,} | "
                 f"{tiled.squeeze_excite / whole.squeeze_excite:.3f} | {whole.residuals:,} | "
                 f"{tiled.residuals:,} | {tiled.kernels:,} |")
  return "\n".join(lines)


def draw_accuracy(rows: list[dict], path: pathlib.Path) -> None:
  """Top-1 and agreement over the elements that the blocks hold."""
  from matplotlib.figure import Figure
  figure = Figure(figsize=(8, 4), layout="constrained")
  axes = figure.subplots()
  rows = sorted(rows, key=lambda row: row["elements"])
  for key, label in (("agreement", "agreement with the whole image"), ("top1", "top-1")):
    axes.plot([row["elements"] / 1e3 for row in rows], [100 * row[key] for row in rows], "o-", label=label)
  for row in rows:
    axes.annotate(row["tiles"], (row["elements"] / 1e3, 100 * row["agreement"]), (0, -14), fontsize="small",
                  textcoords="offset points", ha="center")
  axes.set_xlabel("elements held by all blocks, thousands (MobileNetV3-Small, float, no training)")
  axes.set_ylabel("%")
  axes.legend()
  figure.savefig(path, dpi=100)


def publish(part: str, found: list[dict], flags: argparse.Namespace) -> None:
  """Prints the table of a part; with --write puts it into results.md and draws its picture."""
  from ptq import describe, write_section
  title, command = TITLES[part], f"python benchmarks/squeeze_excite.py --parts={part}"
  if part == "buffers":
    note, table = "Elements are bytes at 8 bits; weights do not matter.", buffer_table(found)
  else:
    command += f" --rows={flags.rows} --limits={flags.limits} --pixels={flags.pixels}"
    title += "" if flags.pixels == PIXELS else f", {flags.pixels} pixels"
    note, table = f"{flags.pixels} pixels. {NOTE}", accuracy_table(found)
  print(table, flush=True)
  if flags.write:
    write_section(title, f"{describe(command)}\n\n{note}\n\n{table}")
    if part == "buffers":
      found[-1]["tiled"].plot().savefig(ROOT / "docs" / "squeeze_excite_buffer.png", dpi=100)
    elif title == TITLES["float"]:
      draw_accuracy(found, ROOT / "docs" / "squeeze_excite_accuracy.png")


def main() -> None:
  """Measures what the flags say."""
  from ptq import arguments, data_of
  parser = arguments(__doc__)
  parser.add_argument("--parts", default=",".join(TITLES))
  parser.add_argument("--rows", default="7,14,28")
  parser.add_argument("--limits", default="0.02,0.05", help="changes that tiles are chosen for")
  parser.add_argument("--pixels", type=int, default=PIXELS, help="of the float and integers parts")
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  rows, limits = ([kind(n) for n in text.split(",") if n] for kind, text in (
      (int, flags.rows), (float, flags.limits)))
  for part in flags.parts.split(","):
    if part == "buffers":
      found = [buffers(name, size) for name, sizes in BACKBONES.items() for size in sizes]
    else:
      found = measure(data, rows, limits, flags.pixels, integers=part == "integers")
    publish(part, found, flags)


if __name__ == "__main__":
  main()
