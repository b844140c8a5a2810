"""Finds squeeze-and-excite blocks: an image times a gate that layers make of the mean over the image.

Squeeze-and-excite (Hu et al. 2018): y = x * sigma(W2 relu(W1 mean(x) + b1) + b2), one gate a channel. A block
is found by what it computes, not by the names of its layers: a product of an image with a vector, whose every
path leads back to one mean over all positions of that image, through layers that treat a vector alike
wherever it stands.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref


@dataclasses.dataclass(frozen=True, eq=False)
class SqueezeExcite:
  """One block in a graph.

  Attributes:
    mean: the call that takes the mean over the image.
    layers: the calls between mean and product, in topological order.
    reshapes: those of them that only change the shape of the vector.
    product: the call that multiplies.
    place: of the gate among the inputs of the product.
  """

  mean: Node
  layers: tuple[Node, ...]
  reshapes: frozenset[Node]
  product: Node
  place: int

  @property
  def name(self) -> str:
    """The name of the call that takes the mean."""
    return self.mean.name

  @property
  def image(self) -> Ref:
    """What is multiplied, [batch, rows, columns, channels]."""
    return self.mean.inputs[0]

  @property
  def size(self) -> tuple[int, int, int]:
    """Rows, columns and channels of the image."""
    return self.image.shape[1:]

  def in_copy(self, twin: Mapping[Node, Node]) -> "SqueezeExcite":
    """Returns the block in a copy of its graph, of {call: that of the copy}."""
    return dataclasses.replace(self, mean=twin[self.mean], layers=tuple(twin[node] for node in self.layers),
                               reshapes=frozenset(twin[node] for node in self.reshapes),
                               product=twin[self.product])


def find_blocks(graph: Graph) -> tuple[list[SqueezeExcite], list[tuple[Node, str]]]:
  """Returns the blocks in topological order, and the products that look like one with why they are none."""
  blocks, others = [], []
  for node in graph.nodes:
    place = _place_of_gate(node)
    if place is None:
      continue
    try:
      blocks.append(_block(graph, node, place))
    except _NoBlockError as error:
      others.append((node, str(error)))
  return blocks, others


def image_and_means(product: Node) -> tuple[Ref, list[Node]] | None:
  """Returns the image of a block, tiled or not, and the calls that take means of it; None for all else.

  Every path from the other factor leads to a mean over pixels of the image, or of a part of it.
  """
  if product.facts.arithmetic != "product" or len(product.inputs) != 2 or len(product.shapes[0]) != 4:
    return None
  for place, gate in enumerate(product.inputs):
    image, means, seen, todo = product.inputs[1 - place], [], set(), [gate.node]
    while todo:
      node = todo.pop()
      if node in seen:
        continue
      seen.add(node)
      if node.facts.pools:
        means.append(node)
      else:
        todo += [ref.node for ref in node.inputs] or [image.node]
    if image.node not in seen and means and all(_origin(node.inputs[0]) == image for node in means):
      return image, means[::-1]
  return None


def _origin(ref: Ref) -> Ref:
  """The tensor that parts and other shapes of it are made of."""
  while ref.node.facts.role == "move" and len(ref.node.inputs) == 1:
    ref = ref.node.inputs[0]
  return ref


class _NoBlockError(Exception):
  """Why a product is no block."""


def _place_of_gate(node: Node) -> int | None:
  """The place of the vector among the inputs of a product of an image and a vector; None for all else."""
  multiplies = node.facts.arithmetic == "product" or node.facts.operator == "multiply"
  if not multiplies or len(node.inputs) != 2 or len(node.shapes[0]) != 4:
    return None
  shape = tuple(node.shapes[0])
  vectors = [place for place, ref in enumerate(node.inputs) if tuple(ref.shape[1:3]) == (1, 1)]
  images = [ref for ref in node.inputs if tuple(ref.shape) == shape and shape[1:3] != (1, 1)]
  return vectors[0] if len(vectors) == len(images) == 1 else None


def _block(graph: Graph, product: Node, place: int) -> SqueezeExcite:
  """Returns the block that ends in a product, or raises why there is none."""
  gate, image = product.inputs[place], product.inputs[1 - place]
  if None in image.shape[1:]:
    raise _NoBlockError("its image has an open size; fix the model's input")
  means, layers, todo = {}, {}, [gate.node]
  while todo:
    node = todo.pop()
    if node in means or node in layers:
      continue
    if _takes_mean(node, image):
      means[node] = None
      continue
    layers[node] = _only_reshapes(node)
    todo += [ref.node for ref in node.inputs]
  if len(means) != 1:
    raise _NoBlockError(f"{len(means)} means of the image make its gate, expected one")
  if not any(node.facts.role == "linear" for node in layers):
    raise _NoBlockError("no layer with weights lies between the mean and the product")
  (mean,) = means
  _check_sharing(graph, (mean, *layers), product)
  return SqueezeExcite(mean, tuple(node for node in graph.nodes if node in layers),
                       frozenset(node for node, reshapes in layers.items() if reshapes), product, place)


def _takes_mean(node: Node, image: Ref) -> bool:
  """Whether a call is the mean over all positions of the image; raises for that of another tensor."""
  if not node.facts.pools:
    return False
  (source,) = node.inputs[:1]
  if source != image:
    raise _NoBlockError(f"{node.name!r} takes the mean of {source.key!r}, but {image.key!r} is multiplied")
  probe = np.random.default_rng(0).normal(size=(1, *image.shape[1:3], 2)).astype(np.float32)
  if not _is_vector(Ref(node)) or image.shape[-1] != node.shapes[0][-1] or not _same(
      node.compute(probe).reshape(-1), probe.mean((1, 2)).reshape(-1)):
    raise _NoBlockError(f"{node.name!r} takes no mean over the whole image")
  return True


def _only_reshapes(node: Node) -> bool:
  """Whether a call just changes the shape of a vector; raises where it does not treat each vector alike."""
  where = f"{node.name!r} ({node.kind})"
  if node.facts.role == "input":
    raise _NoBlockError(f"its gate depends on the input {node.name!r} too")
  if not all(map(_is_vector, (*node.inputs, *node.outputs))) or len(node.outputs) != 1:
    raise _NoBlockError(f"{where} lies in front of its gate and is no mean over the image")
  if node.facts.role in ("linear", "affine"):
    if not _fits_tiles(node):
      raise _NoBlockError(f"{where} works on more than the channels of one vector")
    return False
  if node.layer.params:
    raise _NoBlockError(f"{where} has weights of one position")
  if len(set(node.inputs)) > 1:
    if not (node.facts.arithmetic or node.facts.operator):
      raise _NoBlockError(f"{where} joins vectors in another way than element by element")
    return False
  return _moves_nothing(node, where)


def _is_vector(ref: Ref) -> bool:
  """Whether a tensor is [batch, channels], perhaps with axes of size 1 between them."""
  return len(ref.shape) > 1 and set(ref.shape[1:-1]) <= {1} and ref.shape[-1] is not None


def _fits_tiles(node: Node) -> bool:
  """Whether a layer with weights does the same to each vector of a map of them."""
  config = node.config
  if node.facts.role == "affine":
    return {int(axis) % len(node.shapes[0]) for axis in np.atleast_1d(config["axis"])} == {
        len(node.shapes[0]) - 1}
  if node.facts.spatial == 0:
    return True
  return (node.facts.spatial == 2 and not node.facts.transposed
          and set((*config["kernel_size"], *config["strides"])) == {1})


def _moves_nothing(node: Node, where: str) -> bool:
  """Whether a function without weights only changes the shape of a vector; raises where places differ.

  What gives the same for a map of vectors as for each of them stays as it is.
  """
  channels = node.inputs[0].shape[-1]
  vectors = np.random.default_rng(0).normal(0, 100, (6, channels)).astype(np.float32)
  alone = _computed(node, vectors.reshape(6, *node.inputs[0].shape[1:]))
  apart = _computed(node, vectors.reshape(1, 2, 3, channels))
  if apart.shape[:3] == (1, 2, 3) and _same(apart.reshape(6, -1), alone.reshape(6, -1)):
    return False
  if not np.array_equal(alone.reshape(-1), vectors.reshape(-1)):
    raise _NoBlockError(f"{where} does not treat each vector of a map alike")
  return True


def _computed(node: Node, values: np.ndarray) -> np.ndarray:
  """What a function makes of values; nothing where it takes no such shape, as reshapes and users' own may."""
  try:
    return node.compute(values)
  except Exception:  # of any kind
    return np.zeros((6, 0))


def _same(found: np.ndarray, expected: np.ndarray) -> bool:
  return found.shape == expected.shape and np.allclose(found, expected, 1e-4, 1e-5, equal_nan=True)


def _check_sharing(graph: Graph, nodes: Sequence[Node], product: Node) -> None:
  """Raises where something outside of the block reads what is made in it, or needs a layer as it is."""
  inside = {*nodes, product}
  for node in nodes:
    if Ref(node) in graph.output_refs:
      raise _NoBlockError(f"{node.name!r} is an output of the model too")
    for reader in graph.readers(Ref(node)):
      if reader not in inside:
        raise _NoBlockError(f"{reader.name!r} reads {node.name!r} too")
    if node.facts.role == "affine" and len(node.shapes[0]) != 4 and len(graph.calls(node.layer)) > 1:
      raise _NoBlockError(f"{node.name!r} normalizes vectors in other places too")
