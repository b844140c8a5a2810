"""Views: what a file does to the batch axis, held back until it is undone.

A reshape to [batch * positions, features] around a matrix product, or a space-to-batch around a dilated
convolution, mixes the batch with other axes. The Keras layer behind needs neither: it reads the tensor as it
is. So the tensor stays, and the view says how the file sees it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.readers.tflite.call import Call, product, sizes_of


@dataclasses.dataclass(frozen=True)
class Merged:
  """A tensor whose first `count` axes are one in the file: [batch, 7, 5] as [batch * 7, 5] for 2."""

  tensor: Any
  count: int

  def of(self, tensor: Any) -> "Merged":
    """Returns another tensor seen the same way."""
    return Merged(tensor, self.count)

  def fits(self, other: "Merged") -> bool:
    """Whether two tensors can be combined as they are."""
    return self.count == other.count and self.tensor.shape[:self.count] == other.tensor.shape[:self.count]

  @property
  def rank(self) -> int:
    """Number of axes in the file."""
    return len(self.tensor.shape) - self.count + 1


@dataclasses.dataclass(frozen=True)
class Spread:
  """A tensor of which the file holds every n-th position of an axis in a batch of its own.

  Attributes:
    tensor: with all positions.
    blocks: {axis: n}.
  """

  tensor: Any
  blocks: dict[int, int]

  def of(self, tensor: Any) -> "Spread":
    """Returns another tensor seen the same way."""
    return Spread(tensor, self.blocks)

  def fits(self, other: "Spread") -> bool:
    """Whether two tensors can be combined as they are."""
    return self.blocks == other.blocks and self.tensor.shape == other.tensor.shape

  @property
  def rank(self) -> int:
    """Number of axes in the file."""
    return len(self.tensor.shape)


View = Merged | Spread


def as_in_file(call: Call, value: Any) -> Any:
  """Returns a value as the file sees it: a view becomes a tensor of that shape."""
  if isinstance(value, Spread):
    raise call.error("works between a space-to-batch and its batch-to-space; only convolutions and functions "
                     "of one element may. Write them as one dilated convolution")
  if isinstance(value, Merged):
    sizes = sizes_of(call, value.tensor)[value.count - 1:]
    return call.function("reshape", value.tensor, [-1, *sizes], part="rows")
  return value


def through_views(call: Call, convert: Callable[[Call], Any]) -> Any:
  """Converts an operator that acts on elements, or along the last axis, on the tensors behind its views."""
  views = [value for value in call.inputs if isinstance(value, View)]
  view = views[0] if views else None
  tensors = [value for value in call.inputs if value is not None and not isinstance(value, np.ndarray)]
  if view is None or len(views) < len(tensors) or any(
      type(other) is not type(view) or not other.fits(view) for other in views):
    call.inputs = [as_in_file(call, value) for value in call.inputs]
    return convert(call)
  call.inputs = [value.tensor if isinstance(value, View) else _behind(call, view, value)
                 for value in call.inputs]
  return view.of(convert(call))


def _behind(call: Call, view: View, value: np.ndarray | None) -> np.ndarray | None:
  """A constant for the tensor behind a view."""
  if value is None or value.ndim < view.rank and isinstance(view, Merged) or value.size == 1:
    return value
  if value.shape[-1] == value.size:
    return value.reshape(-1)
  if isinstance(view, Merged) and value.shape[0] == 1:
    return value[0]
  raise call.error(f"combines a constant of shape {value.shape} with a tensor whose batch is mixed with "
                   "other axes")


def reshape(call: Call, value: Any, target: Sequence[int], part: str = "") -> Any:
  """Returns a value in another shape; sizes below 0 are open: the batch, or what is left.

  Raises:
    UnsupportedLayerError: the batch is not in front of the new shape.
  """
  if isinstance(value, Spread):
    return _reshape_spread(call, value, target)
  x = value.tensor if isinstance(value, Merged) else value
  if isinstance(x, np.ndarray):
    return x.reshape(target)
  if call.batch is None:
    return x if tuple(x.shape) == tuple(target) else call.function("reshape", x, list(target), part=part)
  sizes = sizes_of(call, x)
  first, rest = (target[0], list(target[1:])) if target else (1, [])
  open_axes = [axis for axis, size in enumerate(rest) if size < 0]
  if len(open_axes) == 1 and first == call.batch:
    others = product([size for size in rest if size >= 0])
    rest[open_axes[0]] = product(sizes) // max(others, 1)
  count = product(sizes) // max(product(rest), 1)
  fits = first < 0 or first == call.batch * count
  if not fits or min(rest, default=1) < 1 or count * product(rest) != product(sizes):
    raise call.error(f"reshapes {tuple(x.shape)} to {tuple(target)}, which moves the batch axis; leave it in "
                     "front")
  if count == 1:
    return _reshaped(call, x, rest, part)
  for axes in range(1, len(sizes) + 1):
    if product(sizes[:axes]) == count and sizes[axes:] == tuple(rest):
      return Merged(x, axes + 1)
  return Merged(_reshaped(call, x, [count, *rest], part), 2)


def _reshaped(call: Call, x: Any, sizes: Sequence[int], part: str) -> Any:
  if tuple(x.shape[1:]) == tuple(sizes):
    return x
  return call.layer(keras.layers.Reshape, x, target_shape=tuple(sizes), part=part)


def _reshape_spread(call: Call, value: Spread, target: Sequence[int]) -> Spread:
  """Adds or removes axes of size 1, which is all that files do between space-to-batch and batch-to-space."""
  sizes = sizes_of(call, value.tensor)
  seen = [size // value.blocks.get(axis, 1) for axis, size in enumerate(sizes, start=1)]
  kept = [axis for axis, size in enumerate(seen, start=1) if size != 1 or axis in value.blocks]
  new = [axis for axis, size in enumerate(target[1:], start=1) if size != 1]
  if len(kept) != len(new) or any(seen[a - 1] != target[b] for a, b in zip(kept, new)):
    raise call.error(f"reshapes a tensor of a space-to-batch to {tuple(target)}; write one dilated "
                     "convolution")
  moved = dict(zip(kept, new))
  shape = [1] * (len(target) - 1)
  for axis in kept:
    shape[moved[axis] - 1] = sizes[axis - 1]
  blocks = {moved[axis]: n for axis, n in value.blocks.items()}
  return Spread(_reshaped(call, value.tensor, shape, ""), blocks)


def shape_of(call: Call, value: Any) -> list[int]:
  """Returns the shape of a value as the file sees it; below 0: the batch, times what is merged into it."""
  if isinstance(value, np.ndarray):
    return list(value.shape)
  value = value if isinstance(value, Merged) else Merged(as_in_file(call, value), 1)
  x, sizes = value.tensor, sizes_of(call, value.tensor)
  batch = -1 if x.shape[0] is None else int(x.shape[0])
  return [batch * product(sizes[:value.count - 1]), *sizes[value.count - 1:]]
