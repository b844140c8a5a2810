"""python -m kquant.cli.verify: does a .tflite file hold the encodings' integers and compute with them?

With --model, the finalised Keras model, every operator is compared too, field by field and in what it
computes. Exit code 1 and a last line that says what differs; 0 and a last line "verified" where nothing does.
"""

from kquant.cli import flags as shared

shared.define_path("tflite", "the .tflite file")
shared.define_path("model", "the finalised tf_keras model it was made of: .h5, .keras or a SavedModel folder")
shared.define_trust()
shared.define_path("encodings", "JSON file of the grids, the integers in the .npz beside it",
                   endings=(".json",))
shared.define_path("certificate", "JSON file to write: every tensor compared with our own integer arithmetic",
                   endings=(".json",))
shared.define_run_flags()


def main() -> None:
  """Runs what the flags say."""
  from kquant.cli.commands import verify  # imports TensorFlow, which --help and a wrong flag do without
  verify.run()


if __name__ == "__main__":
  shared.run(main, reads=("tflite", "model", "import", "encodings", "data"))
