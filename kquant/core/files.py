"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator


def same_file(first: str | os.PathLike, second: str | os.PathLike) -> bool:
  """Whether two paths name the same file or folder, which is there."""
  return os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second)


@contextlib.contextmanager
def written_together() -> Iterator[Callable[[str | os.PathLike], pathlib.Path]]:
  """Yields a function from the path of a file to where the block writes it; files move when it ends well.

  What is written beside such a file, as the integers of encodings are, moves with it. Whatever else ends the
  block, an interrupt too, nothing of them is left and older files stay as they were. The function raises
  FileNotFoundError where the folder does not exist.
  """
  moves: list[tuple[pathlib.Path, pathlib.Path]] = []
  with contextlib.ExitStack() as stages:

    def staged(path: str | os.PathLike) -> pathlib.Path:
      target = pathlib.Path(path).absolute()
      if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: make the folder {target.parent}.")
      stage = stages.enter_context(tempfile.TemporaryDirectory(prefix=".kquant-", dir=target.parent))
      moves.append((pathlib.Path(stage), target))
      return pathlib.Path(stage) / target.name

    yield staged
    for stage, target in moves:
      for file in stage.iterdir():
        os.replace(file, target.with_name(file.name))


@contextlib.contextmanager
def written_whole(*paths: str | os.PathLike) -> Iterator[list[pathlib.Path]]:
  """Yields where the block writes each file, as `written_together` does.

  Args:
    paths: of the files, in folders that exist.

  Raises:
    FileNotFoundError: a folder does not exist.
  """
  with written_together() as staged:
    yield [staged(path) for path in paths]
