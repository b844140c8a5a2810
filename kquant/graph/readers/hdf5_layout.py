"""The bytes of HDF5 files for which the library would not end, found before it opens them."""

import contextlib
import io
import mmap
import pathlib
import re

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_WIDTHS = b"\x08\x08"
"""Bytes of an offset and of a length; Keras writes no others."""
_HEAP = re.compile(rb"GCOL\x01")
_HEADER = 16
"""Bytes of the header of a heap, and of that of an object in it."""


def check_layout(source: pathlib.Path | io.BytesIO) -> None:
  """Raises OSError for a file in which the library would read a heap of texts for ever."""
  with contextlib.ExitStack() as stack:
    if isinstance(source, io.BytesIO):
      content = stack.enter_context(source.getbuffer())
    else:
      file = stack.enter_context(open(source, "rb"))
      if not file.seek(0, io.SEEK_END):
        return
      content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    _check_widths(content)
    _check_heaps(content)


def _check_widths(content: memoryview | mmap.mmap) -> None:
  """Asserts the widths of offsets and lengths in the superblock, which is at byte 0, 512, 1024, 2048, ..."""
  for place in (0, *(1 << power for power in range(9, len(content).bit_length()))):
    if content[place:place + 8] == _SIGNATURE:
      first = place + (9 if content[place + 8] > 1 else 13)  # by the version of the superblock
      widths = bytes(content[first:first + 2])
      if widths != _WIDTHS:
        raise OSError(f"expected offsets and lengths of 8 bytes, got {list(widths)}")
      return


def _check_heaps(content: memoryview | mmap.mmap) -> None:
  """Asserts that every object of a heap ends behind its own header, within the heap.

  A heap is "GCOL", version 1, 3 bytes and its size; then come objects. The longest way comes first: where a
  heap meets a way that was walked, what follows has been checked for an end that is no nearer.
  """
  ends = {found.start(): found.start() + _length(content, found.start()) for found in _HEAP.finditer(content)}
  seen: set[int] = set()
  for start in sorted(ends, key=ends.get, reverse=True):
    place, end = start + _HEADER, ends[start]
    while place + _HEADER <= end <= len(content) and place not in seen:
      seen.add(place)
      step = _step(content, place)
      if not _HEADER <= step <= end - place:
        raise OSError(f"the heap at byte {start} has an object of {step} bytes, expected {_HEADER} to "
                      f"{end - place}")
      place += step


def _step(content: memoryview | mmap.mmap, place: int) -> int:
  """The bytes from an object to the next, as the library counts them.

  An object is a number (0: the free space, whose size includes its header), 6 bytes, its size, and as much
  content, padded to 8 bytes.
  """
  size = _length(content, place)
  if content[place:place + 2] == b"\0\0":
    return size
  return _HEADER + (size + 7) % 2**64 // 8 * 8


def _length(content: memoryview | mmap.mmap, place: int) -> int:
  """The length in the second half of a header; a shorter one where the file ends."""
  return int.from_bytes(content[place + 8:place + _HEADER], "little")
