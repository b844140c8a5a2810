"""Bits for each layer within budgets of bytes: kq.allocate_bits beside other ways to choose them.

    python benchmarks/mixed_precision.py [--shared=../shared] [--models=resnet8] [--write]

Five budgets between the bytes of w4a8 and of int8. Every row is quantized by the same recipe, closed-form
rounding, and judged in its file by LiteRT at the input of the softmax. `noise` is our plan with activations
of 8 bits, from noise measured at the output; `hawq` the same program with the mean trace of the Hessian of a
layer times its squared rounding error (HAWQ-V2, Gauss-Newton, 50 probes, cross-entropy to the float model's
own answers); `blind` gives 4 bits to the largest kernels first. `allocate_bits` also has 16-bit activations.
"""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
from ptq import arguments, data_of, describe, images_of, judge, load, scores_of, write_section

TITLE = "Mixed precision"
PARTS = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)
WIDTHS = (2, 3, 4, 5, 6, 8)
PROBES, PROBE_IMAGES = 50, 64


class Candidates:
  """The choices of a network with activations of 8 bits, as `allocate_bits` measures them."""

  def __init__(self, model, calibration: np.ndarray):
    from kquant.allocation.budget import Budget
    from kquant.allocation.meter import NoiseMeter
    from kquant.allocation.prices import Prices
    from kquant.allocation.rounded import rounded_layers
    from kquant.allocation.sensitivities import Subject, Widths, measured_choices
    from kquant.core import data
    from kquant.core.quant_config import QuantConfig
    from kquant.core.recipe import Recipe
    from kquant.core.records import Report
    from kquant.core.target import target
    from kquant.doctor import files
    from kquant.doctor.patient import Patient, result_of
    from kquant.search.efforts import FloatNetwork
    from kquant.search.pipeline import read
    config = QuantConfig(recipe=Recipe(rounding="closed_form"))
    train, judged = data.hold_back([calibration])
    self.patient = Patient(FloatNetwork(read(model, config), train), config, Report())
    self.subject = Subject(self.patient, Widths(WIDTHS, (8,)))
    self.rounded = rounded_layers(self.patient, train, WIDTHS)
    base = files.contents(result_of(self.patient.calibrated, config, Report()))
    prices = Prices(Budget(bytes=len(base)), target(config.target), {"base": base})
    meter = NoiseMeter(self.subject.network, [array[:32] for array in judged])
    self.choices = measured_choices(self.subject, self.rounded, meter, prices)

  def config(self, plan):
    """Returns the config of a plan."""
    from kquant.doctor.rules import with_specs
    return with_specs(self.patient.config, self.subject.changes(plan))

  def of_hawq(self, images: np.ndarray):
    """Returns the choices with HAWQ-V2's proxy in the place of the noise of weights."""
    from kquant.allocation.proxy import hawq_proxies, with_proxies
    proxies = hawq_proxies(self.subject.network, self.rounded, [images[:PROBE_IMAGES]], probes=PROBES)
    return with_proxies(self.choices, proxies)


def blind(choices, limit: float):
  """Returns the plan that gives 4 bits to the largest kernels first, until it is within the budget."""
  from kquant.allocation.choices import Plan
  bits = dict.fromkeys([layer.name for layer in choices.layers], 8)
  eight = tuple(8 for _ in choices.grids)
  for layer in sorted(choices.layers, key=lambda layer: -layer.costs["bytes"][-1, 0]):
    plan = Plan(tuple(bits.values()), eight)
    if choices.cost(plan, "bytes") <= limit:
      return plan
    bits[layer.name] = 4
  return Plan(tuple(bits.values()), eight)


def worker(name: str, data: pathlib.Path) -> None:
  """Measures one model in this process; prints a JSON line for each row."""
  import kquant as kq
  from kquant.allocation.solver import Solver
  from kquant.core import metrics
  from tflite_export.file.writer import to_bytes
  from tflite_export.lowering.lower import lower
  model = load(name, data)
  calibration, x, labels = images_of(name, data, drawn=True)
  reference = scores_of(model, x)
  start = time.perf_counter()
  candidates = Candidates(model, calibration)
  choices = candidates.choices
  seconds = time.perf_counter() - start
  proxies = candidates.of_hawq(calibration)
  least, most = (choices.cost(choices.uniform(bits, 8), "bytes") for bits in (4, 8))

  def told(row: str, budget: float, config, **more) -> None:
    result = kq.quantize(model, calibration, config=config, effort=None)
    judged = judge(to_bytes(lower(result.model, result.encodings)), x, labels, reference)
    print(json.dumps({**{key: judged[key] for key in ("top1", "agreement", "sqnr", "bytes")}, "model": name,
                      "row": row, "budget": budget, "float": metrics.top1(reference, labels),
                      "images": len(x), "seconds": seconds, **more}), flush=True)

  for row, bits in (("w4a8", 4), ("int8", 8)):
    told(row, choices.cost(choices.uniform(bits, 8), "bytes"), candidates.config(choices.uniform(bits, 8)))
  for part in PARTS:
    limit = least + part * (most - least)
    for row, plan in (("blind", blind(choices, limit)), ("hawq", Solver(proxies).solve({"bytes": limit})),
                      ("noise", Solver(choices).solve({"bytes": limit}))):
      told(row, limit, candidates.config(plan))
    start = time.perf_counter()
    found = kq.allocate_bits(model, calibration, budget=kq.Budget(bytes=limit))
    told("allocate_bits", limit, found.config, predictions=found.predictions,
         allocated=time.perf_counter() - start)


def table(rows: list[dict]) -> str:
  """The rows as Markdown."""
  lines = ["| model (float top-1) | budget, bytes | bits by | bytes | top-1 | agreement | SQNR dB "
           "| predicted / measured noise, before and after the refit | seconds to allocate |",
           "|---|---|---|---|---|---|---|---|---|"]
  for r in rows:
    ratios = ", ".join(f"{predicted / measured:.2f}" for predicted, measured in r.get("predictions", ()))
    spent = f"{r['allocated']:.0f}" if "allocated" in r else ""
    lines.append(f"| {r['model']} ({r['float']:.4f}) | {r['budget']:,.0f} | {r['row']} | {r['bytes']:,} | "
                 f"{r['top1']:.4f} | {r['agreement']:.4f} | {r['sqnr']:.1f} | {ratios} | {spent} |")
  return "\n".join(lines)


def compared(rows: list[dict]) -> str:
  """How often and by how much the other rows are beaten, in a sentence for each model."""
  lines = []
  for name in dict.fromkeys(row["model"] for row in rows):
    by = {(row["row"], row["budget"]): row["sqnr"] for row in rows if row["model"] == name}
    for mine in ("noise", "allocate_bits"):
      for other in ("blind", "hawq"):
        gains = [by[mine, budget] - by[other, budget] for row, budget in by if row == other]
        lines.append(f"- {name}: {mine} against {other}: higher SQNR at {sum(gain > 0 for gain in gains)} of "
                     f"{len(gains)} budgets, {np.mean(gains):+.1f} dB on average.")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  parser = arguments(__doc__)
  parser.add_argument("--models", default="resnet8")
  parser.add_argument("--worker", action="store_true")
  flags = parser.parse_args()
  data = data_of(flags)
  if flags.worker:
    worker(flags.models, data)
    return
  rows = []
  for name in flags.models.split(","):
    command = [sys.executable, __file__, "--worker", f"--models={name}", f"--shared={flags.shared}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
      sys.exit(f"{name} failed")
    rows += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
  text = f"{table(rows)}\n\n{compared(rows)}"
  print(text)
  if flags.write:
    command = f"python benchmarks/mixed_precision.py --models={flags.models}"
    note = ("Five budgets between the bytes of w4a8 and of int8; all rows rounded in closed form; judged "
            "as in the first table of this file, the MobileNets on 128 drawn images. noise: our program with "
            "8-bit activations, hawq: the same with HAWQ-V2's proxy, blind: 4 bits for the largest kernels "
            "first, allocate_bits: with 16-bit activations and one refit.")
    write_section(TITLE, f"{describe(command)}\n\n{note}\n\n{text}")


if __name__ == "__main__":
  main()
