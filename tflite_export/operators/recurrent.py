"""A recurrent layer as one operator, and what sets its state."""

import numpy as np

from kquant.core.target import CELL_EXPONENTS
from tflite_export.kernels import lstm, moving
from tflite_export.operators import delegation
from tflite_export.operators.record import Batch, Operator, Simulated
from tflite_export.program.program import RECURRENT_ACTIVATION, IntOp, Tensors

PLAIN = {"fused_activation_function": RECURRENT_ACTIVATION, "cell_clip": 0.0, "proj_clip": 0.0,
         "time_major": False, "asymmetric_quantize_inputs": False, "diagonal_recurrent_tensors": False}
"""The options of the one form that is written."""
_GIVEN = {lstm.SOURCE, *lstm.KERNELS, *lstm.RECURRENT_KERNELS, *lstm.BIASES, lstm.STATE, lstm.CELL}


def _wrong_state(op: IntOp, inputs: Tensors, outputs: Tensors) -> str | None:
  """The state has the grid of the output, and is that of all intermediates; the cell 16 bits at 2^n."""
  state, cell, y = inputs[lstm.STATE], inputs[lstm.CELL], outputs[0]
  if not np.array_equal((state.scale, state.zero_point), (y.scale, y.zero_point)):
    return f"expected one grid for {state.name!r} and {y.name!r}"
  if cell.dtype != "int16" or np.float32(2.0)**round(np.log2(cell.scale[0])) != cell.scale[0] or round(
      np.log2(cell.scale[0])) not in CELL_EXPONENTS:
    return (f"expected int16 at 2^{CELL_EXPONENTS[0]} to 2^{CELL_EXPONENTS[-1]} for {cell.name!r}, got "
            f"{cell.dtype} at {cell.scale[0]!r}")
  if op.intermediates != [state.name] * 5:
    return f"expected {state.name!r} as its five intermediates, got {op.intermediates}"
  return None if state.variable and cell.variable else "expected variables for state and cell"


OPERATORS = (
    Operator("FILL", "FillOptions", moving.fill, version=3, int16=3, batch=Batch(place=0, may_be_open=False),
             simulated=Simulated(constants={0: "shape", 1: "value"}, of_constants=True)),
    Operator("UNIDIRECTIONAL_SEQUENCE_LSTM", "UnidirectionalSequenceLSTMOptions", lstm.lstm,
             delegated=delegation.never, state=_wrong_state,
             matrices=(*((lstm.SOURCE, *places) for places in zip(lstm.KERNELS, lstm.BIASES)),
                       *((lstm.STATE, kernel, None) for kernel in lstm.RECURRENT_KERNELS)),
             simulated=Simulated(options=PLAIN, absent=frozenset(range(lstm.INPUTS)) - _GIVEN,
                                 operands=frozenset(("int8", "int16")), results=frozenset(("int8",)))),
)
