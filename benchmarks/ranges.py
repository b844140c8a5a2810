"""What range estimators bring on real models, judged in the file.

    python benchmarks/ranges.py [--models=v2,v1,resnet8] [--presets=int8,w4a8] [--write]

Every row has the same iterative bias correction and no cross-layer scaling. Beside the estimator of the
activations the table names that of the kernels: max |w| at 8 bits, least squared error at 4.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TITLE = "Range estimators"
ACTIVATIONS = ("minmax", "mean_extrema", "percentile", "percentile:99.9", "mse", "lp", "lp:4", "kl", "aciq",
               "octav", "minmax, cross_entropy")
WEIGHTS = ("minmax", "percentile", "mse", "lp", "lp:4", "octav")
KERNELS = {"int8": "minmax", "w4a8": "mse"}
LOGITS = {"v2": "^predictions$", "v1": "^conv_preds$", "resnet8": "^dense$"}


def rows_of(preset: str) -> list[tuple[str, str]]:
  """(range of the kernels, range of the activations) of every row."""
  usual = KERNELS[preset]
  return ([(usual, name) for name in ACTIVATIONS]
          + [(name, "minmax") for name in WEIGHTS if name != usual])


def config_of(name: str, preset: str, weights: str, activations: str):
  """A preset with other ranges; behind a comma, that of the logits."""
  import dataclasses

  from kquant import QuantConfig
  config = QuantConfig.preset(preset)
  usual, _, of_logits = activations.partition(", ")
  (rule,) = config.rules
  rule = dataclasses.replace(rule, weights=dataclasses.replace(rule.weights, range=weights),
                             activations=dataclasses.replace(rule.activations, range=usual))
  logits = dataclasses.replace(rule, match=LOGITS[name],
                               activations=dataclasses.replace(rule.activations, range=of_logits or usual))
  return dataclasses.replace(config, rules=(logits, rule))


def compare(name: str, preset: str, data: pathlib.Path, rows: list[tuple[str, str]]) -> list[dict]:
  """Measures the rows of one model and preset."""
  from ptq import images_of, judge, load, scores_of

  import kquant
  from kquant.core import metrics
  from tflite_export.file.writer import to_bytes
  from tflite_export.lowering.lower import lower
  model = load(name, data)
  calibration, x, labels = images_of(name, data)
  reference = scores_of(model, x)
  found = []
  for weights, activations in rows:
    config = config_of(name, preset, weights, activations)
    result = kquant.quantize(model, calibration, config=config,
                             recipe=kquant.Recipe(equalize="none", bias="iterative"), effort=None)
    judged = judge(to_bytes(lower(result.model, result.encodings)), x, labels, reference)
    found.append({**judged, "model": name, "preset": preset, "weights": weights, "activations": activations,
                  "float": metrics.top1(reference, labels), "seconds": result.report.seconds["calibrate"]})
    print(table(found[-1:]).splitlines()[-1], flush=True)
  return found


def table(rows: list[dict]) -> str:
  """The rows as Markdown."""
  lines = ["| model (float top-1) | preset | kernels | activations | top-1 | agreement | SQNR dB | "
           "seconds calibration |", "|---|---|---|---|---|---|---|---|"]
  for r in rows:
    lines.append(f"| {r['model']} ({r['float']:.4f}) | {r['preset']} | {r['weights']} | {r['activations']} | "
                 f"{r['top1']:.4f} | {r['agreement']:.4f} | {r['sqnr']:.1f} | {r['seconds']:.1f} |")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  from ptq import arguments, data_of, describe, write_section
  parser = arguments(__doc__)
  parser.add_argument("--models", default="v2,v1,resnet8")
  parser.add_argument("--presets", default="int8,w4a8")
  flags = parser.parse_args()
  data = data_of(flags)
  import kquant.cli  # noqa: F401  quiet start
  rows = [row for preset in flags.presets.split(",") for name in flags.models.split(",")
          for row in compare(name, preset, data, rows_of(preset))]
  head = describe(f"python benchmarks/ranges.py --models={flags.models} --presets={flags.presets}")
  note = ("Calibrated on the first 128 images in label order, judged on the other 372 (resnet8: first 256 of "
          "x_train, all of x_test) by LiteRT at the input of the softmax. Every row with iterative bias "
          "correction and without cross-layer scaling.")
  if flags.write:
    write_section(TITLE, f"{head}\n\n{note}\n\n{table(rows)}")


if __name__ == "__main__":
  main()
