"""Operators that change shapes and take parts; those on shapes alone give constants."""

from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.keras_calls import is_symbol
from kquant.graph.readers.tflite.call import Call, Convert, sizes_of
from kquant.graph.readers.tflite.file import NUMBERS
from kquant.graph.readers.tflite.views import Merged, Spread, as_in_file, reshape, shape_of

# --- shapes ----------------------------------------------------------------------------------------


def _shape(call: Call) -> np.ndarray:
  return np.array(shape_of(call, call.input(0)), np.int64)


def _reshape(call: Call) -> Any:
  if call.input(1) is not None:
    target = call.integers(1, "shape")
  else:
    target = [int(size) for size in np.atleast_1d(call.option("newShape"))]
  return reshape(call, call.input(0), target)


def _expand_dims(call: Call) -> Any:
  value = call.input(0)
  (axis,) = call.integers(1, "axis")
  if isinstance(value, np.ndarray):
    return np.expand_dims(value, axis)
  shape = _seen(call, value)
  place = axis % (len(shape) + 1)
  return reshape(call, value, [*shape[:place], 1, *shape[place:]])


def _squeeze(call: Call) -> Any:
  value = call.input(0)
  axes = [int(axis) for axis in np.atleast_1d(call.option("squeezeDims", np.array([], int)))]
  if isinstance(value, np.ndarray):
    return np.squeeze(value, tuple(axes) or None)
  shape = _seen(call, value)
  taken = {axis % len(shape) for axis in axes} or {axis for axis, size in enumerate(shape) if size == 1}
  return reshape(call, value, [size for axis, size in enumerate(shape) if axis not in taken])


def _seen(call: Call, value: Any) -> list[int]:
  """The shape in the file, the batch below 0; between space-to-batch and back that of one part."""
  if isinstance(value, Spread):
    return [-1, *(size // value.blocks.get(axis, 1)
                  for axis, size in enumerate(shape_of(call, value.tensor)[1:], start=1))]
  return shape_of(call, value)


def _transpose(call: Call) -> Any:
  value, order = call.input(0), call.integers(1, "order")
  if isinstance(value, Merged) and order[0] == 0:
    order = [*range(value.count), *(axis + value.count - 1 for axis in order[1:])]
    return value.of(_permuted(call, value.tensor, order))
  return _permuted(call, as_in_file(call, value), order)


def _permuted(call: Call, x: Any, order: list[int]) -> Any:
  if sorted(order) != list(range(len(x.shape))):
    raise call.damaged(f"the order {order} for {len(x.shape)} axes")
  if not is_symbol(x):
    return np.transpose(x, order)
  if order == list(range(len(order))):
    return x
  return call.layer(keras.layers.Permute, x, dims=order[1:]) if order[0] == 0 else (
      call.function("transpose", x, order))


def _cast(call: Call) -> Any:
  x = as_in_file(call, call.input(0))
  number = call.option("outDataType", 0)
  dtype = "float32" if NUMBERS.get(number) in ("float16", "float32") else NUMBERS.get(number)
  if dtype is None:
    raise call.error(f"casts to the type {number}, which Keras does not have")
  if not is_symbol(x):
    return x.astype(dtype)
  return x if x.dtype.name == dtype else call.function("cast", x, dtype)


def _fill(call: Call) -> np.ndarray:
  sizes = [max(size, 1) for size in call.integers(0, "shape")]
  return np.full(sizes, call.constant(1, "value"))


def _zeros_like(call: Call) -> Any:
  x = as_in_file(call, call.input(0))
  return call.function("zeros_like", x) if is_symbol(x) else np.zeros_like(x)


def _broadcast_args(call: Call) -> np.ndarray:
  first, second = (call.integers(place, "shape") for place in range(2))
  return np.array(np.broadcast_shapes(first, second), np.int64)


# --- parts -----------------------------------------------------------------------------------------


def _strided_slice(call: Call) -> Any:
  """x[begin:end:strides], where bits of the masks leave a bound out, keep one element, or add an axis."""
  x = as_in_file(call, call.input(0))
  begin, end, strides = (call.integers(place, "bounds") for place in (1, 2, 3))
  if call.option("ellipsisMask", 0) or call.option("newAxisMask", 0) or call.option("offset", False):
    raise call.error("slices with an ellipsis, a new axis or offsets; write plain bounds")
  if not len(begin) == len(end) == len(strides) <= len(x.shape) or 0 in strides:
    raise call.damaged(f"the bounds {begin}, {end} by {strides} for {len(x.shape)} axes")
  items: list[slice | int] = []
  for axis, (first, last, step) in enumerate(zip(begin, end, strides)):
    if call.option("shrinkAxisMask", 0) >> axis & 1:
      items.append(first)
      continue
    first = None if call.option("beginMask", 0) >> axis & 1 else first
    last = None if call.option("endMask", 0) >> axis & 1 else last
    items.append(_bounded(x.shape[axis], slice(first, last, None if step == 1 else step)))
  return cut_or_all(call, x, items)


def _slice(call: Call) -> Any:
  x = as_in_file(call, call.input(0))
  begin, sizes = call.integers(1, "begin"), call.integers(2, "size")
  items = [_bounded(n, slice(first, None if size == -1 else first + size))
           for n, first, size in zip(x.shape, begin, sizes)]
  return cut_or_all(call, x, items)


def _bounded(size: int | None, item: slice) -> slice:
  """All of an axis as such; all of an open batch that the file holds as one."""
  start, stop, step = item.start, item.stop, item.step
  whole = (step in (None, 1) and start in (None, 0) and
           (stop is None or size is None and stop in (1, -1) or size is not None and stop >= size))
  return slice(None) if whole else item


def cut_or_all(call: Call, x: Any, items: list[slice | int]) -> Any:
  """Returns x[items], x itself where that is all of it; the one sample of a batch of one stays a batch.

  Raises:
    UnsupportedLayerError: it takes a part of the batch.
  """
  if all(item == slice(None) for item in items):
    return x
  if is_symbol(x) and call.batch is not None and items[0] != slice(None):
    if call.batch == 1 and items[0] in (0, -1):
      rest = cut_or_all(call, x, [slice(None), *items[1:]])
      return reshape(call, rest, sizes_of(call, rest))
    raise call.error("takes a part of the batch; leave that axis alone")
  return call.cut(x, items)


def _split(call: Call) -> Any:
  (axis,) = call.integers(0, "axis")
  x = as_in_file(call, call.input(1))
  return call.function("split", x, call.count, axis=axis % len(x.shape))


def _split_v(call: Call) -> Any:
  sizes, (axis,) = call.integers(1, "sizes"), call.integers(2, "axis")
  x = as_in_file(call, call.input(0))
  axis %= len(x.shape)
  if -1 in sizes:
    sizes[sizes.index(-1)] = x.shape[axis] - sum(size for size in sizes if size >= 0)
  return call.function("split", x, sizes, axis=axis)


def _unpack(call: Call) -> Any:
  x = as_in_file(call, call.input(0))
  return call.function("unstack", x, num=call.count, axis=int(call.option("axis", 0)) % len(x.shape))


def _gather(call: Call) -> Any:
  """Rows of a constant table by computed indices: an Embedding; else elements at constant places."""
  x, places = (as_in_file(call, value) for value in call.inputs[:2])
  axis = int(call.option("axis", 0)) % max(len(x.shape), 1)
  if is_symbol(places):
    if not isinstance(x, np.ndarray) or axis or x.ndim != 2 or call.option("batchDims", 0):
      raise call.error("gathers at computed places; only rows of a constant table [rows, features] can be "
                       "looked up")
    rows, features = x.shape
    return call.layer(keras.layers.Embedding, places, weights=[x], input_dim=rows, output_dim=features)
  if places.ndim == 0 and is_symbol(x) and axis:
    place = int(places)
    return call.cut(x, [*[slice(None)] * axis, place])
  return call.function("gather", x, places, axis=axis) if is_symbol(x) else np.take(x, places, axis)


def _lookup(call: Call) -> Any:
  call.inputs = [call.input(1), call.input(0)]
  return _gather(call)


SHAPES: dict[str, Convert] = {
    "SHAPE": _shape,
    "RANK": lambda call: np.array(len(_shape(call)), np.int32),
    "RESHAPE": _reshape,
    "EXPAND_DIMS": _expand_dims,
    "SQUEEZE": _squeeze,
    "TRANSPOSE": _transpose,
    "CAST": _cast,
    "DEQUANTIZE": lambda call: call.input(0),  # of float16, which is read as float32
    "STRIDED_SLICE": _strided_slice,
    "SLICE": _slice,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "UNPACK": _unpack,
    "GATHER": _gather,
    "EMBEDDING_LOOKUP": _lookup,
    "FILL": _fill,
    "ZEROS_LIKE": _zeros_like,
    "BROADCAST_ARGS": _broadcast_args,
    "SELECT_V2": lambda call: call.function("where", *(as_in_file(call, value) for value in call.inputs)),
    "RANGE": lambda call: np.arange(*(call.constant(place, "range").item() for place in range(3))),
}
"""They take views apart by themselves."""
