"""Random programs of one pool, reduction, resize, or operator that moves integers."""

import numpy as np

from tests.tflite_export.random_draws import ACTIVATIONS, CHANNELS, Case, Draw, draw_windows


def draw_pool(kind: str):
  def pool(draw: Draw) -> Case:
    size = [draw.whole(1, 5) for _ in range(2)]
    options, image, result = draw_windows(draw, size, dilated=False)
    if draw.chance(0.1):
      size, image, result = image, image, [1, 1]
      options["padding"] = "VALID"
    channels, grid = draw.one_of(CHANNELS), draw.grid()
    x = draw.input("x", (1, *image, channels), grid)
    return draw.finish(kind, [x], (1, *result, channels), grid, version=2, **options, filter_height=size[0],
                       filter_width=size[1], fused_activation_function=draw.one_of(ACTIVATIONS[:3]))
  return pool


def mean(draw: Draw) -> Case:
  shape, grid = draw.image(size=draw.one_of((4, 9, 40))), draw.grid()
  rank = len(shape)
  axes = draw.one_of(((1, 2), (1, 2), (1, 2), (1,), (2,), (2, 1), (rank - 1,), (-1,), tuple(range(1, rank))))
  axes = tuple(axis for axis in axes if axis < rank) or (1,)
  keep = draw.chance(0.5)
  reduced = {axis % rank for axis in axes}
  result = [1 if i in reduced else n for i, n in enumerate(shape) if keep or i not in reduced]
  y = grid if draw.chance(0.2) else (draw.ratio_to(grid[0], -10, 7), draw.zero_point())
  x = draw.input("x", shape, grid)
  return draw.finish("MEAN", [x, draw.constant("axes", axes)], result, y, version=2, keep_dims=keep)


def draw_extreme(kind: str):
  def extreme(draw: Draw) -> Case:
    shape, grid, keep = draw.image(size=20), draw.grid(), draw.chance(0.5)  # little of it is left
    axes = sorted(draw.rng.permutation(np.arange(1, len(shape)))[:draw.whole(1, len(shape) - 1)].tolist())
    result = [1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes]
    x = draw.input("x", shape, grid)
    return draw.finish(kind, [x, draw.constant("axes", axes)], result, grid, version=2, keep_dims=keep)
  return extreme


def draw_resize(kind: str):
  def resize(draw: Draw) -> Case:
    _, height, width, channels = draw.image(4)
    size, grid = [draw.one_of((draw.whole(1, 20), 2 * n, 3 * n, n)) for n in (height, width)], draw.grid()
    if draw.chance(0.3):  # Sizes at which the rounding of the places shows.
      height, channels, size[0] = draw.whole(1, 400), 1, draw.whole(1, 400)
    x = draw.input("x", (1, height, width, channels), grid)
    return draw.finish(kind, [x, draw.constant("size", size)], (1, *size, channels), grid, version=3,
                       align_corners=False, half_pixel_centers=True)
  return resize


# --- operators that move integers ------------------------------------------------------------------


def concatenation(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  axis = draw.whole(1, len(shape) - 1)
  names, total = [], 0
  for i in range(draw.whole(1, 5)):
    part = (*shape[:axis], draw.whole(1, 6), *shape[axis + 1:])
    total += part[axis]
    names.append(draw.tensor(f"c{i}", part, grid, data=draw.integers(part)) if i and draw.chance(0.2)
                 else draw.input(f"x{i}", part, grid))
  return draw.finish("CONCATENATION", names, (*shape[:axis], total, *shape[axis + 1:]), grid, version=2,
                     axis=draw.one_of((axis, axis - len(shape))), fused_activation_function="NONE")


def pad(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  amounts = [[0, 0], *[[draw.whole(0, 3), draw.whole(0, 3)] for _ in shape[1:]]]
  names = [draw.input("x", shape, grid), draw.constant("paddings", amounts)]
  return draw.finish("PAD", names, np.sum(amounts, 1) + shape, grid, version=2)


def mirror_pad(draw: Draw) -> Case:
  shape, grid, mode = draw.image(), draw.grid(), draw.one_of(("REFLECT", "SYMMETRIC"))
  most = [n - (mode == "REFLECT") for n in shape]
  amounts = [[0, 0], *[[draw.whole(0, min(n, 4)), draw.whole(0, min(n, 4))] for n in most[1:]]]
  names = [draw.input("x", shape, grid), draw.constant("paddings", amounts)]
  return draw.finish("MIRROR_PAD", names, np.sum(amounts, 1) + shape, grid, version=2, mode=mode)


def reshape(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  result = draw.one_of(((1, int(np.prod(shape))), (1, *shape), (1, *shape[:0:-1])))
  x = draw.input("x", shape, grid)
  return draw.finish("RESHAPE", [x, draw.constant("shape", result)], result, grid, new_shape=list(result))


def transpose(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  order = [0, *(1 + draw.rng.permutation(len(shape) - 1)).tolist()]
  names = [draw.input("x", shape, grid), draw.constant("order", order)]
  return draw.finish("TRANSPOSE", names, [shape[i] for i in order], grid, version=2)


def draw_blocks(kind: str):
  def blocks(draw: Draw) -> Case:
    block, grid = draw.whole(1, 3), draw.grid()
    small = (draw.whole(1, 4), draw.whole(1, 4), draw.whole(1, 9))
    deep = (1, *small[:2], small[2] * block**2)
    wide = (1, small[0] * block, small[1] * block, small[2])
    x, y = (deep, wide) if kind == "DEPTH_TO_SPACE" else (wide, deep)
    return draw.finish(kind, [draw.input("x", x, grid)], y, grid, block_size=block)
  return blocks


def split(draw: Draw) -> Case:
  shape, grid, parts = draw.image(), draw.grid(), draw.whole(1, 4)
  axis = draw.whole(1, len(shape) - 1)
  whole = (*shape[:axis], shape[axis] * parts, *shape[axis + 1:])
  names = [draw.constant("axis", draw.one_of((axis, axis - len(shape)))), draw.input("x", whole, grid)]
  return draw.finish("SPLIT", names, shape, grid, outputs=parts, num_splits=parts)


def cast(draw: Draw) -> Case:
  """Of activations to int32 or truth values, or of int32 to activations, where it takes the lowest bits."""
  shape, dtype = draw.image(), draw.one_of(("int32", "bool", draw.dtype))
  if dtype == draw.dtype:
    return draw.finish("CAST", [draw.input("x", shape, None, "int32")], shape, draw.grid())
  return draw.finish("CAST", [draw.input("x", shape, draw.grid())], shape, None, dtype=dtype)


def select(draw: Draw) -> Case:
  """Three tensors that broadcast, the first of truth values; one may be a constant."""
  shape, grid = draw.image(), draw.grid()
  parts = [(1, *(1 if draw.chance(0.3) else n for n in shape[1:])) for _ in range(3)]
  constant = draw.one_of((0, 2, None, None))
  names = []
  for place, part in enumerate(parts):
    dtype, own = ("bool", None) if place == 0 else (None, grid)
    data = draw.integers(part, dtype) if place == constant else None
    names.append(draw.tensor("c", part, own, dtype, data) if place == constant
                 else draw.input(f"x{place}", part, own, dtype))
  return draw.finish("SELECT_V2", names, np.broadcast_shapes(*parts), grid)


def gather(draw: Draw) -> Case:
  """Entries of a table [size], or rows of a table [rows, size]."""
  if draw.chance(0.5):
    return embedding(draw)
  shape, grid, size = draw.image(), draw.grid(), draw.whole(1, 256)
  table = draw.tensor("table", (size,), grid, data=draw.integers((size,)))
  case = draw.finish("GATHER", [table, draw.input("x", shape, None, "int32")], shape, grid, axis=0)
  case.inputs[0] = np.abs(case.inputs[0]) % np.int32(size)
  return case


def embedding(draw: Draw) -> Case:
  """Rows of a table, [rows, size]."""
  (_, *shape), grid, rows, size = draw.image(), draw.grid(), draw.whole(1, 300), draw.one_of((1, 3, 16, 33))
  table = draw.tensor("table", (rows, size), grid, data=draw.integers((rows, size)))
  shape = (1, *shape[:2])
  case = draw.finish("GATHER", [table, draw.input("x", shape, None, "int32")], (*shape, size), grid, axis=0)
  case.inputs[0] = np.abs(case.inputs[0] // 2) % np.int32(rows)
  return case


def strided_slice(draw: Draw) -> Case:
  shape, grid = draw.image(size=20), draw.grid()  # little of it is left
  cuts = [(0, 1, 1)]
  for n in shape[1:]:
    first, last = sorted((draw.whole(0, n - 1), draw.whole(0, n - 1)))
    cuts.append((first, last + 1, draw.whole(1, 3)) if draw.chance(0.8) or first == 0
                else (last, first - 1, -draw.whole(1, 3)))
  masks = [draw.whole(0, 2**len(shape) - 1) & 2**len(shape) - 2 if draw.chance(0.2) else 0 for _ in range(2)]
  views = [slice(None if masks[0] >> i & 1 else a, None if masks[1] >> i & 1 else b, step)
           for i, (a, b, step) in enumerate(cuts)]
  result = np.empty(shape)[tuple(views)].shape
  parts = zip(("begin", "end", "step"), np.array(cuts).T)
  names = [draw.input("x", shape, grid), *[draw.constant(name, part) for name, part in parts]]
  return draw.finish("STRIDED_SLICE", names, result, grid, begin_mask=masks[0], end_mask=masks[1],
                     ellipsis_mask=0, new_axis_mask=0, shrink_axis_mask=0)
