"""Operators that join, copy, pad, rearrange and resize."""

from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.keras_calls import is_symbol
from kquant.graph.readers.tflite.call import Call, Convert
from kquant.graph.readers.tflite.shapes import cut_or_all
from kquant.graph.readers.tflite.views import Merged, Spread, as_in_file

# --- joins -----------------------------------------------------------------------------------------


def _concatenation(call: Call) -> Any:
  parts = [as_in_file(call, value) for value in call.inputs]
  rank = len(parts[0].shape)
  axis = int(call.option("axis", 0)) % max(rank, 1)
  if not any(is_symbol(part) for part in parts):
    return np.concatenate(parts, axis)
  if not all(is_symbol(part) for part in parts):
    return call.activated(_with_constants(call, parts, axis))
  return call.activated(_joined(call, parts, axis))


def _joined(call: Call, parts: list[Any], axis: int, part: str = "") -> Any:
  if len(parts) == 1:
    return parts[0]
  if axis:
    return call.layer(keras.layers.Concatenate, parts, axis=axis, part=part)
  return call.function("concat", parts, axis=axis, part=part)


def _with_constants(call: Call, parts: list[Any], axis: int) -> Any:
  """Zeros beside the tensors where the constants stand, and the constants added: a batch is open."""
  symbols = [part for part in parts if is_symbol(part)]
  sizes = list(symbols[0].shape[1:])
  if axis == 0 or None in sizes or any(part.shape[axis] is None for part in symbols):
    raise call.error("joins constants along the batch, or to a tensor of open shape; fix the input's shape "
                     "with input_shape=")
  added, made, before = [], [], 0
  for part in parts:
    shape = (1, *sizes[:axis - 1], part.shape[axis], *sizes[axis:])
    if is_symbol(part):
      added.append(np.zeros(shape, np.float32))
      made.append(_padded(call, part, axis, (before, 0)))
      before = 0
    else:
      added.append(np.broadcast_to(part, shape).astype(np.float32))
      if made:
        made[-1] = _padded(call, made[-1], axis, (0, part.shape[axis]))
      else:
        before += part.shape[axis]
  joined = _joined(call, made, axis, "tensors")
  return call.function("math.add", joined, np.concatenate(added, axis))


def _padded(call: Call, x: Any, axis: int, amounts: tuple[int, int]) -> Any:
  if not any(amounts):
    return x
  widths = [[0, 0]] * axis + [list(amounts)] + [[0, 0]] * (len(x.shape) - axis - 1)
  return call.function("compat.v1.pad", x, widths, part="room")


def _pack(call: Call) -> Any:
  parts = [as_in_file(call, value) for value in call.inputs]
  axis = int(call.option("axis", 0))
  if not any(is_symbol(part) for part in parts):
    return np.stack(parts, axis)
  if not all(is_symbol(part) for part in parts):
    raise call.error("stacks constants and tensors; write a concatenation")
  return call.function("stack", parts, axis=axis % (len(parts[0].shape) + 1))


def _tile(call: Call) -> Any:
  """Copies of a constant for each sample stay one: it is broadcast where it is used."""
  x, counts = as_in_file(call, call.input(0)), call.integers(1, "multiples")
  if not is_symbol(x):
    return np.tile(x, [max(count, 1) for count in counts])
  return call.function("tile", x, counts)


def _broadcast_to(call: Call) -> Any:
  x, target = as_in_file(call, call.input(0)), call.integers(1, "shape")
  if not is_symbol(x):
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, [max(size, 1) for size in target]))
  if len(target) != len(x.shape):
    raise call.error(f"broadcasts {tuple(x.shape)} to {target}; write the axes of size 1 out")
  counts = [1 if size in (-1, own) or own is None else size for size, own in zip(target, x.shape)]
  return x if set(counts) == {1} else call.function("tile", x, counts)


# --- padding, blocks, sizes ------------------------------------------------------------------------


def _pad(call: Call) -> Any:
  """Zeros around height and width are a layer; all else is a function."""
  x = as_in_file(call, call.input(0))
  amounts = np.array(call.integers(1, "paddings")).reshape(-1, 2)
  value = call.input(2)
  value = 0.0 if value is None else float(call.constant(2, "value").reshape(()))
  if len(amounts) != len(x.shape) or (amounts < 0).any():
    raise call.damaged(f"the padding {amounts.tolist()} for {len(x.shape)} axes")
  if not amounts.any():
    return x
  rank = len(x.shape)
  if is_symbol(x) and rank in (3, 4) and not amounts[[0, -1]].any() and not value:
    cls = keras.layers.ZeroPadding2D if rank == 4 else keras.layers.ZeroPadding1D
    inner = [tuple(pair) for pair in amounts[1:-1].tolist()]
    return call.layer(cls, x, padding=tuple(inner) if rank == 4 else inner[0])
  return call.function("compat.v1.pad", x, amounts.tolist(), **({"constant_values": value} if value else {}))


def _mirror_pad(call: Call) -> Any:
  amounts = np.array(call.integers(1, "paddings")).reshape(-1, 2).tolist()
  mode = "SYMMETRIC" if call.option("mode", 0) == 1 else "REFLECT"
  return call.function("compat.v1.pad", as_in_file(call, call.input(0)), amounts, mode=mode)


def _space_to_batch(call: Call) -> Any:
  x, blocks = as_in_file(call, call.input(0)), call.integers(1, "blocks")
  amounts = [[0, 0], *np.array(call.integers(2, "paddings")).reshape(-1, 2).tolist()]
  amounts += [[0, 0]] * (len(x.shape) - len(amounts))
  if np.any(amounts):
    x = call.function("compat.v1.pad", x, amounts) if len(x.shape) != 4 or any(amounts[-1]) else (
        call.layer(keras.layers.ZeroPadding2D, x, padding=tuple(tuple(pair) for pair in amounts[1:3])))
  spread = {axis: block for axis, block in enumerate(blocks, start=1) if block > 1}
  return Spread(x, spread) if spread else x


def _batch_to_space(call: Call) -> Any:
  value, blocks = call.input(0), call.integers(1, "blocks")
  crops = np.array(call.integers(2, "crops")).reshape(-1, 2).tolist()
  spread = {axis: block for axis, block in enumerate(blocks, start=1) if block > 1}
  if (value.blocks if isinstance(value, Spread) else {}) != spread or isinstance(value, Merged):
    raise call.error("does not undo a space-to-batch; write a dilated convolution, or depth_to_space")
  x = value.tensor if isinstance(value, Spread) else value
  items = [slice(None), *(slice(first, x.shape[axis] - last) if first or last else slice(None)
                          for axis, (first, last) in enumerate(crops, start=1))]
  return cut_or_all(call, x, items)


def _blocks(symbol: str) -> Convert:
  return lambda call: call.function(symbol, as_in_file(call, call.input(0)), int(call.option("blockSize")))


def _resize(method: str) -> Convert:
  """By whole numbers UpSampling2D, else Resizing; what is not aligned as Keras does is TensorFlow's own."""
  def convert(call: Call) -> Any:
    x, (height, width) = as_in_file(call, call.input(0)), call.integers(1, "size")
    aligned, centered = (bool(call.option(name, False)) for name in ("alignCorners", "halfPixelCenters"))
    own = x.shape[1:3]
    factors = [new // old for new, old in zip((height, width), own) if old and new % old == 0]
    if (height, width) == tuple(own):
      return x
    if len(factors) == 2 and not aligned and (centered or method == "nearest"):
      return call.layer(keras.layers.UpSampling2D, x, size=tuple(factors), interpolation=method)
    if centered and not aligned:
      return call.layer(keras.layers.Resizing, x, height=height, width=width, interpolation=method)
    symbol = "compat.v1.image.resize_" + ("bilinear" if method == "bilinear" else "nearest_neighbor")
    return call.function(symbol, x, [height, width], align_corners=aligned, half_pixel_centers=centered)
  return convert


MOVING: dict[str, Convert] = {
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "TILE": _tile,
    "BROADCAST_TO": _broadcast_to,
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _mirror_pad,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "SPACE_TO_DEPTH": _blocks("nn.space_to_depth"),
    "DEPTH_TO_SPACE": _blocks("nn.depth_to_space"),
    "RESIZE_BILINEAR": _resize("bilinear"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("nearest"),
}
"""They take views apart by themselves."""
