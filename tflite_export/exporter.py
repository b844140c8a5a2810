"""export(): a quantization result becomes a verified file, or no file."""

import dataclasses
import os
import pathlib
import time
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core import data
from kquant.core.encodings import Encodings
from kquant.core.files import written_whole
from kquant.graph import keras_calls
from tflite_export.file import metadata
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower, with_border
from tflite_export.operators.batch import with_batch
from tflite_export.operators.check import check
from tflite_export.program.program import IntProgram
from tflite_export.proof import certificate as certificates
from tflite_export.proof import verifier
from tflite_export.proof.borders import border_inputs
from tflite_export.proof.certificate import inexact_operators
from tflite_export.proof.errors import VerificationError
from tflite_export.proof.verifier import Verification


@dataclasses.dataclass
class Exported:
  """A written file.

  Attributes:
    path: where it lies.
    bytes: its size.
    program: what it was written from, border included.
    verification: what was compared.
    seconds: {"export", "verify"}, and "certify" where it was asked for.
    certificate: what `tflite_export.certify` found, where it was asked for.
  """

  path: pathlib.Path
  bytes: int
  program: IntProgram
  verification: Verification
  seconds: dict[str, float]
  certificate: dict[str, Any] | None = None

  def __str__(self) -> str:
    """The file, its size, its operators and what was compared, on two lines."""
    counts = ", ".join(f"{kind} {count}" for kind, count in self.program.operator_counts().items())
    run = f"run on {self.verification.images} images" if self.verification.images else "not run"
    return f"{self.path}: {self.bytes:,} bytes, constants equal, {run}\n{counts}"


def export(result: Any, path: str | os.PathLike, *, verify: Any = None, io: str = "int8",
           batch: int | str | None = 1, certify: bool = False, preprocess: str = "none") -> Exported:
  """Writes a .tflite file, reads it back and verifies it; only a verified file gets its name.

  Args:
    result: what `kquant.quantize` returned, or the pair (model, encodings) of `kquant.finalize`.
    path: of the file.
    verify: inputs to run the operators on (two images are enough), as `quantize` takes them; None
      compares the constants alone.
    io: type of the inputs and outputs: "int8", "uint8" or "float32"; those of a network of 16-bit
      activations are int16 under "int8".
    batch: images of one run: any fixed number, or None (or "dynamic") for a file that its user resizes.
    certify: also run the integer simulator on the `verify` inputs and on random ones and compare every
      tensor with LiteRT's two sets of kernels, which must agree to the bit.
    preprocess: what the model's images went through (a mode of `kquant.core.images.preprocess`), written
      into the file as TFLite metadata for applications to read; "none" writes no metadata.

  Returns:
    The written file: its path and size, the program, what was compared, and the certificate.

  Raises:
    UnsupportedLayerError: a layer without an integer operator, or that cannot have that batch, by name.
    VerificationError: the file does not hold or compute what was chosen.
    TypeError: another kind of result.
    ValueError: certify without verify inputs, or such as do not fit; another io or batch; preprocess for a
      model that takes no image; grids that no file holds, such as activations of 4 bits; encodings of another
      model, or a model that is not finalised.
    OSError: the path cannot be written.

  Example:
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> result = kq.quantize(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), images)
    >>> exported = kq.export(result, "model.tflite", verify=images[:2])
    >>> exported.verification.ok, exported.program.operator_counts()
    (True, {'FULLY_CONNECTED': 1})
  """
  if certify and verify is None:
    raise ValueError("export: certify=True needs inputs to run on; give verify=images.")
  model, encodings = _parts_of(result)
  with written_whole(path) as (temporary,):
    start = time.perf_counter()
    program = with_batch(with_border(lower(getattr(result, "graph", None) or model, encodings), io), batch)
    if preprocess != "none":
      program.metadata[metadata.ENTRY] = metadata.image_metadata(program, preprocess)
    check(program)
    temporary.write_bytes(to_bytes(program))
    written = time.perf_counter()
    if certify:
      verify = data.gather(verify, keras_calls.input_specs(model), where="verify")
    stored = temporary.read_bytes()
    verification = verifier.verify(stored, model, encodings, program=program, images=verify)
    _raise_first(path, verification.problems)
    verified = time.perf_counter()
    certificate = None
    if certify:
      certificate = _certificate(stored, program, encodings, verify)
      _raise_first(path, inexact_operators(certificate))
  seconds = {"export": written - start, "verify": verified - written}
  if certify:
    seconds["certify"] = time.perf_counter() - verified
  return Exported(pathlib.Path(path), len(stored), program, verification, seconds, certificate)


def _raise_first(path: str | os.PathLike, problems: list[str]) -> None:
  if problems:
    more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
    raise VerificationError(f"{path}: not written, {problems[0]}{more}")


def _parts_of(result: Any) -> tuple[keras.Model, Encodings]:
  if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Encodings):
    return result
  if not isinstance(getattr(result, "encodings", None), Encodings):
    remedy = (" Quantize it first: kq.quantize(model, images)." if isinstance(result, keras.Model) else
              " The result comes first, then the path: kq.export(result, path)."
              if isinstance(result, (str, os.PathLike)) else "")
    raise TypeError("export: expected what kquant.quantize returned, or the pair (model, encodings) that "
                    f"kquant.finalize returned; got {type(result).__name__}.{remedy}")
  return result.model, result.encodings


def _certificate(contents: bytes, program: IntProgram, encodings: Encodings,
                 images: list[np.ndarray]) -> dict[str, Any]:
  """Certifies on the images, put on the grids and types of the file's border."""
  return certificates.certify(contents, border_inputs(program, encodings, images))
