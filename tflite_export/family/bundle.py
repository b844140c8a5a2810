"""The bundle: the files of several widths as one file, the codes of kernels stored once."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kquant.core import nested_codes
from tflite_export.family import container, skeleton
from tflite_export.family.kernels import (
  Kernel,
  WidthPart,
  common_codes,
  unpack_kernels,
)
from tflite_export.file.writer import to_bytes
from tflite_export.operators.check import check
from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntProgram

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
  pool, widths, parts = skeleton.Pool(), {}, {}
  for bits, member in sorted(members.items(), reverse=True):
    stand_ins, parts[f"W{bits:03d}"] = _taken_apart(member, names)
    widths[bits] = {**skeleton.describe(member.program, pool, stand_ins),
                    "sha256": hashlib.sha256(member.contents).hexdigest()}
  meta = json.dumps({"kernels": names, "items": pool.items, "widths": widths}).encode()
  return container.pack({
      "CODE": np.concatenate(codes).tobytes(), "KERN": b"".join(kernel.pack() for kernel in kernels),
      **parts, "META": container.compress(meta), "CONS": container.compress(bytes(pool.constants))})


def _taken_apart(member: Member, names: list[str]) -> tuple[dict[str, Any], bytes]:
  """Returns ({kernel or bias: what stands in its place}, the section of the width)."""
  program = member.program
  stand_ins: dict[str, Any] = {name: ["kernel", index] for index, name in enumerate(names)}
  biases, length = [np.zeros(0, np.int32)], 0
  for name, (source, kernel) in _biases(program, names).items():
    tensor = program.tensors[name]
    stand_ins[name] = ["bias", length, tensor.data.size, source, kernel]
    biases.append(tensor.data)
    length += tensor.data.size
  part = WidthPart(np.array([member.kernel_bits[name] for name in names]),
                   np.concatenate([program.tensors[name].scale for name in names]),
                   np.concatenate([member.signs[name] for name in names]), np.concatenate(biases))
  return stand_ins, part.pack()


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
    self._parts = {bits: WidthPart.unpack(sections[f"W{bits:03d}"], self._kernels) for bits in self.widths}

  def kernels(self, bits: int) -> dict[str, np.ndarray]:
    """Returns {kernel: its int8 integers at a width}, flat, in the layout of the file.

    Args:
      bits: one of `widths`.

    Raises:
      ValueError: there is no such width.
    """
    self._check_width(bits)
    return {name: self._integers(bits, index)[0] for index, name in enumerate(self._names)}

  def program(self, bits: int) -> IntProgram:
    """Returns the program of a width.

    Args:
      bits: one of `widths`.

    Raises:
      ValueError: there is no such width, or the program breaks a rule.
    """
    self._check_width(bits)

    def part_of(part: list[Any]) -> skeleton.Part:
      if part[0] == "kernel":
        return self._integers(bits, part[1])
      _, place, length, source, kernel = part
      return self._parts[bits].biases[place:place + length], (source, kernel)

    with self._reading():
      program = skeleton.rebuild(self._fields[bits], self._pool, part_of)
      check(program)
    return program

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
