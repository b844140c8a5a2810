"""export(): a quantization result becomes a verified file, or no file."""

import dataclasses
import os
import pathlib
import time
from typing import Any

import numpy as np

from kquant.core import data, keras_calls
from tflite_export import verifier
from tflite_export.lower import lower, with_border
from tflite_export.program import IntProgram
from tflite_export.program_check import check
from tflite_export.verifier import Verification, VerificationError
from tflite_export.writer import to_bytes


@dataclasses.dataclass
class Exported:
  """A written file.

  Attributes:
    path: where it lies.
    bytes: its size.
    program: what it was written from, border included.
    verification: what was compared.
    seconds: {"export", "verify"}.
  """

  path: pathlib.Path
  bytes: int
  program: IntProgram
  verification: Verification
  seconds: dict[str, float]


def export(result: Any, path: str | os.PathLike, *, verify: Any = None, io: str = "int8") -> Exported:
  """Writes a .tflite file, reads it back and verifies it; only a verified file gets its name.

  Args:
    result: has `model` (finalised) and `encodings`: what `kquant.quantize` returned.
    path: of the file.
    verify: inputs to run the operators on (two images are enough), as `quantize` takes them; None
      compares the constants alone.
    io: type of the inputs and outputs: "int8", "uint8" or "float32".

  Raises:
    UnsupportedLayerError: a layer without an integer operator, by name.
    VerificationError: the file does not hold or compute what was chosen.
    OSError: the path cannot be written.
  """
  path = pathlib.Path(path)
  start = time.perf_counter()
  program = with_border(lower(result.model, result.encodings), io)
  check(program)
  contents = to_bytes(program)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_bytes(contents)
    written = time.perf_counter()
    images = None if verify is None else _gather(result.model, verify)
    found = verifier.verify(temporary.read_bytes(), result.model, result.encodings, program=program,
                   images=images)
    if not found.ok:
      raise VerificationError(f"{path}: not written, {found.problems[0]}"
                              + (f" (and {len(found.problems) - 1} more)" if found.problems[1:] else ""))
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  seconds = {"export": written - start, "verify": time.perf_counter() - written}
  return Exported(path, len(contents), program, found, seconds)


def _gather(model, images) -> list[np.ndarray]:
  """All images, one array an input."""
  specs = keras_calls.input_specs(model)
  return [np.concatenate(parts) for parts in zip(*data.batches(images, specs, where="verify"))]
