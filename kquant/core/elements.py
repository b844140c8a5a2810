"""Every form of data read as elements: one array, dict or tuple that holds one example or a batch."""

import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from kquant.core.array_files import read_arrays
from kquant.core.input_spec import InputSpec

_ACCEPTED = ("an array, a list of arrays or a dict by input name, a tf.data.Dataset, a Sequence, "
             "a generator, a callable that returns one, or the path of an .npz or .npy file")


def elements(data, inputs: Sequence[InputSpec], where: str) -> Iterable:
  """Returns an iterable of elements: arrays, dicts or tuples that hold one example or a batch."""
  if isinstance(data, (str, os.PathLike)):
    return [_read_file(pathlib.Path(data), inputs, where)]
  if isinstance(data, (Mapping, tuple)) or hasattr(data, "__array__"):
    return [data]
  if isinstance(data, list) and _is_one_element(data, inputs):
    return [data]
  if isinstance(data, tf.data.Dataset):
    return data.as_numpy_iterator()
  if hasattr(data, "__len__") and hasattr(data, "__getitem__"):  # also a Keras Sequence
    return (data[i] for i in range(len(data)))
  if isinstance(data, Iterable):
    return data
  if callable(data):
    return elements(data(), inputs, where)
  raise TypeError(f"{where} data: expected {_ACCEPTED}, got {describe(data)}; pass one of those.")


def _is_one_element(data: list, inputs: Sequence[InputSpec]) -> bool:
  """Says whether a list holds the inputs of a model (true) or a sequence of examples."""
  if len(inputs) == 1:
    return False
  return not data or not isinstance(data[0], (Mapping, tuple))


def _read_file(path: pathlib.Path, inputs: Sequence[InputSpec], where: str):
  """Returns the array of an .npy file, or {input name: array} of an .npz file."""
  if path.is_dir():
    raise ValueError(f"{where} data: expected an .npz or .npy file, got the folder {path}; "
                     "the commands read folders, as kquant.cli.ptq --calibration; in Python give an array.")
  if not path.exists():
    raise FileNotFoundError(f"{where} data: there is no file {path}; check the path.")
  if path.suffix not in (".npz", ".npy"):
    raise ValueError(f"{where} data: expected an .npz or .npy file, got {path}; "
                     "write one with numpy.savez.")
  try:
    arrays = read_arrays(path, lambda stored: _stored_names(path, stored, inputs))
  except ValueError as error:
    raise ValueError(f"{where} data: {error}; write the file with numpy.savez, one array of numbers an "
                     "input.") from error
  return arrays["x"] if isinstance(arrays, dict) and list(arrays) == ["x"] and len(inputs) == 1 else arrays


def _stored_names(path: pathlib.Path, stored: Sequence[str], inputs: Sequence[InputSpec]) -> list[str]:
  """Returns the names of the arrays of a .npz file to read; that of the only input may be x there."""
  names = _names_in(stored, inputs)
  if len(names) == 1 and names[0] not in stored and "x" in stored:
    return ["x"]
  if not all(name in stored for name in names):
    raise ValueError(f"{path}: expected the arrays {names}{' or x' if len(names) == 1 else ''}, got "
                     f"{list(stored)}")
  return names


def _names_in(arrays: Collection[str], inputs: Sequence[InputSpec]) -> list[str]:
  """The names of the inputs, or the keys of the dict that the model takes, whichever arrays bear."""
  keys = [spec.key or spec.name for spec in inputs]
  return keys if all(key in arrays for key in keys) else [spec.name for spec in inputs]


def split(element, inputs: Sequence[InputSpec], where: str) -> list:
  """Returns the element's values, one an input; labels and sample weights are dropped."""
  names = [spec.name for spec in inputs]
  if isinstance(element, Mapping):
    names = _names_in(element, inputs)
    missing = [name for name in names if name not in element]
    unknown = [key for key in element if key not in names]
    if missing or unknown:
      raise ValueError(f"{where} data: expected a dict with the keys {names}, got {list(element)}; "
                       "use the names of the model's inputs.")
    return [element[name] for name in names]
  if isinstance(element, tuple) and len(element) in (2, 3) and _holds_inputs(element[0], inputs):
    return split(element[0], inputs, where)
  if len(inputs) == 1:
    if isinstance(element, tuple) and len(element) == 1:
      return list(element)
    if isinstance(element, list) and len(element) == 1 and not _is_sample(element, inputs[0]):
      return element
    if not isinstance(element, tuple):
      return [element]
  elif isinstance(element, (tuple, list)) and len(element) == len(inputs):
    return list(element)
  raise ValueError(f"{where} data: expected {len(inputs)} arrays, for the inputs {names}, got "
                   f"{describe(element)}; give one array an input, or a dict by input name.")


def _holds_inputs(first, inputs: Sequence[InputSpec]) -> bool:
  """Says whether `first`, of a tuple of 2 or 3, is all of x, so that labels follow it."""
  if len(inputs) == 1 or isinstance(first, Mapping):
    return True
  return isinstance(first, (tuple, list)) and len(first) == len(inputs)


def _is_sample(value: list, spec: InputSpec) -> bool:
  """Says whether a list of one, such as [5.0], is an example rather than a list of inputs."""
  return np.ndim(value[0]) < len(spec.shape)


def describe(value) -> str:
  """Returns the kind of a value, and its shape or length if it has one, for an error."""
  kind = type(value).__name__
  if hasattr(value, "shape"):
    return f"{kind} of shape {tuple(value.shape)}"
  return f"{kind} of length {len(value)}" if hasattr(value, "__len__") else kind
