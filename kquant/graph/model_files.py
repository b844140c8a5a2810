"""Model files: .h5, .keras, SavedModels, configs with weights and float .tflite files, as tf_keras models.

A file is read as data first (`readers`): its config is checked before a layer of it is made, so that loading
runs no code of the file. docs/security.md says what that means and how it is tested.
"""

import dataclasses
import os
import pathlib
import platform
import re
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import tf_keras as keras
from tf_keras.src.saving import serialization_lib
from tf_keras.src.saving.legacy.saved_model.utils import keras_option_scope
from tf_keras.src.saving.legacy.serialization import SharedObjectLoadingScope

from kquant.core.errors import UnsupportedLayerError
from kquant.core.text import first_line
from kquant.graph import keras_calls
from kquant.graph.graph import NOTES, Graph
from kquant.graph.model_forms import as_tf_keras
from kquant.graph.nodes import Ref
from kquant.graph.readers import configs
from kquant.graph.readers.archives import read_archive, read_unzipped
from kquant.graph.readers.hdf5 import read_hdf5
from kquant.graph.readers.keras1 import modern
from kquant.graph.readers.keras3 import from_keras3, is_keras3
from kquant.graph.readers.lambdas import with_names
from kquant.graph.readers.saved_models import holds_layers, read_saved_model
from kquant.graph.readers.stored import StoredModel, bounded_variables, read_json_file
from kquant.graph.readers.tflite.converter import from_saved_model
from kquant.graph.readers.tflite.reader import from_tflite


def load_model(path: str | os.PathLike, *, weights: str | os.PathLike | None = None,
               input_shape: tuple[int, ...] | dict[str, tuple[int, ...]] | None = None,
               compile: bool = False, trusted: bool = False, signature: str | None = None) -> keras.Model:
  """Loads the tf_keras model, quantized or not, in a .h5 or .keras file or a SavedModel folder.

  Files of Keras 1 to 2.15 and of Keras 3 are read; what Keras 3 saved becomes an equal tf_keras model
  (`from_keras3`). So does a float .tflite file, and by way of one a SavedModel whose layers cannot be read
  (`from_tflite`). No code in a file is run. Losses, metrics and optimizers in it do not matter.

  Args:
    path: of the file or folder, or of a .json file with the model's config.
    weights: file with the weights of the model, for a path that holds none or others.
    input_shape: without batch; fixes an input whose shape is open; by name for several inputs.
    compile: compiles it as it was, with the state of its optimizer, to train on.
    trusted: runs the Python code of Lambda layers, and writes what it does as operations where it can.
    signature: of a SavedModel whose layers cannot be read; None: "serving_default", or the only one.

  Returns:
    The model.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, holds no model that Keras knows, or code; or an input_shape that does
      not fit, or a signature for a file of layers. Each message names the remedy.
    UnsupportedLayerError: a model of Keras 3 with a layer, or of another maker with an operator, that
      tf_keras does not have.

  Example:
    >>> keras.Sequential([keras.layers.Dense(2, input_shape=(None, 3))]).save("model.keras")
    >>> kq.load_model("model.keras", input_shape=(5, 3)).output_shape
    (None, 5, 2)
  """
  path = pathlib.Path(path)
  if weights is None and _is_foreign(path):
    return _from_another_maker(path, input_shape, signature)
  if signature is not None:
    raise ValueError(f"{path}: expected no signature, got {signature!r}: the layers of this model are read, "
                     "not a function; leave it out.")
  stored = _read(path)
  if weights is not None:
    weights = pathlib.Path(weights)
    stored = _with_weights(stored, weights)
  try:
    if stored.config is not None and stored.version.startswith("3."):
      model = from_keras3(_built_by_keras3(stored, path, weights, trusted=trusted))
    else:
      model = _build(stored, path if compile else None, trusted=trusted)
  except UnsupportedLayerError:
    raise
  except Exception as error:  # a damaged config makes Keras raise anything
    raise ValueError(f"{path} cannot be loaded: {_reason(error, stored)}.") from error
  return model if input_shape is None else with_input_shape(model, input_shape)


def load_weights(model: keras.Model, path: str | os.PathLike) -> None:
  """Gives a model that was built in Python the weights of a file, of weights alone or of a whole model.

  Args:
    model: whose layers are those of the model that was saved, in the same order.
    path: .h5, .weights.h5, .keras or a SavedModel folder.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: damaged, or the weights of another model.
  """
  path = pathlib.Path(path)
  stored = _read(path)
  try:
    _set_weights(model, path, stored)
  except Exception as error:  # Keras raises anything where groups or shapes do not fit
    raise ValueError(f"The weights of {path} do not fit model {model.name!r}: {_first(error)}.") from error


def _is_foreign(path: pathlib.Path) -> bool:
  """Whether a path is that of a .tflite file, or of a SavedModel that holds no graph of Keras layers."""
  try:
    return path.is_file() and path.suffix == ".tflite" or (
        (path / "saved_model.pb").exists() and not holds_layers(path))
  except ValueError as error:
    raise ValueError(f"{path} cannot be loaded: {_first(error)}.") from error


def _from_another_maker(path: pathlib.Path, input_shape: tuple[int, ...] | dict[str, tuple[int, ...]] | None,
                        signature: str | None) -> keras.Model:
  by_name = isinstance(input_shape, dict)
  shape = None if by_name else input_shape
  model = (from_tflite(path, input_shape=shape) if path.is_file() else
           from_saved_model(path, signature=signature, input_shape=shape))
  return with_input_shape(model, input_shape) if by_name else model


def _read(path: pathlib.Path) -> StoredModel:
  """What a file holds, by its kind; errors name the file."""
  if not path.exists():
    raise FileNotFoundError(f"There is no model {path}; check the path.")
  try:
    return _reader_of(path)(path)
  except Exception as error:  # what a damaged file makes the libraries of its format raise
    raise ValueError(f"{path} cannot be loaded: {_first(error)}.") from error


def _reader_of(path: pathlib.Path) -> Callable[[pathlib.Path], StoredModel]:
  """The function that reads a kind of file."""
  if path.is_dir():
    if (path / "config.json").exists() and (path / "metadata.json").exists():
      return read_unzipped
    if not (path / "saved_model.pb").exists():
      raise ValueError("it is a folder without a saved_model.pb; expected a SavedModel")
    return read_saved_model
  if path.suffix == ".json":
    return _read_config
  if zipfile.is_zipfile(path):
    return read_archive
  if h5py.is_hdf5(path):
    return read_hdf5
  raise ValueError("it is no model file; expected .h5, .keras, .tflite or a SavedModel folder")


def _read_config(path: pathlib.Path) -> StoredModel:
  """A config alone: what `model.to_json()` gives, or the config.json of a .keras file."""
  config = read_json_file(path)
  if not isinstance(config, dict) or "class_name" not in config:
    raise ValueError("it is no config of a model; expected what model.to_json() gives")
  version = str(config.get("keras_version", "")) or ("3." if configs.of_keras3(config) else "")
  return StoredModel(config, version)


def _with_weights(stored: StoredModel, path: pathlib.Path) -> StoredModel:
  """The model with the weights of another file."""
  other = _read(path)
  return dataclasses.replace(stored, elements=other.elements, load_weights=other.load_weights)


# --- building --------------------------------------------------------------------------------------


def _build(stored: StoredModel, compiled: pathlib.Path | None, *, trusted: bool) -> keras.Model:
  """The model of a file, after its config was checked.

  Args:
    compiled: the file, where Keras is to compile the model as well.
  """
  if stored.config is None:
    raise ValueError("it holds weights but no model; save the whole model (model.save(path)), or name the "
                     "function that builds it (--build=FILE.py:FUNCTION)")
  _check_weights(stored)
  if compiled and (compiled.is_dir() or compiled.suffix == ".json"):
    raise ValueError("compile=True is for .h5 and .keras files; load it without and compile it yourself")
  registered = keras.utils.get_registered_object
  config = stored.config if compiled else modern(configs.without_training(stored.config, registered))
  configs.check_config(config, registered, trusted=trusted)
  with serialization_lib.SafeModeScope(not trusted):
    with bounded_variables(stored.elements):
      model = _from_config(configs.with_an_end(with_names(config)))
    if compiled:
      model = keras.models.load_model(compiled)
    else:
      stored.load_weights(model)
  _restore_names(model)
  return as_tf_keras(model) if configs.holds_lambda(config) else model


def _from_config(config: dict[str, Any]) -> keras.Model:
  """The model of a config in the format of Keras 2.12 and later, which names modules, or an earlier one."""
  make = keras.saving.deserialize_keras_object if "module" in config else keras.models.model_from_config
  early = not configs.names_modules(config)
  with (serialization_lib.ObjectSharingScope(), SharedObjectLoadingScope(),
        keras_option_scope(save_traces=False, in_tf_saved_model_scope=early),
        keras_calls.deep_recursion(configs.count_calls(config))):
    model = make(config)
  if not isinstance(model, keras.Model):
    raise ValueError(f"its config is that of {type(model).__name__}, no model")
  return model


def _built_by_keras3(stored: StoredModel, path: pathlib.Path, weights: pathlib.Path | None, *,
                     trusted: bool) -> Any:
  """The Keras 3 model of a file, or of a config and a file of weights."""
  import keras as keras3  # only for such a file
  _check_weights(stored)
  configs.check_config(stored.config, keras3.saving.get_registered_object, trusted=trusted)
  with bounded_variables(stored.elements):
    if weights is None:
      return keras3.models.load_model(path, compile=False, safe_mode=not trusted)
    model = keras3.saving.deserialize_keras_object(stored.config, safe_mode=not trusted)
    model.load_weights(weights)
  return model


def _check_weights(stored: StoredModel) -> None:
  if stored.load_weights is None:
    raise ValueError("it holds no weights; name their file (--weights=FILE, load_model(path, weights=FILE))")


def _set_weights(model: Any, path: pathlib.Path, stored: StoredModel) -> None:
  """The weights of a file for a model of tf_keras or Keras 3."""
  if stored.load_weights is None:
    raise ValueError("it is a config without weights")
  if is_keras3(model):
    model.load_weights(path)
  else:
    stored.load_weights(model)


def _reason(error: Exception, stored: StoredModel) -> str:
  """What is said of an error of Keras."""
  if found := re.match(r"Unknown \w+: '?([\w>.]+)", str(error)):
    return configs.unknown(found[1])
  told = f"{type(error).__name__}: {_first(error)}"
  refused = isinstance(error, OSError) or "is a Lambda" in str(error)
  if configs.holds_lambda(stored.config) and not refused:
    return (f"the code of its Lambda cannot be used by Python {platform.python_version()} ({told}), perhaps "
            "since another Python wrote it; build the model with TensorFlow functions in its place")
  if not isinstance(error, ValueError):
    return f"its config or weights are damaged, or no version of Keras wrote them so ({told}); save it again"
  return _first(error)


def _first(error: Exception) -> str:
  """The first line of an error, without its full stop; of one in a call of a layer the cause as well."""
  line, lines = first_line(error), [line.strip() for line in str(error).splitlines() if line.strip()]
  if line.startswith("Exception encountered when calling") and lines[1:]:
    line = f"{line.rstrip('.')}: {lines[1]}"
  return line.rstrip(".")[:500]


def _restore_names(model: keras.Model) -> None:
  """Gives a quantized model the output names that Keras' files do not hold."""
  for layer in model.layers:
    if type(layer).__module__.startswith("kquant") and (notes := layer.get_config().get(NOTES)):
      keras_calls.name_outputs(model, notes.get("output_names", []))


def with_input_shape(model: keras.Model, shape: tuple[int, ...] | dict[str, tuple[int, ...]]) -> keras.Model:
  """Returns the model rebuilt for fixed input shapes, without batch.

  Args:
    model: whose inputs may have open sizes.
    shape: of its one input, or {name of an input: shape}; others keep theirs.

  Raises:
    ValueError: a shape for several inputs, of an unknown one, or that does not fit the model's.
  """
  graph = Graph.from_model(model)
  refs = {ref.node.layer.name: ref for ref in graph.input_refs}
  if not isinstance(shape, dict):
    if len(refs) != 1:
      raise ValueError(f"Model {model.name!r} has {len(refs)} inputs; give a shape for each of "
                       f"{', '.join(refs)} by name.")
    shape = {name: shape for name in refs}
  for name, sizes in shape.items():
    if name not in refs:
      raise ValueError(f"Input shape {sizes} is for {name!r}; the inputs of the model are {', '.join(refs)}.")
    _fix_shape(refs[name], sizes)
  return graph.to_model()


def _fix_shape(ref: Ref, sizes: tuple[int, ...]) -> None:
  own = ref.shape[1:]
  if len(own) != len(sizes) or any(n not in (None, m) for n, m in zip(own, sizes)):
    raise ValueError(f"Input shape {sizes} does not fit the model's, {own}.")
  ref.node.layer.config = {**ref.node.config, "batch_input_shape": (ref.shape[0], *sizes)}
