"""LiteRT's integers of inner tensors, a bounded number of bytes at a time."""

from collections.abc import Iterator, Sequence

import numpy as np

from kquant.graph import sizes
from tflite_export.file.writer import to_bytes
from tflite_export.program.batch import batch_of
from tflite_export.program.memory import tensor_bytes
from tflite_export.program.program import IntProgram
from tflite_export.proof.runtime import Runtime


class Watch:
  """Tensors of a program as a set of kernels computes them.

  A runtime holds every tensor that it gives out, and so does who reads them: it gives out as many as fit. The
  next ones are made by a program of the operators behind these, from what was given out.

  Args:
    program: what the file holds.
    names: of the tensors to watch.
    kernels, batch: as `Runtime` takes them.

  Attributes:
    images: how many are to be run at a time; whole batches.
    whole: whether one runtime gives out all of them. It then stays loaded. Of a large program one takes
      hundreds of megabytes more: XNNPACK notes where each window of a convolution lies.
  """

  def __init__(self, program: IntProgram, names: Sequence[str], *, kernels: str = "xnnpack",
               batch: int | None = None):
    self._options = {"kernels": kernels, "batch": batch}
    run = batch or batch_of(program)
    used = {name: run * tensor_bytes(program, name) / batch_of(program) for name in names}
    parts = _parts(used)
    self._names = program.inputs
    self._programs = [program.between(_starts(program, parts[:place]), part)
                      for place, part in enumerate(parts)]
    self._last = {name: place for place, part in enumerate(self._programs) for name in part.inputs}
    largest = max(sum(used[name] for name in part) for part in parts)
    self.images = run * max(1, int(_room() // max(1, largest)))
    self.whole = len(parts) == 1
    self._loaded: Runtime | None = None

  def read(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, integers) of every tensor in the order of the names.

    Args:
      inputs: as `Runtime.run_many` takes them, of no more than `images` images.
    """
    known = dict(zip(self._names, inputs))
    for place, program in enumerate(self._programs):
      arrays = self._run(program, [known[name] for name in program.inputs])
      known |= zip(program.outputs, arrays)
      known = {name: array for name, array in known.items() if self._last.get(name, -1) > place}
      for name in program.outputs:
        yield name, arrays.pop(0)

  def _run(self, program: IntProgram, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    runtime = self._loaded or Runtime(to_bytes(program), **self._options)
    self._loaded = runtime if self.whole else None
    return runtime.run_many(inputs)


def _starts(program: IntProgram, parts: list[list[str]]) -> set[str]:
  """Tensors that were given out and that a run can be given: they lie along the batch."""
  return {name for part in parts for name in part
          if program.tensors[name].shape[:1] == (batch_of(program),)}


def _room() -> int:
  """Bytes of a part: half are the runtime's."""
  return sizes.BYTES_AT_ONCE // 2


def _parts(used: dict[str, float]) -> list[list[str]]:
  """Cuts the names into parts of so many bytes that fit, and of one at least."""
  parts: list[list[str]] = [[]]
  for name, size in used.items():
    if parts[-1] and sum(used[other] for other in parts[-1]) + size > _room():
      parts.append([])
    parts[-1].append(name)
  return parts
