"""The final networks of several widths, with what their integers have in common."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core import nested_codes, numerics
from kquant.core.encodings import Encodings
from kquant.core.target import LITERT_FAMILY
from kquant.graph.graph import Graph
from kquant.graph.nodes import weights_of_class
from kquant.qmodel.finalize import finalize_graph
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.quantizers import NestedQuantizer


@dataclasses.dataclass
class FamilyMember:
  """The final network of a width.

  Attributes:
    model, graph, encodings: as of `kquant.QuantizationResult`.
    kernel_bits: {key of a kernel: bits of its codes}: those of the width, 8 at the edges.
    signs: {key of a kernel: int8 [channels] or [1]}: sign * integer is that of the nested code; -1 where a
      batch norm with a negative gamma was absorbed, 0 where all integers of a channel are 0.
  """

  model: keras.Model
  graph: Graph
  encodings: Encodings
  kernel_bits: dict[str, int]
  signs: dict[str, np.ndarray]


def member_of(qmodel: keras.Model) -> FamilyMember:
  """Finalizes the model of a width.

  Args:
    qmodel: whose weights have NestedQuantizers.

  Raises:
    ValueError: another quantizer, or the integers of a kernel are not those of its codes.
  """
  kernels = {}
  for layer in qmodel.layers:
    if isinstance(layer, QuantizeWeights):
      for weight in weights_of_class(type(layer.layer)):
        key, quantizer = f"{layer.name}/{weight.key}", layer.quantize_config.weights[weight.name]
        if not isinstance(quantizer, NestedQuantizer):
          raise ValueError(f"Layer {layer.name!r}: its {weight.name} has a {type(quantizer).__name__}; only "
                           "weights with the quantizer 'nested' make a family.")
        codes = quantizer.codes(getattr(layer.layer, weight.name).numpy())
        kernels[key] = quantizer.bits, nested_codes.integers_of(codes, quantizer.bits)
  return family_member(qmodel, kernels)


def family_member(qmodel: keras.Model, kernels: dict[str, tuple[int, np.ndarray]],
                  graph: Graph | None = None) -> FamilyMember:
  """Finalizes the model of a width whose codes are known.

  Args:
    qmodel: the model.
    kernels: {key of a kernel: (bits of its codes, their integers in Keras layout)}.
    graph: that qmodel was made of, where the caller has it.

  Raises:
    ValueError: the final integers of a kernel are not those of its codes.
  """
  model, graph, encodings = finalize_graph(qmodel, target=LITERT_FAMILY, graph=graph)
  signs = {key: _signs_of(key, integers, encodings) for key, (_, integers) in kernels.items()}
  return FamilyMember(model, graph, encodings, {key: bits for key, (bits, _) in kernels.items()}, signs)


def _signs_of(key: str, nested: np.ndarray, encodings: Encodings) -> np.ndarray:
  """Returns by what sign the final integers of each channel of a weight differ from those of its codes.

  Args:
    key: of the weight.
    nested: the integers of its codes, Keras layout.
    encodings: with the final ones.

  Returns:
    int8 [channels] or [1]; 0 where all integers of a channel are 0.

  Raises:
    ValueError: they differ otherwise.
  """
  final, grid = encodings.integers[key].astype(np.int64), encodings[key]
  taps = tuple(axis for axis in range(final.ndim) if axis not in (grid.axis or ()))
  signs = np.sign((final * nested).sum(axis=taps)).reshape(-1)
  if not np.array_equal(final, nested * numerics.along(signs, final.shape, grid.axis)):
    raise ValueError(f"Kernel {key!r}: its final integers are not those of its codes, since a scale was too "
                     "small for the file; take its dead channels out with kq.prune_dead_channels.")
  return signs.astype(np.int8)


def are_widths(widths: Any) -> bool:
  """Whether these are integers in a sequence."""
  return isinstance(widths, Collection) and all(isinstance(bits, (int, np.integer)) for bits in widths)


def check_widths(widths: Sequence[int] | None, trained: Sequence[int]) -> list[int]:
  """Returns the widths of a family, widest first.

  Args:
    widths: those that are asked for; None: all that files can have.
    trained: those that there are.

  Raises:
    ValueError: none, or one that there is not.
  """
  possible = [bits for bits in trained if bits in nested_codes.WIDTHS]
  widths = possible if widths is None else widths
  if not are_widths(widths) or not widths or set(widths) - set(possible):
    raise ValueError(f"A family has widths of {', '.join(map(str, possible))} bits here, got {widths!r}; "
                     f"choose from these, as in ({possible[0]},). An AnyPrecisionModel adds others with "
                     "add_width.")
  return sorted(set(widths), reverse=True)
