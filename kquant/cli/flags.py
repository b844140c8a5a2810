"""What the scripts share: flags, the error contract, files written whole or not at all."""

import json
import os
import pathlib
import sys
from collections.abc import Callable

from absl import app, flags, logging

from kquant.core.spec import QuantConfig
from tflite_export.verifier import VerificationError

FLAGS = flags.FLAGS


def define_model_flags() -> None:
  """--model, --input_shape, --output, --summary, --seed."""
  flags.DEFINE_string("model", None, "tf_keras model: .h5, .keras or a SavedModel folder")
  flags.DEFINE_list("input_shape", None, "H,W,C; needed where the model's input shape is open")
  flags.DEFINE_string("output", None, "the .tflite file to write")
  flags.DEFINE_string("summary", None, "JSON file for what was measured")
  flags.DEFINE_integer("seed", 0, "seed of every random choice")


def define_data_flags() -> None:
  """--calibration, --calibration_samples, --calibration_order, --preprocess, --eval."""
  flags.DEFINE_string("calibration", None, "folder of images, .npz (x, or a key an input) or .npy")
  flags.DEFINE_integer("calibration_samples", 128, "how many of them to use", lower_bound=1)
  flags.DEFINE_enum("calibration_order", "random", ["random", "first"],
                    "a seeded random sample, or the first ones")
  flags.DEFINE_enum("preprocess", "none", ["none", "unit", "tf", "torch", "caffe"],
                    "what the model expects of images in a folder, as in Keras' preprocess_input")
  flags.DEFINE_string("eval", None, "images to judge by: a folder (labels.csv: file,label) or .npz (x, y)")


def input_shape() -> tuple[int, ...] | None:
  """Returns --input_shape as integers.

  Raises:
    ValueError: not positive whole numbers.
  """
  if FLAGS.input_shape is None:
    return None
  if not all(part.strip().isdigit() and int(part) for part in FLAGS.input_shape):
    raise ValueError(f"--input_shape: expected positive whole numbers such as 224,224,3, got "
                     f"{','.join(FLAGS.input_shape)!r}.")
  return tuple(int(part) for part in FLAGS.input_shape)


def preset() -> QuantConfig:
  """Returns the QuantConfig of --preset."""
  return QuantConfig.preset(FLAGS.preset)


def check_writable(*paths: str | None) -> None:
  """Raises OSError now for a file that could not be written at the end."""
  for path in filter(None, paths):
    folder = pathlib.Path(path).absolute().parent
    if pathlib.Path(path).is_dir():
      raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write.")
    if not folder.is_dir():
      raise FileNotFoundError(f"{path} cannot be written: there is no folder {folder}; make it first.")
    if not os.access(folder, os.W_OK):
      raise PermissionError(f"{path} cannot be written: no permission in {folder}; choose another place.")


def write_json(path: str, body: dict) -> None:
  """Writes a JSON file whole or not at all."""
  temporary = pathlib.Path(path).with_name(f".{pathlib.Path(path).name}.tmp")
  temporary.write_text(json.dumps(body, indent=1) + "\n")
  os.replace(temporary, path)


def run(main: Callable[[], None]) -> None:
  """Runs a script: exit code 2 and one line for a user's mistake, 1 for a failed verification.

  With --verbosity=1 the traceback is shown.
  """

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      _leave(2, f"Unexpected argument {argv[1]!r}; flags look like --model=PATH.")
    try:
      main()
    except VerificationError as error:
      _leave(1, f"Verification failed: {error}")
    except (ValueError, TypeError, OSError) as error:
      if logging.get_verbosity() >= logging.DEBUG:
        raise
      _leave(2, " ".join(str(error).split()))

  def parse(argv: list[str]) -> list[str]:
    try:
      return FLAGS(argv)
    except flags.Error as error:
      _leave(2, f"{error}; --help lists the flags.")

  app.run(guarded, flags_parser=parse)


def _leave(code: int, message: str) -> None:
  print(f"error: {message}", file=sys.stderr)
  sys.exit(code)
