"""What kquant.cli.export does: finalised Keras model + encodings in, verified full-integer .tflite out."""

import pathlib

from absl import flags

from kquant.cli import backends, file_flags, models, running
from kquant.cli import flags as shared
from kquant.core.encodings import Encodings
from kquant.core.text import text_table
from kquant.graph import keras_calls, keras_reader
from tflite_export.exporter import Exported, export
from tflite_export.file.c_array import to_c_source

FLAGS = flags.FLAGS


def run() -> None:
  """Runs what the flags say."""
  shared.require("model", "encodings", "output")
  backends.check_flags()
  file_flags.check_outputs("output", "certificate", "c_array", reads=("model", "encodings", "data"))
  model, encodings = models.load_finalised(), Encodings.load(FLAGS.encodings)
  keras_reader.check_model(model)
  specs = keras_calls.input_specs(model)
  missing = [spec.name for spec in specs if spec.name not in encodings and not spec.dtype.startswith("int")]
  if missing:
    raise ValueError(f"{FLAGS.encodings} has no grid for the model's input {missing[0]!r}; expected the "
                     f"encodings that were saved with {FLAGS.model}.")
  inputs, description = running.inputs_to_run(specs, [encodings.grids.get(spec.name) for spec in specs])
  second = backends.converted(model, encodings, inputs)
  written = export((model, encodings), FLAGS.output, verify=inputs, io=FLAGS.io, batch=shared.batch(),
                   certify=FLAGS.certificate is not None, preprocess=FLAGS.preprocess)
  converter_rows = backends.put_in_place(written, second)
  if FLAGS.certificate:
    shared.write_json(FLAGS.certificate, written.certificate)
  if FLAGS.c_array:
    source = to_c_source(written.path.read_bytes(), pathlib.Path(FLAGS.c_array).stem,
                         preprocess=FLAGS.preprocess)
    shared.write_text(FLAGS.c_array, source)
  print(_table(written, description, converter_rows))


def _table(written: Exported, description: str, converter_rows: list[tuple[str, str]]) -> str:
  counts = written.program.operator_counts()
  return text_table(("result", ""), [
      ("bytes", f"{written.bytes:,}"),
      ("operators", ", ".join(f"{kind} {count}" for kind, count in counts.items())),
      ("verified", "integers, grids and biases equal; each operator within "
                   f"{written.verification.max_lsb} LSB of its Keras layer on {description}"),
      *running.certificate_rows(written.certificate),
      *converter_rows,
      ("file", written.path)])
