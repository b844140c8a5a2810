"""Arrays of .npy and .npz files; no code in a file is run."""

import contextlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from kquant.core.text import first_line

_ZIP, _NPY = b"PK", b"\x93NUMPY"
"""The first bytes of a .npz and of a .npy file."""


def read_arrays(path: str | os.PathLike, choose: Callable[[Sequence[str]], Iterable[str]] = list,
                ) -> dict[str, np.ndarray] | np.ndarray:
  """Returns {name: array} of a .npz file, or the array of a .npy file, of which no more is read than is used.

  Args:
    path: of the file.
    choose: returns those of its names to read; by default all of them.

  Raises:
    OSError: there is no such file, or it may not be read.
    ValueError: it is no such file, is damaged, or holds Python objects; what to do is left to the caller.
  """
  path = pathlib.Path(path)
  with open(path, "rb") as file:
    start = file.read(len(_NPY))
    file.seek(0)
    if start == _NPY:
      with _told(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if not start.startswith(_ZIP):  # numpy would take it for a pickle, and say so
      raise ValueError(f"{path} is no .npz or .npy file")
    with _told(path):
      stored = np.load(file, allow_pickle=False)
    names = choose(stored.files)
    with _told(path):
      return {name: stored[name] for name in names}


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
  """Says in our own words what numpy cannot read."""
  try:
    yield
  except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
    reason = "holds Python objects" if "allow_pickle" in str(error) else f"is damaged ({first_line(error)})"
    raise ValueError(f"{path} {reason}") from error
