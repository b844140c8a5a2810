"""HDF5 files of Keras: whole models, and weights in the layouts of Keras 1, Keras 2 and the .keras format."""

import contextlib
import io
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import tf_keras as keras
from tf_keras.src.saving import saving_lib
from tf_keras.src.saving.legacy import hdf5_format

from kquant.graph.readers.hdf5_layout import check_layout
from kquant.graph.readers.stored import StoredModel, check_expansion, read_json

_OLD_CONTAINER = "_layer_checkpoint_dependencies"
"""What TensorFlow 2.12 and 2.13 call the group of a model's layers."""
_MOST_OBJECTS = 1_000_000
_THEANO_MIRRORED = ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose")


def read_hdf5(path: pathlib.Path) -> StoredModel:
  """Returns what an HDF5 file holds: a model, or weights alone.

  Raises:
    ValueError: damaged, or larger than what it holds needs.
  """
  with opened(path) as file:
    elements = check(file)
    version, text, training = (_text(file.attrs.get(name))
                               for name in ("keras_version", "model_config", "training_config"))
  config = None if text is None else read_json(text.encode(), "model_config")
  if isinstance(config, dict) and training is not None:
    config["training_config"] = read_json(training.encode(), "training_config")

  def load(model: keras.Model) -> None:
    with opened(path) as stored:
      load_weights(model, stored)

  return StoredModel(config, version or "", elements, load)


@contextlib.contextmanager
def opened(source: pathlib.Path | io.BytesIO) -> Iterator[h5py.File]:
  """Opens HDF5 to read; ValueError for what the library cannot read, here and in the block."""
  try:
    check_layout(source)
    with h5py.File(source, "r") as file:
      yield file
  except NotImplementedError:  # of Keras, about the weights of a layer
    raise
  except (OSError, RuntimeError, KeyError) as error:
    raise ValueError(f"it is damaged ({str(error).strip() or type(error).__name__}); save or copy it "
                     "again") from error


def check(file: h5py.File) -> int:
  """Returns how many elements the datasets hold in all.

  Raises:
    ValueError: data in other files, or far more of them than are stored.
  """
  elements = 0
  for name in _names(file):
    item = file[name]
    if isinstance(item, h5py.Dataset):
      if item.external or item.is_virtual:
        raise ValueError(f"its dataset {name!r} lies in another file; save the model whole")
      check_expansion(f"its dataset {name!r}", item.id.get_storage_size(), item.size * item.dtype.itemsize)
      elements += item.size
  return elements


def _names(file: h5py.File) -> list[str]:
  """The paths of all groups and datasets; ValueError for links that lead elsewhere."""
  links: dict[str, Any] = {}

  def note(name: str | bytes, link: Any) -> bool | None:
    links[name] = link
    return True if len(links) > _MOST_OBJECTS else None  # True ends the walk; an error would not

  if file.visititems_links(note):
    raise ValueError(f"it holds more than {_MOST_OBJECTS:,} groups, more than any model")
  for name, link in links.items():
    if not isinstance(name, str) or not isinstance(link, h5py.HardLink):
      raise ValueError(f"its group {name!r} is a link to elsewhere or has no name; save the model whole")
  return list(links)


def load_weights(model: keras.Model, file: h5py.File) -> None:
  """Gives a model the weights of an HDF5 file, whatever layout they have.

  Raises:
    ValueError: they do not fit.
  """
  group = file.get("model_weights", file)
  if any(name.startswith("layer_names") for name in group.attrs):
    hdf5_format.load_weights_from_hdf5_group(group, model)
    if _text(group.attrs.get("backend")) == "theano":
      _mirror_kernels(model)
  else:
    saving_lib._load_state(model, weights_store=_Store(group), assets_store=None, inner_path="",
                           visited_trackables=set())


def _mirror_kernels(model: keras.Model) -> None:
  """Mirrors the kernels of convolutions along their positions, as Theano applies them."""
  for layer in model.submodules:
    if type(layer).__name__ in _THEANO_MIRRORED:
      kernel = layer.kernel.numpy()
      layer.kernel.assign(kernel[(slice(None, None, -1),) * (kernel.ndim - 2)])


def _text(value: Any) -> str | None:
  if isinstance(value, bytes):
    return value.decode(errors="replace")
  return value if isinstance(value, str) else None


class _Store:
  """The groups of the .keras format's HDF5 file by the path under which Keras asks for them."""

  def __init__(self, file: h5py.Group):
    paths: list[str] = []
    file.visit(lambda name: paths.append(name) if isinstance(file[name], h5py.Group) else None)
    names = _todays_names({path.replace("\\", "/") for path in paths})
    self._groups = {names[path.replace("\\", "/")]: file[path] for path in paths}

  def get(self, path: str) -> Mapping[str, h5py.Dataset]:
    """Returns the variables of a layer by number."""
    return self._groups.get(f"{path}/vars" if path else "vars", {})


def _todays_names(paths: set[str]) -> dict[str, str]:
  """Returns {path of a group: the path that Keras gives it today}.

  Before TensorFlow 2.14 layers were counted twice where they have weights, so that the second Dense is
  dense_2; today it is dense_1.
  """
  parents = {"/".join(path.split("/")[:end]) for path in paths for end in range(path.count("/") + 2)}
  counted: dict[tuple[str, str], list[int]] = {}
  for path in sorted(parents):
    folder, _, name = path.rpartition("/")
    if folder.split("/")[-1] == _OLD_CONTAINER:
      kind, number = _numbered(name)
      counted.setdefault((folder, kind), []).append(number)
  for numbers in counted.values():
    numbers.sort()
  return {path: "/".join(_parts(path, counted)) for path in paths}


def _parts(path: str, counted: dict[tuple[str, str], list[int]]) -> Iterator[str]:
  """The parts of a path under today's names."""
  parts = path.split("/")
  for index, part in enumerate(parts):
    kind, number = _numbered(part)
    if numbers := counted.get(("/".join(parts[:index]), kind)):
      place = numbers.index(number)
      yield f"{kind}_{place}" if place else kind
    else:
      yield "layers" if part == _OLD_CONTAINER else part


def _numbered(name: str) -> tuple[str, int]:
  """("dense", 2) of dense_2, ("dense", 0) of dense."""
  kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()
  return kind, int(number or 0)
