"""Memory that the activations of a program need: a bound, and one plan.

Every activation lives from the operator that makes it (an input: from the first) to the last that reads it
(an output: to the last); a variable lives all the time. Constants are not counted, they lie in the file; nor
are the scratch buffers and tables of kernels, which are the runtime's.
"""

import dataclasses

import numpy as np

from tflite_export.program.program import IntProgram

ALIGNMENT = 16
"""Bytes; TensorFlow Lite Micro's."""


@dataclasses.dataclass(frozen=True)
class ActivationMemory:
  """Bytes, each tensor rounded up to the alignment.

  Attributes:
    total: all activations, as if none shared memory.
    peak: most that is alive at one operator; no plan needs less.
    arena: of a plan: tensors largest first, each at the lowest place that is free while it lives, as the
      planners of LiteRT and TensorFlow Lite Micro do it.
    busiest: first output of the operator at the peak; "" without operators.
  """

  total: int
  peak: int
  arena: int
  busiest: str


def activation_memory(program: IntProgram, *, alignment: int = ALIGNMENT) -> ActivationMemory:
  """Returns what the activations of a program need.

  Raises:
    ValueError: an activation of a type whose size is unknown.
  """
  lives = _lifetimes(program)
  sizes = {name: -(-tensor_bytes(program, name) // alignment) * alignment for name in lives}
  alive = np.zeros(len(program.ops) + 1, np.int64)
  for name, (first, last) in lives.items():
    alive[first:last + 1] += sizes[name]
  busiest = int(alive.argmax())
  return ActivationMemory(sum(sizes.values()), int(alive.max()), _planned(lives, sizes),
                          program.ops[busiest].outputs[0] if busiest < len(program.ops) else "")


def _lifetimes(program: IntProgram) -> dict[str, tuple[int, int]]:
  """Returns {activation: (first operator, last operator) that it is alive at}."""
  lives = {name: (0, 0) for name in program.inputs}
  for position, op in enumerate(program.ops):
    for name in op.inputs:
      if name in lives:
        lives[name] = (lives[name][0], position)
    lives.update((name, (position, position)) for name in op.outputs)
  last = max(0, len(program.ops) - 1)
  lives.update((name, (lives[name][0], last)) for name in program.outputs if name in lives)
  lives.update((name, (0, last)) for name in lives if program.tensors[name].variable)
  return lives


def tensor_bytes(program: IntProgram, name: str) -> int:
  """Returns the bytes of a tensor.

  Raises:
    ValueError: a type whose size is unknown.
  """
  tensor = program.tensors[name]
  try:
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
  except TypeError as error:
    raise ValueError(f"Tensor {name!r}: expected a type of whole bytes, got {tensor.dtype!r}.") from error


def _planned(lives: dict[str, tuple[int, int]], sizes: dict[str, int]) -> int:
  """Returns the bytes of the plan that places the largest tensors first."""
  placed: list[tuple[int, int, str]] = []
  for name in sorted(lives, key=lambda name: (-sizes[name], lives[name])):
    first, last = lives[name]
    place = 0
    for start, end, other in sorted(placed):
      apart = lives[other][0] > last or lives[other][1] < first
      if not apart and place + sizes[name] > start:
        place = max(place, end)
    placed.append((place, place + sizes[name], name))
  return max((end for _, end, _ in placed), default=0)
