"""Short ways to add calls to a graph: for passes that write one layer as several."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.text import scope_name
from kquant.graph.graph import Graph
from kquant.graph.masks import Select
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.rewrites.standardize.operators import operator_layer


def add_merge(graph: Graph, cls: type, name: str, inputs: list[Ref]) -> Ref:
  """Calls a Keras layer such as Multiply on tensors; the first has the shape of the result."""
  return graph.add_node(graph.new_layer(cls, name), (inputs,), inputs[0].shape)


def add_reshape(graph: Graph, name: str, source: Ref, shape: Sequence[int]) -> Ref:
  """Reshapes a tensor to `shape`, given without the batch; one that has it stays."""
  shape = tuple(int(n) for n in shape)
  if source.shape[1:] == shape:
    return source
  layer = graph.new_layer(keras.layers.Reshape, name, {"target_shape": shape})
  return graph.add_node(layer, (source,), (source.shape[0], *shape))


def add_permute(graph: Graph, name: str, source: Ref, dims: Sequence[int]) -> Ref:
  """Transposes a tensor; `dims` as for keras.layers.Permute: 1 is the first axis behind the batch."""
  shape = (source.shape[0], *(source.shape[axis] for axis in dims))
  return graph.add_node(graph.new_layer(keras.layers.Permute, name, {"dims": tuple(dims)}), (source,), shape)


def add_slice(graph: Graph, name: str, source: Ref, parts: Mapping[int, range]) -> Ref:
  """Takes a part of some axes of a tensor: {axis: places, in steps of one size}."""
  parts = {axis: part for axis, part in parts.items() if len(part) != source.shape[axis]}
  if not parts:
    return source
  layer = keras.layers.deserialize({"class_name": "SlicingOpLambda", "config": {
      "name": scope_name(name), "function": "__operators__.getitem"}})
  items = [{"start": None, "stop": None, "step": None} for _ in source.shape]  # as Keras writes slices
  shape = list(source.shape)
  for axis, part in parts.items():
    items[axis] = {"start": part.start, "stop": part.stop, "step": part.step}
    shape[axis] = len(part)
  definition = LayerDef(layer.name, type(layer), layer.get_config())
  return graph.add_node(definition, (source, tuple(items)), tuple(shape))


def add_split(graph: Graph, layer: str | LayerDef, source: Ref, sizes: Sequence[int], *,
              axis: int = -1) -> list[Ref]:
  """Cuts a tensor along an axis into parts of these sizes.

  Args:
    layer: the name of a new one, or that of an earlier call, for one more call.
  """
  if len(sizes) == 1:
    return [source]
  layer = operator_layer(layer, "split") if isinstance(layer, str) else layer
  axis %= len(source.shape)
  first = graph.add_node(layer, (source, [int(size) for size in sizes]), source.shape, kwargs={"axis": axis})
  first.node.shapes = [(*source.shape[:axis], int(size), *source.shape[axis + 1:]) for size in sizes]
  return first.node.outputs


def add_join(graph: Graph, name: str, parts: Sequence[Ref], axis: int) -> Ref:
  """Puts tensors one behind the other along an axis; one alone stays as it is."""
  if len(parts) == 1:
    return parts[0]
  shape = list(parts[0].shape)
  shape[axis] = sum(part.shape[axis] for part in parts)
  layer = graph.new_layer(keras.layers.Concatenate, name, {"axis": axis})
  return graph.add_node(layer, (list(parts),), tuple(shape))


def add_steps(graph: Graph, name: str, source: Ref) -> list[Ref]:
  """Cuts a tensor [batch, steps, size, ...] into one [batch, size, ...] for each step."""
  _, steps, size, *others = source.shape
  flat = add_reshape(graph, f"{name}/flat", source, (steps * size, *others))
  return add_split(graph, f"{name}/steps", flat, [size] * steps, axis=1)


def add_sequence(graph: Graph, name: str, steps: Sequence[Ref]) -> Ref:
  """Puts tensors [batch, size, ...] into one [batch, steps, size, ...]."""
  _, size, *others = steps[0].shape
  return add_reshape(graph, name, add_join(graph, f"{name}/joined", steps, 1), (len(steps), size, *others))


def add_dense(graph: Graph, name: str, source: Ref, params: dict[str, np.ndarray],
              training: dict[str, Any]) -> Ref:
  """Multiplies the last axis by a kernel [inputs, units].

  Args:
    params: "kernel", and "bias" [units] where there is one.
    training: entries of the layer's config that say how it trains.
  """
  units = params["kernel"].shape[1]
  config = {"units": units, "use_bias": "bias" in params, **training}
  layer = graph.new_layer(keras.layers.Dense, name, config, params)
  return graph.add_node(layer, (source,), (*source.shape[:-1], units))


def add_crop(graph: Graph, name: str, source: Ref, rows: Sequence[int], columns: Sequence[int]) -> Ref:
  """Cuts rows and columns off an image: so many in front and behind."""
  if not any((*rows, *columns)):
    return source
  batch, height, width, channels = source.shape
  layer = graph.new_layer(keras.layers.Cropping2D, name, {"cropping": (tuple(rows), tuple(columns))})
  return graph.add_node(layer, (source,), (batch, height - sum(rows), width - sum(columns), channels))


def add_operator(graph: Graph, name: str, symbol: str, sources: Sequence[Any], shape: Sequence[int | None],
                 **options: Any) -> Ref:
  """Calls a TensorFlow function such as "linalg.matmul" on tensors or constants, the options by keyword."""
  return graph.add_node(operator_layer(name, symbol), tuple(sources), tuple(shape), kwargs=options)


def add_select(graph: Graph, name: str, mask: Ref | np.ndarray, sources: Sequence[Ref],
               **options: float) -> Ref:
  """Chooses by a mask, computed or constant, among one tensor and a number, or two tensors (see Select)."""
  shape = _broadcast(mask, *sources)
  if isinstance(mask, Ref):
    return graph.add_node(graph.new_layer(Select, name, options), ([mask, *sources],), shape)
  layer = graph.new_layer(Select, name, {**options, "condition_shape": mask.shape},
                          {"condition": mask.astype(np.float32)})
  return graph.add_node(layer, tuple(sources), shape)


def _broadcast(*tensors: Ref | np.ndarray) -> tuple[int | None, ...]:
  """The shape of tensors that broadcast, all sizes known but that of the batch."""
  batch = next(tensor.shape[0] for tensor in tensors if isinstance(tensor, Ref))
  return batch, *np.broadcast_shapes(*(tuple(tensor.shape[1:]) for tensor in tensors))


def add_matmul(graph: Graph, name: str, first: Ref, second: Ref, *, transpose_b: bool = False) -> Ref:
  """Multiplies two stacks of matrices of one rank and one number of matrices."""
  columns = second.shape[-2] if transpose_b else second.shape[-1]
  return add_operator(graph, name, "linalg.matmul", (first, second), (*first.shape[:-1], columns),
                      transpose_b=transpose_b)


def replace(graph: Graph, node: Node, result: Ref, what: str) -> None:
  """Lets what reads a call read `result` instead, records what was done, and drops the call."""
  graph.redirect(Ref(node), result)
  graph.edit(node, what)
  graph.drop(node)


def is_fixed(*refs: Ref) -> bool:
  """Whether all axes of the tensors but the batch have a size."""
  return all(None not in ref.shape[1:] for ref in refs)
