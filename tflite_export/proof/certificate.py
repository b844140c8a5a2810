"""The certificate: what a file computes, element by element, against this package's own arithmetic.

The integer simulator runs free from the inputs and every tensor is compared with LiteRT's, for each set
of kernels; single operators are compared on inputs that sit on rounding ties (`ties`). With it go the
proof that no accumulator can overflow and the versions it all holds for.
"""

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.operators.batch import with_batch
from tflite_export.operators.check_weights import (
  ACCUMULATOR_LIMIT,
  accumulator_bounds,
  accumulator_limit,
  matrix_bounds,
)
from tflite_export.operators.table import operator_of
from tflite_export.program.batch import DYNAMIC, RESIZED, batch_of, is_dynamic, whole_batches
from tflite_export.program.program import IntOp, IntProgram
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.simulate import not_simulated, simulate, simulate_in_turn, simulated_operators
from tflite_export.proof.ties import Probe, runs_as_in_file, tie_probes
from tflite_export.proof.watch import Watch

FORMAT = "kquant certificate"
FORMAT_VERSION = 1
KERNEL_SETS = ("xnnpack", "reference")
_PACKAGES = ("kquant", "ai-edge-litert", "numpy")


def certify(data: bytes, inputs: Sequence[np.ndarray], *, kernel_sets: Sequence[str] = KERNEL_SETS,
            random_images: int = 2, ties: bool = True, seed: int = 0) -> dict[str, Any]:
  """Compares every tensor of a file, and what its operators do on rounding ties, with the simulator.

  Args:
    data: the bytes of the .tflite file.
    inputs: real inputs, one array [n, ...] for each input of the file, of its type.
    kernel_sets: which to compare with, "xnnpack" (the default interpreter) and "reference".
    random_images: as many inputs drawn over the whole type are compared as well.
    ties: also compare single operators on inputs built to sit on rounding ties.
    seed: of the random inputs and of those on ties.

  Returns:
    The certificate, ready for JSON; "exact" says whether all of it holds. Ties, accumulators and biases are
    those of operators that are simulated; the others are named.

  Raises:
    ValueError: not a TFLite file, other kernel sets, or another number, shapes or types of inputs.

  Example:
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> result = kq.quantize(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), images)
    >>> data = kq.export(result, "model.tflite").path.read_bytes()
    >>> inputs = np.random.default_rng(0).integers(-128, 128, (4, 3)).astype(np.int8)
    >>> tflite_export.certify(data, [inputs])["exact"]
    True
  """
  program = from_bytes(data)
  if len(inputs) != len(program.inputs):
    raise ValueError(f"certify: expected {len(program.inputs)} input arrays ({', '.join(program.inputs)}), "
                     f"got {len(inputs)}.")
  rng = np.random.default_rng(seed)
  drawn = [_random_like(array, random_images, rng) for array in inputs]
  kinds = {"real": list(inputs), "random": drawn} if random_images else {"real": list(inputs)}
  known = dataclasses.replace(program, ops=simulated_operators(program, kernel_sets))
  probes = tie_probes(known, rng) if ties else []
  certificate = {
      "format": FORMAT, "version": FORMAT_VERSION,
      "file": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
      "versions": {"python": platform.python_version(), "machine": platform.machine(),
                   **{name: importlib.metadata.version(name) for name in _PACKAGES}},
      "batch": DYNAMIC if is_dynamic(program) else batch_of(program),
      "inputs": {name: len(arrays[0]) for name, arrays in kinds.items()},
      "kernel_sets": {name: {**_compare(program, kinds, name), "ties": _compare_ties(program, probes, name)}
                      for name in kernel_sets},
      "accumulators": accumulator_bound(known),
      "largest_bias": _largest_bias(known),
  }
  certificate["exact"] = not inexact_operators(certificate) and not any(
      result["not_simulated"] for result in certificate["kernel_sets"].values())
  return certificate


def inexact_operators(certificate: dict[str, Any]) -> list[str]:
  """Returns a line for each operator kind that differs, and for an accumulator that can overflow.

  SOFTMAX alone may differ, by 1 LSB: its float32 exponentials are the library's.
  """
  lines = [f"an accumulator can reach {certificate['accumulators']['bound']} in layer "
           f"{certificate['accumulators']['layer']!r}"] if not certificate["accumulators"]["proved"] else []
  for kernels, result in certificate["kernel_sets"].items():
    for where, rows in (("", result["operators"]), (" on rounding ties", result["ties"]["operators"])):
      lines += [f"{kernels} kernels: {kind} differs{where} in {row['mismatching']} of {row['elements']} "
                f"elements, by up to {row['max_lsb']} LSB" for kind, row in rows.items()
                if row["max_lsb"] > operator_of(kind).tolerance]
  return lines


def accumulator_bound(program: IntProgram) -> dict[str, Any]:
  """Returns the |accumulator| that an input can bring nearest to its limit, its layer, and that limit.

  Per output channel: |q_b| + max|q_x - z_x| * sum|q_w| <= bound. The limit is that of int32 (of 16 times
  less in dense layers of int4, of int64 products over int16).
  """
  worst = {"bound": 0, "layer": "", "limit": ACCUMULATOR_LIMIT}
  for op in program.ops:
    for bound, limit in _bounds(program, op):
      if bound * worst["limit"] > worst["bound"] * limit:
        worst = {"bound": bound, "layer": op.outputs[0], "limit": limit}
  return {**worst, "proved": worst["bound"] < worst["limit"]}


def _bounds(program: IntProgram, op: IntOp) -> list[tuple[int, int]]:
  """Returns (bound, limit) of each accumulator of an operator."""
  weighted = operator_of(op.kind).weighted
  if weighted is None:
    return matrix_bounds(program, op)
  x, kernel, bias = (program.tensors[name] for name in weighted.operands(op.inputs))
  bound = accumulator_bounds(x, kernel, bias, channel_axis=weighted.channel_axis).max()
  return [(int(bound), accumulator_limit(op, x, kernel))]


def _largest_bias(program: IntProgram) -> dict[str, Any]:
  records = [(op, operator_of(op.kind)) for op in program.ops]
  names = [record.weighted.operands(op.inputs)[2] for op, record in records if record.weighted]
  names += [op.inputs[bias] for op, record in records for *_, bias in record.matrices if bias is not None]
  biases = {name: int(np.abs(program.tensors[name].data.astype(np.int64)).max()) for name in names}
  name = max(biases, key=biases.get, default="")
  return {"value": biases.get(name, 0), "tensor": name}


def _random_like(array: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
  """Inputs over the whole 8-bit type; over the range of the real ones for floats and for indices."""
  shape = (count, *array.shape[1:])
  if array.dtype.kind == "f":
    return rng.uniform(array.min(), array.max(), shape).astype(array.dtype)
  if array.dtype == np.int32:
    return rng.integers(array.min(), array.max(), shape, dtype=array.dtype, endpoint=True)
  limits = np.iinfo(array.dtype)
  return rng.integers(limits.min, limits.max, shape, dtype=array.dtype, endpoint=True)


def _compare(program: IntProgram, kinds: dict[str, list[np.ndarray]], kernels: str) -> dict[str, Any]:
  """Returns {operators: {kind: {elements, mismatching, max_lsb}}, not_simulated: [...]}.

  A file of open batch is compared as it is and resized.
  """
  missing = not_simulated(program, mode=kernels)
  if missing:
    return {"operators": {}, "not_simulated": missing}
  try:
    rows = _rows(program, kinds, kernels)
  except ValueError as error:  # the reference SOFTMAX ends the process where exponentials sum to 512
    missing, rows = [str(error)], _rows(_before_end(program), kinds, kernels)
  return {"operators": dict(sorted(rows.items())), "not_simulated": missing}


def _rows(program: IntProgram, kinds: dict[str, list[np.ndarray]], kernels: str) -> dict[str, dict[str, int]]:
  """Compares every element of every operator, some images at a time; not a state, which does not stay as set.

  Raises:
    ValueError: the runtime would end the process.
  """
  rows: dict[str, dict[str, int]] = {}
  made = {name: op.kind for op in program.ops for name in op.outputs if not program.tensors[name].variable}
  with tqdm(desc=f"certify, {kernels}", unit=" operators", delay=2.0, disable=None) as bar:
    for batch in (1, RESIZED) if is_dynamic(program) else (None,):
      sized = program if batch is None else with_batch(program, batch)
      watch = Watch(program, list(made), kernels=kernels, batch=batch)
      for inputs in _chunks(kinds, batch_of(sized), watch.images):
        simulated = simulate_in_turn(sized, inputs, mode=kernels)
        if any(operator_of(op.kind).ends_process for op in program.ops):
          simulated = list(simulated)  # to the end, before the runtime starts
        kept = ((name, array) for name, array in simulated if name in made)
        for (name, expected), (_, computed) in zip(kept, watch.read(inputs), strict=True):
          _count(rows, made[name], computed, expected)
          bar.update()
  return rows


def _chunks(kinds: dict[str, list[np.ndarray]], batch: int, most: int) -> Iterator[list[np.ndarray]]:
  """Yields the inputs of each kind in whole batches, a number of images at a time."""
  for arrays in kinds.values():
    for start in range(0, len(arrays[0]), most):
      yield [whole_batches(array[start:start + most], batch) for array in arrays]


def _compare_ties(program: IntProgram, probes: list[Probe], kernels: str) -> dict[str, Any]:
  """Returns {operators: as `_compare`, left_out: {kind: operators that other kernels run when alone}}."""
  rows: dict[str, dict[str, int]] = {}
  left_out: dict[str, int] = {}
  for probe in probes:
    if not_simulated(probe.program, mode=kernels) or not runs_as_in_file(probe, program, kernels):
      left_out[probe.op.kind] = left_out.get(probe.op.kind, 0) + 1
      continue
    values = simulate(probe.program, probe.inputs, mode=kernels)
    (computed,) = Runtime(to_bytes(probe.program), kernels=kernels).run_many(probe.inputs)
    _count(rows, probe.op.kind, computed, values[probe.program.outputs[0]])
  return {"operators": dict(sorted(rows.items())), "left_out": dict(sorted(left_out.items()))}


def _count(rows: dict[str, dict[str, int]], kind: str, computed: np.ndarray, expected: np.ndarray) -> None:
  """Adds the elements of one tensor to the row of its operator's kind."""
  difference = np.abs(computed.astype(np.float64) - expected)
  row = rows.setdefault(kind, {"elements": 0, "mismatching": 0, "max_lsb": 0})
  row["elements"] += difference.size
  row["mismatching"] += int(np.count_nonzero(difference))
  row["max_lsb"] = max(row["max_lsb"], int(np.ceil(difference.max(initial=0))))


def _before_end(program: IntProgram) -> IntProgram:
  """The program without operators that may end the process (SOFTMAX) and all that follows them."""
  lost, ops = set(), []
  for op in program.ops:
    if operator_of(op.kind).ends_process or lost.intersection(op.inputs):
      lost.update(op.outputs)
    else:
      ops.append(op)
  return dataclasses.replace(program, ops=ops, outputs=[name for op in ops for name in op.outputs])
