"""The rules an IntProgram must obey before it is written. Each is asserted; no integer is changed.

Most of them the runtime does not enforce: it ignores a wrong bias scale, copies integers between
tensors whose scales differ, or runs the same file differently with and without its delegate.
"""

import numpy as np

from tflite_export.operators.check_weights import (
  ACTIVATION_LIMITS,
  check_matrices,
  check_slopes,
  check_weighted,
  error,
)
from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntOp, IntProgram, IntTensor


def check(program: IntProgram) -> None:
  """Asserts every rule on every operator.

  The rules: tensors exist and are produced before they are used; int8 and int16 tensors have grids;
  float32 only at the border; QUANTIZE and DEQUANTIZE only at the border or with a reason; one grid
  where the kernel copies integers; the fixed output grids of SOFTMAX, LOGISTIC and TANH; kernels
  with zero points 0, none of int4 over int16; biases of scale s_x * s_w;
  |q_b| + max|q_x - z_x| * sum|q_w| < 2^31 (2^47 over int16, 2^27 in dense layers of int4);
  s_x * s_w / s_y < 256; sums with 2 max(s_a, s_b) / s_y < 2^20 (2^15 over int16); an operator over int16
  that LiteRT has, beside no int8 but that of kernels; the state of a recurrent operator on the grids that it
  computes on.

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
    check_weighted(program, op)
    check_matrices(program, op)
    _check_sum(program, op)
    check_slopes(program, op)
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
    raise error(op, f"expected 2 max(s_a, s_b) / s_y below 2^{limit.bit_length() - 1}, got {ratio:.4g}; "
                "widen the output's grid")


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
      raise error(op, f"expected inputs and outputs, got {op.inputs} and {op.outputs}")
    absent = operator_of(op.kind).simulated.absent
    for name in (name for place, name in enumerate(op.inputs) if name or place not in absent):
      if name not in program.tensors:
        raise error(op, f"input {name!r} is not a tensor of the program")
      if name not in ready:
        raise error(op, f"input {name!r} is used before any operator produces it")
    for name in op.outputs:
      if name not in program.tensors:
        raise error(op, f"output {name!r} is not a tensor of the program")
      if name in ready:
        raise error(op, f"output {name!r} is a graph input, a constant or made twice")
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
    for name in filter(None, op.inputs):
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
    for name in filter(None, names):
      if program.tensors[name].dtype == "float32" and not allowed:
        raise error(op, f"tensor {name!r} is float32, expected that only at the graph's border "
                    "beside a QUANTIZE or DEQUANTIZE")
  if converts and not (first or last or op.reason):
    raise error(op, "expected it at the graph's border, or with a reason for being inside")


def _check_grids(program: IntProgram, op: IntOp) -> None:
  """Asserts a grid on every int8, uint8 and int16 tensor, and that every grid fits its tensor."""
  for name in filter(None, (*op.inputs, *op.outputs)):
    tensor = program.tensors[name]
    if tensor.scale is not None:
      _check_grid(op, tensor)
    elif tensor.dtype in ACTIVATION_LIMITS:
      raise error(op, f"{tensor.dtype} tensor {name!r} has no scale")


def _check_int16(program: IntProgram, op: IntOp) -> None:
  """Asserts that LiteRT has a kernel over int16 for the operator, in its version, without int8 beside it."""
  types = {program.tensors[name].dtype: name for name in (*op.inputs, *op.outputs)
           if name and not program.tensors[name].variable}
  if "int16" not in types:
    return
  record = operator_of(op.kind)
  if record.int16 is None:
    raise error(op, "LiteRT has no kernel of it over int16 activations; replace the layer, or give what "
                "it reads 8 bits")
  if op.version < record.int16:
    raise error(op, f"expected version {record.int16} or later for int16 activations, got {op.version}")
  parameters = record.weighted is not None or record.slopes is not None
  narrow = [name for name in (*op.outputs, *op.inputs) if program.tensors[name].dtype in ("int8", "uint8")
            and not (parameters and program.tensors[name].data is not None)]
  if narrow and not record.converts:
    raise error(op, f"expected one type of activations, got int16 for {types['int16']!r} and "
                f"{program.tensors[narrow[0]].dtype} for {narrow[0]!r}; put a QUANTIZE between")


def _check_grid(op: IntOp, tensor: IntTensor) -> None:
  """Asserts positive scales, one a channel, and one zero point on the grid for an activation."""
  if not (np.all(np.isfinite(tensor.scale)) and np.all(tensor.scale > 0)):
    raise error(op, f"tensor {tensor.name!r}: expected scales that are positive numbers")
  if tensor.axis is not None and not 0 <= tensor.axis < len(tensor.shape):
    raise error(op, f"tensor {tensor.name!r}: axis {tensor.axis} is outside of {tensor.shape}")
  channels = 1 if tensor.axis is None else tensor.shape[tensor.axis]
  if tensor.scale.shape != (channels,) or tensor.zero_point.shape != (channels,):
    raise error(op, f"tensor {tensor.name!r}: expected {channels} scales and zero points "
                f"(axis {tensor.axis}), got {tensor.scale.size} and {tensor.zero_point.size}")
  if tensor.data is None and tensor.dtype in ACTIVATION_LIMITS:
    _check_activation(op, tensor)


def _check_activation(op: IntOp, tensor: IntTensor) -> None:
  """Asserts one scale and a zero point on the grid; int16 grids are symmetric."""
  low, high = (0, 0) if tensor.dtype == "int16" else ACTIVATION_LIMITS[tensor.dtype]
  if tensor.axis is not None:
    raise error(op, f"activation {tensor.name!r}: expected one scale, got {tensor.scale.size}")
  if not low <= tensor.zero_point[0] <= high:
    raise error(op, f"{tensor.dtype} activation {tensor.name!r}: expected a zero point in "
                f"[{low}, {high}], got {tensor.zero_point[0]}")


def _check_same_scale(program: IntProgram, op: IntOp) -> None:
  """Asserts bit-equal grids of all quantized tensors where the kernel moves integers."""
  if not operator_of(op.kind).same_scale:
    return
  tensors = [program.tensors[name] for name in (*op.inputs, *op.outputs)]
  first, *others = [t for t in tensors if t.dtype in ACTIVATION_LIMITS] or [None]
  for other in others:
    if (first.dtype != other.dtype or not np.array_equal(first.scale, other.scale)
        or not np.array_equal(first.zero_point, other.zero_point)):
      raise error(op, f"expected one grid for all its tensors, got {_grid(first)} for "
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
    raise error(op, f"expected an output of scale {scale}, zero point {zero_point}, got "
                f"{_grid(output)} for {output.name!r}")
