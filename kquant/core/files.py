"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def written_whole(*paths: str | os.PathLike) -> Iterator[list[pathlib.Path]]:
  """Yields a temporary path beside each path; they get their names together when the block ends well.

  Whatever else ends the block, an interrupt too, nothing of them is left and older files stay as they were.

  Args:
    paths: of the files to write, in folders that exist.

  Raises:
    FileNotFoundError: a folder does not exist.
  """
  targets = [pathlib.Path(path) for path in paths]
  for target in targets:
    if not target.absolute().parent.is_dir():
      raise FileNotFoundError(f"{target} cannot be written: make the folder {target.absolute().parent}.")
  temporary = [target.with_name(f".{os.getpid()}.tmp.{target.name}") for target in targets]
  try:
    yield temporary
    for source, target in zip(temporary, targets):
      os.replace(source, target)
  finally:
    for source in temporary:
      source.unlink(missing_ok=True)


@contextlib.contextmanager
def written_together(folder: str | os.PathLike) -> Iterator[Callable[[str | os.PathLike], pathlib.Path]]:
  """Yields a function from the path of a file to where the block writes it; files move when it ends well.

  What is written beside such a file, as the integers of encodings are, moves with it. Whatever else ends the
  block, nothing of them is left and older files stay as they were.

  Args:
    folder: an existing one, in which the files lie until they move.
  """
  targets: dict[pathlib.Path, pathlib.Path] = {}
  with tempfile.TemporaryDirectory(prefix=".kquant-", dir=folder) as stage:

    def staged(path: str | os.PathLike) -> pathlib.Path:
      own = pathlib.Path(stage) / str(len(targets))
      own.mkdir()
      targets[own] = pathlib.Path(path).absolute()
      return own / targets[own].name

    yield staged
    for own, target in targets.items():
      for file in own.iterdir():
        shutil.move(file, target.with_name(file.name))
