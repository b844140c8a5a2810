"""What kquant.cli.verify does: does a .tflite file hold the encodings' integers and compute with them?"""

import pathlib
from typing import Any

import tf_keras as keras
from absl import flags

from kquant.cli import file_flags, models, running
from kquant.cli import flags as shared
from kquant.core.encodings import Encodings
from kquant.core.input_spec import InputSpec
from kquant.core.text import text_table
from tflite_export.file import metadata
from tflite_export.file.reader import from_bytes
from tflite_export.lowering.lower import lower, with_border
from tflite_export.operators.batch import with_batch
from tflite_export.program.program import IntProgram
from tflite_export.proof import verifier
from tflite_export.proof.borders import border_inputs, input_grid
from tflite_export.proof.certificate import certify, inexact_operators
from tflite_export.proof.errors import VerificationError
from tflite_export.proof.verifier import Verification

FLAGS = flags.FLAGS
PROBLEMS_SHOWN = 20


def run() -> None:
  """Runs what the flags say."""
  shared.require("tflite", "encodings")
  file_flags.check_outputs("certificate", reads=("tflite", "model", "encodings", "data"))
  encodings = Encodings.load(FLAGS.encodings)
  model = None if FLAGS.model is None else models.load_finalised()
  data = pathlib.Path(FLAGS.tflite).read_bytes()
  try:
    stored = from_bytes(data)
    grids = [None if stored.tensors[name].dtype == "int32" else input_grid(stored, encodings, name)
             for name in stored.inputs]
  except ValueError as error:
    raise VerificationError(f"{FLAGS.tflite}: {error}") from error
  specs = [InputSpec(name.removesuffix(f"/{stored.tensors[name].dtype}"), stored.tensors[name].shape[1:],
                     "float32" if grid else "int32") for name, grid in zip(stored.inputs, grids)]
  images, description = running.inputs_to_run(specs, grids)
  verification = verifier.verify(data, model, encodings, program=_expected(model, encodings, stored),
                                 images=None if model is None else images)
  certificate, problems = None, verification.problems
  if not problems:
    certificate = certify(data, border_inputs(stored, encodings, images), seed=FLAGS.seed)
    problems = inexact_operators(certificate)
    if FLAGS.certificate:
      shared.write_json(FLAGS.certificate, certificate)
  _tell(verification, certificate, problems, description)


def _expected(model: keras.Model | None, encodings: Encodings, stored: IntProgram) -> IntProgram | None:
  """The program of the model with the file's border and batch; None without a model.

  The version in the description is the writer's own; metadata are compared where the file has them and
  --preprocess says what they should be.
  """
  if model is None:
    return None
  first = stored.tensors[stored.inputs[0]]
  types = [stored.tensors[name].dtype for name in (*stored.inputs, *stored.outputs)]
  border = next((dtype for dtype in types if dtype in ("uint8", "float32")), "int8")
  batch = None if first.open_batch else first.shape[0]
  program = with_batch(with_border(lower(model, encodings), border), batch)
  program.description, program.metadata = stored.description, stored.metadata
  if FLAGS.preprocess != "none" and metadata.ENTRY in stored.metadata:
    program.metadata = {**stored.metadata,
                        metadata.ENTRY: metadata.image_metadata(program, FLAGS.preprocess)}
  return program


def _tell(verification: Verification, certificate: dict[str, Any] | None, problems: list[str],
          description: str) -> None:
  """Prints what was compared; raises VerificationError where something differs."""
  if problems:
    print("\n".join(problems[:PROBLEMS_SHOWN]))
    more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
    raise VerificationError(f"{FLAGS.tflite}: {problems[0]}{more}")
  operators = (f"each within {verification.max_lsb} LSB of its Keras layer on {description}" if FLAGS.model
               else "not compared; give --model")
  print(text_table(("result", ""), [
      ("integers", "every weight, bias, scale and zero point of the encodings equal"),
      ("operators", operators), ("run on", description), *running.certificate_rows(certificate)]))
  print(f"verified: {FLAGS.tflite}")
