"""What a layer costs at each width: bytes as the file stores them, bit operations."""

import functools
import math
import zlib
from collections.abc import Sequence

import numpy as np

from kquant.allocation.rounded import RoundedLayer
from kquant.core.numerics import packed_int4
from kquant.core.target import PACKED_BITS, Target
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef
from kquant.qmodel.finalize import packing_obstacle
from kquant.qmodel.widths import WIDE

CONVERSION_BYTES = 320
"""Of the operators and tensors that a grid of 16 bits asks for where it meets those of 8, at most mostly."""
_ALIGNMENT = 16
"""Bytes at whose multiples the buffers of a file lie."""


def layer_bytes(layer: LayerDef, rounded: dict[int, RoundedLayer], activations: Sequence[int],
                target: Target, storage: str) -> np.ndarray:
  """Returns the bytes of the weights and biases of a layer, [widths, activations].

  Args:
    layer: of the float graph.
    rounded: {bits: the layer so rounded}.
    activations: bits that its operator computes with.
    target: says which kernels are packed.
    storage: as `Budget` has it.
  """
  @functools.cache
  def kernels(bits: int, packed: bool) -> int:
    return sum(stored_bytes(rounded[bits].integers[facts.name], packed=packed, storage=storage)
               for facts in layer.facts.weights)

  def count(bits: int, beside: int) -> int:
    packed = bits <= PACKED_BITS and not packing_obstacle(layer, beside, target)
    return kernels(bits, packed) + _bias_bytes(layer, rounded[bits], beside)

  return np.array([[count(bits, beside) for beside in activations] for bits in rounded], float)


def _bias_bytes(layer: LayerDef, rounded: RoundedLayer, activation_bits: int) -> int:
  size = 8 if activation_bits == WIDE else 4
  return sum(_aligned(rounded.biases[facts.bias].size * size) for facts in layer.facts.weights if facts.bias)


def stored_bytes(integers: np.ndarray, *, packed: bool, storage: str) -> int:
  """Returns the bytes of a kernel: in a file, or with the storage "entropy" in one that is compressed.

  Args:
    integers: int8.
    packed: two integers lie in a byte.

  >>> kernel = np.zeros(1001, np.int8)
  >>> stored_bytes(kernel, packed=False, storage="file"), stored_bytes(kernel, packed=True, storage="file")
  (1008, 512)
  >>> stored_bytes(kernel, packed=False, storage="entropy") < 30
  True
  """
  if storage == "entropy":
    return len(zlib.compress((packed_int4(integers) if packed else integers).tobytes(), 9))
  return _aligned(-(-integers.size // 2) if packed else integers.size)


def file_bytes(contents: bytes, storage: str) -> int:
  """Returns the bytes of a whole file, counted in the same way."""
  return len(zlib.compress(contents, 9)) if storage == "entropy" else len(contents)


def _aligned(count: int) -> int:
  return -(-count // _ALIGNMENT) * _ALIGNMENT


def multiplications(graph: Graph, layer: LayerDef) -> int:
  """Returns the multiplications of weights in all calls of a layer, for one image; open sizes count as 1.

  Those of a lookup table are none. A transposed convolution multiplies each input by each tap.
  """
  if layer.facts.role != "linear":
    return 0
  calls = graph.calls(layer)
  shapes = [call.inputs[0].shape if layer.facts.transposed else call.shapes[0] for call in calls]
  positions = sum(math.prod(n or 1 for n in shape[1:-1]) for shape in shapes)
  return positions * layer.params[layer.facts.kernel.name].size


def layer_bops(graph: Graph, layer: LayerDef, widths: Sequence[int],
               activations: Sequence[int]) -> np.ndarray:
  """Returns the bit operations of a layer, [widths, activations]."""
  return multiplications(graph, layer) * np.outer(widths, activations).astype(float)
