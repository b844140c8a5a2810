"""The files that flags name: those to read are there, those to write can be written."""

import os
import pathlib
from collections.abc import Sequence

from absl import flags

FLAGS = flags.FLAGS


def check_inputs(names: Sequence[str]) -> None:
  """Raises FileNotFoundError for a flag that names a file or folder to read that is not there."""
  for name in names:
    if FLAGS[name].value is not None:
      check_exists(name, FLAGS[name].value)


def check_exists(name: str, path: str) -> None:
  """Raises FileNotFoundError for a path, of the flag `name`, where there is nothing."""
  if not os.path.exists(path):
    raise FileNotFoundError(f"--{name}={path}: there is no such file or folder; check the path.")


def check_outputs(*names: str, reads: Sequence[str] = ("model", "calibration", "eval")) -> None:
  """Raises now for a file that could not be written at the end, or that would replace another one.

  Args:
    names: of the flags that name files to write.
    reads: of the flags that name files to read.
  """
  taken = {os.path.realpath(file): name for name in reads if FLAGS[name].value for file in _files(name)}
  for name in names:
    path = FLAGS[name].value
    if path is None:
      continue
    _check_writable(name, pathlib.Path(path))
    for file in map(os.path.realpath, _files(name)):
      if file in taken:
        raise ValueError(f"--{name}={path} would replace {file}, which --{taken[file]} names; "
                         "choose another name.")
      taken[file] = name


def _files(name: str) -> list[str | pathlib.Path]:
  """The files that a flag names; encodings are two."""
  path = FLAGS[name].value
  return [path, pathlib.Path(path).with_suffix(".npz")] if name == "encodings" else [path]


def _check_writable(name: str, path: pathlib.Path) -> None:
  folder = path.absolute().parent
  if path.is_symlink() or (path.exists() and not path.is_file()):  # /dev/stdout would be replaced too
    raise ValueError(f"--{name}={path} is a folder, link or device; expected the name of a file to write.")
  if not folder.is_dir():
    raise ValueError(f"--{name}={path} cannot be written: there is no folder {folder}; make it first.")
  if not os.access(folder, os.W_OK):
    raise ValueError(f"--{name}={path} cannot be written: no permission in {folder}; choose another place.")
