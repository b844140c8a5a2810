"""tf.tile, tf.repeat, tf.roll and tf.gather at constant places, as slices that are joined."""

import math

import numpy as np

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.standardize.building import add_join, add_reshape, add_slice, is_fixed, replace

Places = dict[int, np.ndarray]
"""{axis: the places along it that are taken, in order}."""


def join_copies(graph: Graph, node: Node) -> None:
  """Writes copies of parts of a tensor as slices and a Concatenate; the batch axis is left alone."""
  read = _PLACES.get(node.kind)
  if read is None or len(node.inputs) != 1 or not is_fixed(node.inputs[0]):
    return
  (source,) = node.inputs
  places = read(node, source.shape)
  if places is None or any(len(chosen) == 0 for chosen in places.values()):
    return
  for axis, chosen in places.items():
    source = _chosen(graph, f"{node.layer_name}/axis{axis}", source, axis, chosen)
  replace(graph, node, source, "written as slices that are joined")


def _tiled(node: Node, shape: tuple) -> Places | None:
  batch, *counts = np.asarray(node.argument(1, "multiples")).tolist()
  return None if batch != 1 else {
      axis: np.tile(np.arange(shape[axis]), count) for axis, count in enumerate(counts, 1) if count != 1}


def _rolled(node: Node, shape: tuple) -> Places | None:
  shifts, axes = (np.atleast_1d(node.argument(i, name)).tolist() for i, name in ((1, "shift"), (2, "axis")))
  places = {axis % len(shape): np.roll(np.arange(shape[axis]), shift) for shift, axis in zip(shifts, axes)
            if axis % len(shape)}
  return places if len(places) == len(axes) else None


def _gathered(node: Node, shape: tuple) -> Places | None:
  axis, places = node.argument(3, "axis"), np.asarray(node.argument(1, "indices"))
  if not axis or places.ndim != 1 or node.argument(4, "batch_dims", 0):
    return None
  return {int(axis) % len(shape): places}


def _repeated(node: Node, shape: tuple) -> Places | None:
  axis, counts = node.argument(2, "axis"), np.asarray(node.argument(1, "repeats"))
  return {int(axis) % len(shape): np.repeat(np.arange(shape[axis]), counts)} if axis else None


_PLACES = {"tf.tile": _tiled, "tf.roll": _rolled, "tf.gather": _gathered, "tf.compat.v1.gather": _gathered,
           "tf.repeat": _repeated}
"""{kind: a function (node, shape of its tensor) -> what it takes, or None where it moves the batch}."""


def _chosen(graph: Graph, name: str, source: Ref, axis: int, places: np.ndarray) -> Ref:
  size, count = source.shape[axis], len(places) // source.shape[axis]
  if size > 1 and count > 1 and np.array_equal(places, np.repeat(np.arange(size), count)):
    return _each_repeated(graph, name, source, axis, count)
  parts = [add_slice(graph, f"{name}/part{index}", source, {axis: run})
           for index, run in enumerate(_runs(places))]
  return add_join(graph, name, parts, axis)


def _each_repeated(graph: Graph, name: str, source: Ref, axis: int, count: int) -> Ref:
  """Copies of rows of elements, [outer, size, inner] as [outer, size, count * inner], side by side."""
  _, *shape = source.shape
  outer, inner = math.prod(shape[:axis - 1]), math.prod(shape[axis:])
  rows = add_reshape(graph, f"{name}/rows", source, (outer * shape[axis - 1], inner))
  copies = add_join(graph, f"{name}/copies", [rows] * count, 2)
  shape[axis - 1] *= count
  return add_reshape(graph, name, copies, shape)


def _runs(places: np.ndarray) -> list[range]:
  """Cuts indices into runs of neighbours."""
  cuts = np.flatnonzero(np.diff(places) != 1) + 1
  return [range(int(run[0]), int(run[-1]) + 1) for run in np.split(places, cuts)]
