"""What layers and grids cost at each width, and what a file costs."""

import numpy as np

from kquant.allocation.budget import Budget
from kquant.allocation.costs import CONVERSION_BYTES, file_bytes, layer_bops, layer_bytes
from kquant.allocation.latency import FileLatency, LatencyTable, measure_latency
from kquant.allocation.rounded import RoundedLayer
from kquant.core.target import PACKED_BITS, Target
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef
from kquant.qmodel.widths import WIDE


class Prices:
  """Prices of the parts of one network.

  Args:
    budget: says what is counted, and how.
    target: says which kernels are packed.
    files: of plans of one width: "base" of the most bits of weights and the fewest of activations; "narrow"
      of the fewest bits of weights, "wide" of the most of activations, where latency is counted.
  """

  def __init__(self, budget: Budget, target: Target, files: dict[str, bytes]):
    self._budget, self._target, self._base = budget, target, files["base"]
    self._table = budget.latencies
    self._latency = {}
    if budget.latency_ms is not None:
      self._latency = {name: self._latency_of(contents) for name, contents in files.items()}

  @property
  def latencies(self) -> LatencyTable | None:
    """Of all operators so far, those that were timed here, too; None where latency does not count."""
    return self._table

  def of_file(self, contents: bytes) -> dict[str, float]:
    """Returns what a file costs, but for bit operations; operators that no table knows are timed."""
    costs = {"bytes": file_bytes(contents, self._budget.storage)}
    if self._latency:
      costs["latency_ms"] = self._latency_of(contents).total
    return costs

  def base(self) -> dict[str, float]:
    """Returns what the file of the most bits of weights and the fewest of activations costs."""
    return self.of_file(self._base)

  def of_layer(self, graph: Graph, layer: LayerDef, rounded: dict[int, RoundedLayer],
               activations: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns {what: cost of a layer of the float graph, [widths, activations]}.

    Args:
      rounded: {bits: the layer so rounded}.
      activations: bits that its operator computes with.
    """
    costs = {"bytes": layer_bytes(layer, rounded, activations, self._target, self._budget.storage),
             "bops": layer_bops(graph, layer, tuple(rounded), activations)}
    if self._latency:
      keys = [f"{layer.name}/{facts.key}" for facts in layer.facts.weights]
      costs["latency_ms"] = np.array([[sum(self._of_weight(key, bits, beside) for key in keys)
                                       for beside in activations] for bits in rounded])
    return costs

  def of_grid(self, tensors: list[str], widths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns {what: cost of a grid, [widths]}, beside that of the layers that read and write it.

    Args:
      tensors: on the grid, by name.
      widths: bits that it can have.
    """
    wide = np.array([bits == WIDE and len(widths) > 1 for bits in widths], float)
    costs = {"bytes": CONVERSION_BYTES * wide, "bops": 0 * wide}
    if self._latency:
      costs["latency_ms"] = wide * sum(self._slower(tensor) for tensor in tensors)
    return costs

  def _latency_of(self, contents: bytes) -> FileLatency:
    self._table = measure_latency(contents, table=self._table)
    return FileLatency(contents, self._table)

  def _of_weight(self, key: str, bits: int, activation_bits: int) -> float:
    """The milliseconds of the operators that read a weight; over 16-bit activations no kernel is packed."""
    name = "wide" if activation_bits == WIDE else "narrow" if bits <= PACKED_BITS else "base"
    return self._latency.get(name, self._latency["base"]).of_weights.get(key, 0.0)

  def _slower(self, tensor: str) -> float:
    """The milliseconds that the operator without weights that makes a tensor takes more in 16 bits."""
    base, wide = (self._latency.get(name, self._latency["base"]).of_others for name in ("base", "wide"))
    return wide.get(tensor, 0.0) - base.get(tensor, 0.0)
