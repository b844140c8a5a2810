"""Random programs of one operator: the simulator's integers against LiteRT's.

    python -m tests.tflite_export.operator_fuzz --cases=2000 --seed=0 --kinds=ADD,MUL --modes=xnnpack

prints a table, and reduces the first mismatch of each kind and mode to one element. Exits with 1
where an element differs.
"""

import argparse
import dataclasses
import sys
import zlib

import numpy as np

from tests.tflite_export.random_draws import Case
from tests.tflite_export.random_operators import KINDS, random_case
from tflite_export.file.writer import to_bytes
from tflite_export.kernels import multipliers
from tflite_export.kernels.call import Call
from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import IntTensor
from tflite_export.proof.delegation import MODES, arithmetic_of
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.simulate import kernel_of, not_simulated, simulate

CANDIDATES = (multipliers.multiply_double, multipliers.multiply_double_up, multipliers.multiply_once,
              multipliers.multiply_exact, multipliers.multiply_float)


@dataclasses.dataclass
class Tally:
  """What was compared.

  Attributes:
    kind, mode: of the operators.
    cases: programs compared; left_out: programs that are not simulated.
    elements, mismatches, max_lsb: of all outputs.
    misplaced: programs that another set of kernels ran than `delegation` says.
    first: the first mismatch in words.
  """

  kind: str
  mode: str
  cases: int = 0
  left_out: int = 0
  elements: int = 0
  mismatches: int = 0
  max_lsb: float = 0
  misplaced: int = 0
  first: str = ""

  def line(self) -> str:
    """Returns the row of the table."""
    return (f"{self.kind:<29}{self.mode:<10}{self.cases:>8}{self.left_out:>8}{self.elements:>12}"
            f"{self.mismatches:>12}{self.max_lsb:>9g}{self.misplaced:>11}")


HEADER = (f"{'kind':<29}{'mode':<10}{'cases':>8}{'left':>8}{'elements':>12}{'mismatches':>12}{'max LSB':>9}"
          f"{'misplaced':>11}")


def fuzz(kind: str, mode: str, *, cases: int, seed: int = 0) -> Tally:
  """Returns what was found on `cases` random programs of a kind; the same ones for equal seeds."""
  tally = Tally(kind, mode)
  for number in range(cases):
    case = random_case(kind, np.random.default_rng([seed, number, zlib.crc32(kind.encode())]))
    if not_simulated(case.program, mode=mode):
      tally.left_out += 1
    else:
      _compare(case, tally, number)
  return tally


def _compare(case: Case, tally: Tally, number: int) -> None:
  program = case.program
  runtime = Runtime(to_bytes(program), kernels=tally.mode)
  expected = dict(zip(program.outputs, runtime.run_many(case.inputs)))
  found = simulate(program, case.inputs, mode=tally.mode)
  tally.cases += 1
  call = _call(case, tally.mode)
  if OPERATORS[call.op.kind].delegated and delegates(runtime) != (call.arithmetic == "xnnpack"):
    tally.misplaced += 1
    tally.first = tally.first or f"case {number}: delegated {delegates(runtime)}, not {call.arithmetic}"
  for name, right in expected.items():
    assert found[name].shape == right.shape and found[name].dtype == right.dtype
    wrong = found[name] != right
    tally.elements += right.size
    if wrong.any():
      tally.mismatches += int(wrong.sum())
      distance = np.abs(found[name].astype(np.float64) - right).max()
      tally.max_lsb = max(tally.max_lsb, float(distance))
      tally.first = tally.first or f"case {number}: " + describe(case, call, right, wrong)


def delegates(runtime: Runtime) -> bool:
  """Whether a part of the file runs in the delegate."""
  return any(op["op_name"] == "DELEGATE" for op in runtime._interpreter._get_ops_details())


def _call(case: Case, mode: str) -> Call:
  op = case.program.ops[-1]
  inputs, outputs = case.program.operands(op)
  return Call(op, inputs, outputs, arithmetic_of(op, inputs, outputs, mode))


def describe(case: Case, call: Call, right: np.ndarray, wrong: np.ndarray) -> str:
  """Returns a mismatch in words: its first element, what made it, and what each formula gives."""
  place = tuple(int(i) for i in np.argwhere(wrong)[0])
  mode = "reference" if call.arithmetic == "reference" else "xnnpack"
  values = simulate(case.program, case.inputs, mode=mode)
  arrays = [_images_of(tensor, values) for tensor in call.inputs]
  lines = [f"{call.op.kind} {call.op.options}, element {place} is {right[place]} in LiteRT"]
  for arithmetic in ("reference", "xnnpack", "builtin"):
    other = dataclasses.replace(call, arithmetic=arithmetic)
    y = kernel_of(call.op.kind)(other, *arrays)[0].reshape(right.shape)
    lines.append(f"{y[place]} by {arithmetic}{', which runs it' if call.arithmetic == arithmetic else ''}")
  for tensor in filter(None, (*call.inputs, *call.outputs)):
    lines.append(f"{tensor.name}: {tensor.dtype} {tensor.shape}" + _grid(tensor, place[-1]))
  if OPERATORS[call.op.kind].weighted:
    lines += _accumulator(call, arrays, right.shape, place)
  elif case.inputs[0].shape == right.shape:
    lines.append(f"input element {case.inputs[0][place]!r}")
  return "\n    ".join(lines)


def _images_of(tensor: IntTensor | None, values: dict[str, np.ndarray]) -> np.ndarray | None:
  if tensor is None or tensor.data is not None:
    return None if tensor is None else tensor.data
  return values[tensor.name].reshape(-1, *tensor.shape)


def _grid(tensor, channel: int) -> str:
  if tensor.scale is None:
    return ""
  scale = tensor.scale[channel if tensor.axis is not None else 0]
  return f", scale {float(scale)!r}, zero point {tensor.zero_point[0]}"


def _accumulator(call: Call, arrays: list[np.ndarray], shape: tuple[int, ...],
                 place: tuple[int, ...]) -> list[str]:
  """Returns lines with the accumulator, the exact product and the products that the primitives give."""
  weighted = OPERATORS[call.op.kind].weighted
  acc = weighted.accumulators(call, *arrays).reshape(shape)[place]
  x, kernel, _ = weighted.operands(call.inputs)
  s_w = np.broadcast_to(kernel.scale, shape[-1:])[place[-1]]
  real = np.float64(x.scale[0]) * np.float64(s_w) / np.float64(call.outputs[0].scale[0])
  products = [f"{multiply.__name__} {multiply(np.array([acc]), real)[0]:.0f}" for multiply in CANDIDATES]
  return [f"accumulator {acc:.0f}, multiplier {real!r}, product {acc * real!r}", ", ".join(products)]


def main(arguments: list[str] | None = None) -> int:
  """Prints the table; returns 1 where an element differs, else 0."""
  parser = argparse.ArgumentParser(description="Random one-operator programs against LiteRT.")
  parser.add_argument("--cases", type=int, default=200, help="programs for each kind and mode")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated operator kinds")
  parser.add_argument("--modes", default=",".join(MODES), help="comma-separated modes")
  flags = parser.parse_args(arguments)
  print(HEADER)
  tallies = []
  for kind in flags.kinds.split(","):
    for mode in flags.modes.split(","):
      tallies.append(fuzz(kind, mode, cases=flags.cases, seed=flags.seed))
      print(tallies[-1].line(), flush=True)
  for tally in tallies:
    if tally.first:
      print(f"\n{tally.kind} {tally.mode}, {tally.first}")
  return int(any(tally.mismatches or tally.misplaced for tally in tallies))


if __name__ == "__main__":
  sys.exit(main())
