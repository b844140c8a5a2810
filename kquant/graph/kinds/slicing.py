"""Which part of a tensor x[a:b:c, i, ..., None] takes, and which cuts have no integer form."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import Refusal

_BATCH = "leave the batch axis alone and name another one"
CONSTANT_BESIDE = Refusal("takes a constant beside tensors",
                          "give it the batch of a tensor x: constant + tf.zeros_like(x[..., :1])")


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
  """Refuses a padding of the batch, or with another constant than 0.

  `standardize` leaves the lowest value to a max pool behind it.
  """
  if np.asarray(call.argument(1, "paddings"))[0].any():
    return Refusal("pads the batch axis", _BATCH)
  value = np.asarray(call.argument(4, "constant_values", 0))
  if str(call.argument(2, "mode", "CONSTANT")).upper() == "CONSTANT" and value.any():
    if value <= np.finfo(np.float32).min:
      return Refusal("pads with -inf",
                     "do so right in front of a max pool alone, by half of its window at most")
    return Refusal(f"pads with {value}", f"write it as tf.pad(x - {value}, paddings) + {value}")
  return None


def refused_constant(call: Call) -> Refusal | None:
  """Refuses a layer of a list of tensors that has a constant among them."""
  return CONSTANT_BESIDE if _has_constant(call) else None


def _has_constant(call: Call) -> bool:
  """Whether a call that joins the tensors of a list has a constant among them."""
  return len(call.argument(0, "values")) > len(call.inputs)


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
  """Refuses tf.stack that puts the new axis in front of the batch, or that takes a constant."""
  if _has_constant(call):
    return CONSTANT_BESIDE
  rank = len(call.outputs[0].shape)
  return Refusal("makes a new batch axis", _BATCH) if int(call.argument(1, "axis", 0)) % rank == 0 else None


def refused_join(call: Call) -> Refusal | None:
  """Refuses a Concatenate along the batch, or of a constant."""
  if _has_constant(call):
    return CONSTANT_BESIDE
  if call.config["axis"] % len(call.outputs[0].shape) == 0:
    return Refusal("concatenates along the batch axis", _BATCH)
  return None
