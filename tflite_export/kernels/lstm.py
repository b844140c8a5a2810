"""UNIDIRECTIONAL_SEQUENCE_LSTM over int8, with a cell of 16 bits whose scale is a power of two.

Every gate is a sum of two products in steps of 2^-12; the first and the sum saturate at int16. Gates and
candidate are in steps of 2^-15. Only the output, which is the state of the next step too, has 8 bits. One
code runs it in every set of kernels.
"""

import numpy as np

from kquant.core.target import SUM_STEP
from tflite_export.kernels.call import Call, centred, merge_images, output_like, scale_of, zero_point_of
from tflite_export.kernels.fixed_point import (
  FRACTION_BITS,
  look_up,
  saturated,
  sigmoid_table,
  tanh_table,
)
from tflite_export.kernels.multipliers import multiply_double, shift_away

INPUTS = 24
SOURCE, STATE, CELL = 0, 18, 19
KERNELS, RECURRENT_KERNELS, BIASES = range(1, 5), range(5, 9), range(12, 16)
"""Positions among the inputs; the gates in the order of Keras: input, forget, candidate, output."""

_SUM_WHOLE = 3


def lstm(call: Call, *arrays: np.ndarray | None) -> list:
  """Returns [the state behind each step]; x [n, batch, steps, features], state and cell [n, batch, units]."""
  x, state = (merge_images(centred(arrays[place], call.inputs[place])) for place in (SOURCE, STATE))
  cell = merge_images(arrays[CELL]).astype(np.int64)
  ours = [saturated(_product(call, arrays, (SOURCE, kernel, bias), x))
          for kernel, bias in zip(KERNELS, BIASES)]
  steps = []
  for step in range(x.shape[1]):
    sums = [saturated(own[:, step] + _product(call, arrays, (STATE, kernel, None), state))
            for own, kernel in zip(ours, RECURRENT_KERNELS)]
    cell, leave = _next_cell(call, sums, cell)
    steps.append(_output(call, leave, cell))
    state = centred(steps[-1], call.outputs[0])
  return [output_like(call, np.stack(steps, axis=1), len(arrays[SOURCE]))]


def cell_exponent(call: Call) -> int:
  """Returns n of the scale 2^n of the cell."""
  return int(np.log2(scale_of(call.inputs[CELL])))


def _product(call: Call, arrays: tuple, places: tuple[int, int, int | None], x: np.ndarray) -> np.ndarray:
  """Returns x W^T + b in steps of SUM_STEP; x is without its zero point.

  Args:
    places: of x, of the kernel [units, in] and of the bias, None for none.
  """
  source, kernel, bias = places
  acc = (x.astype(np.float64) @ arrays[kernel].T.astype(np.float64)).astype(np.int64)
  if bias is not None:
    acc += arrays[bias]
  real = scale_of(call.inputs[source]) * scale_of(call.inputs[kernel]) / SUM_STEP
  return multiply_double(acc, np.float64(real))


def _next_cell(call: Call, sums: list[np.ndarray], cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the new cell, and the gate of the output."""
  enter, keep, leave = (look_up(sigmoid_table(_SUM_WHOLE), sums[gate]) for gate in (0, 1, 3))
  candidate = look_up(tanh_table(_SUM_WHOLE), sums[2])
  entering = shift_away(enter * candidate, 2 * FRACTION_BITS + cell_exponent(call))
  return saturated(shift_away(keep * cell, FRACTION_BITS) + entering), leave


def _output(call: Call, leave: np.ndarray, cell: np.ndarray) -> np.ndarray:
  y = call.outputs[0]
  activated = look_up(tanh_table(FRACTION_BITS + cell_exponent(call)), cell)
  real = np.float32(2.0**(-2 * FRACTION_BITS)) / scale_of(y)
  result = multiply_double(leave * activated, np.float64(real)) + zero_point_of(y)
  return np.clip(result, -128, 127).astype(np.int8)
