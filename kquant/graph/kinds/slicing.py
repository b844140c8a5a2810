"""Which part of a tensor x[a:b:c, i, ..., None] takes, and which cuts have no integer form."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import Refusal

_BATCH = "leave the batch axis alone and name another one"


def slice_parts(call: Call, shape: Sequence[int]) -> list[range]:
  """Returns the part that is taken of every axis of an input of a shape, new axes left out."""
  return [range(*item.indices(size)) for item, size in zip(_items(call, len(shape)), shape)]


def _items(call: Call, rank: int) -> list[slice]:
  """One slice an axis of the input; slices are dicts, as Keras writes them, without an Ellipsis."""
  items = call.argument(1, "slice_spec")
  items = [item for item in (items if isinstance(items, (tuple, list)) else (items,)) if item is not None]
  return [_as_slice(item) for item in items] + [slice(None)] * (rank - len(items))


def _as_slice(item: dict[str, int | None] | int) -> slice:
  if isinstance(item, dict):
    return slice(item["start"], item["stop"], item["step"])
  return slice(int(item), int(item) + 1 or None)


def refused_slice(call: Call) -> Refusal | None:
  """Refuses a slice of the batch or one that runs backwards."""
  shape = call.inputs[0].shape
  batch, *_ = items = _items(call, len(shape))
  if batch != slice(None) and batch.indices(shape[0] or 2**31) != (0, shape[0], 1):
    return Refusal("slices the batch", "slice the other axes: a file has a batch of its own")
  if any((item.step or 1) < 0 for item in items):
    return Refusal("slices backwards", "use positive steps; tf.gather by constants reverses an axis")
  return None


def refused_pad(call: Call) -> Refusal | None:
  """Refuses a padding of the batch, or with another constant than 0."""
  if np.asarray(call.argument(1, "paddings"))[0].any():
    return Refusal("pads the batch axis", _BATCH)
  value = np.asarray(call.argument(4, "constant_values", 0))
  if str(call.argument(2, "mode", "CONSTANT")).upper() == "CONSTANT" and value.any():
    return Refusal(f"pads with {value.tolist()}", "pad with zeros, or concatenate a constant")
  return None


def refused_batch_axis(position: int, default: int | None = 0) -> Any:
  """Returns a rule that refuses a function of TensorFlow along the batch axis.

  Args:
    position: of its argument "axis".
    default: what it is if not given; None: all axes.
  """
  def refuse(call: Call) -> Refusal | None:
    axis, rank = call.argument(position, "axis", default), len(call.inputs[0].shape)
    if axis is None or 0 in [int(number) % rank for number in np.atleast_1d(axis)]:
      return Refusal("works along the batch axis", _BATCH)
    return None
  return refuse


def refused_stack(call: Call) -> Refusal | None:
  """Refuses tf.stack that puts the new axis in front of the batch."""
  rank = len(call.outputs[0].shape)
  return Refusal("makes a new batch axis", _BATCH) if int(call.argument(1, "axis", 0)) % rank == 0 else None


def refused_join(call: Call) -> Refusal | None:
  """Refuses a Concatenate along the batch."""
  if call.config["axis"] % len(call.outputs[0].shape) == 0:
    return Refusal("concatenates along the batch axis", _BATCH)
  return None
