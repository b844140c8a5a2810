"""describe(): what became of each layer of a quantized model, as rows of data and as a table."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import tf_keras as keras

from kquant.core.records import NarrowTensor
from kquant.core.target import LITERT, PACKED_BITS, Target
from kquant.core.text import text_table
from kquant.graph.execution import live_layers
from kquant.graph.graph import Graph
from kquant.graph.matching import fuses_into_reader, grid_groups
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.qmodel.finalize import packing_obstacle, remove_activation_quantizers
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.qmodel.tfmot_models import from_tfmot, is_tfmot
from kquant.qmodel.widths import WIDE, widened

_FEW = 3


@dataclasses.dataclass(frozen=True)
class WeightRow:
  """How a weight is quantized.

  Attributes:
    name: of its integers in the Encodings, behind the layer's: "kernel".
    rule: where the rule applies that decided.
    bits: of its integers.
    scale: float32, [channels], or [1] for one scale.
    range: (low, high) that the grid reaches, over all channels.
  """

  name: str
  rule: str
  bits: int
  scale: tuple[float, ...]
  range: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class OutputRow:
  """The grid of an output.

  Attributes:
    rule: where the rule applies that decided.
    bits: of its integers.
    range, scale, zero_point: of the grid; None before calibration.
    fixed: the grid is given: by the kernel of the runtime, or by the table of an Embedding.
    shared_with: other tensors on the same grid, by name.
    narrow: of an input or output of the model: its columns that use a few steps of the grid, if any.
  """

  rule: str
  bits: int
  range: tuple[float, float] | None
  scale: float | None
  zero_point: int | None
  fixed: bool
  shared_with: tuple[str, ...]
  narrow: NarrowTensor | None = None


@dataclasses.dataclass(frozen=True)
class DescriptionRow:
  """A call of a layer. Of a layer that is called twice the second call is "name@1".

  Attributes:
    layer, kind: its name, and its class or function ("Conv2D", "tf.math.exp").
    weights: those that are quantized, in the layer's first row.
    output: the grid of its (first) output; None for integers as they are. A convolution that a ReLU is fused
      into has the grid of the ReLU.
    bytes: of its weights and biases, table or slopes in the file; of a shared layer in its first row.
    note: what was fused or shared, and why.
  """

  layer: str
  kind: str
  weights: tuple[WeightRow, ...]
  output: OutputRow | None
  bytes: int
  note: str


@dataclasses.dataclass(frozen=True)
class Description:
  """What `describe` returns; printed it is a table.

  Attributes:
    rows: one a call of a layer, in topological order.
  """

  rows: tuple[DescriptionRow, ...]

  def summary(self) -> str:
    """Returns in a line how many kernels and outputs have how many bits."""
    kernels = [weight for row in self.rows for weight in row.weights]
    outputs = [row.output for row in self.rows if row.output is not None]
    return f"{len(self.rows)} layers: kernels of {_counted(kernels)}; outputs of {_counted(outputs)}"

  def __str__(self) -> str:
    """The rows as a table, the summary, and the bytes of all weights."""
    header = ("layer", "kind", "rule", "weights", "weight scale", "bytes", "output", "range", "scale", "note")
    table = text_table(header, [_cells(row) for row in self.rows])
    return f"{table}\n\n{self.summary()}; weights of {sum(row.bytes for row in self.rows):,} bytes"


def describe(qmodel: keras.Model, *, target: Target = LITERT) -> Description:
  """Lists what became of each layer of a quantized model: its rule, bits, grids, bytes and what it shares.

  Args:
    qmodel: what `insert_quantizers` returned, `quantize(...).qmodel`, or either from a file; calibrated or
      not.
    target: whose file the bytes are of.

  Returns:
    The rows, one for each call of a layer; printed they are a table.

  Raises:
    ValueError: qmodel has no quantizers.
    UnsupportedLayerError: a model of tfmot's with a layer that kquant's quantizers do not cover.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), "w4a8")
    >>> print(kq.describe(qmodel).summary())
    2 layers: kernels of 4 bits (1); outputs of 8 bits (2)
  """
  qmodel = from_tfmot(qmodel) if is_tfmot(qmodel) else qmodel
  graph, live = Graph.from_model(qmodel), live_layers(qmodel)
  members = remove_activation_quantizers(graph)
  if not members:
    raise ValueError(f"Model {qmodel.name!r} has no quantizers; expected what kq.insert_quantizers returns.")
  wrappers = _take_out_of_wrappers(graph, live)
  graph.normalize()
  of_ref = {ref: live[name] for name, refs in members.items() for ref in refs}
  groups = {ref: refs for refs in grid_groups(graph) for ref in refs}
  of_ref.update({ref: of_ref[source] for ref, refs in groups.items() for source in refs
                 if ref not in of_ref and source in of_ref})
  describer = _Describer(graph, of_ref, groups, wrappers, target)
  return Description(tuple(describer.row(node) for node in graph.nodes))


def _take_out_of_wrappers(graph: Graph,
                          live: dict[str, keras.layers.Layer]) -> dict[LayerDef, QuantizeWeights]:
  """Puts each wrapped layer in its wrapper's place; returns {layer: its wrapper}."""
  wrappers = {node.layer: live[node.layer.name] for node in graph.nodes
              if issubclass(node.layer.cls, QuantizeWeights)}
  for layer, wrapper in wrappers.items():
    layer.cls = type(wrapper.layer)
    layer.config, layer.params = wrapper.plain_layer()
  return wrappers


class _Describer:
  """Makes the rows of a graph whose quantizers were taken out.

  Args:
    of_ref: {tensor: its quantizer}.
    groups: {tensor: all tensors that have its grid}.
    wrappers: {layer: its QuantizeWeights}.
  """

  def __init__(self, graph: Graph, of_ref: dict[Ref, QuantizeActivation], groups: dict[Ref, list[Ref]],
               wrappers: dict[LayerDef, QuantizeWeights], target: Target):
    self.graph, self.of_ref, self.groups = graph, of_ref, groups
    self.wrappers, self.target = wrappers, target

  def row(self, node: Node) -> DescriptionRow:
    """Returns the row of a call."""
    output, is_first = self._output(self._written(Ref(node))), self.graph.calls(node.layer)[0] is node
    return DescriptionRow(node.name, node.kind, self._weights(node.layer) if is_first else (), output,
                          self._bytes(node) if is_first else 0, "; ".join(self._notes(node, output)))

  def _written(self, ref: Ref) -> Ref:
    """The tensor that the integer operator writes: behind a ReLU or a batch norm that it takes in."""
    while ref not in self.of_ref and (fuses_into_reader(self.graph, ref) or self._is_absorbed(ref)):
      ref = Ref(self.graph.readers(ref)[0])
    return ref

  def _is_absorbed(self, ref: Ref) -> bool:
    return (self.graph.is_private(ref) and ref.node.layer in self.wrappers
            and self.graph.readers(ref)[0].facts.role == "affine")

  def _output(self, ref: Ref) -> OutputRow | None:
    is_widened = self._is_widened(ref)
    layer = self.of_ref.get(ref.node.inputs[0] if is_widened else ref)
    if layer is None:
      return None
    others = tuple(other.key for other in self.groups.get(ref, []) if other != ref)
    ends = scale = zero = None
    if layer.quantizing.numpy():
      grid = widened(layer.encoding()) if is_widened else layer.encoding()
      (low,), (high,) = grid.range
      ends, scale, zero = (float(low), float(high)), float(grid.scale[0]), int(grid.zero_point[0])
    narrow = next((each for each in layer.narrow if each.tensor == ref.key), None)
    fixed = layer.fixed is not None and not is_widened
    return OutputRow(layer.rule, self._bits(ref), ends, scale, zero, fixed, others, narrow)

  def _is_widened(self, ref: Ref) -> bool:
    return ref.node.facts.requantizes and ref not in self.of_ref

  def _bits(self, ref: Ref) -> int:
    return WIDE if self._is_widened(ref) else self.of_ref[ref].quantizer.bits

  def _weights(self, layer: LayerDef) -> tuple[WeightRow, ...]:
    if layer not in self.wrappers:
      return ()
    rows, wrapper = [], self.wrappers[layer]
    keys = {weight.name: weight.key for weight in layer.facts.weights}
    for name, grid in wrapper.weight_encodings().items():
      low, high = grid.range
      rows.append(WeightRow(keys[name], wrapper.rule, grid.bits, tuple(float(scale) for scale in grid.scale),
                            (float(low.min()), float(high.max()))))
    return tuple(rows)

  def _bytes(self, node: Node) -> int:
    """Of the weights, once, and of a bias for each call: its scale is that of the call's input."""
    params, wrapper = node.layer.params, self.wrappers.get(node.layer)
    if wrapper is None and node.facts.table:
      return params[node.facts.table].size * (2 if self.of_ref[Ref(node)].quantizer.bits == 16 else 1)
    if wrapper is None:
      return params[node.facts.slopes].size if node.facts.slopes else 0
    input_bits = [self._bits(call.inputs[0]) for call in self.graph.calls(node.layer)]
    grids, total = wrapper.weight_encodings(), 0
    for weight in node.facts.weights:
      size, narrow = params[weight.name].size, grids[weight.name].bits <= PACKED_BITS
      packed = narrow and not packing_obstacle(node.layer, max(input_bits), self.target)
      channels = math.prod(params[weight.name].shape[axis] for axis in weight.out_axes)
      total += -(-size // 2) if packed else size
      total += sum(channels * (8 if bits == WIDE else 4) for bits in input_bits)  # a bias, of zeros at least
    return total

  def _notes(self, node: Node, output: OutputRow | None) -> list[str]:
    calls, notes = self.graph.calls(node.layer), []
    written = self._written(Ref(node))
    if node.facts.role == "relu" and fuses_into_reader(self.graph, node.inputs[0]):
      notes.append(f"fused into {node.inputs[0].node.name}: one integer operator")
    elif node.facts.role == "affine":
      notes.append(f"learns; finalize multiplies it into {node.inputs[0].node.name}")
    if written.node is not node:
      notes.append(f"one integer operator with {written.node.name}")
    if len(calls) > 1:
      notes.append(f"shared layer: {len(calls)} calls, {', '.join(call.name for call in calls)}")
    if output is None:
      notes.append("integers as they are, on no grid")
    elif output.fixed:
      source = self.groups[written][0].node
      source = source.inputs[0].node if source.facts.requantizes else source
      notes.append("fixed grid: that of its whole table" if source.facts.table else
                   f"fixed grid: the runtime's {source.kind} has no other")
    if output is not None and output.shared_with and written.node is node:
      notes.append(self._why_shared(written, output.shared_with))
    if output is not None and written.node is node:
      notes += self._cuts(written)
    if output is not None and output.narrow and written.node is node:
      notes.append(str(output.narrow))
    if node.facts.requantizes:
      notes.append(self._why_requantized(node))
    if (wrapper := self.wrappers.get(node.layer)) and wrapper.gradients:
      notes.append(f"in training its gradient has {wrapper.gradients.ranges.bits} bits")
    return notes

  def _cuts(self, ref: Ref) -> list[str]:
    """Where calibration ended the range because nothing that reads the tensor changes beyond."""
    readers = _few([reader.name for reader in self.graph.readers(ref)])
    cut = self.of_ref[ref].cut if ref in self.of_ref else ()
    return [f"range cut at {end:.4g}: {readers} flat {side}"
            for end, side in zip(cut, ("below", "above")) if end is not None]

  def _why_requantized(self, node: Node) -> str:
    ref, source = Ref(node), node.inputs[0]
    if self._is_widened(ref):
      readers = dict.fromkeys(reader.name for reader in self.graph.readers(ref))
      return f"widened, exactly: {_few(list(readers))} computes in {WIDE} bits"
    if self._bits(source) == WIDE != self._bits(ref):
      return f"narrowed: {source.node.name} computes in {WIDE} bits"
    return f"requantized: {source.node.name} has a grid of its own"

  def _why_shared(self, ref: Ref, others: tuple[str, ...]) -> str:
    """With whom a tensor shares its grid, and the kinds of layers between that take and give one grid."""
    kinds = dict.fromkeys(other.node.kind for other in self.groups[ref]
                          if other.node.facts.role in ("move", "average"))
    return f"one grid with {_few(others)}, on both sides of {_few(list(kinds))}"


def _cells(row: DescriptionRow) -> tuple:
  output = row.output
  rules = dict.fromkeys(part.rule for part in (*row.weights, output) if part is not None)
  cells = [row.layer, row.kind, " / ".join(filter(None, rules)) or "-"]
  cells.append(", ".join(f"{weight.bits} bits" for weight in row.weights) or "-")
  cells.append(", ".join(_span(weight.scale) for weight in row.weights) or "-")
  cells.append(f"{row.bytes:,}" if row.bytes else "-")
  if output is None:
    cells += ["-", "-", "-"]
  elif output.range is None:
    cells += [f"{output.bits} bits", "not calibrated", "-"]
  else:
    cells += [f"{output.bits} bits", f"{output.range[0]:.4g} .. {output.range[1]:.4g}", f"{output.scale:.4g}"]
  return (*cells, row.note)


def _span(scale: tuple[float, ...]) -> str:
  low, high = min(scale), max(scale)
  span = f"{low:.3g}" if low == high else f"{low:.3g} .. {high:.3g}"
  return span if len(scale) == 1 else f"{span} ({len(scale)} channels)"


def _few(names: Sequence[str]) -> str:
  return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _counted(rows: Sequence[WeightRow | OutputRow]) -> str:
  """Returns how many have how many bits, as "8 bits (12), 4 bits (3)"."""
  counts = sorted(Counter(row.bits for row in rows).items(), reverse=True)
  return ", ".join(f"{bits} bits ({count})" for bits, count in counts) or "none"
