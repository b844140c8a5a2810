"""The rules an IntProgram must obey before it is written. Each is asserted; no integer is changed.

Most of them the runtime does not enforce: it ignores a wrong bias scale, copies integers between
tensors whose scales differ, or runs the same file differently with and without its delegate.
"""

import numpy as np

from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntOp, IntProgram, IntTensor

ACCUMULATOR_LIMIT = 2**31
"""The accumulator of an operator over int8 activations is int32."""
WIDE_ACCUMULATOR_LIMIT = 2**47
"""Over int16 activations it is int64; times 15 bits of a multiplier it must fit again."""
MULTIPLIER_LIMIT = 256
"""s_x * s_w / s_y must lie below: the default kernels refuse to load the file otherwise."""

_ACTIVATION_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
_BIAS_TYPES = {"int8": "int32", "int16": "int64"}
_LARGEST_WEIGHTS = {"int8": 127, "int4": 7}


def check(program: IntProgram) -> None:
  """Asserts every rule on every operator.

  The rules: tensors exist and are produced before they are used; int8 and int16 tensors have grids;
  float32 only at the border; QUANTIZE and DEQUANTIZE only at the border or with a reason; one grid
  where the kernel copies integers; the fixed output grids of SOFTMAX, LOGISTIC and TANH; kernels
  with zero points 0, none of int4 over int16; biases of scale s_x * s_w;
  |q_b| + max|q_x - z_x| * sum|q_w| < 2^31 (2^47 over int16, 2^27 in dense layers of int4);
  s_x * s_w / s_y < 256; sums with 2 max(s_a, s_b) / s_y < 2^20 (2^15 over int16); an operator over int16
  that LiteRT has, beside no int8 but that of kernels.

  Raises:
    ValueError: a rule is broken; the message names the layer.
  """
  _check_order(program)
  _check_lone_floats(program)
  readers = _readers(program)
  for op in program.ops:
    _check_border(program, op, readers)
    _check_grids(program, op)
    _check_same_scale(program, op)
    _check_fixed_grid(program, op)
    _check_weighted(program, op)
    _check_sum(program, op)
    _check_slopes(program, op)
    _check_int16(program, op)


def _check_sum(program: IntProgram, op: IntOp) -> None:
  """Asserts 2 max(s_a, s_b) / s_y < 2^20 or 2^15: beyond it the reference kernel of ADD ends the process."""
  y = program.tensors[op.outputs[0]]
  limit = (operator_of(op.kind).sum_limits or {}).get(y.dtype)
  if limit is None:
    return
  largest = max(float(program.tensors[name].scale[0]) for name in op.inputs)
  ratio = 2 * largest / float(y.scale[0])
  if ratio >= limit:
    raise _error(op, f"expected 2 max(s_a, s_b) / s_y below 2^{limit.bit_length() - 1}, got {ratio:.4g}; "
                     "widen the output's grid")


def _error(op: IntOp, problem: str) -> ValueError:
  """Returns the error that names the operator and its layer."""
  return ValueError(f"{op.kind} of layer {op.source!r}: {problem}.")


def _check_order(program: IntProgram) -> None:
  """Asserts that every tensor exists, has one origin and is there before it is read."""
  for name, tensor in program.tensors.items():
    if name != tensor.name or not name:
      raise ValueError(f"Tensor {tensor.name!r}: expected a name, and that as its key, got key "
                       f"{name!r}.")
  ready = {name for name, tensor in program.tensors.items() if tensor.data is not None}
  for name in program.inputs:
    if name not in program.tensors or name in ready:
      raise ValueError(f"Graph input {name!r}: expected a tensor without data, listed once.")
    ready.add(name)
  for op in program.ops:
    if not (op.inputs and op.outputs):
      raise _error(op, f"expected inputs and outputs, got {op.inputs} and {op.outputs}")
    for name in op.inputs:
      if name not in program.tensors:
        raise _error(op, f"input {name!r} is not a tensor of the program")
      if name not in ready:
        raise _error(op, f"input {name!r} is used before any operator produces it")
    for name in op.outputs:
      if name not in program.tensors:
        raise _error(op, f"output {name!r} is not a tensor of the program")
      if name in ready:
        raise _error(op, f"output {name!r} is a graph input, a constant or made twice")
    ready.update(op.outputs)
  for name in program.outputs:
    if name not in ready:
      raise ValueError(f"Graph output {name!r}: expected the output of an operator, none makes it.")


def _check_lone_floats(program: IntProgram) -> None:
  """Asserts that an operator touches every float32 tensor (and so `_check_border` sees it)."""
  touched = {name for op in program.ops for name in (*op.inputs, *op.outputs)}
  for name, tensor in program.tensors.items():
    if tensor.dtype == "float32" and name not in touched:
      raise ValueError(f"Tensor {name!r} is float32 and no operator converts it; remove it.")


def _readers(program: IntProgram) -> dict[str, list[IntOp]]:
  """Returns {tensor name: operators that read it}."""
  readers: dict[str, list[IntOp]] = {name: [] for name in program.tensors}
  for op in program.ops:
    for name in op.inputs:
      readers[name].append(op)
  return readers


def _check_border(program: IntProgram, op: IntOp, readers: dict[str, list[IntOp]]) -> None:
  """Asserts that float32 and unplanned (DE)QUANTIZE lie at the border of the graph.

  The border: the operator reads a graph input, or nothing reads what it makes (which holds for the
  last DEQUANTIZE even when other tensors are looked at as outputs).
  """
  converts = operator_of(op.kind).converts
  first = converts and op.inputs[0] in program.inputs
  last = converts and not readers[op.outputs[0]]
  for names, allowed in ((op.inputs, first), (op.outputs, last)):
    for name in names:
      if program.tensors[name].dtype == "float32" and not allowed:
        raise _error(op, f"tensor {name!r} is float32, expected that only at the graph's border "
                         "beside a QUANTIZE or DEQUANTIZE")
  if converts and not (first or last or op.reason):
    raise _error(op, "expected it at the graph's border, or with a reason for being inside")


def _check_grids(program: IntProgram, op: IntOp) -> None:
  """Asserts a grid on every int8, uint8 and int16 tensor, and that every grid fits its tensor."""
  for name in (*op.inputs, *op.outputs):
    tensor = program.tensors[name]
    if tensor.scale is not None:
      _check_grid(op, tensor)
    elif tensor.dtype in _ACTIVATION_LIMITS:
      raise _error(op, f"{tensor.dtype} tensor {name!r} has no scale")


def _check_int16(program: IntProgram, op: IntOp) -> None:
  """Asserts that LiteRT has a kernel over int16 for the operator, in its version, without int8 beside it."""
  types = {program.tensors[name].dtype: name for name in (*op.inputs, *op.outputs)}
  if "int16" not in types:
    return
  record = operator_of(op.kind)
  if record.int16 is None:
    raise _error(op, "LiteRT has no kernel of it over int16 activations; replace the layer, or give what "
                     "it reads 8 bits")
  if op.version < record.int16:
    raise _error(op, f"expected version {record.int16} or later for int16 activations, got {op.version}")
  parameters = record.weighted is not None or record.slopes is not None
  narrow = [name for name in (*op.outputs, *op.inputs) if program.tensors[name].dtype in ("int8", "uint8")
            and not (parameters and program.tensors[name].data is not None)]
  if narrow and not record.converts:
    raise _error(op, f"expected one type of activations, got int16 for {types['int16']!r} and "
                     f"{program.tensors[narrow[0]].dtype} for {narrow[0]!r}; put a QUANTIZE between")


def _check_grid(op: IntOp, tensor: IntTensor) -> None:
  """Asserts positive scales, one a channel, and one zero point on the grid for an activation."""
  if not (np.all(np.isfinite(tensor.scale)) and np.all(tensor.scale > 0)):
    raise _error(op, f"tensor {tensor.name!r}: expected scales that are positive numbers")
  if tensor.axis is not None and not 0 <= tensor.axis < len(tensor.shape):
    raise _error(op, f"tensor {tensor.name!r}: axis {tensor.axis} is outside of {tensor.shape}")
  channels = 1 if tensor.axis is None else tensor.shape[tensor.axis]
  if tensor.scale.shape != (channels,) or tensor.zero_point.shape != (channels,):
    raise _error(op, f"tensor {tensor.name!r}: expected {channels} scales and zero points "
                     f"(axis {tensor.axis}), got {tensor.scale.size} and {tensor.zero_point.size}")
  if tensor.data is None and tensor.dtype in _ACTIVATION_LIMITS:
    _check_activation(op, tensor)


def _check_activation(op: IntOp, tensor: IntTensor) -> None:
  """Asserts one scale and a zero point on the grid; int16 grids are symmetric."""
  low, high = (0, 0) if tensor.dtype == "int16" else _ACTIVATION_LIMITS[tensor.dtype]
  if tensor.axis is not None:
    raise _error(op, f"activation {tensor.name!r}: expected one scale, got {tensor.scale.size}")
  if not low <= tensor.zero_point[0] <= high:
    raise _error(op, f"{tensor.dtype} activation {tensor.name!r}: expected a zero point in "
                     f"[{low}, {high}], got {tensor.zero_point[0]}")


def _check_same_scale(program: IntProgram, op: IntOp) -> None:
  """Asserts bit-equal grids of all quantized tensors where the kernel moves integers."""
  if not operator_of(op.kind).same_scale:
    return
  tensors = [program.tensors[name] for name in (*op.inputs, *op.outputs)]
  first, *others = [t for t in tensors if t.dtype in _ACTIVATION_LIMITS] or [None]
  for other in others:
    if (first.dtype != other.dtype or not np.array_equal(first.scale, other.scale)
        or not np.array_equal(first.zero_point, other.zero_point)):
      raise _error(op, f"expected one grid for all its tensors, got {_grid(first)} for "
                       f"{first.name!r} and {_grid(other)} for {other.name!r}")


def _grid(tensor: IntTensor) -> str:
  """Returns the grid of an activation in words; the scale in full, since every bit counts."""
  return f"{tensor.dtype} (scale {float(tensor.scale[0])!r}, zero point {tensor.zero_point[0]})"


def _check_fixed_grid(program: IntProgram, op: IntOp) -> None:
  """Asserts the one output grid that the kernel of SOFTMAX, LOGISTIC or TANH computes for."""
  grids = operator_of(op.kind).output_grids
  if grids is None:
    return
  output = program.tensors[op.outputs[0]]
  scale, zero_point = grids.get(output.dtype, (None, None))
  if scale is None or output.scale[0] != np.float32(scale) or output.zero_point[0] != zero_point:
    raise _error(op, f"expected an output of scale {scale}, zero point {zero_point}, got "
                     f"{_grid(output)} for {output.name!r}")


def _check_weighted(program: IntProgram, op: IntOp) -> None:
  """Asserts the rules of an operator that multiplies x by a constant kernel and adds a bias."""
  weighted = operator_of(op.kind).weighted
  if weighted is None:
    return
  channel_axis, count = weighted.channel_axis, max(weighted.places) + 1
  if len(op.inputs) < count:
    raise _error(op, f"expected {count} inputs, bias included, got {len(op.inputs)}")
  x, kernel, bias = (program.tensors[name] for name in weighted.operands(op.inputs))
  y = program.tensors[op.outputs[0]]
  if x.dtype not in _BIAS_TYPES or y.dtype != x.dtype:
    raise _error(op, f"expected int8 or int16 for both {x.name!r} and {y.name!r}, "
                     f"got {x.dtype} and {y.dtype}")
  _check_kernel(op, kernel, ("int8", "int4") if weighted.int4 else ("int8",))
  if kernel.dtype == "int4" and x.dtype == "int16":
    raise _error(op, f"kernel {kernel.name!r}: expected int8 integers over int16 activations, got int4")
  if kernel.axis not in (None, channel_axis):
    raise _error(op, f"kernel {kernel.name!r}: expected scales along axis {channel_axis}, "
                     f"got axis {kernel.axis}")
  _check_bias(op, x, kernel, bias, channels=kernel.shape[channel_axis])
  _check_accumulator(op, x, kernel, bias, channel_axis=channel_axis)
  ratio = np.max(x.scale.astype(np.float64) * kernel.scale / y.scale)
  if ratio >= MULTIPLIER_LIMIT:
    raise _error(op, f"expected s_x * s_w / s_y < {MULTIPLIER_LIMIT}, got {ratio:.6g}; "
                     "widen the output range of the layer")


def _check_slopes(program: IntProgram, op: IntOp) -> None:
  """Asserts the rules of a constant that multiplies x, without a bias."""
  place = operator_of(op.kind).slopes
  if place is not None:
    _check_kernel(op, program.tensors[op.inputs[place]], ("int8",))


def _check_kernel(op: IntOp, kernel: IntTensor, types: tuple[str, ...]) -> None:
  """Asserts a constant kernel of zero points 0, of these types: int8 in [-127, 127], or int4 in [-7, 7]."""
  if kernel.data is None or kernel.dtype not in types:
    raise _error(op, f"kernel {kernel.name!r}: expected constant {' or '.join(types)} integers, got "
                     f"{kernel.dtype} {'activation' if kernel.data is None else 'integers'}")
  if np.any(kernel.zero_point):
    raise _error(op, f"kernel {kernel.name!r}: expected zero points 0, got "
                     f"{kernel.zero_point[kernel.zero_point != 0][0]}")
  largest = _LARGEST_WEIGHTS[kernel.dtype]
  if kernel.data.min(initial=0) < -largest:
    raise _error(op, f"kernel {kernel.name!r}: expected integers in [{-largest}, {largest}], got "
                     f"{kernel.data.min()}")


def _check_bias(op: IntOp, x: IntTensor, kernel: IntTensor, bias: IntTensor, *,
                channels: int) -> None:
  """Asserts a constant bias, one integer a channel, of scale f32(s_x) * f32(s_w), zero point 0."""
  expected = _BIAS_TYPES[x.dtype]
  if bias.data is None or bias.dtype != expected or bias.shape != (channels,):
    raise _error(op, f"bias {bias.name!r}: expected constant {expected} of shape ({channels},), "
                     f"got {bias.dtype} of shape {bias.shape}")
  if bias.scale is None:
    raise _error(op, f"bias {bias.name!r}: expected scales, without them other kernels run it")
  if not np.array_equal(bias.scale, x.scale * kernel.scale):
    raise _error(op, f"bias {bias.name!r}: expected scale float32(s_x) * float32(s_w) in every bit")
  if np.any(bias.zero_point):
    raise _error(op, f"bias {bias.name!r}: expected zero points 0")


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
    raise _error(op, f"channel {worst}: expected |q_b| + max|q_x - z_x| * sum|q_w| < "
                     f"2^{limit.bit_length() - 1}, got {bounds[worst]}; raise the scale of this channel of "
                     f"kernel {kernel.name!r}")


def accumulator_limit(op: IntOp, x: IntTensor, kernel: IntTensor) -> int:
  """Returns what every |accumulator| of the operator must stay below."""
  if x.dtype == "int16":
    return WIDE_ACCUMULATOR_LIMIT
  return operator_of(op.kind).weighted.packed_limit if kernel.dtype == "int4" else ACCUMULATOR_LIMIT


def accumulator_bounds(x: IntTensor, kernel: IntTensor, bias: IntTensor, *, channel_axis: int) -> np.ndarray:
  """Returns |q_b| + max|q_x - z_x| * sum|q_w| of each output channel, int64: no input passes it."""
  others = tuple(i for i in range(kernel.data.ndim) if i != channel_axis)
  sums = np.sum(np.abs(kernel.data, dtype=np.int16), axis=others, dtype=np.int64)
  return np.abs(bias.data.astype(np.int64)) + _swing(x) * sums


def _swing(x: IntTensor) -> int:
  """Returns max |q - z| over the grid of an activation."""
  low, high = _ACTIVATION_LIMITS[x.dtype]
  return int(max(high - x.zero_point[0], x.zero_point[0] - low))
