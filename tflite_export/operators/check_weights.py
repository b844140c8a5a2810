"""The rules of constants that an operator multiplies by: kernels, biases, and the sums that they make."""

import numpy as np

from kquant.core.target import product_limit
from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntOp, IntProgram, IntTensor

ACCUMULATOR_LIMIT = 2**31
"""The accumulator of an operator over int8 activations is int32."""
WIDE_ACCUMULATOR_LIMIT = 2**47
"""Over int16 activations it is int64; times 15 bits of a multiplier it must fit again."""
MULTIPLIER_LIMIT = 256
"""s_x * s_w / s_y must lie below: the default kernels refuse to load the file otherwise."""
ACTIVATION_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}

_BIAS_TYPES = {"int8": "int32", "int16": "int64"}
_LARGEST_WEIGHTS = {"int8": 127, "int4": 7}


def error(op: IntOp, problem: str) -> ValueError:
  """Returns the error that names the operator and its layer."""
  return ValueError(f"{op.kind} of layer {op.source!r}: {problem}.")


def check_weighted(program: IntProgram, op: IntOp) -> None:
  """Asserts the rules of an operator that multiplies x by a constant kernel and adds a bias."""
  weighted = operator_of(op.kind).weighted
  if weighted is None:
    return
  channel_axis, count = weighted.channel_axis, max(weighted.places) + 1
  if len(op.inputs) < count:
    raise error(op, f"expected {count} inputs, bias included, got {len(op.inputs)}")
  x, kernel, bias = (program.tensors[name] for name in weighted.operands(op.inputs))
  y = program.tensors[op.outputs[0]]
  if x.dtype not in _BIAS_TYPES or y.dtype != x.dtype:
    raise error(op, f"expected int8 or int16 for both {x.name!r} and {y.name!r}, "
                f"got {x.dtype} and {y.dtype}")
  _check_kernel(op, kernel, ("int8", "int4") if weighted.int4 else ("int8",))
  if kernel.dtype == "int4" and x.dtype == "int16":
    raise error(op, f"kernel {kernel.name!r}: expected int8 integers over int16 activations, got int4")
  if kernel.axis not in (None, channel_axis):
    raise error(op, f"kernel {kernel.name!r}: expected scales along axis {channel_axis}, "
                f"got axis {kernel.axis}")
  _check_bias(op, x, kernel, bias, channels=kernel.shape[channel_axis])
  _check_accumulator(op, x, kernel, bias, channel_axis=channel_axis)
  ratio = np.max(x.scale.astype(np.float64) * kernel.scale / y.scale)
  if ratio >= MULTIPLIER_LIMIT:
    raise error(op, f"expected s_x * s_w / s_y < {MULTIPLIER_LIMIT}, got {ratio:.6g}; "
                "widen the output range of the layer")


def check_matrices(program: IntProgram, op: IntOp) -> None:
  """Asserts the rules of matrix products that an operator computes inside, and of its state."""
  record = operator_of(op.kind)
  for source, place, bias in record.matrices:
    x, kernel = program.tensors[op.inputs[source]], program.tensors[op.inputs[place]]
    _check_kernel(op, kernel, ("int8",))
    if x.dtype != "int8" or kernel.scale.size != 1:
      raise error(op, f"expected int8 for {x.name!r} and one scale for {kernel.name!r}, got {x.dtype} and "
                  f"{kernel.scale.size} scales")
    if bias is not None:
      _check_bias(op, x, kernel, program.tensors[op.inputs[bias]], channels=kernel.shape[0])
  if record.state and (problem := record.state(op, *program.operands(op))):
    raise error(op, problem)
  for bound, limit in matrix_bounds(program, op):
    if bound >= limit:
      raise error(op, f"expected every |accumulator| below {limit}, got {bound}; scale the inputs of the "
                  "model")


def matrix_bounds(program: IntProgram, op: IntOp) -> list[tuple[int, int]]:
  """Returns (bound, limit) of |accumulator| of each matrix product that an operator computes inside."""
  bounds = []
  for source, place, bias in operator_of(op.kind).matrices:
    x, kernel = program.tensors[op.inputs[source]], program.tensors[op.inputs[place]]
    offset = np.zeros(len(kernel.data)) if bias is None else program.tensors[op.inputs[bias]].data
    limit = product_limit(float(x.scale[0]) * float(kernel.scale[0]))
    bounds.append((int(_bounds(x, kernel, offset, channel_axis=0).max()), limit))
  return bounds


def check_slopes(program: IntProgram, op: IntOp) -> None:
  """Asserts the rules of a constant that multiplies x, without a bias."""
  place = operator_of(op.kind).slopes
  if place is not None:
    _check_kernel(op, program.tensors[op.inputs[place]], ("int8",))


def _check_kernel(op: IntOp, kernel: IntTensor, types: tuple[str, ...]) -> None:
  """Asserts a constant kernel of zero points 0, of these types: int8 in [-127, 127], or int4 in [-7, 7]."""
  if kernel.data is None or kernel.dtype not in types:
    raise error(op, f"kernel {kernel.name!r}: expected constant {' or '.join(types)} integers, got "
                f"{kernel.dtype} {'activation' if kernel.data is None else 'integers'}")
  if np.any(kernel.zero_point):
    raise error(op, f"kernel {kernel.name!r}: expected zero points 0, got "
                f"{kernel.zero_point[kernel.zero_point != 0][0]}")
  largest = _LARGEST_WEIGHTS[kernel.dtype]
  if kernel.data.min(initial=0) < -largest:
    raise error(op, f"kernel {kernel.name!r}: expected integers in [{-largest}, {largest}], got "
                f"{kernel.data.min()}")


def _check_bias(op: IntOp, x: IntTensor, kernel: IntTensor, bias: IntTensor, *,
                channels: int) -> None:
  """Asserts a constant bias, one integer a channel, of scale f32(s_x) * f32(s_w), zero point 0."""
  expected = _BIAS_TYPES[x.dtype]
  if bias.data is None or bias.dtype != expected or bias.shape != (channels,):
    raise error(op, f"bias {bias.name!r}: expected constant {expected} of shape ({channels},), "
                f"got {bias.dtype} of shape {bias.shape}")
  if bias.scale is None:
    raise error(op, f"bias {bias.name!r}: expected scales, without them other kernels run it")
  if not np.array_equal(bias.scale, x.scale * kernel.scale):
    raise error(op, f"bias {bias.name!r}: expected scale float32(s_x) * float32(s_w) in every bit")
  if np.any(bias.zero_point):
    raise error(op, f"bias {bias.name!r}: expected zero points 0")


def _check_accumulator(op: IntOp, x: IntTensor, kernel: IntTensor, bias: IntTensor, *,
                       channel_axis: int) -> None:
  """Asserts |q_b| + max|q_x - z_x| * sum|q_w| < `accumulator_limit` in every channel."""
  limit = accumulator_limit(op, x, kernel)
  terms = kernel.data.size // max(1, kernel.shape[channel_axis])
  if (np.abs(bias.data.astype(np.int64)).max(initial=0) + _swing(x) * _LARGEST_WEIGHTS[kernel.dtype] * terms
      < limit):
    return  # True whatever the integers are: nearly every layer, without a pass over its kernel.
  bounds = accumulator_bounds(x, kernel, bias, channel_axis=channel_axis)
  worst = int(np.argmax(bounds))
  if bounds[worst] >= limit:
    raise error(op, f"channel {worst}: expected |q_b| + max|q_x - z_x| * sum|q_w| < "
                f"2^{limit.bit_length() - 1}, got {bounds[worst]}; raise the scale of this channel of "
                f"kernel {kernel.name!r}")


def accumulator_limit(op: IntOp, x: IntTensor, kernel: IntTensor) -> int:
  """Returns what every |accumulator| of the operator must stay below."""
  if x.dtype == "int16":
    return WIDE_ACCUMULATOR_LIMIT
  return operator_of(op.kind).weighted.packed_limit if kernel.dtype == "int4" else ACCUMULATOR_LIMIT


def accumulator_bounds(x: IntTensor, kernel: IntTensor, bias: IntTensor, *, channel_axis: int) -> np.ndarray:
  """Returns |q_b| + max|q_x - z_x| * sum|q_w| of each output channel, int64: no input passes it."""
  return _bounds(x, kernel, bias.data, channel_axis=channel_axis)


def _bounds(x: IntTensor, kernel: IntTensor, bias: np.ndarray, *, channel_axis: int) -> np.ndarray:
  others = tuple(i for i in range(kernel.data.ndim) if i != channel_axis)
  sums = np.sum(np.abs(kernel.data, dtype=np.int16), axis=others, dtype=np.int64)
  return np.abs(bias.astype(np.int64)) + _swing(x) * sums


def _swing(x: IntTensor) -> int:
  """Returns max |q - z| over the grid of an activation."""
  low, high = ACTIVATION_LIMITS[x.dtype]
  return int(max(high - x.zero_point[0], x.zero_point[0] - low))
