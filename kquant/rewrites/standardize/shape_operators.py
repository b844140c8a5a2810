"""Operators that cut, join and rearrange tensors, written as functions, become Keras layers."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.rewrites.folding.affine import affine_layer
from kquant.rewrites.standardize.operators import become, operator_layer

RESHAPES = ("tf.reshape", "tf.squeeze", "tf.compat.v1.squeeze", "tf.expand_dims")
_TRANSPOSES = ("tf.transpose", "tf.compat.v1.transpose")
_EXTREMES = {"tf.math.maximum": keras.layers.Maximum, "tf.math.minimum": keras.layers.Minimum,
             "tf.maximum": keras.layers.Maximum, "tf.minimum": keras.layers.Minimum}


def name_shape_operator(graph: Graph, node: Node) -> None:
  """Gives a call of a shape operator the Keras layer that does the same, under the same name."""
  shape = node.shapes[0]
  if node.kind in RESHAPES and shape and shape[0] is None and None not in shape[1:]:
    if _mixes_batch(node):
      return  # refused by name when quantizers are placed
    become(graph, node, keras.layers.Reshape, {"target_shape": shape[1:]}, (node.inputs[0],))
  elif node.kind == "tf.concat":
    axis, parts = node.argument(1, "axis"), tf.nest.flatten(node.argument(0, "values"))
    if np.ndim(axis) == 0 and all(isinstance(part, Ref) for part in parts):
      become(graph, node, keras.layers.Concatenate, {"axis": int(axis)}, (node.inputs,))
  elif node.kind in _TRANSPOSES:
    order = node.argument(1, "perm")
    if order is not None and list(order)[:1] == [0]:
      become(graph, node, keras.layers.Permute, {"dims": [int(axis) for axis in order[1:]]})
  elif node.kind in _EXTREMES and len(node.inputs) == 2:
    first, second = node.inputs
    if len(first.shape) == len(second.shape):
      become(graph, node, _EXTREMES[node.kind], {}, ([first, second],))
  elif node.kind == "Average":
    _become_average(graph, node)
  elif node.kind == "RepeatVector":
    _become_repetition(graph, node)
  elif node.kind == "tf.math.reduce_sum":
    _become_scaled_mean(graph, node)
  elif node.kind == "Dot":
    _become_matmul(graph, node)


def _mixes_batch(node: Node) -> bool:
  """Whether a sample has another number of values behind a reshape than in front of it."""
  before, after = node.inputs[0].shape[1:], node.shapes[0][1:]
  return None not in before and int(np.prod(before, dtype=int)) != int(np.prod(after, dtype=int))


def drop_cast(graph: Graph, node: Node) -> None:
  """A cast of float32 to float32 goes; an input of integers that is only cast so becomes one of float32."""
  to_float = node.facts.casts and tf.as_dtype(node.argument(1, "dtype")) == tf.float32
  if to_float and node.inputs[0].node.facts.role == "input":
    _hold_floats(graph, node.inputs[0])
  if to_float and _is_float(node.inputs[0]):
    graph.edit(node, "dropped: casts to the same dtype")
    graph.remove(node)


def _hold_floats(graph: Graph, source: Ref) -> None:
  """Makes an integer input float32 where all that reads it is a cast to float32."""
  if source not in graph.output_refs and all(
      reader.facts.casts and tf.as_dtype(reader.argument(1, "dtype")) == tf.float32
      for reader in graph.readers(source)):
    layer = source.node.layer
    layer.config = {**layer.config, "dtype": "float32"}


def _is_float(ref: Ref) -> bool:
  """Whether a tensor is known to be float32: what a linear layer makes, or known kinds of float32."""
  facts = ref.node.facts
  if facts.fixed_grid:
    return True
  if facts.role == "input":
    return tf.as_dtype(ref.node.config["dtype"]) == tf.float32
  known = facts.role != "opaque" or facts.operator or facts.taken_apart
  return facts.role == "linear" or bool(known) and all(_is_float(source) for source in ref.node.inputs)


def _become_average(graph: Graph, node: Node) -> None:
  """A sum, and a scale that folds where it can."""
  tensors, name = node.inputs, node.layer_name
  if len(node.operands) > len(tensors):
    return
  total = graph.add_node(graph.new_layer(keras.layers.Add, f"{name}/sum"), (tensors,), node.shapes[0])
  scale = np.full(node.shapes[0][-1], 1 / len(tensors))
  graph.recall(node, affine_layer(graph, name, scale, 0 * scale), (total,))


def _become_scaled_mean(graph: Graph, node: Node) -> None:
  """A mean times the number of terms: the reference kernel of SUM ignores the output's grid."""
  (source,), rank = node.inputs, len(node.inputs[0].shape)
  axes = node.argument(1, "axis")
  axes = [int(axis) % rank for axis in (range(1, rank) if axes is None else np.atleast_1d(axes))]
  terms = [source.shape[axis] for axis in axes]
  if 0 in axes or None in terms or len(node.shapes[0]) < 2:
    return
  mean = graph.add_node(operator_layer(f"{node.name}/mean", "math.reduce_mean"), (source,), node.shapes[0],
                        kwargs={"axis": axes, "keepdims": bool(node.argument(2, "keepdims", False))})
  scale = np.full(node.shapes[0][-1], float(np.prod(terms)))
  graph.recall(node, affine_layer(graph, node.layer_name, scale, 0 * scale), (mean,))


def _become_repetition(graph: Graph, node: Node) -> None:
  (source,), (batch, count, size) = node.inputs, node.shapes[0]
  row = graph.new_layer(keras.layers.Reshape, f"{node.layer_name}/row",
                        {"target_shape": (1, size)})
  once = graph.add_node(row, (source,), (batch, 1, size))
  become(graph, node, keras.layers.Concatenate, {"axis": 1}, ([once] * count,))


def _become_matmul(graph: Graph, node: Node) -> None:
  """Dot over the last axis of the first tensor, both of rank 3, not normalized."""
  first, second = node.inputs
  axes = node.config["axes"]
  axes = (axes, axes) if isinstance(axes, int) else tuple(axes)
  if node.config["normalize"] or len(first.shape) != 3 or len(second.shape) != 3:
    return
  left, right = (axis % 3 for axis in axes)
  if left and right:
    layer = operator_layer(node.name, "linalg.matmul")
    graph.recall(node, layer, (first, second))
    node.kwargs = {"transpose_a": left == 1, "transpose_b": right == 2}


