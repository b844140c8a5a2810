"""export_family(): the verified files of several widths, and the bundle that holds them all."""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from kquant.core.files import written_together
from tflite_export.exporter import Exported, export
from tflite_export.family.bundle import Bundle, Member, pack_members
from tflite_export.file.reader import from_bytes
from tflite_export.proof.errors import VerificationError

BUNDLE_NAME = "family.kqf"


@dataclasses.dataclass
class ExportedFamily:
  """What was written.

  Attributes:
    bundle: path of the bundle.
    bytes: its size.
    files: {bits: the file of a width}.
  """

  bundle: pathlib.Path
  bytes: int
  files: dict[int, Exported]

  def __str__(self) -> str:
    """The bundle and its files, a line each."""
    lines = [f"{self.bundle}: {self.bytes:,} bytes, {len(self.files)} widths"]
    return "\n".join([*lines, *(f"{file.path}: {file.bytes:,} bytes" for file in self.files.values())])


def export_family(result: Any, folder: str | os.PathLike, *, widths: Sequence[int] | None = None,
                  verify: Any = None, io: str = "int8", batch: int | str | None = 1,
                  preprocess: str = "none") -> ExportedFamily:
  """Writes a .tflite file for each width and a bundle from which each of them can be made again.

  Every file is verified, and with `verify` certified. Codes of kernels of every file are those of 8 bits
  shifted right, bit by bit (rounded at 4 bits), as certificates say, too; the bundle is read again and must
  give the same files.

  Args:
    result: a `kquant.AnyPrecisionModel`, or what `kquant.quantize` returned with config "any8".
    folder: gets w8.tflite, w4.tflite, ... and family.kqf; it is made where it does not exist. Files of other
      widths that an older family.kqf in it was made with are removed; nothing else is.
    widths: 1 to 8; None: all that there are.
    verify, io, batch, preprocess: as `export` takes them.

  Returns:
    What was written.

  Raises:
    VerificationError: a file or the bundle does not hold what was chosen.
    ValueError: a width that there is not, mode "paper", a file in the place of the folder, or what `export`
      refuses.
    TypeError: another kind of result.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(n, input_shape=(3,)) for n in (4, 4, 2)])
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> anymodel = kq.AnyPrecisionModel(model, widths=(2, 8)).calibrate(images)
    >>> written = kq.export_family(anymodel, "family", verify=images[:2])
    >>> sorted(written.files), written.files[2].certificate["exact"]
    ([2, 8], True)
  """
  if not hasattr(result, "family"):
    raise TypeError("export_family: expected a kquant.AnyPrecisionModel, or what kquant.quantize returned "
                    f"with config='any8'; got {type(result).__name__}.")
  folder, files, members = pathlib.Path(folder), {}, {}
  family = result.family(widths)
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"export_family: expected a folder, got {folder}, which is a file; name another one.")
  folder.mkdir(parents=True, exist_ok=True)
  stale = _left_over(folder, family)
  with written_together() as staged:
    for bits, member in family.items():
      file = export(member, staged(folder / f"w{bits}.tflite"), verify=verify, io=io, batch=batch,
                    certify=verify is not None, preprocess=preprocess)
      members[bits] = Member(file.program, file.path.read_bytes(), member.kernel_bits, member.signs)
      files[bits] = dataclasses.replace(file, path=folder / file.path.name)
    bundle = staged(folder / BUNDLE_NAME)
    bundle.write_bytes(pack_members(members))
    _check_bundle(bundle, members, files)
    size = bundle.stat().st_size
  for path in stale:
    path.unlink()
  return ExportedFamily(folder / BUNDLE_NAME, size, files)


def _left_over(folder: pathlib.Path, widths: Collection[int]) -> list[pathlib.Path]:
  """Returns the files of other widths that the older bundle of the folder was made with, byte by byte."""
  try:
    older = Bundle(folder / BUNDLE_NAME)
  except (ValueError, OSError):  # none, or one that says nothing
    return []
  others = {bits: folder / f"w{bits}.tflite" for bits in older.widths if bits not in widths}
  return [path for bits, path in others.items()
          if path.is_file() and older.is_its_file(bits, path.read_bytes())]


def _check_bundle(path: pathlib.Path, members: dict[int, Member], files: dict[int, Exported]) -> None:
  """Raises VerificationError unless the bundle gives the files; certificates say of which codes they are."""
  bundle = Bundle(path)
  for bits, member in members.items():
    codes = bundle.compared_codes(bits, from_bytes(member.contents))
    if bundle.tflite(bits) != member.contents or codes["differing"]:
      raise VerificationError(f"{path}: not written, its file of {bits} bits is another than that which was "
                              "verified.")
    if files[bits].certificate is not None:
      files[bits].certificate["codes"] = codes
