"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


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
