"""Zip archives of the .keras format, of every version and system that wrote them."""

import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import tf_keras as keras

from kquant.graph.readers import hdf5
from kquant.graph.readers.stored import (
    LARGEST_CONFIG,
    StoredModel,
    check_expansion,
    read_json,
    read_json_file,
)

_MOST_MEMBERS = 10_000
_WEIGHTS = "model.weights.h5"


def read_archive(path: pathlib.Path) -> StoredModel:
  """Returns what a .keras archive holds; only its three files are read, into memory.

  Raises:
    ValueError: no such archive, damaged, or larger than what it holds needs.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      members = _members(archive)
      if not {"metadata.json", "config.json"} <= set(members):
        raise ValueError("it is a zip file but no .keras model; expected .h5, .keras, .tflite or a "
                         "SavedModel")
      config, metadata = (read_json(_content(archive, members[name], LARGEST_CONFIG), name)
                          for name in ("config.json", "metadata.json"))
      if _WEIGHTS not in members:
        raise ValueError(f"it has no {_WEIGHTS}; save the model again with TensorFlow 2.13 or later")
      weights = _content(archive, members[_WEIGHTS])
  except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError) as error:
    raise ValueError(f"it is damaged ({error}); save or copy it again") from error
  return _stored(config, metadata, lambda: io.BytesIO(weights))


def read_unzipped(path: pathlib.Path) -> StoredModel:
  """Returns what a folder with the parts of a .keras archive holds.

  Raises:
    ValueError: as `read_archive`.
  """
  config, metadata = (read_json_file(path / name) for name in ("config.json", "metadata.json"))
  if not (path / _WEIGHTS).exists():
    raise ValueError(f"it has no {_WEIGHTS}; copy the whole folder")
  return _stored(config, metadata, lambda: path / _WEIGHTS)


def _stored(config: Any, metadata: Any, weights: Callable[[], pathlib.Path | io.BytesIO]) -> StoredModel:
  """The parts of an archive, its HDF5 file checked."""
  if not isinstance(config, dict) or not isinstance(metadata, dict):
    raise ValueError("its config.json or metadata.json is no JSON object")
  with hdf5.opened(weights()) as file:
    elements = hdf5.check(file)

  def load_weights(model: keras.Model) -> None:
    with hdf5.opened(weights()) as stored:
      hdf5.load_weights(model, stored)

  return StoredModel(config, str(metadata.get("keras_version", "")), elements, load_weights)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
  """The files of an archive by name, with / between the parts."""
  infos = archive.infolist()
  if len(infos) > _MOST_MEMBERS:
    raise ValueError(f"it holds {len(infos):,} files, more than any model")
  members = {}
  for info in infos:
    name = info.filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or ":" in name:
      raise ValueError(f"its file {name[:60]!r} would be written outside of the archive's folder")
    members[name.removeprefix("./")] = info
  return members


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int | None = None) -> bytes:
  """The bytes of a file of an archive, checksum compared, at most `most` and what its size allows."""
  if most is not None and info.file_size > most:
    raise ValueError(f"its {info.filename} has {info.file_size:,} bytes, more than the {most:,} of any model")
  check_expansion(f"its {info.filename}", info.compress_size, info.file_size)
  with archive.open(info) as file:
    return file.read()
