"""Chooses the tile of each squeeze-and-excite block: least buffer for a change, or the reverse."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.data import gather, hold_back
from kquant.core.text import text_table
from kquant.graph.graph import Graph
from kquant.rewrites.approximate.gates import SqueezeExcite, find_blocks
from kquant.rewrites.approximate.squeeze_excite import tile_blocks
from kquant.search.knapsack import choose_options
from kquant.search.tile_changes import TileChanges, Tiles

MAX_CHANGE = 0.02
_ROUNDS = 6
"""Of choosing anew with a smaller budget, where the held-back images change more than was predicted."""


@dataclasses.dataclass(frozen=True)
class BlockTile:
  """The tile of one block.

  Attributes:
    name: of the call that takes the mean.
    image: rows, columns and channels of its image.
    rows: of its tile; None: it keeps the whole image.
    change: of the output where this block alone is tiled so, 0..1.

  Example:
    >>> tile = kq.BlockTile("se", image=(56, 56, 96), rows=7, change=0.01)
    >>> tile.untiled, tile.elements
    (301056, 37632)
  """

  name: str
  image: tuple[int, int, int]
  rows: int | None
  change: float

  @property
  def untiled(self) -> int:
    """Elements of the image."""
    return math.prod(self.image)

  @property
  def elements(self) -> int:
    """Elements of a tile; at 8 bits as many bytes."""
    return (self.rows or self.image[0]) * math.prod(self.image[1:])


@dataclasses.dataclass(frozen=True)
class TileChoice:
  """What `choose_tiles` chose.

  Attributes:
    model: with the tiles.
    blocks: all blocks of the model, in its order.
    predicted: change of the output, 0..1, that follows from those of the blocks: the root of the sum of
      their squares.
    change: of the output with all tiles, on the held-back images: root mean square over them.
    error: standard error of `change`.
    images: how many were held back.

  Example:
    >>> image = keras.Input((8, 8, 4))
    >>> mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(image)
    >>> model = keras.Model(image, keras.layers.Multiply()([image, keras.layers.Dense(4, "sigmoid")(mean)]))
    >>> images = np.random.default_rng(0).random((16, 8, 8, 4), np.float32)
    >>> choice = kq.choose_tiles(model, images, max_change=0.5)
    >>> choice.blocks[0].rows, choice.buffer, choice.untiled, choice.change < 0.5
    (4, 128, 256, True)
  """

  model: keras.Model
  blocks: tuple[BlockTile, ...]
  predicted: float
  change: float
  error: float
  images: int

  @property
  def buffer(self) -> int:
    """Elements that all blocks hold; at 8 bits as many bytes."""
    return sum(block.elements for block in self.blocks)

  @property
  def untiled(self) -> int:
    """Elements that they would hold without tiles."""
    return sum(block.untiled for block in self.blocks)

  def to_json(self) -> dict[str, Any]:
    """Lists all numbers, ready for JSON.

    Returns:
      {"blocks": one dict each, "predicted", "change", "error", "images", "buffer", "untiled"}.
    """
    blocks = [{**dataclasses.asdict(block), "elements": block.elements, "untiled": block.untiled}
              for block in self.blocks]
    return {"blocks": blocks, "buffer": self.buffer, "untiled": self.untiled,
            **{name: getattr(self, name) for name in ("predicted", "change", "error", "images")}}

  def __str__(self) -> str:
    """A row for each block, and one sentence."""
    rows = [(block.name, " x ".join(map(str, block.image)), block.rows or "whole", f"{block.untiled:,}",
             f"{block.elements:,}", f"{100 * block.change:.2f} %") for block in self.blocks]
    return "\n".join([
        text_table(("block", "image", "tile rows", "without tiles", "elements", "change alone"), rows),
        f"{self.untiled:,} -> {self.buffer:,} elements; the output changes by {100 * self.change:.2f} % +- "
        f"{100 * self.error:.2f} of {self.images} held-back images ({100 * self.predicted:.2f} % predicted)"])


def choose_tiles(model: keras.Model, images: Any, *, max_change: float | None = None,
                 max_buffer: int | None = None, rows: Sequence[int] = (4, 7, 14, 28, 56),
                 seed: int = 0) -> TileChoice:
  """Chooses the rows of each squeeze-and-excite block's tiles by what they change at the output.

  Each block is tiled alone with each number of rows, and the outputs before a closing softmax are compared
  with those of the model, image by image. Squares of changes add up, so that a knapsack finds the least
  buffer for a change, or the least change for a buffer. All tiles together are then measured on a quarter of
  the images, which is held back; where these change more than asked for, the tiles are chosen anew for less.

  Args:
    model: a float model of fixed size.
    images: inputs, as `kquant.quantize` takes calibration data.
    max_change: of the output: root mean square over images of |y' - y| / |y|; 0.02 where `max_buffer` is not
      given.
    max_buffer: elements (bytes at 8 bits) that all blocks may hold together; give one of the two.
    rows: of tiles to try; each block may also keep its image whole.
    seed: of the images held back.

  Returns:
    The tiled model, and the tile and change of each block.

  Raises:
    ValueError: both limits; a limit below what is possible; no block; fewer than 4 images; data that do not
      fit.

  Example:
    >>> image = keras.Input((8, 8, 4))
    >>> mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(image)
    >>> model = keras.Model(image, keras.layers.Multiply()([image, keras.layers.Dense(4, "sigmoid")(mean)]))
    >>> images = np.random.default_rng(0).random((16, 8, 8, 4), np.float32)
    >>> kq.choose_tiles(model, images, max_buffer=128).blocks[0].rows
    4
  """
  _check(max_change, max_buffer, rows)
  graph = Graph.from_model(model, keep_losses=True)
  blocks = find_blocks(graph)[0]
  if not blocks:
    raise ValueError("choose_tiles: the model has no squeeze-and-excite block; kq.tile_squeeze_excite tells "
                     "of products that look like one.")
  changes = TileChanges(model)
  chosen_by, judged_by = _split(images, changes, seed)
  table = _measured(blocks, rows, changes, chosen_by)
  judge = lambda tiles: changes.measure([tiles], judged_by)[0]
  if max_buffer is not None:
    chosen = table.least_change(max_buffer)
    squares = judge(table.tiles(chosen))
  else:
    chosen, squares = _within(MAX_CHANGE if max_change is None else max_change, table, judge)
  tiles = table.tiles(chosen)
  tile_blocks(graph, {block: (tiles[block.name], None) for block in blocks if block.name in tiles})
  change, report = math.sqrt(squares.mean()), table.report(chosen)
  error = squares.std(ddof=1) / math.sqrt(len(squares)) / (2 * change) if change and len(squares) > 1 else 0.0
  return TileChoice(graph.to_model(), report, math.sqrt(sum(block.change**2 for block in report)), change,
                    float(error), len(squares))


def _measured(blocks: Sequence[SqueezeExcite], rows: Sequence[int], changes: TileChanges,
              images: list[np.ndarray]) -> "_Table":
  """Tiles each block alone with each number of rows."""
  sizes = [[size for size in sorted(set(rows)) if size < block.size[0]] for block in blocks]
  alone = [{block.name: size} for block, some in zip(blocks, sizes) for size in some]
  change = iter(np.sqrt(changes.measure(alone, images).mean(1)).tolist())
  return _Table([[*(BlockTile(block.name, tuple(block.size), size, next(change)) for size in some),
                  BlockTile(block.name, tuple(block.size), None, 0.0)] for block, some in zip(blocks, sizes)])


def _within(most: float, table: "_Table",
            judge: Callable[[Tiles], np.ndarray]) -> tuple[list[int], np.ndarray]:
  """Returns options that change held-back images by `most`, and the squared change of each image."""
  budget = most**2
  for _ in range(_ROUNDS):
    chosen = table.least_buffer(budget)
    squares = judge(table.tiles(chosen))
    if squares.mean() <= most**2:
      return chosen, squares
    budget *= 0.9 * most**2 / squares.mean()
  return table.whole(), np.zeros(len(squares))


class _Table:
  """The tiles that each block can have; the last one keeps the image whole."""

  def __init__(self, options: Sequence[Sequence[BlockTile]]):
    self._options = options
    self._squares = [[tile.change**2 for tile in some] for some in options]
    self._buffers = [[tile.elements for tile in some] for some in options]

  def least_buffer(self, budget: float) -> list[int]:
    """The option of each block for a sum of squared changes; whole images have none."""
    return choose_options(self._buffers, self._squares, budget)

  def least_change(self, most: int) -> list[int]:
    """The option of each block for a sum of buffers."""
    chosen = choose_options(self._squares, self._buffers, most)
    if chosen is None:
      raise ValueError(f"choose_tiles: max_buffer={most:,}: the smallest tiles hold "
                       f"{sum(map(min, self._buffers)):,} elements; allow more, or give smaller rows.")
    return chosen

  def whole(self) -> list[int]:
    """The option of each block that keeps its image whole."""
    return [len(some) - 1 for some in self._options]

  def tiles(self, chosen: Sequence[int]) -> Tiles:
    """The rows of the blocks that get tiles."""
    return {tile.name: tile.rows for tile in self.report(chosen) if tile.rows is not None}

  def report(self, chosen: Sequence[int]) -> tuple[BlockTile, ...]:
    """What was chosen for each block."""
    return tuple(some[option] for some, option in zip(self._options, chosen))


def _check(max_change: float | None, max_buffer: int | None, rows: Sequence[int]) -> None:
  if max_change is not None and max_buffer is not None:
    raise ValueError("choose_tiles: expected max_change or max_buffer, got both; leave one out.")
  if max_change is not None and not max_change > 0:
    raise ValueError(f"choose_tiles: max_change is above 0, such as 0.02, got {max_change}.")
  if not rows or any(size < 1 for size in rows):
    raise ValueError(f"choose_tiles: rows are numbers of 1 or more, got {rows!r}.")


def _split(images: Any, changes: TileChanges, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """The images to choose by, and those that are held back."""
  arrays = gather(images, changes.specs, where="choose_tiles")
  if len(arrays[0]) < 4:
    raise ValueError(f"choose_tiles: expected 4 images or more, some to hold back, got {len(arrays[0])}.")
  return hold_back(arrays, seed=seed)
