"""What quantization without images costs on real models, judged in the file.

    python benchmarks/data_free.py [--models=v2] [--rows=...] [--write]

Rows with images take the ranges of min-max; those without know the range of the inputs and what the
batch norms remember.
"""

import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TITLE = "Without images"
INPUTS = {"v2": (-1, 1), "v1": (-1, 1), "resnet8": (0, 255)}
ROWS = {  # name: (preset, images, options of quantize)
    "images, no correction": ("int8", True, {"bias": "none"}),
    "images, analytic": ("int8", True, {"bias": "analytic"}),
    "images, local": ("int8", True, {"bias": "local"}),
    "none, no correction": ("int8", False, {"bias": "none"}),
    "none, analytic": ("int8", False, {"bias": "analytic"}),
    "none, pairwise, analytic": ("int8", False, {"bias": "analytic", "equalize": "pairwise"}),
    "none, per tensor, pairwise, analytic": ("int8_per_tensor", False,
                                             {"bias": "analytic", "equalize": "pairwise"}),
    "none, per tensor, two_step, analytic": ("int8_per_tensor", False,
                                             {"bias": "analytic", "equalize": "two_step"}),
}


def compare(name: str, data: pathlib.Path, chosen: list[str]) -> list[dict]:
  """Measures the chosen rows of one model."""
  from ptq import images_of, judge, load, scores_of

  import kquant
  from kquant.core import metrics
  from tflite_export.file.writer import to_bytes
  from tflite_export.lowering.lower import lower
  model = load(name, data)
  calibration, x, labels = images_of(name, data)
  reference = scores_of(model, x)
  found = []
  for label in chosen:
    preset, images, options = ROWS[label]
    known = calibration if images else kquant.InputRange(*INPUTS[name])
    start = time.perf_counter()
    result = kquant.quantize(model, known, config=preset,
                             recipe=kquant.Recipe(**{"equalize": "none", **options}), effort=None)
    seconds = time.perf_counter() - start
    judged = judge(to_bytes(lower(result.model, result.encodings)), x, labels, reference)
    found.append({**judged, "model": name, "row": label, "float": metrics.top1(reference, labels),
                  "seconds": seconds})
    print(table(found[-1:]).splitlines()[-1], flush=True)
  return found


def table(rows: list[dict]) -> str:
  """The rows as Markdown."""
  lines = ["| model (float top-1) | images, biases | top-1 | agreement | SQNR dB | seconds |",
           "|---|---|---|---|---|---|"]
  for r in rows:
    lines.append(f"| {r['model']} ({r['float']:.4f}) | {r['row']} | {r['top1']:.4f} | {r['agreement']:.4f} | "
                 f"{r['sqnr']:.1f} | {r['seconds']:.1f} |")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  from ptq import arguments, data_of, describe, write_section
  parser = arguments(__doc__)
  parser.add_argument("--models", default="v2")
  parser.add_argument("--rows", default=";".join(ROWS), help="which, separated by semicolons")
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  rows = [row for name in flags.models.split(",") for row in compare(name, data, flags.rows.split(";"))]
  head = describe(f"python benchmarks/data_free.py --models={flags.models} --rows=\"{flags.rows}\"")
  note = ("int8, per-channel unless it says per tensor. With images: calibrated on the first 128 in "
          "label order (resnet8: first 256 of x_train), min-max. Without: the range of the inputs and the "
          "batch norms. Judged on the other 372 images (resnet8: all of x_test) by LiteRT at the input of "
          "the softmax; seconds of `quantize` on a shared machine.")
  if flags.write:
    write_section(TITLE, f"{head}\n\n{note}\n\n{table(rows)}")


if __name__ == "__main__":
  main()
