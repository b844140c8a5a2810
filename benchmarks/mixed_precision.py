"""Bits for each layer within budgets of bytes: kq.allocate_bits beside other ways to choose them.

    python benchmarks/mixed_precision.py [--shared=../shared] [--models=resnet8] [--compressed] [--write]

Five budgets between the bytes of w4a8 and of int8; the third is that of 6 bits on average. Sensitivities are
measured once a model. Every row is rounded in closed form on the same images, a plan is built once, and its
file is judged by LiteRT at the input of the softmax. `noise` is our plan with activations of 8 bits; `hawq`
the same program with the mean trace of the Hessian of a layer times its squared rounding error (HAWQ-V2,
Gauss-Newton, 50 probes, cross-entropy to the float model's own answers); `blind` gives 4 bits to the largest
kernels first. `allocate_bits` also has 16-bit activations and the refit. In a file 2 to 4 bits take the same
bytes, so nothing is above w4a8 at its bytes; the last rows are at the bytes of its file when it is compressed
(`storage="entropy"`); `--compressed` measures these alone. `--write` writes a section a model.
"""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
from ptq import MODELS, arguments, data_of, describe, images_of, judge, load, scores_of, write_section

TITLE = "Mixed precision"
PARTS = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)
WIDTHS, ACTIVATIONS = (2, 3, 4, 5, 6, 8), (8, 16)
PROBES, PROBE_IMAGES = 50, 64
PLAN, NARROW_PLAN = "allocate_bits", "allocate_bits, activations=(8,)"
NOISE_IMAGES, JUDGED_IMAGES = 32, 64
MODELS |= {"lite0": "efficientnet_lite0_224", "v3": "mobilenet_v3_small_224"}


class Candidates:
  """The choices of a network as `allocate_bits` measures them, and the networks of plans."""

  def __init__(self, model, calibration: np.ndarray):
    from kquant.allocation.rounded import rounded_layers
    from kquant.allocation.sensitivities import Subject, Widths, measured_noises
    from kquant.core import data
    from kquant.core.quant_config import QuantConfig
    from kquant.core.recipe import Recipe
    from kquant.core.records import Report
    from kquant.doctor import files
    from kquant.doctor.patient import Patient, result_of
    from kquant.search.float_network import FloatNetwork
    from kquant.search.pipeline import read
    config = QuantConfig(recipe=Recipe(rounding="closed_form"))
    train, judged = data.hold_back([calibration])
    patient = Patient(FloatNetwork(read(model, config), train), config, Report())
    self.subject = Subject(patient, Widths(WIDTHS, ACTIVATIONS))
    self.rounded = rounded_layers(patient, train, WIDTHS)
    self.base = files.contents(result_of(patient.calibrated, config, Report()))
    self.noises = measured_noises(self.subject, self.rounded, [array[:NOISE_IMAGES] for array in judged])
    self.judged = [array[:JUDGED_IMAGES] for array in judged]
    self.choices, self.builder = self.priced("file")

  def priced(self, storage: str) -> tuple:
    """Returns (choices, builder of plans) with bytes as a storage counts them."""
    from kquant.allocation.budget import Budget
    from kquant.allocation.building import Builder
    from kquant.allocation.prices import Prices
    from kquant.allocation.sensitivities import priced_choices
    from kquant.core.target import target
    config = self.subject.patient.config
    prices = Prices(Budget(bytes=len(self.base), storage=storage), target(config.target), {"base": self.base})
    return (priced_choices(self.subject, self.rounded, self.noises, prices),
            Builder(self.subject, self.judged, prices))

  def of_hawq(self, images: np.ndarray):
    """Returns the choices with HAWQ-V2's proxy in the place of the noise of weights, grids of 8 bits."""
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


class Judge:
  """Judges the files of plans by other images, and prints a JSON line for each row.

  Args:
    name: of the model.
    model: float.
    x, labels: images [n, ...] and their classes.
  """

  def __init__(self, name: str, model, x: np.ndarray, labels: np.ndarray):
    self._name, self._x, self._labels, self._reference = name, x, labels, scores_of(model, x)
    self._judged, self.seconds = {}, 0.0

  def tell(self, row: str, budget: float, built, predictions, storage: str = "file") -> None:
    """Prints what a plan that was built is."""
    from kquant.allocation.costs import file_bytes
    from kquant.core import metrics
    if built.plan not in self._judged:
      self._judged[built.plan] = judge(built.contents, self._x, self._labels, self._reference)
    found = {key: self._judged[built.plan][key] for key in ("top1", "agreement", "sqnr")}
    print(json.dumps({**found, "bytes": file_bytes(built.contents, storage), "model": self._name, "row": row,
                      "storage": storage, "budget": budget, "images": len(self._x),
                      "float": metrics.top1(self._reference, self._labels), "seconds": self.seconds,
                      "predictions": predictions}), flush=True)


def worker(name: str, data: pathlib.Path, *, compressed: bool) -> None:
  """Measures one model in this process."""
  model = load(name, data)
  calibration, x, labels = images_of(name, data, drawn=True)
  judged = Judge(name, model, x, labels)
  start = time.process_time()
  candidates = Candidates(model, calibration)
  judged.seconds = time.process_time() - start
  if not compressed:
    of_files(candidates, candidates.of_hawq(calibration), judged)
  of_compressed_files(candidates, judged)


def of_files(candidates: Candidates, proxies, judged: Judge) -> None:
  """Measures the rows at bytes of files."""
  from kquant.allocation.solver import Solver
  choices, made = candidates.choices, candidates.builder.made
  least, most = (choices.cost(choices.uniform(bits, 8), "bytes") for bits in (4, 8))

  def tell(row: str, budget: float, plan) -> None:
    built = made(plan)
    judged.tell(row, budget, built, [(choices.noise(plan), float(built.noise.mean()))])

  tell("w4a8", least, choices.uniform(4, 8))
  tell("int8", most, choices.uniform(8, 8))
  for part in PARTS:
    limit = {"bytes": least + part * (most - least)}
    tell("blind", limit["bytes"], blind(choices, limit["bytes"]))
    tell("hawq", limit["bytes"], Solver(proxies).solve(limit))
    tell("noise", limit["bytes"], Solver(choices.with_narrow_grids()).solve(limit))
    outcome = candidates.builder.refit_once(choices, limit)
    judged.tell(PLAN, limit["bytes"], outcome.built, outcome.predictions)


def of_compressed_files(candidates: Candidates, judged: Judge) -> None:
  """Measures the rows at the bytes of the file of w4a8, compressed."""
  from kquant.allocation.costs import file_bytes
  choices, builder = candidates.priced("entropy")
  w4a8 = candidates.builder.made(choices.uniform(4, 8))
  limit = {"bytes": float(file_bytes(w4a8.contents, "entropy"))}
  judged.tell("w4a8", limit["bytes"], w4a8, [(choices.noise(w4a8.plan), float(w4a8.noise.mean()))], "entropy")
  for row, some in ((PLAN, choices), (NARROW_PLAN, choices.with_narrow_grids())):
    outcome = builder.refit_once(some, limit)
    judged.tell(row, limit["bytes"], outcome.built, outcome.predictions, "entropy")


def table(rows: list[dict]) -> str:
  """The rows as Markdown."""
  lines = ["| model (float top-1) | budget, bytes | bits by | bytes | top-1 | agreement | SQNR dB "
           "| predicted / measured noise, before and after the refit |", "|---|---|---|---|---|---|---|---|"]
  for r in rows:
    ratios = ", ".join(f"{predicted / measured:.2f}" for predicted, measured in r["predictions"])
    compressed = ", compressed" if r["storage"] == "entropy" else ""
    lines.append(f"| {r['model']} ({r['float']:.4f}) | {r['budget']:,.0f}{compressed} | {r['row']} | "
                 f"{r['bytes']:,} | {r['top1']:.4f} | {r['agreement']:.4f} | {r['sqnr']:.1f} | {ratios} |")
  return "\n".join(lines)


def compared(rows: list[dict]) -> str:
  """How often and by how much the other rows are beaten, in a sentence for each model."""
  lines = []
  for name in dict.fromkeys(row["model"] for row in rows):
    by = {(row["row"], row["budget"]): row["sqnr"] for row in rows
          if row["model"] == name and row["storage"] == "file"}
    for mine in ("noise", PLAN) if by else ():
      for other in ("blind", "hawq"):
        gains = [by[mine, budget] - by[other, budget] for row, budget in by if row == other]
        lines.append(f"- {name}: {mine} against {other}: higher SQNR at {sum(gain > 0 for gain in gains)} of "
                     f"{len(gains)} budgets, {np.mean(gains):+.1f} dB on average.")
    w4a8, *plans = (row for row in rows if row["model"] == name and row["storage"] == "entropy")
    for plan in plans:
      lines.append(f"- {name}, at the bytes of the compressed file of w4a8: {plan['row']} has "
                   f"{100 * (plan['top1'] - w4a8['top1']):+.1f} points of top-1, "
                   f"{100 * (plan['agreement'] - w4a8['agreement']):+.1f} of agreement.")
  return "\n".join(lines)


def rows_of(name: str, shared: str, *further: str) -> list[dict]:
  """Measures a model in a process of its own; shows each row as it comes."""
  command = [sys.executable, __file__, "--worker", f"--models={name}", f"--shared={shared}", *further]
  rows = []
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    for line in process.stdout:
      if line.startswith("{"):
        rows.append(json.loads(line))
        print(line, end="", flush=True)
  if process.returncode:
    sys.exit(f"{name} failed")
  return rows


def note_of(rows: list[dict]) -> str:
  """What the rows of a model are."""
  budgets = ("Five budgets between the bytes of w4a8 and of int8"
             if any(row["storage"] == "file" for row in rows) else "The bytes of w4a8")
  return (f"{budgets}; all rows rounded in closed form on the images "
          f"that allocate_bits does not hold back; judged on {rows[0]['images']:,} other images as in the "
          "first table of this file, the ImageNet models on 128 drawn images. noise: our program with 8-bit "
          "activations, hawq: the same with HAWQ-V2's proxy, blind: 4 bits for the largest kernels first, "
          "allocate_bits: with 16-bit activations and one refit. Compressed: by deflate. "
          "Calibration, rounding and sensitivities: "
          f"{rows[0]['seconds']:.0f} CPU seconds.")


def main() -> None:
  """Measures what the flags say."""
  parser = arguments(__doc__)
  parser.add_argument("--models", default="resnet8")
  parser.add_argument("--compressed", action="store_true", help="the rows at compressed bytes alone")
  parser.add_argument("--worker", action="store_true")
  flags = parser.parse_args()
  data = data_of(flags)
  if flags.worker:
    worker(flags.models, data, compressed=flags.compressed)
    return
  for name in flags.models.split(","):
    further = ["--compressed"] * flags.compressed
    rows = rows_of(name, flags.shared, *further)
    text = f"{table(rows)}\n\n{compared(rows)}"
    print(text, flush=True)
    if flags.write:
      command = " ".join([f"python benchmarks/mixed_precision.py --models={name}", *further])
      title = f"{TITLE}, compressed" if flags.compressed else TITLE
      write_section(f"{title}: {MODELS[name]}", f"{describe(command)}\n\n{note_of(rows)}\n\n{text}")


if __name__ == "__main__":
  main()
