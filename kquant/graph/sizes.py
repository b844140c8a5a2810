"""Bytes that the tensors of a graph take up, and how many images pass at a time so that they stay bounded."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kquant.core.input_spec import InputSpec
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref

BYTES_AT_ONCE = 2**28
"""Bytes of tensors that a stage works on at a time."""
BACKWARD_ROOM = 2**31
"""Bytes that a backward pass may take: with fewer images at a time sums differ in their last bits."""
_FLOAT_BYTES = 4


def tensor_bytes(ref: Ref) -> int:
  """Returns the bytes of a float32 tensor of one image; open dimensions count as 1."""
  return _FLOAT_BYTES * math.prod(n or 1 for n in ref.shape[1:])


def all_bytes(graph: Graph) -> int:
  """Returns the bytes of all tensors of one image together."""
  return sum(tensor_bytes(ref) for node in graph.nodes for ref in node.outputs)


def backward_bytes(graph: Graph) -> int:
  """Returns the bytes of one image that a backward pass holds: all tensors, and slopes beside them."""
  return 2 * all_bytes(graph)


def last_reads(graph: Graph, kept: Iterable[Ref]) -> dict[Ref, int]:
  """Returns {tensor: place of the last call that reads it}, behind all calls for those that are kept."""
  last = {ref: place for place, node in enumerate(graph.nodes) for ref in node.inputs}
  return last | dict.fromkeys(kept, len(graph.nodes))


def live_bytes(graph: Graph, *, copies: Callable[[Ref], int] = lambda ref: 1) -> int:
  """Returns the most bytes of one image that are alive at one call, as a forward pass holds them.

  Args:
    copies: how many of each tensor there are.
  """
  last = last_reads(graph, graph.output_refs)
  alive: dict[Ref, int] = {}
  most = 0
  for place, node in enumerate(graph.nodes):
    alive |= {ref: copies(ref) * tensor_bytes(ref) for ref in node.outputs}
    most = max(most, sum(alive.values()))
    alive = {ref: size for ref, size in alive.items() if last.get(ref, -1) > place}
  return most


def images_at_once(image_bytes: int, most: int, room: int | None = None) -> int:
  """Returns how many images of so many bytes pass at a time: `most`, or a power of two that fits.

  (Of three rows TensorFlow's sums differ in the last bit from those of two, four or 32.)

  Args:
    room: bytes that they may take; None: BYTES_AT_ONCE.
  """
  fitting = max(1, (room or BYTES_AT_ONCE) // max(1, image_bytes))
  return most if most <= fitting else 1 << fitting.bit_length() - 1


def open_size(specs: Sequence[InputSpec], arrays: Sequence[np.ndarray]) -> int:
  """Returns the product of the sizes that the specs leave open, in the largest of the arrays."""
  return max(math.prod(n for n, fixed in zip(array.shape[1:], spec.shape, strict=True) if fixed is None)
             for array, spec in zip(arrays, specs, strict=True))
