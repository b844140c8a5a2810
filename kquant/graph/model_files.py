"""Model files: .h5, .keras and SavedModel folders that hold a tf_keras model."""

import json
import os
import pathlib
import zipfile
from typing import Any

import h5py
import tf_keras as keras

from kquant.core.text import first_line
from kquant.graph import keras_calls
from kquant.graph.graph import NOTES, Graph
from kquant.graph.readers.keras3 import from_keras3


def load_model(path: str | os.PathLike, *, input_shape: tuple[int, ...] | None = None,
               compile: bool = False) -> keras.Model:
  """Loads the tf_keras model, quantized or not, in a .h5 or .keras file or a SavedModel folder.

  Keras' own load_model does it too wherever kquant is imported; this one says what is wrong with a file. What
  Keras 3 saved is loaded by Keras 3, in its safe mode, and becomes an equal tf_keras model (`from_keras3`).

  Args:
    path: of the file or folder.
    input_shape: without batch; fixes an input whose shape is open.
    compile: compiles it as it was, with the state of its optimizer, to train on.

  Returns:
    The model.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged or holds no model that Keras knows; or an input_shape that does not fit,
      or for a model of several inputs. Each message names the remedy.
    UnsupportedLayerError: a model of Keras 3 with a layer that tf_keras does not have.

  Example:
    >>> keras.Sequential([keras.layers.Dense(2, input_shape=(None, 3))]).save("model.keras")
    >>> kq.load_model("model.keras", input_shape=(5, 3)).output_shape
    (None, 5, 2)
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"There is no model {path}; check the path.")
  if _format_version(path).startswith("3."):
    model = from_keras3(_load_by_keras3(path))
    return model if input_shape is None else with_input_shape(model, input_shape)
  try:
    model = keras.models.load_model(path, compile=compile)
  except (ValueError, TypeError, OSError) as error:
    reason = f"Unknown layer {name!r}" if (name := _unknown_class(path)) else (
        first_line(error).rstrip("."))
    raise ValueError(f"{path} cannot be loaded: {reason}. A model with layers of your own is quantized "
                     "from Python, where they are registered: kquant.quantize(model, images).") from error
  _restore_names(model)
  return model if input_shape is None else with_input_shape(model, input_shape)


def _restore_names(model: keras.Model) -> None:
  """Gives a quantized model the output names that Keras' files do not hold."""
  for layer in model.layers:
    if type(layer).__module__.startswith("kquant") and (notes := layer.get_config().get(NOTES)):
      keras_calls.name_outputs(model, notes.get("output_names", []))


def with_input_shape(model: keras.Model, shape: tuple[int, ...]) -> keras.Model:
  """Returns the model rebuilt for a fixed input shape, without batch.

  Raises:
    ValueError: several inputs, or the shape does not fit the model's.
  """
  graph = Graph.from_model(model)
  if len(graph.input_refs) != 1:
    raise ValueError(f"Model {model.name!r} has {len(graph.input_refs)} inputs; an input shape can be "
                     "given for one.")
  (ref,) = graph.input_refs
  own = ref.shape[1:]
  if len(own) != len(shape) or any(n not in (None, m) for n, m in zip(own, shape)):
    raise ValueError(f"Input shape {shape} does not fit the model's, {own}.")
  ref.node.layer.config = {**ref.node.config, "batch_input_shape": (ref.shape[0], *shape)}
  return graph.to_model()


def _unknown_class(path: pathlib.Path) -> str | None:
  """Returns a class in a .keras file that Keras does not know: its own error does not name it."""
  if not zipfile.is_zipfile(path):
    return None
  with zipfile.ZipFile(path) as archive:
    stack = [json.loads(archive.read("config.json"))]
  while stack:
    config = stack.pop()
    if isinstance(config, dict):
      stack.extend(config.values())
      name, package = config.get("registered_name"), str(config.get("module")).split(".")[0]
      if name and package not in ("keras", "tf_keras") and not keras.utils.get_registered_object(name):
        return config["class_name"]
    elif isinstance(config, list):
      stack.extend(config)
  return None


def _load_by_keras3(path: pathlib.Path) -> Any:
  """The Keras 3 model of a file; what is in the file is not run."""
  import keras as keras3  # only for such a file
  try:
    return keras3.models.load_model(path, compile=False, safe_mode=True)
  except (ValueError, TypeError, OSError, NotImplementedError, KeyError) as error:
    raise ValueError(f"{path} cannot be loaded by Keras {keras3.__version__}: {first_line(error).rstrip('.')}"
                     ". A model with layers of your own is quantized from Python, where they are registered: "
                     "kquant.quantize(model, images).") from error


def _format_version(path: pathlib.Path) -> str:
  """Returns the version of Keras that saved a model file, "" where the file does not say.

  Raises:
    ValueError: what load_model would fail on without a helpful word.
  """
  if path.is_dir():
    if not (path / "saved_model.pb").exists():
      raise ValueError(f"{path} is a folder without a saved_model.pb; expected a SavedModel.")
    if not (path / "keras_metadata.pb").exists():
      raise ValueError(f"{path} is a SavedModel without a Keras model in it (no keras_metadata.pb); save "
                       "it with tf_keras: model.save(path, save_format='tf').")
    return ""
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
      if damaged := archive.testzip():
        raise ValueError(f"{path} is damaged (checksum of {damaged}); save or copy it again.")
      if "metadata.json" not in names or "config.json" not in names:
        raise ValueError(f"{path} is a zip file but no .keras model; expected .h5, .keras or a SavedModel.")
      version = json.loads(archive.read("metadata.json")).get("keras_version", "")
  elif h5py.is_hdf5(path):
    try:
      with h5py.File(path, "r") as file:
        attributes = dict(file.attrs)
    except OSError as error:
      raise ValueError(f"{path} is damaged ({error}); save or copy it again.") from error
    if "model_config" not in attributes:
      raise ValueError(f"{path} holds weights but no model; save the whole model: model.save(path).")
    version = attributes.get("keras_version", "")
    version = version.decode() if isinstance(version, bytes) else str(version)
  else:
    raise ValueError(f"{path} is no model file; expected .h5, .keras or a SavedModel folder.")
  return version
