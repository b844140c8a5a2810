"""What the scripts share: flags, the error contract, JSON written whole or not at all."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from kquant.cli.file_flags import check_inputs
from kquant.cli.native_messages import import_tensorflow_quietly
from kquant.core.files import written_whole
from kquant.core.images import is_mode
from kquant.core.quant_config import NAMED_PRESETS, QuantConfig
from kquant.core.recipe import (
  BIAS_CORRECTIONS,
  EFFORTS,
  EQUALIZATIONS,
  FINETUNINGS,
  ROUNDINGS,
  TOLERANCE_DB,
  Recipe,
)
from kquant.core.target import target
from kquant.core.tensor_spec import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # --help shows the flags below as the script's own
TRAINED_QUANTIZERS = (*(name for name in WEIGHT_QUANTIZERS if name in ACTIVATION_QUANTIZERS),
                      "in_hindsight", "current_minmax")


def define_path(name: str, text: str, *, endings: tuple[str, ...] = ("",)) -> None:
  """Defines a flag for a path that is not empty and ends as it should."""
  if is_defined(name):
    return
  flags.DEFINE_string(name, None, text)
  flags.register_validator(
      name, lambda path: path is None or (path != "" and path.endswith(endings)),
      message="expected a path, got an empty one" if "" in endings else
      f"expected a path that ends in {' or '.join(endings)}")


def is_defined(name: str) -> bool:
  """Whether another script of this process has the flag already: then it is this script's as well."""
  if name not in FLAGS:
    return False
  flags.declare_key_flag(name)
  return True


def define_model_flags() -> None:
  """--output, --summary, --seed and those of `define_model`."""
  define_model()
  define_path("output", "the .tflite file to write")
  define_path("summary", "JSON file for what was measured")
  define_seed()


def define_model() -> None:
  """--model, --weights, --build, --signature, --input_shape and those of `define_trust`."""
  define_path("model", "float model: .h5, .keras, a SavedModel folder, a float .tflite file, or a .json "
              "config beside --weights")
  define_path("weights", "file of the weights, where --model is a .json config or --build is given")
  if not is_defined("build"):
    flags.DEFINE_string("build", None, "FILE.py:FUNCTION of yours that builds the model; --model or "
                        "--weights then names its weights")
  if not is_defined("signature"):
    flags.DEFINE_string("signature", None, "of a SavedModel of another maker: the function to take")
  if not is_defined("input_shape"):
    flags.DEFINE_string("input_shape", None, "sizes without batch, such as 224,224,3 or 49,40; for several "
                        "inputs NAME:SIZES;NAME:SIZES; needed where the model leaves sizes open")
  define_trust()


def define_trust() -> None:
  """--import, --trust_model."""
  define_path("import", "Python file of yours that registers the model's layers; it is run", endings=(".py",))
  if not is_defined("trust_model"):
    flags.DEFINE_bool("trust_model", False, "run the Python code that Lambda layers of --model hold")


def define_seed() -> None:
  """--seed."""
  if not is_defined("seed"):
    flags.DEFINE_integer("seed", 0, "seed of every random choice", lower_bound=0, upper_bound=2**32 - 1)


def define_method_flags() -> None:
  """--preset, --effort, --tolerance, --equalize, --rounding, --bias, --finetune."""
  define_preset()
  define_effort()
  for name, choices, what in (("equalize", EQUALIZATIONS, "scale channels across layers before"),
                              ("rounding", ROUNDINGS, "how weights become integers"),
                              ("bias", BIAS_CORRECTIONS, "how biases are corrected"),
                              ("finetune", FINETUNINGS, "train against the float model in the end")):
    if not is_defined(name):
      flags.DEFINE_enum(name, None, choices, f"{what}; default: the preset's")


def define_effort() -> None:
  """--effort, --tolerance."""
  if not is_defined("effort"):
    flags.DEFINE_enum("effort", "auto", [*EFFORTS, "none"],
                      "auto does as fast does, and tries more where that is not near the float model; fast "
                      "corrects biases iteratively; balanced also tries equalization and closed-form "
                      "rounding; best also fine-tunes; none: what the preset says and no more")
  if not is_defined("tolerance"):
    flags.DEFINE_float("tolerance", TOLERANCE_DB,
                       "of --effort=auto: SQNR of the outputs, in dB, that is good enough")


def define_preset() -> None:
  """--preset."""
  if not is_defined("preset"):
    flags.DEFINE_string("preset", "int8", f"{', '.join(NAMED_PRESETS)}, or w<bits>a8 with weights of 2 to 8 "
                        "bits, such as w4a8 (w4a8_unpacked: int4 weights in int8 tensors)")


def define_calibration_flags() -> None:
  """--calibration, --calibration_samples."""
  define_path("calibration", "folder of images, .npz (x, or a key an input), .npy or .csv")
  if not is_defined("calibration_samples"):
    flags.DEFINE_integer("calibration_samples", 128, "how many of them to use", lower_bound=1)


def define_data_flags() -> None:
  """--calibration, --calibration_samples, --calibration_order, --preprocess, --eval."""
  define_calibration_flags()
  if not is_defined("calibration_order"):
    flags.DEFINE_enum("calibration_order", "random", ["random", "first"],
                      "a seeded random sample, or the first ones")
  define_preprocess()
  define_path("eval", "images to judge by: a folder (labels.csv: file,label, or a folder a class), .npz "
              "(x, y) or .csv (a column label)")


def define_preprocess() -> None:
  """--preprocess."""
  if not is_defined("preprocess"):
    flags.DEFINE_string("preprocess", "none", "none, unit, tf, torch, caffe (as Keras' preprocess_input), or "
                        "mean:127,std:128 with one number or one for each channel: applied to the images "
                        "(0..255, RGB) of folders and array files, and written into the file's metadata")
    flags.register_validator("preprocess", is_mode, message="expected <none|unit|tf|torch|caffe> or "
                             "mean:NUMBERS,std:NUMBERS, deviations above 0")


def define_file_flags() -> None:
  """--io, --backend, --encodings, --certificate, --c_array: a .tflite file and what lies beside it."""
  if not is_defined("io"):
    flags.DEFINE_enum("io", "int8", ["int8", "uint8", "float32"], "type of the file's inputs and outputs")
  if not is_defined("backend"):
    flags.DEFINE_enum("backend", "direct", ["direct", "converter"],
                      "our own writer, or TensorFlow's converter on the same encodings, compared with ours")
  if not is_defined("batch"):
    flags.DEFINE_string("batch", "1", "images of one run: a number, or dynamic for a file that users resize")
    flags.register_validator(
        "batch", lambda value: value == "dynamic" or (value.isdecimal() and int(value) > 0),
        message="expected a positive number or dynamic")
  define_path("encodings", "JSON file for every grid (the integers in the .npz beside it)",
              endings=(".json",))
  define_path("certificate", "JSON file: every tensor compared with our own integer arithmetic",
              endings=(".json",))
  define_path("c_array", "C source for the file as an array, for microcontrollers: .cc, .cpp or .c",
              endings=(".cc", ".cpp", ".cxx", ".c", ".h", ".hpp"))


def define_report() -> None:
  """--report."""
  define_path("report", "HTML page about the run, one file without network access: accuracy, exactness, the "
              "noise of each tensor, whose analysis takes a minute on a large network", endings=(".html",))


def define_node_data() -> None:
  """--node_data."""
  define_path("node_data", "JSON file for Google's Model Explorer: 1 / QNSR at the output, in dB, where a "
              "tensor of the .tflite file alone is quantized", endings=(".json",))


def define_run_flags() -> None:
  """--data, --data_samples, --preprocess, --seed."""
  define_path("data", "inputs to run the file on, as for --calibration of kquant.cli.ptq: a folder of "
                             "images, .npz or .npy; random ones where it is left out")
  if not is_defined("data_samples"):
    flags.DEFINE_integer("data_samples", 4, "how many of --data to run on, the first ones", lower_bound=1)
  define_preprocess()
  define_seed()


def batch() -> int | str:
  """Returns --batch as `tflite_export.export` takes it."""
  return FLAGS.batch if FLAGS.batch == "dynamic" else int(FLAGS.batch)


def effort() -> str | None:
  """Returns --effort as `kquant.quantize` takes it."""
  return None if FLAGS.effort == "none" else FLAGS.effort


def preset() -> QuantConfig:
  """Returns the QuantConfig of --preset.

  Raises:
    ValueError: no such preset, or one whose activations no .tflite operator takes.
  """
  config = QuantConfig.preset(FLAGS.preset)
  held = target(config.target).activation_bits
  if any(rule.activations.bits not in held for rule in config.rules):
    raise ValueError(f"--preset={FLAGS.preset}: the operators of a .tflite file take activations of "
                     f"{' or '.join(map(str, held))} bits; fewer are for simulation only. Choose "
                     f"{', '.join(NAMED_PRESETS)}, or w<bits>a8 with 2 to 8 bits of weights, such as w4a8.")
  return config


def recipe() -> Recipe:
  """Returns what --equalize, --rounding, --bias and --finetune decide."""
  return Recipe(FLAGS.equalize, FLAGS.rounding, FLAGS.bias, FLAGS.finetune)


def require(*names: str) -> None:
  """Raises ValueError for a flag that a script cannot do without."""
  for name in names:
    if FLAGS[name].value is None:
      needed = [f"--{other}" for other in names]
      needed = " and ".join([", ".join(needed[:-1]), needed[-1]] if needed[1:] else needed)
      raise ValueError(f"--{name} is missing; a run needs {needed}.")


def require_model(*others: str) -> None:
  """Raises ValueError where one of these flags is missing, or both --model and --build."""
  require(*(others if FLAGS.build else ("model", *others)))


def write_json(path: str | os.PathLike, body: dict) -> None:
  """Writes a JSON file whole or not at all."""
  write_text(path, json.dumps(body, indent=1) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file whole or not at all."""
  with written_whole(path) as (temporary,):
    temporary.write_text(text)


def run(main: Callable[[], None], *, reads: Sequence[str] = (), requires: Sequence[str] = (),
        tensorflow: bool = True) -> None:
  """Runs a script: exit code 2 and one line for a user's mistake, 1 for a failed verification.

  With --verbosity=1 the traceback is shown. TensorFlow is imported before, unless the script does without.

  Args:
    reads: flags that name what it reads; a wrong path is told before TensorFlow, which takes long, is
      imported.
    requires: flags that it cannot do without, beside a model; what is missing is told before, too.
  """

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      _leave(2, f"Unexpected argument {argv[1]!r}; flags look like --model=PATH.")
    if logging.get_verbosity() < logging.DEBUG:
      warnings.simplefilter("ignore")  # of the packages below
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    try:
      check_inputs(reads)
      if requires:
        require_model(*requires)
    except (FileNotFoundError, ValueError) as error:
      _leave(2, str(error))
    if tensorflow:
      import_tensorflow_quietly()
    from tflite_export.proof.errors import VerificationError
    try:
      main()
    except VerificationError as error:
      _leave(1, f"Verification failed: {error}")
    except (ValueError, TypeError, OSError, MemoryError) as error:
      if logging.get_verbosity() >= logging.DEBUG:
        raise
      _leave(2, str(error) or type(error).__name__)

  def parse(argv: list[str]) -> list[str]:
    try:
      return FLAGS(argv)
    except flags.Error as error:
      _leave(2, f"{str(error).rstrip(' ?')} (--help lists the flags).")

  signal.signal(signal.SIGTERM, _terminate)  # so that what is half written is removed
  try:
    app.run(guarded, flags_parser=parse)
  except KeyboardInterrupt:  # in imports, too
    _leave(130, "interrupted")


def _terminate(number: int, frame: Any) -> None:
  _leave(128 + number, "terminated")


def _leave(code: int, message: str) -> None:
  print("error:", " ".join(message.split()), file=sys.stderr)
  sys.exit(code)
