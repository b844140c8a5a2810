"""What cross-layer scaling brings on real models: a ladder of methods, judged in the file.

    python benchmarks/equalize.py [--models=v2,v1,resnet8] [--presets=int8] [--rows=...] [--write]

Every row has the same iterative bias correction. "plain" is the network as it is, "pruned" without its
dead channels; all rows below are pruned too. The guard is off: each method is applied as it is.
"""

import pathlib
import statistics
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TITLE = "Cross-layer scaling"
ROWS = {  # name: (method, cap, high-bias absorption)
    "plain": None, "pruned": ("none", "exact", False), "one_step": ("one_step", "exact", False),
    "two_step": ("two_step", "exact", False), "pairwise": ("pairwise", "exact", False),
    "pairwise, cap dropped": ("pairwise", "drop", False), "joint": ("joint", "exact", False),
    "joint, caps kept": ("joint", "calibrated", False), "joint + absorption": ("joint", "exact", True)}


def rewritten(model, calibration: np.ndarray, row: tuple | None, preset: str):
  """Returns (the scaled float model, seconds, predicted dB or "")."""
  from kquant.graph.graph import Graph
  from kquant.rewrites.folding.batch_norm import fold_batch_norm
  from kquant.rewrites.scaling.absorb_bias import absorb_bias
  from kquant.rewrites.scaling.channel_statistics import measure_channels
  from kquant.rewrites.scaling.dead_channels import prune_dead_channels
  from kquant.rewrites.standardize.standardize import standardize
  graph = Graph.from_model(model)
  standardize(graph)
  fold_batch_norm(graph)
  start, predicted = time.perf_counter(), ""
  if row is not None:
    method, cap, absorb = row
    channels = measure_channels(graph, calibration, gains=True)
    prune_dead_channels(graph, statistics=channels)
    if method != "none":
      predicted = predicted_gain(graph, method, cap, preset, channels)
    if absorb:
      absorb_bias(graph, calibration=calibration)
  return graph.to_model(), time.perf_counter() - start, predicted


def predicted_gain(graph, method: str, cap: str, preset: str, channels) -> str:
  """Scales the graph; returns what its noise model says of it."""
  from kquant.core.quant_config import QuantConfig
  from kquant.rewrites.scaling.equalize import equalize
  equalize(graph, method=method, cap=cap, config=QuantConfig.preset(preset), guard=False, statistics=channels)
  return next((edit.what.split()[3] for edit in graph.edits if edit.what.startswith("predicted")), "")


def compare(name: str, preset: str, data: pathlib.Path, chosen: list[str]) -> list[dict]:
  """Measures the chosen rows of one model and preset."""
  from ptq import images_of, judge, latency, load, scores_of

  import kquant
  from kquant.core import metrics
  from tflite_export.file.writer import to_bytes
  from tflite_export.lowering.lower import lower
  model = load(name, data)
  calibration, x, labels = images_of(name, data)
  reference = scores_of(model, x)
  rows, plain = [], None
  for label in chosen:
    row = ROWS[label]
    scaled, seconds, predicted = rewritten(model, calibration, row, preset)
    result = kquant.quantize(scaled, calibration, config=preset,
                             recipe=kquant.Recipe(equalize="none", bias="iterative"), effort=None)
    contents = to_bytes(lower(result.model, result.encodings))
    plain = plain or contents
    ours, base = latency(contents, plain, runs=100)
    found = judge(contents, x, labels, reference)
    rows.append({**found, "model": name, "preset": preset, "row": label,
                 "float": metrics.top1(reference, labels), "predicted": predicted,
                 "minimum": found["ops"].get("MINIMUM", 0), "latency": ours / base, "seconds": seconds,
                 "bias": result.report.seconds["bias_correction"]})
    print(table(rows[-1:]).splitlines()[-1], flush=True)
  return rows


def table(rows: list[dict]) -> str:
  """The rows as Markdown."""
  lines = ["| model (float top-1) | preset | scaling | top-1 | agreement | SQNR dB | predicted dB | "
           "MINIMUM | latency | seconds scaling | seconds bias |",
           "|---|---|---|---|---|---|---|---|---|---|---|"]
  for r in rows:
    lines.append(f"| {r['model']} ({r['float']:.4f}) | {r['preset']} | {r['row']} | {r['top1']:.4f} | "
                 f"{r['agreement']:.4f} | {r['sqnr']:.1f} | {r['predicted']} | {r['minimum']} | "
                 f"{r['latency']:.2f} | {r['seconds']:.1f} | {r['bias']:.1f} |")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  from ptq import arguments, data_of, describe, write_section
  parser = arguments(__doc__)
  parser.add_argument("--models", default="v2,v1,resnet8")
  parser.add_argument("--presets", default="int8_per_tensor")
  parser.add_argument("--rows", default=";".join(ROWS), help="which, separated by semicolons")
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  rows = [row for name in flags.models.split(",") for preset in flags.presets.split(",")
          for row in compare(name, preset, data, flags.rows.split(";"))]
  head = describe(f"python benchmarks/equalize.py --models={flags.models} --presets={flags.presets} "
                  f"--rows=\"{flags.rows}\"")
  note = ("Calibrated on the first 128 images in label order, judged on the other 372 (resnet8: first 256 of "
          "x_train, all of x_test) by LiteRT at the input of the softmax. Every row with iterative bias "
          "correction, guard off. \"predicted\" is the change of output noise by the noise model; "
          "\"latency\" the ratio of medians to the plain file, runs in turn, XNNPACK, one thread; "
          "\"MINIMUM\" the operators that hold caps of scaled channels; \"seconds scaling\" has the channel "
          "statistics in it.")
  body = f"{head}\n\n{note}\n\n{table(rows)}"
  if flags.write:
    write_section(f"{TITLE}, {flags.presets}", body)
  print(f"median seconds of scaling: {statistics.median(row['seconds'] for row in rows):.1f}")


if __name__ == "__main__":
  main()
