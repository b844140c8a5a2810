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

  A runtime holds every tensor that it gives out, and so does who reads them: it gives out as many as fit, and
  runs the whole program again for the others.

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
    self._program, self._options = program, {"kernels": kernels, "batch": batch}
    run = batch or batch_of(program)
    used = {name: run * tensor_bytes(program, name) / batch_of(program) for name in names}
    self._parts = _parts(used)
    largest = max(sum(used[name] for name in part) for part in self._parts)
    self.images = run * max(1, int(_room() // max(1, largest)))
    self.whole = len(self._parts) == 1
    self._loaded: Runtime | None = None

  def read(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, integers) of every tensor in the order of the names.

    Args:
      inputs: as `Runtime.run_many` takes them, of no more than `images` images.
    """
    for names in self._parts:
      arrays = self._run(names, inputs)
      for name in names:
        yield name, arrays.pop(0)

  def _run(self, names: list[str], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    runtime = self._loaded or Runtime(to_bytes(self._program.with_outputs(names)), **self._options)
    self._loaded = runtime if self.whole else None
    return runtime.run_many(inputs)


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
