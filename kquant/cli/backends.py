"""--backend=converter: the file of TensorFlow's converter for the same encodings, if it computes the same."""


import numpy as np
import tf_keras as keras
from absl import flags

from kquant.cli.native_messages import without_native_messages
from kquant.core.encodings import Encodings
from kquant.core.files import written_whole
from tflite_export.exporter import Exported
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower
from tflite_export.proof.borders import border_inputs
from tflite_export.proof.converter import convert, differences
from tflite_export.proof.errors import VerificationError
from tflite_export.proof.simulate import simulate

FLAGS = flags.FLAGS
flags.disclaim_key_flags()


def check_flags() -> None:
  """Raises ValueError for flags that --backend=converter does not go with."""
  if FLAGS.backend == "converter":
    for name in ("io", "batch", "certificate", "preprocess"):
      if FLAGS[name].value != FLAGS[name].default:
        raise ValueError(f"--{name} is for our own writer; leave it out with --backend=converter.")


def converted(model: keras.Model, encodings: Encodings, images: list[np.ndarray]) -> tuple[bytes, str] | None:
  """Returns (the converter's file, what was compared in words) where --backend asks for it, else None.

  Raises:
    UnsupportedLayerError, ValueError: the converter cannot do the model.
    VerificationError: its file and ours give other integers.
  """
  if FLAGS.backend != "converter":
    return None
  program = lower(model, encodings)
  inputs = border_inputs(program, encodings, images)
  data, ours, remarks = _convert(model, encodings), to_bytes(program), []
  for kernels in ("xnnpack", "reference"):
    try:
      simulate(program, inputs, mode=kernels)  # raises where the reference SOFTMAX would end the process
      different = sum(differences(data, ours, inputs, kernels))
    except ValueError as error:  # or the reference kernels lack a version that the converter writes
      remarks.append(f"not compared on the {kernels} kernels: {error}")
      continue
    if different:
      raise VerificationError(f"the converter's file gives {different} other output elements than ours on "
                              f"the {kernels} kernels")
    remarks.append(f"outputs equal to our own file's on the {kernels} kernels")
  return data, "; ".join(remarks)


def _convert(model: keras.Model, encodings: Encodings) -> bytes:
  """`convert` without the converter's messages, which are many also where it fails."""
  with without_native_messages():
    try:
      return convert(model, encodings)
    except ValueError as error:
      failed = error
  raise failed


def put_in_place(written: Exported, second: tuple[bytes, str] | None) -> list[tuple[str, str]]:
  """Puts the converter's file in the place of ours; returns the rows of a table that say so."""
  if second is None:
    return []
  data, remarks = second
  with written_whole(written.path) as (temporary,):
    temporary.write_bytes(data)
  written.bytes, written.program = len(data), from_bytes(data)
  return [("converter", f"its file stands in the place of ours: {remarks}")]
