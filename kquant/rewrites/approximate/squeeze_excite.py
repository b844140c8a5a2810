"""Tiled squeeze-and-excite (Vosco et al. 2021): one gate for each tile of an image, by the same weights.

Squeeze-and-excite holds the whole image back until its mean is known. With tiles of a few rows a gate is
known after these rows. What a model computes changes; its weights do not.
"""

import re
from collections.abc import Iterator, Mapping

import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.graph.passes import graph_pass
from kquant.rewrites.approximate.gates import SqueezeExcite, find_blocks
from kquant.rewrites.standardize.building import add_crop, add_join, add_operator, add_reshape

Tile = tuple[int, int]
"""Rows and columns."""
TILE_OF_NAME = r"/\d\d/mean$"
"""What the name of a mean over tiles has behind that of the mean over the image."""


@graph_pass
def tile_squeeze_excite(graph: Graph, *, rows: int | None = None, columns: int | None = None,
                        tile: Tile | None = None, match: str = "") -> None:
  """Gives each tile of an image a gate of its own: the function changes, the weights stay.

  Tiles begin at the upper left; those at the lower and right border are smaller where the image is no
  multiple of the tile. Each mean is over the pixels of its tile alone. An image that one tile holds keeps its
  one gate. Products that look like squeeze-and-excite and are none are skipped, with the reason.

  Args:
    graph: a Graph, which is edited; or a model of images of fixed size, which is not changed.
    rows: of a tile as wide as the image.
    columns: of a tile as high as the image.
    tile: rows and columns. Give one of the three.
    match: regular expression, searched in the name of the call that takes the mean of a block, such as
      "block2a_se_squeeze"; all blocks without it.

  Returns:
    The Graph, or a new model. Called with keywords alone: the pass with these options, for `kq.rewrite`.

  Raises:
    ValueError: none or several of rows, columns and tile; a size below 1; a `match` that finds no block.

  Example:
    >>> image = keras.Input((8, 8, 4))
    >>> mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(image)
    >>> gate = keras.layers.Dense(4, "sigmoid")(keras.layers.Dense(2, "relu")(mean))
    >>> model = keras.Model(image, keras.layers.Multiply()([image, gate]))
    >>> tiled = kq.rewrite(model, [kq.tile_squeeze_excite(rows=2)])
    >>> tiled.get_layer("dense").output_shape, tiled.count_params() == model.count_params()
    ((None, 4, 1, 4), True)
  """
  size = _size(rows, columns, tile)
  blocks, others = find_blocks(graph)
  for node, reason in others:
    graph.skip(node, f"it is no squeeze-and-excite: {reason}")
  chosen = [block for block in blocks if re.search(match, block.name)]
  if not blocks:
    graph.skip(graph.output_refs[0].node, "the model has no squeeze-and-excite")
  elif not chosen:
    raise ValueError(f"tile_squeeze_excite: match {match!r} finds none of the {len(blocks)} blocks; expected "
                     f"a part of a name such as {blocks[0].name!r}.")
  tile_blocks(graph, {block: size for block in chosen})


def tile_blocks(graph: Graph, tiles: Mapping[SqueezeExcite, tuple[int | None, int | None]]) -> None:
  """Tiles blocks of a graph; a size of None is that of the image."""
  for block, sizes in tiles.items():
    rows, columns, _ = block.size
    tile = tuple(min(size or whole, whole) for size, whole in zip(sizes, (rows, columns)))
    if tile == (rows, columns):
      graph.skip(block.mean, f"one tile holds its image of {rows} x {columns}")
    else:
      name = block.name
      _tile(graph, block, tile)
      graph.edit(block.product, f"gates of {name!r} for tiles of {tile[0]} x {tile[1]}")
  graph.normalize()


def _size(rows: int | None, columns: int | None, tile: Tile | None) -> tuple[int | None, int | None]:
  given = [size for size in ((rows, None), (None, columns), tile) if size not in (None, (None, None))]
  if len(given) != 1 or len(given[0]) != 2:
    raise ValueError("tile_squeeze_excite: expected one of rows=7, columns=7 and tile=(7, 7), got "
                     f"rows={rows}, columns={columns}, tile={tile}.")
  (size,) = given
  if any(value is not None and (not isinstance(value, int) or value < 1) for value in size):
    raise ValueError(f"tile_squeeze_excite: a tile has 1 row and 1 column or more, got {size}.")
  return tuple(size)


def _tile(graph: Graph, block: SqueezeExcite, tile: Tile) -> None:
  """Takes means of tiles, lets the layers of the block work on all of them, and spreads the gates."""
  with graph.in_place_of(block.mean):
    means = _means(graph, block, tile)
  graph.redirect(Ref(block.mean), means)
  graph.drop(block.mean)
  for node in block.layers:
    if node in block.reshapes:
      graph.remove(node)
      continue
    if node.facts.role == "affine":
      node.layer.config = {**node.config, "axis": [3]}
    node.shapes = [(*means.shape[:3], node.shapes[0][-1])]
  with graph.in_place_of(block.product):
    _spread(graph, block, tile)


def _means(graph: Graph, block: SqueezeExcite, tile: Tile) -> Ref:
  """The mean over each tile, [batch, tiles down, tiles across, channels]."""
  rows, columns, _ = block.size
  name = block.mean.layer_name
  bands = []
  for down, (top, bottom, height) in enumerate(_spans(rows, tile[0])):
    parts = []
    for across, (left, right, width) in enumerate(_spans(columns, tile[1])):
      label = f"{name}/{down}{across}"
      part = add_crop(graph, f"{label}/part", block.image, (top, rows - bottom), (left, columns - right))
      parts.append(_means_of_equal_tiles(graph, label, part, (height, width)))
    bands.append(add_join(graph, f"{name}/{down}", parts, 2))
  return add_join(graph, f"{name}/tiles", bands, 1)


def _spans(size: int, tile: int) -> Iterator[tuple[int, int, int]]:
  """Yields (first, end, tile) of the part that whole tiles fill, and of the rest as one smaller tile."""
  whole = size - size % tile
  if whole:
    yield 0, whole, tile
  if whole < size:
    yield whole, size, size - whole


def _means_of_equal_tiles(graph: Graph, name: str, part: Ref, tile: Tile) -> Ref:
  """The means of an image that tiles fill: the pixels of a tile side by side, then the mean over them."""
  batch, rows, columns, channels = part.shape
  down, across = rows // tile[0], columns // tile[1]
  if across == 1:
    pixels = add_reshape(graph, f"{name}/pixels", part, (down, tile[0] * columns, channels))
    return add_operator(graph, f"{name}/mean", "math.reduce_mean", (pixels,), (batch, down, 1, channels),
                        axis=2, keepdims=True)
  pixels = add_reshape(graph, f"{name}/pixels", part, (down, tile[0], across, tile[1], channels))
  return add_operator(graph, f"{name}/mean", "math.reduce_mean", (pixels,), (batch, down, across, channels),
                      axis=[2, 4])


def _spread(graph: Graph, block: SqueezeExcite, tile: Tile) -> None:
  """Repeats each gate over the rows and columns of its tile, cut to the image.

  Along an axis with one tile the product repeats it.
  """
  product, place = block.product, block.place
  gates, name = product.inputs[place], product.layer_name
  batch, down, across, channels = gates.shape
  repeats = [size if count > 1 else 1 for size, count in zip(tile, (down, across))]
  layer = graph.new_layer(keras.layers.UpSampling2D, f"{name}/gates", {"size": tuple(repeats)})
  shape = (batch, down * repeats[0], across * repeats[1], channels)
  spread = graph.add_node(layer, (gates,), shape)
  extra = [made - whole if count > 1 else 0
           for made, whole, count in zip(shape[1:3], block.size, (down, across))]
  graph.set_input(product, place, add_crop(graph, f"{name}/cut", spread, (0, extra[0]), (0, extra[1])))
