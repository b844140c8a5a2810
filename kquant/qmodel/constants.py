"""The integers of constants that are no kernel and no bias: operands, slopes, caps, tables.

A table holds what a function of one element gives for each integer of its input's grid, or the rows of an
Embedding. Every constant on a grid that a file holds is decided here or beside kernels and biases in
`finalize`; lowering and writer place what stands in the Encodings.
"""

import numpy as np

from kquant.core import numerics
from kquant.core.encodings import Encoding, Encodings
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref


def snap_constants(graph: Graph, encodings: Encodings) -> None:
  """Enters the constants of a finalized graph into its encodings, and puts those of the graph on their grids.

  Args:
    graph: without quantizers; operands, slopes and caps are changed to the values of their integers.
    encodings: with the grids of all tensors.
  """
  for node in graph.nodes:
    if node.facts.takes_constant:
      _snap_operand(graph, node, encodings)
    if node.facts.caps:
      _snap_caps(node, encodings)
  for layer in graph.layers:
    if layer.facts.slopes:
      _snap_slopes(layer, encodings)
  enter_tables(graph, encodings)


def enter_tables(graph: Graph, encodings: Encodings) -> None:
  """Enters tables of functions of one element, rows of Embeddings, and what is chosen into the encodings."""
  for node in graph.nodes:
    if node.facts.unary:
      _enter_function(graph, node, encodings)
    elif node.facts.table:
      _enter_rows(node, encodings)
    elif node.facts.chooses:
      _enter_choice(node, encodings)


def _snap_operand(graph: Graph, node: Node, encodings: Encodings) -> None:
  """Puts the constant operand of an elementwise call on a grid of its own, as wide as the result's.

  Of 8 bits, or of 16 and then symmetric.
  """
  args = [*node.args, *node.kwargs.values()]  # in a model read from disk the constant is a keyword
  (position,) = (i for i, value in enumerate(args) if not isinstance(value, Ref))
  constant = np.asarray(args[position], np.float32)
  if encodings[node.inputs[0].key].bits == 16:
    grid = Encoding(numerics.symmetric_grid(np.abs(constant).max(), 16), np.zeros(1, np.int64), 16)
  else:
    grid = Encoding(*numerics.affine_grid(constant.min(), constant.max(), 8))
  integers = grid.quantize(constant)
  key = f"{node.name}/constant"
  encodings.grids[key], encodings.integers[key] = grid, integers.astype(f"int{grid.bits}")
  args[position] = grid.dequantize(integers)
  graph.recall(node, node.layer, tuple(args))


def _snap_caps(node: Node, encodings: Encodings) -> None:
  """Puts the caps of a CappedReLU on the grid of its output: there the clamp is exact.

  Where all caps lie at or beyond the grid's end, that end is the clamp and no integers are kept.
  """
  grid, key = encodings[Ref(node).key], f"{node.name}/caps"
  integers = grid.quantize(node.layer.params["caps"])
  node.layer.params = {"caps": grid.dequantize(integers)}
  if (integers == grid.limits[1]).all():
    return
  encodings.grids[key] = grid
  encodings.integers[key] = integers.astype(np.int8 if grid.bits <= 8 else np.int16)


def _snap_slopes(layer: LayerDef, encodings: Encodings) -> None:
  """Puts the slopes of a PReLU on one symmetric int8 grid."""
  alpha = layer.params["alpha"]
  grid = Encoding(numerics.symmetric_grid(np.abs(alpha).max(), 8), np.zeros(1, np.int64), narrow=True)
  integers = grid.quantize(alpha)
  key = f"{layer.name}/alpha"
  encodings.grids[key], encodings.integers[key] = grid, integers.astype(np.int8)
  layer.params = {**layer.params, "alpha": grid.dequantize(integers)}


def _enter_function(graph: Graph, node: Node, encodings: Encodings) -> None:
  """Enters the table of a function of one element, on the grid of its result or of a ReLU fused with it.

  Where the function is undefined (log of 0) its value is 0.
  """
  result, (source,) = Ref(node), node.inputs
  if result.key not in encodings:  # fused: the table is cut off at the ends of the ReLU's grid
    result = Ref(graph.readers(result)[0])
  first, last = encodings[source.key].limits
  reals = encodings[source.key].dequantize(np.arange(first, last + 1))
  if node.facts.compares:  # what is rounded to the integer of that number counts as it
    number = node.config[node.facts.compares]
    reals[encodings[source.key].quantize(number) - first] = number
  values = np.nan_to_num(node.compute(reals).astype(np.float64), posinf=np.inf, neginf=-np.inf)
  _enter_table(node, values, encodings[result.key], encodings)


def _enter_rows(node: Node, encodings: Encodings) -> None:
  """Enters the rows of an Embedding, on the grid of its output."""
  _enter_table(node, node.layer.params[node.facts.table], encodings[Ref(node).key], encodings)


def _enter_choice(node: Node, encodings: Encodings) -> None:
  """Enters the number that a Select takes where its mask is 0, and its mask where that is a constant."""
  grid, key = encodings[Ref(node).key], f"{node.name}/otherwise"
  if len(node.moved) == 1:
    encodings.grids[key] = grid
    encodings.integers[key] = grid.quantize([node.config["otherwise"]]).astype(f"int{max(8, grid.bits)}")
  for name, values in node.layer.params.items():
    encodings.integers[f"{node.name}/{name}"] = values > 0.5


def _enter_table(node: Node, values: np.ndarray, grid: Encoding, encodings: Encodings) -> None:
  key = f"{node.name}/table"
  encodings.grids[key] = grid
  encodings.integers[key] = grid.quantize(values).astype(np.int8 if grid.bits <= 8 else np.int16)
