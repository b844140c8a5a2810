"""Which set of kernels runs an operator of a file, in a mode of the interpreter.

Mode "reference": the reference kernels run every operator. Mode "xnnpack", the default interpreter:
the XNNPACK delegate takes the operators that it can hold, and the optimised built-in kernels run
the rest.
"""

from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntOp, Tensors

MODES = ("xnnpack", "reference")
"""What a simulation can follow; `Runtime(kernels=mode)` runs the same."""


def arithmetic_of(op: IntOp, inputs: Tensors, outputs: Tensors, mode: str) -> str:
  """Returns "reference", "xnnpack" (delegated) or "builtin": what runs the operator in `mode`.

  Raises:
    ValueError: unknown mode.
  """
  if mode not in MODES:
    raise ValueError(f"Expected a mode of {', '.join(MODES)}, got {mode!r}.")
  if mode == "reference":
    return "reference"
  if any(tensor.dtype == "int16" for tensor in (*inputs, *outputs) if tensor is not None):
    return "builtin"
  return "xnnpack" if is_delegated(op, inputs, outputs) else "builtin"


def is_delegated(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """Whether the delegate takes the operator; True for kinds that compute the same everywhere."""
  rule = operator_of(op.kind).delegated
  return rule is None or rule(op, inputs, outputs)
