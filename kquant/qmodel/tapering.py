"""Ends of ranges that only functions read which flatten toward an end: swish, GELU, sigmoid, softplus, exp.

Where such a function stays within half a step of the grid of its output, its input may saturate. The step is
known once the output is calibrated. A swish, x * sigmoid(x), reads x twice and is one function. A softmax is
none of one element: a thousand classes that saturate together would add up.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.qmodel.quantize_activation import QuantizeActivation

_PROBES = 4096


class Curve(NamedTuple):
  """A function of one element, and half a step of the grid that it is rounded to."""

  function: Callable[[np.ndarray], np.ndarray]
  tolerance: float


def cut_tapering_ends(graph: Graph, layers: dict[str, QuantizeActivation],
                      ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
  """Cuts ranges that are set already, those of the last tensors first; symmetric ones stay.

  Args:
    graph: of a calibrated model, with its quantizers.
    layers: {name: quantizer}.
    ranges: {name: what its range was set to}, in topological order.

  Returns:
    `ranges` as they are now.
  """
  ranges, readers = dict(ranges), _Readers(graph, layers)
  calls: dict[str, list[Ref]] = {}
  for node in graph.nodes:
    if node.layer.name in layers:
      calls.setdefault(node.layer.name, []).append(Ref(node))
  for name in reversed(ranges):
    curves = [readers.curves(ref) for ref in calls[name]]
    if all(curves) and not layers[name].quantizer.symmetric:
      parts = [changing_part(curve, *ranges[name]) for some in curves for curve in some]
      ranges[name] = min(low for low, _ in parts), max(high for _, high in parts)
      layers[name].set_range(*ranges[name])
  return ranges


def changing_part(curve: Curve, low: float, high: float) -> tuple[float, float]:
  """Returns the part of low..high beyond whose ends the function stays within tolerance of its value there.

  >>> [round(end, 1) for end in changing_part(Curve(np.tanh, 0.01), -9.0, 9.0)]
  [-2.6, 2.6]
  """
  x = np.linspace(low, high, _PROBES)
  y = np.nan_to_num(np.asarray(curve.function(x.astype(np.float32)), np.float64))
  first, last = _flat_until(y, curve.tolerance), len(y) - 1 - _flat_until(y[::-1], curve.tolerance)
  return (low, high) if first >= last else (float(x[first]), float(x[last]))


def _flat_until(y: np.ndarray, tolerance: float) -> int:
  """The last place up to which all values lie within tolerance of the value there."""
  spread = np.maximum(y - np.minimum.accumulate(y), np.maximum.accumulate(y) - y)
  return int(np.flatnonzero(spread <= tolerance)[-1])


class _Readers:
  """What the readers of tensors compute, in the graph of a calibrated model."""

  def __init__(self, graph: Graph, layers: dict[str, QuantizeActivation]):
    self._graph, self._layers = graph, layers

  def curves(self, ref: Ref) -> list[Curve]:
    """Returns the functions that read a quantized tensor, moved or not; [] where anything else reads it."""
    curves: list[Curve] = []
    for reader in [] if ref in self._graph.output_refs else self._graph.readers(ref):
      if reader.facts.role == "move" and ref in reader.moved:
        found = [curve for moved in reader.outputs for curve in self.curves(moved)]
      else:
        found = self._curve(reader, ref)
      if not found:
        return []
      curves += found
    return curves

  def _curve(self, reader: Node, ref: Ref) -> list[Curve]:
    """The function that a reader is of the tensor, with the product that alone reads it as a gate."""
    if reader.facts.arithmetic == "product":
      gates = [other.node.inputs[0].node for other in reader.inputs if other.node.layer.name in self._layers]
      gates = [gate for gate in gates if gate.facts.tapers and gate.inputs == [ref]]
      is_product = gates and ref in reader.inputs
      return [self._rounded(reader, lambda x: x * gates[0].compute(x))] if is_product else []
    if not reader.facts.tapers:
      return []
    products = self._graph.readers(self._quantized(reader))
    if len(products) == 1 and products[0].facts.arithmetic == "product" and ref in products[0].inputs:
      return self._curve(products[0], ref)
    return [self._rounded(reader, reader.compute)]

  def _quantized(self, node: Node) -> Ref:
    """What a call writes, on its grid: behind a ReLU that is fused into it."""
    (reader,) = (reader for reader in self._graph.readers(Ref(node)) if not reader.facts.compares)
    return Ref(reader) if reader.layer.name in self._layers else self._quantized(reader)

  def _rounded(self, node: Node, function: Callable[[np.ndarray], np.ndarray]) -> Curve:
    grid = self._layers[self._quantized(node).node.layer.name].encoding()
    return Curve(function, float(grid.scale[0]) / 2)
