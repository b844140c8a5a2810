"""What is not simulated, and why. All else is exact, in programs that obey `operators.check.check`.

Left out as a whole: uint8 inside of a network, float operators, and options that
no lowering writes. Left out at the far ends of the scales: sums and products whose kernels overflow,
which no network of sensible ranges reaches. The records say which (`Operator.simulated`).
"""

from tflite_export.operators.record import Operator
from tflite_export.operators.table import operator_of
from tflite_export.program.program import ACTIVATIONS, IntOp, IntTensor, Tensors
from tflite_export.proof.delegation import arithmetic_of

_DEFAULTS = {"fused_activation_function": "NONE", "half_pixel_centers": False, "align_corners": False,
             "ellipsis_mask": 0, "new_axis_mask": 0, "offset": False, "axis": 0, "batch_dims": 0,
             "cell_clip": 0.0, "proj_clip": 0.0, "time_major": False, "asymmetric_quantize_inputs": False,
             "diagonal_recurrent_tensors": False}
"""What the schema says of an option that is not given."""


def reason_not_simulated(op: IntOp, inputs: Tensors, outputs: Tensors, mode: str) -> str | None:
  """Returns why the kernels cannot run an operator that has one, in a few words; None if they can."""
  return (_strange_tensors(op, inputs, outputs) or _strange_options(op, outputs)
          or _strange_scales(op, inputs, outputs, mode))


def _strange_tensors(op: IntOp, inputs: Tensors, outputs: Tensors) -> str | None:
  record = operator_of(op.kind)
  if {place for place, tensor in enumerate(inputs) if tensor is None} != record.simulated.absent:
    return "an input is absent, or one too many is given"
  for place, name in record.constants.items():
    if not -len(inputs) <= place < len(inputs):
      return f"the {name} is missing"
    if inputs[place].data is None:
      return f"the {name} is computed"
  given = [tensor for tensor in inputs if tensor is not None]
  if all(t.data is not None for t in given) and not record.simulated.of_constants:
    return "all inputs are constants"
  sources, results = ({t.dtype for t in tensors if not _is_parameter(t)} for tensors in (given, outputs))
  activation_types = {"int16"} if "int16" in sources else {"int8"}
  operands = record.simulated.operands or activation_types | _kernel_types(record, sources)
  strange = sorted((sources - operands) | (results - (record.simulated.results or activation_types)))
  return f"tensors of {', '.join(strange)}" if strange else None


def _kernel_types(record: Operator, sources: set[str]) -> set[str]:
  """Returns the types that the constant kernel of an operator may have, if it has one."""
  if record.weighted is None and record.slopes is None:
    return set()
  packed = record.weighted is not None and record.weighted.int4 and "int16" not in sources
  return {"int4", "int8"} if packed else {"int8"}


def _is_parameter(tensor: IntTensor) -> bool:
  """Whether a tensor is a bias, a shape, axes ..., not an operand on a grid."""
  return tensor.data is not None and tensor.dtype in ("int32", "int64")


def _strange_options(op: IntOp, outputs: Tensors) -> str | None:
  for name, value in operator_of(op.kind).simulated.options.items():
    if op.options.get(name, _DEFAULTS[name]) != value:
      return f"{name} {op.options.get(name, _DEFAULTS[name])!r}"
  if "fused_activation_function" in operator_of(op.kind).simulated.options:
    return None
  activation = op.options.get("fused_activation_function", "NONE")
  if activation != "NONE" and outputs[0].dtype == "int32":
    return f"fused activation {activation} on int32"
  return None if activation in ACTIVATIONS else f"fused activation {activation}"


def _strange_scales(op: IntOp, inputs: Tensors, outputs: Tensors, mode: str) -> str | None:
  arithmetic, overflow = arithmetic_of(op, inputs, outputs, mode), operator_of(op.kind).simulated.overflow
  if arithmetic == "xnnpack" or overflow is None or outputs[0].dtype == "int32":
    return None
  return overflow(arithmetic, inputs, outputs)
