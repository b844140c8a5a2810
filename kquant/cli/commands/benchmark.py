"""What kquant.cli.benchmark does: how long a .tflite file takes, operator by operator, and what it needs."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from kquant.cli import file_flags
from kquant.cli import flags as shared
from kquant.core.text import text_table
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.program.memory import ALIGNMENT, activation_memory
from tflite_export.program.program import IntOp, IntProgram
from tflite_export.proof.runtime import Runtime

FLAGS = flags.FLAGS
WARM_UP_RUNS = 5
SLOWEST_SHOWN = 10


def run() -> None:
  """Runs what the flags say."""
  if FLAGS.tflite is None:
    raise ValueError("--tflite is missing; name one file, or two with a comma between.")
  paths = FLAGS.tflite.split(",")
  if len(paths) > 2:
    raise ValueError(f"--tflite: expected one file or two, got {len(paths)}.")
  file_flags.check_outputs("summary", reads=())
  for path in paths:
    file_flags.check_exists("tflite", path)
  contents = [pathlib.Path(path).read_bytes() for path in paths]
  runtimes = [_loaded(path, data) for path, data in zip(paths, contents)]
  whole = _by_turns(runtimes, FLAGS.runs)
  files = [{"file": path, **_costs(data, runtime, seconds)}
           for path, data, runtime, seconds in zip(paths, contents, runtimes, whole)]
  summary = {"threads": FLAGS.threads, "runs": FLAGS.runs, "files": files}
  if len(files) == 2:
    summary["ratio"] = float(np.median(whole[1] / whole[0]))
    summary["ratio_per_image"] = summary["ratio"] * files[0]["images"] / files[1]["images"]
  if FLAGS.summary:
    shared.write_json(FLAGS.summary, summary)
  print("\n\n".join(_page(file) for file in files))
  if "ratio" in summary:
    print(f"\n{_comparison(summary)}")


def _comparison(summary: dict[str, Any]) -> str:
  first, second = summary["files"]
  told = (f"{second['file']} takes {summary['ratio']:.2f} times as long as {first['file']} (median of each "
          "two runs)")
  if first["images"] == second["images"]:
    return f"{told}."
  return (f"{told}; an image takes {summary['ratio_per_image']:.2f} times as long: a run is of "
          f"{second['images']} and of {first['images']}.")


def _loaded(path: str, data: bytes) -> Runtime:
  try:
    return Runtime(data, threads=FLAGS.threads)
  except ValueError as error:
    raise ValueError(f"--tflite={path}: expected a .tflite file; {error}.") from error


def _by_turns(runtimes: Sequence[Runtime], runs: int) -> np.ndarray:
  """Returns the seconds of each run of each file, [files, runs], the first few runs left out."""
  for runtime in runtimes:
    for _ in range(WARM_UP_RUNS):
      runtime.time_once()
  return np.array([[runtime.time_once() for runtime in runtimes] for _ in range(runs)]).T


def _costs(data: bytes, runtime: Runtime, seconds: np.ndarray) -> dict[str, Any]:
  """Returns what one file costs, ready for JSON."""
  program = from_bytes(data)
  delegated = runtime.delegated_operators()
  alone = _milliseconds_alone(program)
  operators = [{"kind": op.kind, "output": op.outputs[0], "delegated": position in delegated,
                "milliseconds": alone[position]} for position, op in enumerate(program.ops)]
  timed = [row["milliseconds"] for row in operators if row["milliseconds"] is not None]
  images, milliseconds = _images(runtime), 1e3 * float(np.median(seconds))
  return {
      "milliseconds": milliseconds, "images": images, "milliseconds_per_image": milliseconds / images,
      "milliseconds_10_90": [1e3 * float(q) for q in np.quantile(seconds, [0.1, 0.9])],
      "bytes": len(data), "activation_memory": dataclasses.asdict(activation_memory(program)),
      "operators": operators, "delegated": len(delegated), "operators_milliseconds": sum(timed)}


def _images(runtime: Runtime) -> int:
  """How many images a run is of: the batch of the first input; 1 where it has none."""
  shapes = [detail["shape"] for detail in runtime.inputs]
  return int(shapes[0][0]) if shapes and len(shapes[0]) else 1


def _milliseconds_alone(program: IntProgram) -> list[float | None]:
  """Median time of each operator as a file of its own; None where it cannot be written or loaded alone."""
  runtimes = [_alone(program, op) for op in program.ops]
  timed = [runtime for runtime in runtimes if runtime is not None]
  medians = iter(1e3 * np.median(_by_turns(timed, FLAGS.runs), axis=1) if timed else [])
  return [None if runtime is None else float(next(medians)) for runtime in runtimes]


def _alone(program: IntProgram, op: IntOp) -> Runtime | None:
  names = dict.fromkeys(name for name in (*op.inputs, *op.outputs) if name)
  given = [name for name in dict.fromkeys(op.inputs) if name and program.tensors[name].data is None]
  alone = IntProgram({name: program.tensors[name] for name in names}, [op], given, list(op.outputs))
  try:
    return Runtime(to_bytes(alone), threads=FLAGS.threads)
  except ValueError:
    return None


def _page(file: dict[str, Any]) -> str:
  memory, rows = file["activation_memory"], file["operators"]
  low, high = file["milliseconds_10_90"]
  share = file["operators_milliseconds"] / file["milliseconds"]
  untimed = sum(row["milliseconds"] is None for row in rows)
  images = "" if file["images"] == 1 else (f", each of {file['images']} images: "
                                           f"{file['milliseconds_per_image']:.3f} ms an image")
  facts = [
      ("latency", f"{file['milliseconds']:.3f} ms median of {FLAGS.runs} runs (10-90 %: {low:.3f} to "
                  f"{high:.3f}){images}, threads: {FLAGS.threads}"),
      ("bytes", f"{file['bytes']:,}"),
      ("activations", f"{memory['peak']:,} bytes at most alive at once (at {memory['busiest']!r}), "
                      f"{memory['arena']:,} planned, {memory['total']:,} in all; {ALIGNMENT}-byte alignment, "
                      "kernels' own buffers not counted"),
      ("operators", f"{len(rows)}, of which {file['delegated']} run in the delegate"),
      ("alone", f"{file['operators_milliseconds']:.3f} ms: the sum of the operators each run alone, "
                f"{100 * share:.0f} % of the whole" + (f"; {untimed} could not be" if untimed else ""))]
  return "\n\n".join([text_table((file["file"], ""), facts), _by_kind(rows), _slowest(rows)])


def _by_kind(rows: list[dict[str, Any]]) -> str:
  kinds: dict[str, list[dict[str, Any]]] = {}
  for row in rows:
    kinds.setdefault(row["kind"], []).append(row)
  table = [(kind, len(of_kind), sum(row["delegated"] for row in of_kind), sum(map(_time, of_kind)))
           for kind, of_kind in kinds.items()]
  table.sort(key=lambda row: -row[-1])
  return text_table(("kind", "operators", "delegated", "ms alone"),
                    [(*row[:-1], f"{row[-1]:.3f}") for row in table])


def _slowest(rows: list[dict[str, Any]]) -> str:
  first = sorted(rows, key=_time, reverse=True)[:SLOWEST_SHOWN]
  return text_table((f"slowest {len(first)}", "output", "ms alone"),
                    [(row["kind"], row["output"], f"{_time(row):.3f}") for row in first])


def _time(row: dict[str, Any]) -> float:
  return row["milliseconds"] or 0.0
