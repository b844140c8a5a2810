"""tf.tile, tf.roll and tf.gather at constant places, as slices that are joined."""

from collections.abc import Sequence

import numpy as np
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.rewrites.standardize.building import is_fixed, replace

_GATHERS = ("tf.gather", "tf.compat.v1.gather")


def join_copies(graph: Graph, node: Node) -> None:
  """Writes copies of parts of a tensor as slices and a Concatenate; the batch axis is left alone."""
  if node.kind not in ("tf.tile", "tf.roll", *_GATHERS) or not node.inputs or not is_fixed(node.inputs[0]):
    return
  source, rank = node.inputs[0], len(node.inputs[0].shape)
  if len(node.inputs) > 1:
    return
  if node.kind == "tf.tile":
    counts = np.asarray(node.argument(1, "multiples")).tolist()
    places = {axis: np.tile(np.arange(source.shape[axis]), count)
              for axis, count in enumerate(counts) if axis and count != 1}
    if counts[0] != 1:
      return
  elif node.kind == "tf.roll":
    shifts, axes = (np.atleast_1d(node.argument(i, name)).tolist() for i, name in ((1, "shift"), (2, "axis")))
    places = {axis % rank: np.roll(np.arange(source.shape[axis]), shift) for shift, axis in zip(shifts, axes)}
    if len(places) < len(axes):
      return
  else:
    axis, places = node.argument(3, "axis"), np.asarray(node.argument(1, "indices"))
    if axis is None or places.ndim != 1 or node.argument(4, "batch_dims", 0):
      return
    places = {int(axis) % rank: places}
  if 0 in places or any(len(chosen) == 0 for chosen in places.values()):
    return
  for axis, chosen in places.items():
    source = _chosen(graph, f"{node.layer_name}/axis{axis}", source, axis, chosen)
  replace(graph, node, source, "written as slices that are joined")


def _chosen(graph: Graph, name: str, source: Ref, axis: int, places: np.ndarray) -> Ref:
  parts = [_slice(graph, f"{name}/part{index}", source, axis, run) for index, run in enumerate(_runs(places))]
  if len(parts) == 1:
    return parts[0]
  shape = (*source.shape[:axis], len(places), *source.shape[axis + 1:])
  return graph.add_node(graph.new_layer(keras.layers.Concatenate, name, {"axis": axis}), (parts,), shape)


def _runs(places: np.ndarray) -> list[range]:
  """Cuts indices into runs of neighbours."""
  cuts = np.flatnonzero(np.diff(places) != 1) + 1
  return [range(int(run[0]), int(run[-1]) + 1) for run in np.split(places, cuts)]


def _slice(graph: Graph, name: str, source: Ref, axis: int, run: Sequence[int]) -> Ref:
  if len(run) == source.shape[axis]:
    return source
  layer = keras.layers.deserialize({"class_name": "SlicingOpLambda", "config": {
      "name": name.replace("@", "_call"), "function": "__operators__.getitem"}})
  items = [{"start": None, "stop": None, "step": None} for _ in source.shape]  # as Keras writes slices
  items[axis] = {"start": run[0], "stop": run[-1] + 1, "step": None}
  shape = (*source.shape[:axis], len(run), *source.shape[axis + 1:])
  return graph.add_node(LayerDef(layer.name, type(layer), layer.get_config()), (source, tuple(items)), shape)
