"""One operator as a kernel sees it, and what every kernel does: images, grids, the final clamp.

A kernel is a function `kernel(call, *arrays) -> list of arrays`. Arrays of activations are
[n, *shape]: n images of a tensor whose shape in the program starts with its own batch of 1.
Constants come as they are, [*shape].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from tflite_export.kernels.multipliers import round_away
from tflite_export.program.program import ACTIVATIONS, IntOp, IntTensor


@dataclasses.dataclass(frozen=True)
class Call:
  """One operator with its tensors.

  Attributes:
    op: the operator.
    inputs: its input tensors in order.
    outputs: its output tensors in order.
    arithmetic: "reference", "xnnpack" or "builtin": the set of kernels that runs it.
  """

  op: IntOp
  inputs: tuple[IntTensor, ...]
  outputs: tuple[IntTensor, ...]
  arithmetic: str

  def option(self, name: str, default: Any = None) -> Any:
    """Returns an option of the operator; `default` where it is not given."""
    return self.op.options.get(name, default)


def scale_of(tensor: IntTensor) -> np.float32:
  """Returns the one scale of an activation, float32."""
  return tensor.scale[0]


def zero_point_of(tensor: IntTensor) -> int:
  """Returns the one zero point of an activation."""
  return int(tensor.zero_point[0])


def swing_of(tensor: IntTensor) -> int:
  """Returns max |q - z| over the grid of an activation."""
  limits, zero_point = np.iinfo(tensor.dtype), zero_point_of(tensor)
  return max(limits.max - zero_point, zero_point - limits.min)


def centred(x: np.ndarray, tensor: IntTensor) -> np.ndarray:
  """Returns q - z, int64."""
  return x.astype(np.int64) - zero_point_of(tensor)


def merge_images(x: np.ndarray) -> np.ndarray:
  """Returns [n, batch, ...] as [n * batch, ...]."""
  return x.reshape(-1, *x.shape[2:])


def with_rank(x: np.ndarray, tensor: IntTensor, rank: int) -> np.ndarray:
  """Returns x with axes of size 1 in front of those of its tensor, behind the images, for a broadcast."""
  missing = (1,) * (rank - len(tensor.shape))
  return x.reshape(*x.shape[:x.ndim - len(tensor.shape)], *missing, *tensor.shape)


def output_like(call: Call, y: np.ndarray, n: int) -> np.ndarray:
  """Returns y as n images of the first output, [n, *shape]."""
  return y.reshape(n, *call.outputs[0].shape)


def output_limits(call: Call, activation: str | None = None) -> tuple[int, int]:
  """Returns the least and the greatest integer of the first output behind an activation.

  Args:
    call: the operator.
    activation: name of the activation; None for the one fused with the operator.
  """
  y = call.outputs[0]
  limits = np.iinfo(y.dtype)
  low, high = ACTIVATIONS[activation or call.option("fused_activation_function", "NONE")]
  return (limits.min if low is None else max(limits.min, _on_grid(call, y, low)),
          limits.max if high is None else min(limits.max, _on_grid(call, y, high)))


def finish(call: Call, y: np.ndarray, activation: str | None = None) -> np.ndarray:
  """Returns y + z_y clamped to the output's limits, in its type; integers add in int32."""
  if y.dtype == np.int64:
    y = y.astype(np.int32)
  return clamp(call, y + y.dtype.type(zero_point_of(call.outputs[0])), activation)


def clamp(call: Call, y: np.ndarray, activation: str | None = None) -> np.ndarray:
  """Returns y, zero point included, clamped to the output's limits, in its type."""
  low, high = output_limits(call, activation)
  kind = y.dtype.type
  return np.clip(y, kind(low), kind(high)).astype(call.outputs[0].dtype)


def by_code(x: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Returns function(x) of integers of 8 or 16 bits, by a table of the function's 256 or 65,536 values."""
  codes = all_codes(x.dtype)
  return function(codes)[x.view(f"u{x.dtype.name.removeprefix('u')}")]


def all_codes(dtype: np.dtype) -> np.ndarray:
  """Returns every integer of a type of 8 or 16 bits, in the order of its bits as an unsigned number."""
  bits = np.iinfo(dtype).bits
  return np.arange(2**bits).astype(f"uint{bits}").view(dtype)


def _on_grid(call: Call, tensor: IntTensor, value: float) -> int:
  """Returns the integer of a clamp's real value.

  The delegate rounds the quotient and the zero point together, ties to even; the others round the
  quotient alone, ties away from zero.
  """
  quotient, zero_point = np.float32(value) / scale_of(tensor), zero_point_of(tensor)
  if call.arithmetic == "xnnpack":
    return int(np.rint(quotient + np.float32(zero_point)))
  return zero_point + int(round_away(quotient))
