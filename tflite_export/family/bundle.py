"""The bundle: the files of several widths as one file, the codes of kernels stored once."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kquant.core import nested_codes
from tflite_export.family import biases, container, skeleton
from tflite_export.family.kernels import (
  Kernel,
  WidthPart,
  common_codes,
  unpack_kernels,
)
from tflite_export.file.writer import to_bytes
from tflite_export.operators.check import check
from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntProgram, IntTensor

_READING = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)
"""What reading a bundle of other content than ours may raise."""


@dataclasses.dataclass
class Member:
  """The file of a width.

  Attributes:
    program: what it was written from.
    contents: its bytes.
    kernel_bits: {tensor of a kernel: bits of its codes}.
    signs: {tensor of a kernel: -1, 0 or 1 for each channel}, as of `kquant.anyprecision.family.FamilyMember`.
  """

  program: IntProgram
  contents: bytes
  kernel_bits: dict[str, int]
  signs: dict[str, np.ndarray]


def pack_members(members: dict[int, Member]) -> bytes:
  """Returns the bundle of the files of some widths.

  Args:
    members: {bits: file}.

  Raises:
    ValueError: a kernel whose codes do not follow from those of 8 bits.
  """
  ordered = [members[bits] for bits in sorted(members, reverse=True)]
  names = [name for name in ordered[0].kernel_bits if name in ordered[0].program.tensors]
  kernels, codes, place = [], [], 0
  for name in names:
    kernels.append(Kernel.of(ordered[0].program.tensors[name], place))
    place += kernels[-1].count
    codes.append(common_codes(name, [(member.kernel_bits[name], member.program.tensors[name].data,
                                      member.signs[name]) for member in ordered], kernels[-1]))
  pool, widths, sections, stored = skeleton.Pool(), {}, {}, [np.zeros(0, np.int32)]
  widest_part, widest_biases = None, {}
  for bits, member in sorted(members.items(), reverse=True):
    stand_ins, own = _taken_apart(member.program, names, widest_biases)
    widths[bits] = {**skeleton.describe(member.program, pool, stand_ins), "biases": sum(map(len, stored)),
                    "sha256": hashlib.sha256(member.contents).hexdigest()}
    stored.append(own)
    part = _part_of(member, names)
    sections[f"W{bits:03d}"] = part.pack(kernels, widest_part)
    if member is ordered[0]:
      widest_part, widest_biases = part, biases.of(member.program)
  meta = json.dumps({"kernels": names, "items": pool.items, "widths": widths}).encode()
  return container.pack({
      "CODE": np.concatenate(codes).tobytes(), "KERN": b"".join(kernel.pack() for kernel in kernels),
      **sections, "BIAS": biases.pack(np.concatenate(stored)), "META": container.compress(meta),
      "CONS": container.compress(bytes(pool.constants))})


def _part_of(member: Member, names: list[str]) -> WidthPart:
  """Returns what the kernels of a file have of their own."""
  return WidthPart(np.array([member.kernel_bits[name] for name in names]),
                   np.concatenate([member.program.tensors[name].scale for name in names]),
                   np.concatenate([member.signs[name] for name in names]))


def _taken_apart(program: IntProgram, names: list[str],
                 widest: dict[str, IntTensor]) -> tuple[dict[str, Any], np.ndarray]:
  """Returns ({kernel or bias: what stands in its place}, what BIAS holds of the program).

  Args:
    program: of a width.
    names: of the kernels.
    widest: {name: bias} of the widest program; {} for itself.
  """
  stand_ins: dict[str, Any] = {name: ["kernel", index] for index, name in enumerate(names)}
  stored, length = [np.zeros(0, np.int32)], 0
  for name, (source, kernel) in _biases(program, names).items():
    tensor = program.tensors[name]
    stand_ins[name] = ["bias", length, tensor.data.size, source, kernel]
    stored.append(biases.differences(tensor, widest.get(name)))
    length += tensor.data.size
  return stand_ins, np.concatenate(stored)


def _biases(program: IntProgram, names: list[str]) -> dict[str, tuple[str, str]]:
  """Returns {int32 bias: (input, kernel) whose scales make its scale}, of the kernels with these names."""
  found = {}
  for op in program.ops:
    if weighted := operator_of(op.kind).weighted:
      source, kernel, bias = weighted.operands(op.inputs)
      if kernel in names and program.tensors[bias].dtype == "int32":
        found.setdefault(bias, (source, kernel))
  return found


class Bundle:
  """A bundle that was read; what it holds is not trusted.

  Attributes:
    path: of the file.
    widths: its widths, widest first.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads a bundle.

    Args:
      path: of the file.

    Raises:
      ValueError: it is damaged, cut off, or no bundle.
      FileNotFoundError: there is none.
    """
    self.path = pathlib.Path(path)
    with self._reading():
      self._read(container.unpack(self.path.read_bytes()))

  def _read(self, sections: dict[str, memoryview]) -> None:
    meta = json.loads(container.expand(sections["META"]))
    self._codes = np.frombuffer(sections["CODE"], np.uint8)
    self._kernels = unpack_kernels(sections["KERN"], len(self._codes))
    self._pool = skeleton.Pool(list(meta["items"]), container.expand(sections["CONS"]))
    self._names, self._fields = list(meta["kernels"]), {int(k): v for k, v in meta["widths"].items()}
    self.widths = tuple(sorted(self._fields, reverse=True))
    if len(self._names) != len(self._kernels) or set(self.widths) - set(nested_codes.WIDTHS):
      raise ValueError("is damaged: its kernels and widths do not fit together")
    self._parts: dict[int, WidthPart] = {}
    for bits in self.widths:
      widest = self._parts.get(self.widths[0])
      self._parts[bits] = WidthPart.unpack(sections[f"W{bits:03d}"], self._kernels, widest)
    self._stored = biases.unpack(sections["BIAS"])

  def kernels(self, bits: int) -> dict[str, np.ndarray]:
    """Returns {kernel: its int8 integers at a width}, flat, in the layout of the file.

    Args:
      bits: one of `widths`.

    Raises:
      ValueError: there is no such width.
    """
    self._check_width(bits)
    return {name: self._integers(bits, index)[0] for index, name in enumerate(self._names)}

  def compared_codes(self, bits: int, program: IntProgram) -> dict[str, int]:
    """Compares the kernels of a program with the codes of 8 bits of the bundle, shifted right.

    Args:
      bits: one of `widths`.
      program: the file of this width, as it was read.

    Returns:
      {"shifted_from", "kernels", "elements", "differing"}, for a certificate.

    Raises:
      ValueError: there is no such width.
    """
    pairs = [(integers, program.tensors[name].data.reshape(-1))
             for name, integers in self.kernels(bits).items()]
    return {"shifted_from": nested_codes.CODE_BITS, "kernels": len(pairs),
            "elements": sum(integers.size for integers, _ in pairs),
            "differing": sum(int((integers != data).sum()) for integers, data in pairs)}

  def program(self, bits: int) -> IntProgram:
    """Returns the program of a width.

    Args:
      bits: one of `widths`.

    Raises:
      ValueError: there is no such width, or the program breaks a rule.
    """
    self._check_width(bits)

    with self._reading():
      program = self._rebuilt(bits, {} if bits == self.widths[0] else self._widest_biases)
      check(program)
    return program

  @functools.cached_property
  def _widest_biases(self) -> dict[str, IntTensor]:
    """{name: bias} of the widest program, which those of all others are stored against."""
    return biases.of(self._rebuilt(self.widths[0], {}))

  def _rebuilt(self, bits: int, widest: dict[str, IntTensor]) -> IntProgram:
    """Returns the program of a width; nothing is checked.

    Args:
      bits: one of `widths`.
      widest: {name: bias} of the widest program; {} for itself.
    """
    first = self._fields[bits]["biases"]

    def part_of(part: list[Any]) -> skeleton.Part:
      if part[0] == "kernel":
        return self._integers(bits, part[1])
      _, place, length, source, kernel = part
      return self._stored[first + place:first + place + length], (source, kernel)

    return skeleton.rebuild(self._fields[bits], self._pool, part_of, widest)

  def tflite(self, bits: int) -> bytes:
    """Returns the .tflite file of a width: byte by byte the one that was verified when the bundle was made.

    Args:
      bits: one of `widths`.

    Raises:
      ValueError: there is no such width, or the file is another.
    """
    program = self.program(bits)
    with self._reading():
      contents = to_bytes(program)
    if not self.is_its_file(bits, contents):
      raise ValueError(f"{self.path}: its file of {bits} bits is not the one that was verified when it "
                       "was made; use the version of kquant that made it, or fetch it again.")
    return contents

  def is_its_file(self, bits: int, contents: bytes) -> bool:
    """Returns whether these are the bytes of the file of a width that was verified when the bundle was made.

    Args:
      bits: one of `widths`.
      contents: of a file.
    """
    return hashlib.sha256(contents).hexdigest() == self._fields[bits].get("sha256")

  def _integers(self, bits: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    kernel = self._kernels[index]
    own, scales, signs = self._parts[bits].of_kernel(index, self._kernels)
    codes = self._codes[kernel.place:kernel.place + kernel.count]
    return nested_codes.integers_of(codes, own) * kernel.along(signs), scales

  @contextlib.contextmanager
  def _reading(self) -> Iterator[None]:
    """Turns what reading other content raises into an error of one line."""
    try:
      yield
    except _READING as error:
      raise ValueError(f"{self.path}: {_reason(error)}; fetch it again.") from error

  def _check_width(self, bits: int) -> None:
    if bits not in self._parts:
      raise ValueError(f"{self.path} has no width of {bits} bits, only {', '.join(map(str, self.widths))}.")


def _reason(error: Exception) -> str:
  """Returns what is wrong with a bundle, in the words of an error while it was read."""
  text = str(error).splitlines()[0] if str(error) else type(error).__name__
  return text if text.startswith(("is ", "expected ")) else f"is damaged: {text}"
