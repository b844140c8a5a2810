"""How long each operator of a .tflite file takes: a table by kind, shapes and types, measured by LiteRT.

A table that was measured on another device, as a phone, is read from its JSON file in place of measuring.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from kquant.core.files import written_whole
from kquant.doctor.files import milliseconds
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.program.program import IntOp, IntProgram

_FORMAT = "kquant latencies"
_WEIGHTS = ("int8", "int4")


@dataclasses.dataclass(frozen=True)
class LatencyTable:
  """Milliseconds of operators.

  Attributes:
    milliseconds: {kind, shapes and types of an operator: median of its runs on one thread, without the call
      of the interpreter}.
    call_ms: milliseconds of that call, of which a file of any number of operators has one.

  Example:
    >>> kq.LatencyTable({"ADD int8[1,4] int8[1,4] -> int8[1,4]": 0.5}).save("table.json")
    >>> kq.LatencyTable.load("table.json").milliseconds
    {'ADD int8[1,4] int8[1,4] -> int8[1,4]': 0.5}
  """

  milliseconds: dict[str, float]
  call_ms: float = 0.0

  def save(self, path: str | os.PathLike) -> None:
    """Writes a JSON file, whole or not at all.

    Args:
      path: of the file.
    """
    with written_whole(path) as (temporary,):
      temporary.write_text(json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1))

  @classmethod
  def load(cls, path: str | os.PathLike) -> "LatencyTable":
    """Reads what `save` wrote.

    Args:
      path: of the file.

    Returns:
      The table.

    Raises:
      ValueError: another file.
    """
    try:
      body = json.loads(pathlib.Path(path).read_text())
    except ValueError:
      body = None
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
      raise ValueError(f"{path}: expected a JSON file of latencies, as LatencyTable.save writes it.")
    return cls({str(key): float(value) for key, value in body["milliseconds"].items()},
               float(body.get("call_ms", 0.0)))


def measure_latency(files: str | os.PathLike | bytes | Sequence[str | os.PathLike | bytes], *,
                    table: LatencyTable | None = None, runs: int = 50) -> LatencyTable:
  """Times each operator of .tflite files by itself: medians of interleaved runs of LiteRT on one thread.

  Each of these runs has a call of the interpreter. What that takes is found from the whole files, which are
  timed, too, and is taken off.

  Args:
    files: paths or contents of files, or one of them.
    table: of operators that are known, which are not timed again, and of the call.
    runs: of each operator.

  Returns:
    The table, with the operators of the files.

  Raises:
    ValueError: no .tflite file.
    OSError: there is no such file.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    >>> result = kq.quantize(model, np.ones((8, 3), np.float32))
    >>> _ = kq.export(result, "model.tflite")
    >>> list(kq.measure_latency("model.tflite", runs=1).milliseconds)
    ['FULLY_CONNECTED int8[1,3] int8[2,3] int32[2] -> int8[1,2]']
  """
  known = dict(table.milliseconds) if table is not None else {}
  contents = [file if isinstance(file, bytes) else pathlib.Path(file).read_bytes()
              for file in (files if isinstance(files, list | tuple) else [files])]
  programs, new = [from_bytes(file) for file in contents], {}
  for program in programs:
    new |= {key: to_bytes(program.between(list(program.tensors), op.outputs))
            for key, op in _operators(program) if key not in known}
  timed = milliseconds([*new.values(), *(contents if table is None else ())], runs=runs)
  found = dict(zip(new, timed))
  call = _call_ms(programs, found, timed[len(new):]) if table is None else table.call_ms
  return LatencyTable(known | {key: max(value - call, 0.0) for key, value in found.items()}, call)


def _call_ms(programs: Sequence[IntProgram], alone: dict[str, float], whole: Sequence[float]) -> float:
  """Returns the milliseconds of a call by which the sums of operators come nearest to the whole files.

  A file of n operators has one call, their sum has n. Least squares of relative departures.
  """
  spare = np.array([len(program.ops) - 1 for program in programs]) / whole
  beyond = np.array([sum(alone[key] for key, _ in _operators(program)) for program in programs]) / whole - 1
  return max(float(spare @ beyond / (spare @ spare)), 0.0) if spare.any() else 0.0


def _operators(program: IntProgram) -> Iterator[tuple[str, IntOp]]:
  """Yields each operator with its key."""
  for op in program.ops:
    yield _key(program, op), op


def _key(program: IntProgram, op: IntOp) -> str:
  inputs, outputs = program.operands(op)
  options = [f"{name}={op.options[name]}" for name in sorted(op.options) if name.startswith(
      ("stride", "dilation", "padding", "filter")) and op.options[name] not in (None, 1)]
  sides = [" ".join("-" if t is None else f"{t.dtype}[{','.join(map(str, t.shape))}]" for t in tensors)
           for tensors in (inputs, outputs)]
  return " ".join([op.kind, *options, sides[0], "->", sides[1]])


class FileLatency:
  """The milliseconds of one file, by operator.

  Args:
    contents: of the file.
    table: that has its operators.

  Attributes:
    of_weights: {constant of a weight: of the operators that read it}.
    of_others: {tensor: of the operator that makes it}, where it reads no weight.
    total: of all, with the call.

  Raises:
    ValueError: the table lacks an operator.
  """

  def __init__(self, contents: bytes, table: LatencyTable):
    self.of_weights: dict[str, float] = {}
    self.of_others: dict[str, float] = {}
    program = from_bytes(contents)
    for key, op in _operators(program):
      if key not in table.milliseconds:
        raise ValueError(f"LatencyTable: expected the milliseconds of {key!r}, got none; measure them with "
                         "kq.measure_latency, or leave the table out.")
      weights = [t.name for t in program.operands(op)[0]
                 if t is not None and t.data is not None and t.dtype in _WEIGHTS]
      side, name = (self.of_weights, weights[0]) if weights else (self.of_others, op.outputs[0])
      side[name] = side.get(name, 0.0) + table.milliseconds[key]
    self.total = table.call_ms + sum(self.of_weights.values()) + sum(self.of_others.values())
