"""Kernels of a family: one set of codes, and for each width its bits and the multipliers of channels.

Sections of the bundle, little endian:

    CODE    u8 codes of 8 bits of all kernels, each in the layout of the file
    KERN    for each kernel: u32 place in CODE, u32 count, u32 channels, u32 inner;
            the channel of element i is (i / inner) % channels
    W001 .. W008   of a width: for each kernel u8 bits, filled up to a multiple of 4; float32 multipliers of
            all channels of all kernels; u32 count of dead channels, u32 index of each of them among all
            channels; int32 biases

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
    multipliers, dead = np.where(self.signs < 0, -self.scales, self.scales), np.flatnonzero(self.signs == 0)
    return b"".join([bits.ljust(-(-len(bits) // 4) * 4, b"\0"), multipliers.astype("<f4").tobytes(),
                     np.array([len(dead), *dead], "<u4").tobytes(), self.biases.astype("<i4").tobytes()])

  @classmethod
  def unpack(cls, content: memoryview, kernels: list[Kernel]) -> "WidthPart":
    """Returns what a section holds.

    Raises:
      ValueError: another length, bits or channels that there are not, a multiplier that is not finite.
    """
    start, channels = -(-len(kernels) // 4) * 4, sum(kernel.channels for kernel in kernels)
    words = np.frombuffer(content[start:len(content) // 4 * 4], "<u4")
    if len(content) % 4 or len(words) <= channels or words[channels] > len(words) - channels - 1:
      raise ValueError("is damaged: the section of a width has another length than its kernels need")
    bits, multipliers = np.frombuffer(content[:len(kernels)], np.uint8), words[:channels].view("<f4")
    first = channels + 1 + int(words[channels])
    dead = words[channels + 1:first]
    if set(bits.tolist()) - set(nested_codes.WIDTHS) or not np.isfinite(multipliers).all() or (
        dead >= channels).any():
      raise ValueError("is damaged: a width has bits, multipliers or channels that there are not")
    signs = np.where(np.signbit(multipliers), -1, 1).astype(np.int8)
    signs[dead] = 0
    return cls(bits, np.abs(multipliers), signs, words[first:].view("<i4"))

  def of_kernel(self, index: int, kernels: list[Kernel]) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns (bits, scales, signs) of a kernel, the latter by channel."""
    first = sum(kernel.channels for kernel in kernels[:index])
    own = slice(first, first + kernels[index].channels)
    return int(self.bits[index]), self.scales[own], self.signs[own]


def common_codes(name: str, widths: list[tuple[int, np.ndarray, np.ndarray]], kernel: Kernel) -> np.ndarray:
  """Returns the codes of 8 bits whose truncations the integers of all widths are.

  Args:
    name: of the kernel, for messages.
    widths: (bits, integers, sign of each channel), widest first.
    kernel: whose.

  Raises:
    ValueError: the codes of a width are no truncation.
  """
  codes, known = np.zeros(kernel.count, np.uint8), np.zeros(kernel.count, bool)
  for bits, integers, signs in widths:
    alive = kernel.along(signs) != 0
    mine = nested_codes.codes_of(np.where(alive, integers.reshape(-1) * kernel.along(signs),
                                          nested_codes.integers_of(nested_codes.CENTRE, bits)), bits)
    fresh = alive & ~known
    codes[fresh] = mine[fresh] << (nested_codes.CODE_BITS - bits)
    known |= alive
    if not np.array_equal(nested_codes.narrower(codes, bits)[alive], mine[alive]):
      raise ValueError(f"Kernel {name!r}: its codes of {bits} bits are not those of more bits shifted right.")
  return codes
