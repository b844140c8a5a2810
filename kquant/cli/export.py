"""python -m kquant.cli.export: finalised Keras model + encodings in, verified full-integer .tflite out.

`kquant.cli.ptq --save_model=m.keras --encodings=m.json` and `kquant.finalize` make the two.
"""

from kquant.cli import flags as shared

shared.define_path("model", "finalised tf_keras model: .h5, .keras or a SavedModel folder")
shared.define_trust()
shared.define_path("output", "the .tflite file to write")
shared.define_file_flags()
shared.define_run_flags()


def main() -> None:
  """Runs what the flags say."""
  from kquant.cli.commands import export  # imports TensorFlow, which --help and a wrong flag do without
  export.run()


if __name__ == "__main__":
  shared.run(main, reads=("model", "import", "encodings", "data"))
