"""The container of a bundle: named sections with checksums. All numbers are little endian.

    0   "KQFB", u16 version, u16 number of sections
    8   for each section: tag (4 bytes), u32 crc32, u64 offset, u64 length
    ..  u32 crc32 of all bytes before
    ..  the sections, each at a multiple of 8 bytes
"""

import lzma
import struct
import zlib

MAGIC = b"KQFB"
VERSION = 2
ALIGNMENT = 8
MOST_SECTIONS = 32
MOST_UNPACKED = 2**26
"""Bytes that a compressed section may have when it is unpacked."""
_MOST_MEMORY = 2**27
_HEADER, _ENTRY, _CHECKSUM = struct.Struct("<4sHH"), struct.Struct("<4sIQQ"), struct.Struct("<I")


def pack(sections: dict[str, bytes]) -> bytes:
  """Returns the file of some sections.

  Args:
    sections: {tag of four letters: content}.
  """
  place = _aligned(_HEADER.size + len(sections) * _ENTRY.size + _CHECKSUM.size)
  entries, parts = b"", []
  for tag, content in sections.items():
    entries += _ENTRY.pack(tag.encode(), zlib.crc32(content), place, len(content))
    parts.append(content.ljust(_aligned(len(content)), b"\0"))
    place += len(parts[-1])
  head = _HEADER.pack(MAGIC, VERSION, len(sections)) + entries
  head += _CHECKSUM.pack(zlib.crc32(head))
  return b"".join([head.ljust(_aligned(len(head)), b"\0"), *parts])


def unpack(data: bytes) -> dict[str, memoryview]:
  """Returns {tag: content} of a file.

  Args:
    data: the whole file.

  Raises:
    ValueError: another file, another version, a section that lies outside or whose checksum is another.
  """
  if len(data) < _HEADER.size or data[:4] != MAGIC:
    raise ValueError(f"expected a kquant bundle, which begins with {MAGIC!r}, got {bytes(data[:4])!r}")
  _, version, count = _HEADER.unpack_from(data)
  if version != VERSION:
    raise ValueError(f"expected a bundle of version {VERSION}, got {version}")
  end = _HEADER.size + count * _ENTRY.size
  if count > MOST_SECTIONS or len(data) < end + _CHECKSUM.size:
    raise ValueError(f"is cut off: {len(data)} bytes do not hold the table of {count} sections")
  if _CHECKSUM.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
    raise ValueError("is damaged: the checksum of its table is another")
  sections = {}
  for tag, checksum, place, length in _ENTRY.iter_unpack(data[_HEADER.size:end]):
    name = tag.decode("ascii", "replace")
    if place + length > len(data):
      raise ValueError(f"is cut off: section {name} ends at byte {place + length} of {len(data)}")
    content = memoryview(data)[place:place + length]
    if zlib.crc32(content) != checksum:
      raise ValueError(f"is damaged: the checksum of section {name} is another")
    sections[name] = content
  return sections


def compress(content: bytes) -> bytes:
  """Returns bytes that `expand` reads.

  Args:
    content: what is compressed.
  """
  return lzma.compress(content, preset=6)


def expand(content: memoryview) -> bytes:
  """Returns what `compress` was given.

  Args:
    content: of a file that is not trusted: memory is bounded.

  Raises:
    ValueError: damaged, or more than MOST_UNPACKED bytes.
  """
  expander = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MOST_MEMORY)
  try:
    result = expander.decompress(content, max_length=MOST_UNPACKED)
  except lzma.LZMAError as error:
    raise ValueError(f"is damaged: a section cannot be expanded ({error})") from error
  if not expander.eof:
    raise ValueError(f"is damaged: a section is cut off, or expands to more than {MOST_UNPACKED} bytes")
  return result


def _aligned(length: int) -> int:
  return -(-length // ALIGNMENT) * ALIGNMENT
