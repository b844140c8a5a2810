"""Kernels of a family: one set of codes, and for each width its bits and the multipliers of channels.

Sections of the bundle, little endian:

    CODE    u8 codes of 8 bits of all kernels, each in the layout of the file
    KERN    for each kernel: u32 place in CODE, u32 count, u32 channels, u32 inner;
            the channel of element i is (i / inner) % channels
    W001 .. W008   of a width: for each kernel u8 bits; u16 multipliers of all channels of all kernels, the
            first half of a float32; u32 count of dead channels, u32 index of each of them among all
            channels; u32 bytes of a bias, 3 or 4; the biases. Each part is filled up to a multiple of 4.

The scale of a channel is the magnitude of its multiplier. A negative multiplier changes the sign of its
integers. All integers of a dead channel are 0, whatever its codes.
"""

import dataclasses
import struct

import numpy as np

from kquant.core import nested_codes
from tflite_export.program.program import IntTensor

_KERNEL = struct.Struct("<4I")


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
    biases: int32, of all tensors.
  """

  bits: np.ndarray
  scales: np.ndarray
  signs: np.ndarray
  biases: np.ndarray

  def pack(self) -> bytes:
    """Returns its section."""
    bits = self.bits.astype(np.uint8).tobytes()
    words = np.where(self.signs < 0, -self.scales, self.scales).astype("<f4").view("<u4")
    if (words & 0xFFFF).any():
      raise ValueError("Scales of a family are bfloat16, got others; finalize with the target litert_family.")
    dead, size = np.flatnonzero(self.signs == 0), 3 if (np.abs(self.biases) < 2**23).all() else 4
    biases = self.biases.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :size]
    return b"".join([_filled(bits), _filled((words >> 16).astype("<u2").tobytes()),
                     np.array([len(dead), *dead, size], "<u4").tobytes(), _filled(biases.tobytes())])

  @classmethod
  def unpack(cls, content: memoryview, kernels: list[Kernel]) -> "WidthPart":
    """Returns what a section holds.

    Raises:
      ValueError: another length, bits or channels that there are not, a multiplier that is not finite.
    """
    channels = sum(kernel.channels for kernel in kernels)
    start, lists = _multiple(len(kernels)), _multiple(len(kernels)) + _multiple(2 * channels)
    words = np.frombuffer(content[lists:], "<u4") if len(content) % 4 == 0 <= len(content) - lists - 8 else []
    if len(words) < 2 or words[0] > len(words) - 2 or words[words[0] + 1] not in (3, 4):
      raise ValueError("is damaged: the section of a width has another length than its kernels need")
    bits = np.frombuffer(content[:len(kernels)], np.uint8)
    dead, size = words[1:words[0] + 1], words[words[0] + 1]
    halves = np.frombuffer(content[start:start + 2 * channels], "<u2")
    multipliers = (halves.astype("<u4") << 16).view("<f4")
    if set(bits.tolist()) - set(nested_codes.WIDTHS) or not np.isfinite(multipliers).all() or (
        dead >= channels).any():
      raise ValueError("is damaged: a width has bits, multipliers or channels that there are not")
    signs = np.where(halves >> 15, -1, 1).astype(np.int8)
    signs[dead] = 0
    return cls(bits, np.abs(multipliers), signs, _biases(words[words[0] + 2:].tobytes(), int(size)))

  def of_kernel(self, index: int, kernels: list[Kernel]) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns (bits, scales, signs) of a kernel, the latter by channel."""
    first = sum(kernel.channels for kernel in kernels[:index])
    own = slice(first, first + kernels[index].channels)
    return int(self.bits[index]), self.scales[own], self.signs[own]


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


def _biases(content: bytes, size: int) -> np.ndarray:
  """Returns int32 from bytes of `size` a number; filling at the end may make one number more."""
  numbers = np.frombuffer(content[:len(content) // size * size], np.uint8).reshape(-1, size)
  wide = np.zeros((len(numbers), 4), np.uint8)
  wide[:, 4 - size:] = numbers
  return wide.view("<i4")[:, 0] >> 8 * (4 - size)


def _multiple(length: int) -> int:
  return -(-length // 4) * 4


def _filled(content: bytes) -> bytes:
  return content.ljust(_multiple(len(content)), b"\0")
