"""LayerNormalization, GroupNormalization and UnitNormalization as operators on rows of c elements.

y = d / sqrt(mean(d^2) + epsilon t^2) with d = t (x - mean): any t > 0 gives the same y. Here t is about
1 / (max - min) of the row, so that rows of any deviation use all of the 8-bit grid of d; what t itself
loses by rounding cancels. No row is scaled up as if its max - min were below 1/64 of the largest in its
image. The sum of squares is a matrix product of each row with itself: exact terms, rounded once. (A
table of squares rounds each of them to 1/255 of the largest.)
"""

from collections.abc import Sequence

import numpy as np
import tf_keras as keras

from kquant.graph.functions import ShiftedPower
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.folding.affine import affine_layer
from kquant.rewrites.standardize.building import (
  add_matmul,
  add_merge,
  add_operator,
  add_permute,
  add_reshape,
  is_fixed,
  replace,
)
from kquant.rewrites.standardize.operators import become

_UNIT_LENGTH = ("tf.math.l2_normalize", "tf.linalg.l2_normalize", "tf.nn.l2_normalize")
_SMALLEST_SQUARE = 1e-12  # what keras.layers.UnitNormalization keeps a sum of squares above
_FLATTEST = 1 / 64  # max - min of a row that is still scaled up, over the largest in its image


def split_normalization(graph: Graph, node: Node) -> None:
  """Writes a normalization over some axes, or over groups of channels, as operators of rows."""
  if node.kind in _UNIT_LENGTH:
    become(graph, node, keras.layers.UnitNormalization, {"axis": node.argument(1, "axis", -1)})
  if node.kind not in ("LayerNormalization", "GroupNormalization", "UnitNormalization"):
    return
  (source,), rank = node.inputs, len(node.shapes[0])
  axes = (np.atleast_1d(node.config["axis"]) % rank).tolist()
  if 0 in axes or axes != sorted(axes) or not is_fixed(source):
    return
  name = node.layer_name
  source, order = _as_rows(graph, node, axes)
  if node.kind == "UnitNormalization":
    result = _to_unit_length(graph, name, source, {"offset": _SMALLEST_SQUARE, "exponent": -0.5})
  elif node.kind == "GroupNormalization":
    result = _grouped(graph, node, source)
  else:
    result = _normalized(graph, name, source, node.config["epsilon"])
  params, ones = node.layer.params, np.ones(source.shape[-1])
  if params:
    scale, shift = (params.get(key, default).reshape(-1) for key, default in (("gamma", ones),
                                                                              ("beta", 0 * ones)))
    result = graph.add_node(affine_layer(graph, f"{name}/affine", scale, shift), (result,), source.shape)
  result = _from_rows(graph, node, result, order)
  replace(graph, node, result, "split into mean, products and a table of 1 / deviation")


def _as_rows(graph: Graph, node: Node, axes: list[int]) -> tuple[Ref, list[int]]:
  """Brings the axes that are normalized behind the others, as one axis; returns the order of all axes too."""
  (source,), rank = node.inputs, len(node.shapes[0])
  order = [axis for axis in range(1, rank) if axis not in axes] + axes
  if order != sorted(order):
    source = add_permute(graph, f"{node.layer_name}/moved", source, order)
  if axes[1:]:
    lead = source.shape[1:rank - len(axes)] or (1,)
    size = int(np.prod(source.shape[1:], dtype=int) // np.prod(lead, dtype=int))
    source = add_reshape(graph, f"{node.layer_name}/as_rows", source, (*lead, size))
  return source, order


def _from_rows(graph: Graph, node: Node, result: Ref, order: list[int]) -> Ref:
  """Takes back what `_as_rows` did."""
  shape = node.shapes[0]
  result = add_reshape(graph, f"{node.layer_name}/from_rows", result, [shape[axis] for axis in order])
  if order == sorted(order):
    return result
  back = [order.index(axis) + 1 for axis in range(1, len(shape))]
  return add_permute(graph, f"{node.layer_name}/moved_back", result, back)


def _normalized(graph: Graph, name: str, source: Ref, epsilon: float) -> Ref:
  """Each row of the last axis, centred, over the root of its mean square + epsilon."""
  *_, size = source.shape
  mean = _reduce(graph, f"{name}/mean", "mean", source)
  centred = add_merge(graph, keras.layers.Subtract, f"{name}/centred", [source, mean])
  scale = _row_scale(graph, name, centred, epsilon)
  scaled = add_merge(graph, keras.layers.Multiply, f"{name}/scaled", [centred, scale])
  raised = _function(graph, f"{name}/epsilon", scale, factor=size * float(epsilon), exponent=2.0)
  return _to_unit_length(graph, name, scaled, {"factor": float(np.sqrt(size)), "exponent": -0.5}, raised)


def _row_scale(graph: Graph, name: str, centred: Ref, epsilon: float) -> Ref:
  """Returns t: 1 / (max - min + sqrt(epsilon)) of each row."""
  ends = [_reduce(graph, f"{name}/{end}", end, centred) for end in ("max", "min")]
  width, rank = add_merge(graph, keras.layers.Subtract, f"{name}/width", ends), len(centred.shape)
  if rank > 2:
    widest = _reduce(graph, f"{name}/widest", "max", width, axes=range(1, rank))
    floor = _function(graph, f"{name}/floor", widest, factor=_FLATTEST)
    width = add_merge(graph, keras.layers.Maximum, f"{name}/widened", [width, floor])
  return _function(graph, f"{name}/scale", width, offset=float(np.sqrt(epsilon)), exponent=-1.0)


def _to_unit_length(graph: Graph, name: str, source: Ref, function: dict[str, float],
                    raised: Ref | None = None) -> Ref:
  """Multiplies each row by a function of its sum of squares, `raised` added."""
  *lead, size = source.shape[1:]
  rows = add_reshape(graph, f"{name}/rows", source, (int(np.prod(lead, dtype=int)), 1, size))
  squares = add_matmul(graph, f"{name}/squares", rows, rows, transpose_b=True)
  squares = add_reshape(graph, f"{name}/power", squares, (*lead, 1))
  if raised is not None:
    squares = add_merge(graph, keras.layers.Add, f"{name}/raised", [squares, raised])
  factor = _function(graph, f"{name}/factor", squares, **function)
  return add_merge(graph, keras.layers.Multiply, f"{name}/normalized", [source, factor])


def _reduce(graph: Graph, name: str, what: str, source: Ref, *, axes: Sequence[int] | None = None) -> Ref:
  """The mean, max or min over axes, None: over the last one; they stay, of size 1."""
  axes = [len(source.shape) - 1] if axes is None else list(axes)
  shape = [1 if axis in axes else size for axis, size in enumerate(source.shape)]
  return add_operator(graph, name, f"math.reduce_{what}", (source,), shape, axis=axes, keepdims=True)


def _function(graph: Graph, name: str, source: Ref, **numbers: float) -> Ref:
  return graph.add_node(graph.new_layer(ShiftedPower, name, numbers), (source,), source.shape)


def _grouped(graph: Graph, node: Node, source: Ref) -> Ref:
  """Brings each group of channels into one row, normalizes the rows, and brings them back."""
  *_, channels = source.shape
  name, groups = node.layer_name, node.config["groups"]
  groups = channels if groups == -1 else groups
  positions = int(np.prod(source.shape[1:-1], dtype=int))
  split = add_reshape(graph, f"{name}/split", source, (positions, groups, channels // groups))
  rows = add_permute(graph, f"{name}/by_group", split, (2, 1, 3))
  rows = add_reshape(graph, f"{name}/groups", rows, (groups, positions * channels // groups))
  rows = _normalized(graph, name, rows, node.config["epsilon"])
  rows = add_reshape(graph, f"{name}/joined", rows, (groups, positions, channels // groups))
  rows = add_permute(graph, f"{name}/by_position", rows, (2, 1, 3))
  return add_reshape(graph, f"{name}/back", rows, source.shape[1:])
