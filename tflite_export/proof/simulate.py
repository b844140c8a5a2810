"""Runs an IntProgram in integers: what LiteRT computes of the same file, tensor by tensor.

Arrays hold n images: a tensor of shape [1, ...] is an array [n, ...] (one of shape [b, ...] is
[n * b, ...], the images one behind the other).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tflite_export.kernels.call import Call
from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.coverage import reason_not_simulated
from tflite_export.proof.delegation import arithmetic_of
from tflite_export.proof.runtime_tables import read_from_runtime

_ELEMENTS_AT_ONCE = 2**20
"""Elements of an operator's largest tensor that are worked on in one go: its temporaries are wider."""


def simulate(program: IntProgram, inputs: list[np.ndarray], *,
             mode: str = "xnnpack") -> dict[str, np.ndarray]:
  """Returns the integers of every activation by name, inputs included, computed from the inputs alone.

  Args:
    program: what was written to the file; it obeys `operators.check.check`.
    inputs: one array [n, ...] for each graph input, in order, of its dtype; n may be 0.
    mode: "xnnpack" (the default interpreter) or "reference"; as `Runtime(kernels=mode)`.

  Raises:
    ValueError: an input is missing or has another shape or dtype, an unknown mode, or an operator
      that is not simulated.
  """
  made = dict(simulate_in_turn(program, inputs, mode=mode))
  return dict(zip(program.inputs, inputs)) | made


def simulate_in_turn(program: IntProgram, inputs: list[np.ndarray], *,
                     mode: str = "xnnpack") -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, integers) of what each operator makes; a tensor is kept until its last reader has run.

  Args:
    program, inputs, mode: as for `simulate`.

  Raises:
    ValueError: as `simulate`.
  """
  if len(inputs) != len(program.inputs):
    raise ValueError(f"Expected {len(program.inputs)} input arrays ({', '.join(program.inputs)}), "
                     f"got {len(inputs)}.")
  values = dict(zip(program.inputs, inputs))
  calls, n = _calls(program, mode), _images(program, values)
  last = {name: call for call in calls for name in _activations(call)}
  for call in calls:
    made = _run(call, values, n)
    values |= made
    for name in {*_activations(call), *made}:
      if last.get(name, call) is call:
        del values[name]
    yield from made.items()


def simulate_each(program: IntProgram, tensors: dict[str, np.ndarray], *,
                  mode: str = "xnnpack") -> dict[str, np.ndarray]:
  """Returns the integers of every operator's outputs, each operator fed with the given tensors.

  Args:
    program: as for `simulate`.
    tensors: arrays [n, ...] of at least every activation that an operator reads, by name, for
      example what the runtime computed.
    mode: as for `simulate`.

  Raises:
    ValueError: as `simulate`; a tensor is missing.
  """
  calls = _calls(program, mode)
  read = {name: tensors.get(name) for call in calls for name in _activations(call)}
  missing = [name for name, array in read.items() if array is None]
  if missing:
    raise ValueError(f"Expected an array for every tensor that is read; {missing[0]!r} is missing.")
  n, results = _images(program, read), {}
  for call in calls:
    results |= _run(call, read, n)
  return results


def not_simulated(program: IntProgram, *, mode: str = "xnnpack") -> list[str]:
  """Returns a line for each operator that cannot be simulated: its kind, layer and the reason."""
  return [f"{op.kind} of layer {op.source!r}: {reason}" for op, reason in _reasons(program, mode) if reason]


def simulated_operators(program: IntProgram, modes: Sequence[str]) -> list[IntOp]:
  """Returns the operators that can be simulated in one of these modes at least."""
  judged = zip(*(_reasons(program, mode) for mode in modes))
  return [rows[0][0] for rows in judged if not all(reason for _, reason in rows)]


def kernel_of(kind: str) -> Callable[..., list]:
  """Returns the integer arithmetic of an operator that has a record."""
  return OPERATORS[kind].kernel or read_from_runtime


def _reasons(program: IntProgram, mode: str) -> Iterator[tuple[IntOp, str | None]]:
  """Yields each operator, and why it cannot be simulated; None where it can."""
  made = set(program.inputs)
  for op in program.ops:
    unset = [name for name in op.inputs if name and program.tensors[name].variable and name not in made]
    made.update(op.outputs)
    if unset:
      yield op, f"nothing sets its state {unset[0]!r}"
    elif op.kind in OPERATORS:
      yield op, reason_not_simulated(op, *program.operands(op), mode)
    else:
      yield op, "unknown operator"


def _calls(program: IntProgram, mode: str) -> list[Call]:
  problems = not_simulated(program, mode=mode)
  if problems:
    raise ValueError(f"Not simulated: {problems[0]}"
                     + (f" (and {len(problems) - 1} more)." if problems[1:] else "."))
  return [_call(program, op, mode) for op in program.ops]


def _call(program: IntProgram, op: IntOp, mode: str) -> Call:
  inputs, outputs = program.operands(op)
  return Call(op, inputs, outputs, arithmetic_of(op, inputs, outputs, mode))


def _activations(call: Call) -> list[str]:
  return [tensor.name for tensor in call.inputs if tensor is not None and tensor.data is None]


def _images(program: IntProgram, values: dict[str, np.ndarray]) -> int:
  """Returns the number of images of the given tensors; asserts their shapes and types."""
  n = None
  for name, array in values.items():
    tensor = program.tensors[name]
    batch, *rest = tensor.shape
    n = len(array) // batch if n is None else n
    if array.dtype != tensor.dtype or array.shape != (n * batch, *rest):
      raise ValueError(f"Tensor {name!r}: expected {tensor.dtype} of shape {(n * batch, *rest)}, "
                       f"got {array.dtype} of shape {array.shape}.")
  return n or 0


def _run(call: Call, values: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
  """Returns the outputs of one operator for n images, a few images at a time."""
  kernel = kernel_of(call.op.kind)
  results = [np.empty((n, *tensor.shape), tensor.dtype) for tensor in call.outputs]
  largest = max(np.prod(tensor.shape, dtype=int) for tensor in (*call.inputs, *call.outputs)
                if tensor is not None and tensor.data is None)
  step = max(1, _ELEMENTS_AT_ONCE // max(1, int(largest)))
  for start in range(0, n, step):
    part = slice(start, min(n, start + step))
    arrays = [_part_of(tensor, values, part) for tensor in call.inputs]
    for result, array in zip(results, kernel(call, *arrays)):
      result[part] = array
  return {tensor.name: result.reshape(n * tensor.shape[0], *tensor.shape[1:])
          for tensor, result in zip(call.outputs, results)}


def _part_of(tensor: IntTensor | None, values: dict[str, np.ndarray], part: slice) -> np.ndarray | None:
  """Returns the images `part` of an activation as [images, *shape], or a constant as it is."""
  if tensor is None or tensor.data is not None:
    return None if tensor is None else tensor.data
  batch = tensor.shape[0]
  return values[tensor.name][part.start * batch:part.stop * batch].reshape(-1, *tensor.shape)
