"""What is not simulated, and why. All else is exact, in programs that obey `program_check.check`.

Left out as a whole: uint8 inside of a network, float operators, and options that
no lowering writes. Left out at the far ends of the scales: sums and products whose kernels overflow,
which no network of sensible ranges reaches.
"""

import numpy as np

from tflite_export.kernels.call import scale_of, swing_of
from tflite_export.kernels.delegation import Tensors, arithmetic_of
from tflite_export.program.check import INT4_KERNELS, SUM_LIMITS
from tflite_export.program.program import IntOp, IntTensor

_INT16_ROOM = 2**15 - 2**8
"""A result further than this from its zero point overflows the int16 of vector code."""

# {kind: {option: its only simulated value}}; an option that is not given has the schema's default.
_OPTIONS = {
    "CONCATENATION": {"fused_activation_function": "NONE"},
    "GATHER": {"axis": 0, "batch_dims": 0},
    "RESIZE_BILINEAR": {"align_corners": False, "half_pixel_centers": True},
    "RESIZE_NEAREST_NEIGHBOR": {"align_corners": False, "half_pixel_centers": True},
    "STRIDED_SLICE": {"ellipsis_mask": 0, "new_axis_mask": 0, "offset": False},
    "TRANSPOSE_CONV": {"fused_activation_function": "NONE"},
}
_DEFAULTS = {"fused_activation_function": "NONE", "half_pixel_centers": False, "align_corners": False,
             "ellipsis_mask": 0, "new_axis_mask": 0, "offset": False, "axis": 0, "batch_dims": 0}
_ACTIVATIONS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
# {kind: (types of operands, types of results)} where they are not int8 alone, or int16 alone.
_TYPES = {
    "ADD": ({"int8", "int16", "int32"}, {"int8", "int16", "int32"}),
    "CAST": ({"int8", "int16"}, {"int32"}),
    "DEQUANTIZE": ({"int8", "uint8", "int16"}, {"float32"}),
    "GATHER": ({"int8", "int16", "int32"}, {"int8", "int16"}),
    "QUANTIZE": ({"float32", "int8", "uint8", "int16"}, {"int8", "uint8", "int16"}),
}
# {kind: types of its constant kernel}
_KERNELS = {**dict.fromkeys(INT4_KERNELS, {"int4", "int8"}),
            **dict.fromkeys(("PRELU", "TRANSPOSE_CONV"), {"int8"})}


def reason_not_simulated(op: IntOp, inputs: Tensors, outputs: Tensors, mode: str) -> str | None:
  """Returns why the kernels cannot run an operator that has one, in a few words; None if they can."""
  return (_strange_tensors(op, inputs, outputs) or _strange_options(op, outputs)
          or _strange_scales(op, inputs, outputs, mode))


def _strange_tensors(op: IntOp, inputs: Tensors, outputs: Tensors) -> str | None:
  if None in inputs:
    return "an input is absent"
  if all(t.data is not None for t in inputs):
    return "all inputs are constants"
  if op.kind == "GATHER" and inputs[0].data is None:
    return "the table is computed"
  sources, results = ({t.dtype for t in tensors if not _is_parameter(t)} for tensors in (inputs, outputs))
  kept = {"int16"} if "int16" in sources else {"int8"}
  kernels = {"int8"} if "int16" in sources and op.kind in _KERNELS else _KERNELS.get(op.kind, set())
  allowed_sources, allowed_results = _TYPES.get(op.kind, (kept | kernels, kept))
  strange = sorted((sources - allowed_sources) | (results - allowed_results))
  return f"tensors of {', '.join(strange)}" if strange else None


def _is_parameter(tensor: IntTensor) -> bool:
  """Whether a tensor is a bias, a shape, axes ..., not an operand on a grid."""
  return tensor.data is not None and tensor.dtype in ("int32", "int64")


def _strange_options(op: IntOp, outputs: Tensors) -> str | None:
  for name, value in _OPTIONS.get(op.kind, {}).items():
    if op.options.get(name, _DEFAULTS[name]) != value:
      return f"{name} {op.options.get(name, _DEFAULTS[name])!r}"
  activation = op.options.get("fused_activation_function", "NONE")
  if activation != "NONE" and outputs[0].dtype == "int32":
    return f"fused activation {activation} on int32"
  return None if activation in _ACTIVATIONS else f"fused activation {activation}"


def _strange_scales(op: IntOp, inputs: Tensors, outputs: Tensors, mode: str) -> str | None:
  arithmetic = arithmetic_of(op, inputs, outputs, mode)
  if arithmetic == "xnnpack" or op.kind not in ("ADD", "SUB", "MUL") or outputs[0].dtype == "int32":
    return None
  s_y = float(scale_of(outputs[0]))
  scales, swings = zip(*((float(scale_of(t)), swing_of(t)) for t in inputs))
  if op.kind != "MUL" and 2 * max(scales) >= SUM_LIMITS[outputs[0].dtype] * s_y:
    return f"an input's scale is {max(scales) / s_y:.3g} times the output's"
  reach = np.prod(scales) * np.prod(swings) if op.kind == "MUL" else np.dot(scales, swings)
  short = arithmetic == "builtin" and op.kind != "SUB" and outputs[0].dtype == "int8"
  if short and reach / s_y >= _INT16_ROOM:
    return f"results reach {reach / s_y:.3g} steps of the output"
  return None
