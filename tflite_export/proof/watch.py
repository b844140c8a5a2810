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

  A runtime holds every tensor that it gives out, so it gives out as many as fit; for the others it runs the
  whole program again.

  Args:
    program: what the file holds.
    names: of the tensors to watch.
    kernels, batch: as `Runtime` takes them.

  Attributes:
    images: how many are to be run at a time; whole batches.
  """

  def __init__(self, program: IntProgram, names: Sequence[str], *, kernels: str = "xnnpack",
               batch: int | None = None):
    self._program, self._options = program, {"kernels": kernels, "batch": batch}
    run = batch or batch_of(program)
    share = run / batch_of(program)
    self._parts: list[list[str]] = [[]]
    used = largest = 0.0
    for name in names:
      size = share * tensor_bytes(program, name)
      if used + size > sizes.BYTES_AT_ONCE and self._parts[-1]:
        self._parts.append([])
        used = 0.0
      self._parts[-1].append(name)
      used += size
      largest = max(largest, used)
    self.images = run * max(1, int(sizes.BYTES_AT_ONCE // max(1.0, largest)))
    self._loaded: tuple[list[str], Runtime] | None = None

  def read(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, integers) of every tensor in the order of the names.

    Args:
      inputs: as `Runtime.run_many` takes them, of no more than `images` images.
    """
    for names in self._parts:
      yield from zip(names, self._runtime(names).run_many(inputs))

  def _runtime(self, names: list[str]) -> Runtime:
    if self._loaded is None or self._loaded[0] is not names:
      self._loaded = None  # first, so that there is only one
      self._loaded = names, Runtime(to_bytes(self._program.with_outputs(names)), **self._options)
    return self._loaded[1]
