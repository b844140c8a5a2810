"""Operators of two operands that broadcast, and the product of two computed matrices."""

import numpy as np

from tflite_export.kernels import elementwise, linear
from tflite_export.kernels.call import scale_of, swing_of
from tflite_export.operators import delegation
from tflite_export.operators.record import Operator, Simulated
from tflite_export.program.program import IntOp, Tensors

_SUM_LIMITS = {"int8": 2**20, "int16": 2**15}
_INT16_ROOM = 2**15 - 2**8
"""A result further than this from its zero point overflows the int16 of vector code."""
_WITH_INDICES = frozenset(("int8", "int16", "int32"))


def _overflow_of_difference(arithmetic: str, inputs: Tensors, outputs: Tensors) -> str | None:
  del arithmetic
  largest, s_y = max(float(scale_of(t)) for t in inputs), float(scale_of(outputs[0]))
  if 2 * largest >= _SUM_LIMITS[outputs[0].dtype] * s_y:
    return f"an input's scale is {largest / s_y:.3g} times the output's"
  return None


def _overflow_of_sum(arithmetic: str, inputs: Tensors, outputs: Tensors) -> str | None:
  reach = np.dot([float(scale_of(t)) for t in inputs], [swing_of(t) for t in inputs])
  return (_overflow_of_difference(arithmetic, inputs, outputs)
          or _overflow_of_vectors(arithmetic, reach, outputs))


def _overflow_of_product(arithmetic: str, inputs: Tensors, outputs: Tensors) -> str | None:
  reach = np.prod([float(scale_of(t)) for t in inputs]) * np.prod([swing_of(t) for t in inputs])
  return _overflow_of_vectors(arithmetic, reach, outputs)


def _overflow_of_vectors(arithmetic: str, reach: float, outputs: Tensors) -> str | None:
  """The vector code of `builtin` over int8 holds results in int16; `reach` is the largest real one."""
  steps = reach / float(scale_of(outputs[0]))
  if arithmetic == "builtin" and outputs[0].dtype == "int8" and steps >= _INT16_ROOM:
    return f"results reach {steps:.3g} steps of the output"
  return None


def _is_one_matrix(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del op, inputs
  return len(outputs[0].shape) < 3


OPERATORS = (
    # version 1 of indices, which are int32
    Operator("ADD", "AddOptions", elementwise.add, version=2, int16=2, sum_limits=_SUM_LIMITS,
             delegated=delegation.ratios_of_sum, pair=np.add,
             simulated=Simulated(operands=_WITH_INDICES, results=_WITH_INDICES, overflow=_overflow_of_sum)),
    Operator("BATCH_MATMUL", "BatchMatMulOptions", linear.batch_matmul, version=2, int16=3,
             delegated=delegation.has_symmetric_right_side, crosses_batch=_is_one_matrix),
    Operator("MAXIMUM", "MaximumMinimumOptions", elementwise.maximum, version=2, int16=2, same_scale=True,
             simulated=Simulated(operands=_WITH_INDICES, results=_WITH_INDICES)),
    Operator("MINIMUM", "MaximumMinimumOptions", elementwise.minimum, version=2, int16=2, same_scale=True,
             simulated=Simulated(operands=_WITH_INDICES, results=_WITH_INDICES)),
    Operator("MUL", "MulOptions", elementwise.mul, version=2, int16=5, delegated=delegation.ratio_of_product,
             pair=np.multiply, simulated=Simulated(overflow=_overflow_of_product)),
    Operator("PRELU", None, elementwise.prelu, int16=1, slopes=-1, delegated=delegation.never, unary=True),
    Operator("SUB", "SubOptions", elementwise.sub, version=2, int16=5, sum_limits=_SUM_LIMITS,
             delegated=delegation.ratios_of_sum, pair=np.subtract,
             simulated=Simulated(overflow=_overflow_of_difference)),
)
