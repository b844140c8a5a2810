"""Kernels of a family: one set of codes, and for each width its bits and the multipliers of channels.

Sections of the bundle, little endian:

    CODE    u8 codes of 8 bits of all kernels, each in the layout of the file
    KERN    for each kernel: u32 place in CODE, u32 count, u32 channels, u32 inner;
            the channel of element i is (i / inner) % channels
    W001 .. W008   of a width: for each kernel u8 bits, u8 bytes of a difference (0, 1 or 2), u16 base; u32
            count of dead channels, u32 index of each of them among all channels; the differences of all
            channels of all kernels. Filled up to a multiple of 4.

A multiplier is stored as a word, the first half of a float32. It is the word of the same channel in the
section of the widest width, plus the base of the kernel, plus the difference of the channel, modulo 2^16; in
the widest section, base plus difference. Where a kernel has the multipliers of the widest width times a power
of two, its differences are all 0 and take no bytes.

The scale of a channel is the magnitude of its multiplier. A negative multiplier changes the sign of its
integers. All integers of a dead channel are 0, whatever its codes.
"""

import dataclasses
import operator
import struct

import numpy as np

from kquant.core import nested_codes
from tflite_export.program.program import IntTensor

_KERNEL, _RECORD = struct.Struct("<4I"), struct.Struct("<BBH")


@dataclasses.dataclass
class Kernel:
  """Where a kernel lies in CODE, and how its channels lie in it."""

  place: int
  count: int
  channels: int
  inner: int

  @classmethod
  def of(cls, tensor: IntTensor, place: int) -> "Kernel":
    """Returns that of a tensor of a program."""
    inner = int(np.prod(tensor.shape[tensor.axis + 1:])) if tensor.axis is not None else tensor.data.size
    return cls(place, tensor.data.size, tensor.scale.size, inner)

  def pack(self) -> bytes:
    """Returns its record in KERN."""
    return _KERNEL.pack(self.place, self.count, self.channels, self.inner)

  def along(self, values: np.ndarray) -> np.ndarray:
    """Returns one value for each element from one for each channel."""
    blocks = self.count // (self.channels * self.inner)
    return np.broadcast_to(values[:, None], (blocks, self.channels, self.inner)).reshape(-1)


def unpack_kernels(content: memoryview, codes: int) -> list[Kernel]:
  """Returns the kernels of KERN.

  Args:
    content: of the section.
    codes: length of CODE.

  Raises:
    ValueError: a record that does not fit.
  """
  if len(content) % _KERNEL.size:
    raise ValueError("is damaged: section KERN ends within a record")
  kernels = [Kernel(*fields) for fields in _KERNEL.iter_unpack(content)]
  for index, kernel in enumerate(kernels):
    block = kernel.channels * kernel.inner
    if not block or kernel.count % block or kernel.place + kernel.count > codes:
      raise ValueError(f"is damaged: kernel {index} does not fit into the {codes} codes")
  return kernels


@dataclasses.dataclass
class WidthPart:
  """What a width has of its own.

  Attributes:
    bits: of each kernel.
    scales: float32, of all channels of all kernels.
    signs: int8, of the same: -1, 0 for a dead channel, 1.
  """

  bits: np.ndarray
  scales: np.ndarray
  signs: np.ndarray

  def pack(self, kernels: list[Kernel], widest: "WidthPart | None" = None) -> bytes:
    """Returns its section.

    Args:
      kernels: those of KERN.
      widest: the part of the widest width; None: this is it.

    Raises:
      ValueError: a scale that is no bfloat16.
    """
    words = self._words() - (0 if widest is None else widest._words())
    records, lists = [], []
    for bits, own in zip(self.bits, np.split(words, _ends(kernels))):
      size, base, differences = _smallest(own)
      records.append(_RECORD.pack(bits, size, base))
      lists.append(differences.astype(f"<u{size}").tobytes() if size else b"")
    dead = np.flatnonzero(self.signs == 0)
    content = b"".join([*records, np.array([len(dead), *dead], "<u4").tobytes(), *lists])
    return content.ljust(_multiple(len(content)), b"\0")

  @classmethod
  def unpack(cls, content: memoryview, kernels: list[Kernel],
             widest: "WidthPart | None" = None) -> "WidthPart":
    """Returns what a section holds.

    Args:
      content: of the section.
      kernels, widest: as in `pack`.

    Raises:
      ValueError: another length, bits or channels that there are not, a multiplier that is not finite.
    """
    place, channels = _RECORD.size * len(kernels), sum(kernel.channels for kernel in kernels)
    words = np.frombuffer(content[place:], "<u4") if len(content) % 4 == 0 else []
    if not len(words) or words[0] >= len(words):
      raise ValueError("is damaged: the section of a width has another length than its kernels need")
    bits, sizes, bases = zip(*_RECORD.iter_unpack(content[:place]))
    dead = words[1:words[0] + 1]
    found = _words_of(content[place + 4 + 4 * len(dead):], kernels, sizes, bases)
    found = (found + (0 if widest is None else widest._words())) & 0xFFFF
    multipliers = (found.astype("<u4") << 16).view("<f4")
    if set(bits) - set(nested_codes.WIDTHS) or not np.isfinite(multipliers).all() or (dead >= channels).any():
      raise ValueError("is damaged: a width has bits, multipliers or channels that there are not")
    signs = np.where(found >> 15, -1, 1).astype(np.int8)
    signs[dead] = 0
    return cls(np.array(bits), np.abs(multipliers), signs)

  def of_kernel(self, index: int, kernels: list[Kernel]) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns (bits, scales, signs) of a kernel, the latter by channel."""
    first = sum(kernel.channels for kernel in kernels[:index])
    own = slice(first, first + kernels[index].channels)
    return int(self.bits[index]), self.scales[own], self.signs[own]

  def _words(self) -> np.ndarray:
    """Returns the words of the multipliers, int64, of all channels of all kernels; dead ones are positive."""
    words = np.where(self.signs < 0, -self.scales, self.scales).astype("<f4").view("<u4")
    if (words & 0xFFFF).any():
      raise ValueError("Scales of a family are bfloat16, got others; finalize with the target litert_family.")
    return (words >> 16).astype(np.int64)


def _ends(kernels: list[Kernel]) -> np.ndarray:
  """Returns where all kernels but the last end among all channels."""
  return np.cumsum([kernel.channels for kernel in kernels])[:-1]


def _smallest(words: np.ndarray) -> tuple[int, int, np.ndarray]:
  """Returns (bytes of a difference, base, differences) of a kernel's words."""
  base = int(words.min()) & 0xFFFF
  differences = (words - base) & 0xFFFF
  largest = int(differences.max())
  return (0 if largest == 0 else 1 if largest < 2**8 else 2), base, differences


def _words_of(content: memoryview, kernels: list[Kernel], sizes: tuple[int, ...],
              bases: tuple[int, ...]) -> np.ndarray:
  """Returns base plus difference of all channels, int64.

  Raises:
    ValueError: another number of bytes, or differences of more than 2 bytes.
  """
  counts = [kernel.channels for kernel in kernels]
  if set(sizes) - {0, 1, 2} or _multiple(sum(map(operator.mul, counts, sizes))) != len(content):
    raise ValueError("is damaged: the section of a width has another length than its kernels need")
  place, found = 0, []
  for count, size, base in zip(counts, sizes, bases):
    own = np.frombuffer(content[place:place + count * size], f"<u{size}") if size else np.zeros(count)
    found.append(own.astype(np.int64) + base)
    place += count * size
  return np.concatenate(found)


def common_codes(name: str, widths: list[tuple[int, np.ndarray, np.ndarray]], kernel: Kernel) -> np.ndarray:
  """Returns codes of 8 bits from which the integers of all widths are shifted.

  Args:
    name: of the kernel, for messages.
    widths: (bits, integers, sign of each channel), widest first.
    kernel: whose.

  Raises:
    ValueError: there are no such codes.
  """
  first = np.zeros(kernel.count, np.int16)
  last = first + 2**nested_codes.CODE_BITS - 1
  for bits, integers, signs in widths:
    signs = kernel.along(signs)
    known = nested_codes.codes_of(np.where(signs == 0, nested_codes.integers_of(nested_codes.CENTRE, bits),
                                           integers.reshape(-1) * signs), bits)
    low, high = nested_codes.codes_within(known, bits)
    first = np.where(signs == 0, first, np.maximum(first, low))
    last = np.where(signs == 0, last, np.minimum(last, high))
    if (first > last).any():
      raise ValueError(f"Kernel {name!r}: its codes of {bits} bits are not those of more bits shifted right.")
  return first.astype(np.uint8)


def _multiple(length: int) -> int:
  return -(-length // 4) * 4
