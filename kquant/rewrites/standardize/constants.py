"""Sizes of tensors, tf.zeros_like, and what is computed from them alone, as constants.

Each is computed for a batch of one image and for one of two. Equal values are a constant; values that are the
same for both images are a constant of each image. What is left depends on the number of images.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kquant.core.text import scope_name
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref, map_refs
from kquant.rewrites.folding.affine import affine_layer
from kquant.rewrites.standardize.building import add_operator, add_reshape, add_slice
from kquant.rewrites.standardize.operators import BINARY_LAYERS

_OF_SIZES = ("tf.shape", "tf.compat.v1.shape", "tf.size", "tf.compat.v1.size", "tf.rank",
             "tf.zeros_like", "tf.compat.v1.zeros_like", "tf.ones_like", "tf.compat.v1.ones_like")
_RANDOM = ("random", "dropout")


class _Value(NamedTuple):
  """A tensor that depends on no image.

  Attributes:
    one, two: its values for a batch of one image and for one of two.
    source: the tensor whose size was asked for.
  """

  one: np.ndarray
  two: np.ndarray
  source: Ref

  @property
  def is_fixed(self) -> bool:
    """Whether it is the same for every batch."""
    return self.one.shape == self.two.shape and bool((self.one == self.two).all())

  @property
  def is_of_each_image(self) -> bool:
    """Whether it is float, [images, ...], and the same for each image."""
    return (self.one.dtype == np.float32 and self.one.shape[:1] == (1,)
            and np.array_equal(self.two, np.concatenate([self.one, self.one])))


def fold_constants(graph: Graph) -> None:
  """Puts constants in the place of tensors that depend on sizes alone.

  An operator of two operands takes one as it is; in front of any other it is added to a zero, which is made
  of one element of the image: so it has the batch of the image.
  """
  values: dict[Ref, _Value] = {}
  made: dict[Ref, Ref] = {}
  for node in list(graph.nodes):
    source = _source(node, values)
    if source is not None:
      batches = [_compute(node, values, batch) for batch in (1, 2)]
      values.update({ref: _Value(*arrays, source)
                     for ref, *arrays in zip(node.outputs, *batches, strict=True)})
    else:
      _take_constants(graph, node, values, made)
  for ref in graph.output_refs:
    if ref in values and values[ref].is_of_each_image:
      graph.redirect(ref, _computed(graph, ref, values[ref], made))
  graph.normalize()


def _source(node: Node, values: dict[Ref, _Value]) -> Ref | None:
  """Returns the tensor whose size a call depends on alone, or None."""
  inputs = node.inputs
  if not inputs or not node.kind.startswith("tf.") or any(word in node.kind for word in _RANDOM):
    return None
  if all(ref in values for ref in inputs):
    return values[inputs[0]].source
  return inputs[0] if node.kind in _OF_SIZES and None not in inputs[0].shape[1:] else None


def _compute(node: Node, values: dict[Ref, _Value], batch: int) -> list[np.ndarray]:
  """Returns the outputs of a call for a batch of 1 or 2 images; of other tensors it asks the size alone."""
  def value(ref: Ref) -> Any:
    if ref in values:
      return tf.constant(values[ref][batch - 1])
    dtype = ref.node.config["dtype"] if ref.node.facts.role == "input" else "float32"
    return tf.zeros((batch, *ref.shape[1:]), dtype)

  layer = node.layer.cls.from_config(dict(node.config))
  args, kwargs = map_refs(value, (node.args, node.kwargs))
  return [np.asarray(output) for output in tf.nest.flatten(layer(*args, **kwargs))]


def _take_constants(graph: Graph, node: Node, values: dict[Ref, _Value], made: dict[Ref, Ref]) -> None:
  """Lets a call read constants in the place of such tensors; those that depend on the batch stay."""
  for place, ref in reversed(list(enumerate(node.inputs))):
    value = values.get(ref)
    if value is None:
      continue
    if value.is_fixed and node.kind.startswith("tf."):
      graph.set_input(node, place, value.one)
    elif value.is_of_each_image and _is_operand(node, values):
      graph.set_input(node, place, _narrowed(value.one, node.inputs[1 - place]))
    elif value.is_of_each_image and len(value.one.shape) > 1 and not value.source.is_integer:
      graph.set_input(node, place, _computed(graph, ref, value, made))
    else:
      continue
    graph.edit(ref.node, f"a constant for {node.name!r}: it depends on no image")


def _is_operand(node: Node, values: dict[Ref, _Value]) -> bool:
  """Whether a call is an operator of two tensors of one rank, and one of them no constant."""
  if len(node.inputs) != 2 or not (node.facts.operator or node.layer.cls in BINARY_LAYERS.values()):
    return False
  first, second = node.inputs
  return len(first.shape) == len(second.shape) and (first in values) != (second in values)


def _narrowed(constant: np.ndarray, other: Ref) -> np.ndarray:
  """Returns a constant of size 1 along axes where it is all the same and broadcast."""
  for axis in range(1, constant.ndim):
    first = constant.take([0], axis)
    if constant.shape[axis] == other.shape[axis] and (constant == first).all():
      constant = first
  return constant


def _computed(graph: Graph, ref: Ref, value: _Value, made: dict[Ref, Ref]) -> Ref:
  """Returns a tensor that holds the constant for each image of a batch."""
  if ref not in made:
    name, rank = scope_name(ref.key), value.one.ndim
    first = {axis: range(1) for axis in range(1, len(value.source.shape))}
    with graph.in_place_of(ref.node):
      x = add_slice(graph, f"{name}/element", value.source, first)
      x = add_reshape(graph, f"{name}/rank", x, (1,) * (rank - 1)) if len(x.shape) != rank else x
      x = graph.add_node(affine_layer(graph, f"{name}/zero", np.zeros(1), np.zeros(1)), (x,), x.shape)
      made[ref] = add_operator(graph, name, "math.add", (x, value.one), ref.shape)
  return made[ref]
