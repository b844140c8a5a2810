"""The model that --model, --weights, --build and --import name.

Code of a user's runs where these flags name its file, and nowhere else.
"""

import importlib.util
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any

import tf_keras as keras
from absl import flags

from kquant.cli.native_messages import without_native_messages
from kquant.core.input_spec import InputSpec
from kquant.core.text import first_line
from kquant.graph import keras_calls, keras_reader, model_files
from kquant.graph.model_forms import as_tf_keras
from kquant.graph.readers.keras3 import is_keras3

FLAGS = flags.FLAGS
_LETTERS = {1: "N", 2: "TF", 3: "HWC", 4: "DHWC"}
"""Of the sizes of an input, by how many it has."""


def load() -> keras.Model:
  """Returns the float model that the flags name, with --input_shape.

  Raises:
    FileNotFoundError, ValueError, TypeError: nothing there, or no model; see `kquant.load_model`.
  """
  run_import()
  if FLAGS.build is None:
    return _loaded(weights=FLAGS.weights, input_shape=input_shape(), signature=FLAGS.signature)
  if FLAGS.signature is not None:
    raise ValueError("--signature is of a SavedModel; leave it out beside --build.")
  if FLAGS.weights is not None and FLAGS.model is not None:
    raise ValueError("--build, --weights and --model were given; leave one of the last two out: it names the "
                     "file of the weights.")
  if FLAGS.weights is None and FLAGS.model is None:
    raise ValueError("--build was given without weights; name their file by --model or --weights.")
  model = as_tf_keras(_built(FLAGS.weights or FLAGS.model))
  shape = input_shape()
  return model if shape is None else model_files.with_input_shape(model, shape)


def load_finalised() -> keras.Model:
  """Returns the finalised model that --model names; see `load`."""
  run_import()
  return _loaded()


def _loaded(**options: Any) -> keras.Model:
  """The model that --model names, without what TensorFlow's conversion of a SavedModel writes to stderr."""
  if not pathlib.Path(FLAGS.model).is_dir():
    return model_files.load_model(FLAGS.model, trusted=FLAGS.trust_model, **options)
  with without_native_messages():
    try:
      return model_files.load_model(FLAGS.model, trusted=FLAGS.trust_model, **options)
    except (ValueError, FileNotFoundError) as error:
      failed = error
  raise failed


def input_shape() -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
  """Returns --input_shape as integers, by input where it names them.

  Raises:
    ValueError: not positive whole numbers.
  """
  text = FLAGS.input_shape
  if text is None:
    return None
  parts = [part.rpartition(":") for part in text.split(";")]
  shapes = {name.strip(): _sizes(sizes) for name, _, sizes in parts}
  if None in shapes.values() or len(shapes) < len(parts) or ("" in shapes and len(parts) > 1):
    raise ValueError("--input_shape: expected positive whole numbers such as 224,224,3, or for several "
                     f"inputs image:224,224,3;length:16, got {text!r}.")
  return shapes.get("", shapes)


def _sizes(text: str) -> tuple[int, ...] | None:
  parts = [part.strip() for part in text.split(",")]
  return tuple(map(int, parts)) if all(part.isdecimal() and int(part) for part in parts) else None


def fixed_inputs(model: keras.Model) -> list[InputSpec]:
  """Returns the inputs of a model; ValueError where a shape is open."""
  keras_reader.check_model(model)
  inputs = keras_calls.input_specs(model)
  for spec in inputs:
    if None in spec.shape:
      raise ValueError(f"The model's input {spec.name!r} has the open shape {spec.shape}; give "
                       f"--input_shape={_wanted(inputs)} with your sizes for the letters.")
  return inputs


def _wanted(inputs: Sequence[InputSpec]) -> str:
  """What to give for --input_shape, with letters for open sizes."""
  shapes = [",".join(letter if size is None else str(size) for size, letter in zip(
      spec.shape, _LETTERS.get(len(spec.shape), "ABCDEFGH"))) for spec in inputs]
  if len(inputs) == 1:
    return shapes[0]
  return ";".join(f"{spec.name}:{shape}" for spec, shape in zip(inputs, shapes) if None in spec.shape)


def run_import() -> None:
  """Runs the file that --import names."""
  if FLAGS["import"].value is not None:
    _run("import", pathlib.Path(FLAGS["import"].value))


def _built(weights: str) -> Any:
  """What the function of --build makes, with the weights of a file."""
  file, _, name = FLAGS.build.rpartition(":")
  if not file.endswith(".py") or not name.isidentifier():
    raise ValueError(f"--build={FLAGS.build}: expected FILE.py:FUNCTION, such as network.py:build.")
  function = getattr(_run("build", pathlib.Path(file)), name, None)
  if not callable(function):
    raise ValueError(f"--build={FLAGS.build}: there is no function {name!r} in {file}.")
  try:
    model = function()
  except (Exception, SystemExit) as error:
    raise ValueError(f"--build={FLAGS.build} failed: {_told(error)}.") from error
  if not isinstance(model, keras.Model) and not is_keras3(model):
    raise ValueError(f"--build={FLAGS.build}: expected the function to return a Keras model, got "
                     f"{type(model).__name__}.")
  model_files.load_weights(model, weights)
  return model


def _run(flag: str, path: pathlib.Path) -> types.ModuleType:
  """Runs a Python file as a module of its name, once; what lies beside it can be imported."""
  if not path.exists():
    raise FileNotFoundError(f"--{flag}: there is no file {path}; check the path.")
  name = path.stem
  if getattr(sys.modules.get(name), "__file__", None) == str(path.resolve()):
    return sys.modules[name]
  if name in sys.modules:
    raise ValueError(f"--{flag}={path} has the name of another module; name the file otherwise.")
  spec = importlib.util.spec_from_file_location(name, path.resolve())
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  sys.path.insert(0, str(path.resolve().parent))
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    del sys.modules[name]
    raise ValueError(f"--{flag}={path} failed: {_told(error)}.") from error
  return module


def _told(error: BaseException) -> str:
  """An error of a user's code in one line, with the line that raised it."""
  trace = error.__traceback__
  while trace.tb_next is not None:
    trace = trace.tb_next
  return (f"{type(error).__name__}: {first_line(error).rstrip('.')} "
          f"(line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})")
