"""What each method after training brings on real models, judged in the file.

    python benchmarks/ptq_ladder.py [--models=v2,v1,resnet8] [--presets=w4a8,int8] [--rows=...]
                                    [--write [--add]]

The first rows add one method after the other; those named after an effort are `quantize(effort=)` as it is.
A preset with activations of fewer than 8 bits is judged by the simulation: no file holds it. A row "balanced,
images drawn" calibrates on images drawn from all, as users should, and is judged by the others.
"""

import pathlib
import resource
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TITLE = "Post-training methods"
DRAWN = ", images drawn"
ROWS = {  # name: arguments of kquant.quantize; "range" is of the weights
    "nearest": {"bias": "none"},
    "+ range (mse)": {"bias": "none", "range": "mse"},
    "+ iterative bias": {"bias": "iterative", "range": "mse"},
    "+ adaround": {"rounding": "adaround"},
    "+ closed form": {"rounding": "closed_form"},
    "+ joint": {"rounding": "closed_form", "equalize": "joint"},
    "+ bft": {"rounding": "closed_form", "equalize": "joint", "finetune": "bft"},
    "+ qft": {"rounding": "closed_form", "equalize": "joint", "finetune": "qft"},
    "fast": {"effort": "fast"}, "balanced": {"effort": "balanced"}, "best": {"effort": "best"}}


def config_of(preset: str, weights_range: str):
  """Returns the QuantConfig of a preset with a range estimator for the weights."""
  import dataclasses

  from kquant.core.quant_config import QuantConfig
  from kquant.core.recipe import Recipe
  config = QuantConfig.preset(preset)
  rules = [dataclasses.replace(rule, weights=dataclasses.replace(rule.weights, range=weights_range))
           for rule in config.rules]
  return dataclasses.replace(config, rules=rules, recipe=Recipe(equalize="none"))


def compare(name: str, preset: str, data: pathlib.Path, chosen: list[str]) -> list[dict]:
  """Measures the chosen rows of one model and preset."""
  from ptq import images_of, load, scores_of

  import kquant
  from kquant.core import metrics
  model = load(name, data)
  rows, splits = [], {}
  for label in chosen:
    drawn, arguments = label.endswith(DRAWN), dict(ROWS[label.removesuffix(DRAWN)])
    if drawn not in splits:
      calibration, x, labels = images_of(name, data, drawn=drawn)
      answers = scores_of(model, x)
      splits[drawn] = calibration, x, labels, answers
    calibration, x, labels, reference = splits[drawn]
    config = config_of(preset, arguments.pop("range", "minmax"))
    start = time.perf_counter()
    effort = arguments.pop("effort", None)
    result = kquant.quantize(model, calibration, config=config, effort=effort,
                             recipe=kquant.Recipe(**arguments))
    seconds = time.perf_counter() - start
    rows.append({**found_by(result, preset, x, labels, reference), "model": name, "preset": preset,
                 "row": label, "float": metrics.top1(reference, labels), "seconds": seconds,
                 "kept": "; ".join(f"{trial.method} {str(trial).split(' on ')[0]}"
                                   f"{'' if trial.kept else ' (left out)'}"
                                   for trial in result.report.trials),
                 "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})
    print(table(rows[-1:]).splitlines()[-1], flush=True)
  return rows


def found_by(result, preset: str, x, labels, reference) -> dict:
  """Judges the file, or the simulation where no file holds the activations."""
  from ptq import judge

  from kquant.core import metrics
  from kquant.qmodel.outputs import network_outputs
  from tflite_export.file.writer import to_bytes
  from tflite_export.lowering.lower import lower
  if preset.endswith("a8") or preset.startswith("int"):
    return {**judge(to_bytes(lower(result.model, result.encodings)), x, labels, reference), "in": "file"}
  (scores,) = network_outputs(result.qmodel, [x])
  scores = scores.reshape(len(x), -1)
  return {"top1": metrics.top1(scores, labels), "agreement": metrics.agreement(scores, reference),
          "sqnr": metrics.sqnr_db(scores, reference), "in": "simulation"}


def table(rows: list[dict]) -> str:
  """The rows as Markdown."""
  lines = ["| model (float top-1) | preset | methods | top-1 | agreement | SQNR dB | in | seconds | GB | "
           "steps |", "|---|---|---|---|---|---|---|---|---|---|"]
  for r in rows:
    lines.append(f"| {r['model']} ({r['float']:.4f}) | {r['preset']} | {r['row']} | {r['top1']:.4f} | "
                 f"{r['agreement']:.4f} | {r['sqnr']:.1f} | {r['in']} | {r['seconds']:.1f} | "
                 f"{r['memory']:.1f} | {r['kept']} |")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  from ptq import arguments, data_of, describe, write_section, written_rows
  parser = arguments(__doc__)
  parser.add_argument("--models", default="v2,v1,resnet8")
  parser.add_argument("--presets", default="w4a8,int8")
  parser.add_argument("--rows", default=";".join(ROWS), help="which, separated by semicolons")
  parser.add_argument("--add", action="store_true", help="keep rows that are not measured now")
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  for preset in flags.presets.split(","):
    rows = [row for name in flags.models.split(",")
            for row in compare(name, preset, data, flags.rows.split(";"))]
    note = ("Calibrated on the first 128 images in label order, judged on the other 372 (resnet8: first 256 "
            "of x_train, all of x_test), by LiteRT at the input of the softmax where a file holds the "
            "integers. \"Images drawn\": 128 from all 500, judged on the rest. Each row from \"+ adaround\" "
            "on has iterative bias correction. \"seconds\" is the whole of `quantize`, \"GB\" the largest "
            "memory of the process so far. Seed 0.")
    if flags.write:
      title, lines = f"{TITLE}, {preset}", table(rows).splitlines()
      older = written_rows(title) if flags.add else []
      note += f" Measured last: {flags.rows}; the other rows are from earlier runs." if older else ""
      every = {tuple(line.split(" | ")[:3]): line for line in (*older, *lines[2:])}
      labels = ";".join(dict.fromkeys(label for *_, label in every))
      head = describe(f"python benchmarks/ptq_ladder.py --models={flags.models} --presets={preset} "
                      f"--rows=\"{labels}\"")
      write_section(title, "\n".join([head, "", note, "", *lines[:2], *every.values()]))


if __name__ == "__main__":
  main()
