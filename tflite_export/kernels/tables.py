"""Functions of one integer, by formula: RELU, RELU6, LEAKY_RELU, HARD_SWISH."""

import numpy as np

from tflite_export.kernels.call import Call, by_code, centred, finish, scale_of
from tflite_export.kernels.multipliers import multiply_double, quantize_multiplier, shift_away, shift_up

_DELEGATE_BITS = 8
_GATE_SCALE = np.float32(3 / 32768)
"""Of the gate of HARD_SWISH, x / 3 in 16 bits."""


def rectify(call: Call, x: np.ndarray) -> list:
  """Returns [x clamped as the activation clamps whose name the operator has] on the output's grid."""
  return [by_code(x, lambda codes: finish(call, _scaled(call, codes), call.op.kind))]


def leaky_relu(call: Call, x: np.ndarray) -> list:
  """Returns [x where x >= 0, else alpha * x] on the output's grid."""
  return [by_code(x, lambda codes: finish(call, _leaky(call, codes)))]


def hard_swish(call: Call, x: np.ndarray) -> list:
  """Returns [x * relu6(x + 3) / 6] on the output's grid, in 16-bit fixed point."""
  return [by_code(x, lambda codes: finish(call, _hard_swish(call, codes)))]


def _scaled(call: Call, x: np.ndarray) -> np.ndarray:
  """Returns (q - z_x) s_x / s_y."""
  source, y = call.inputs[0], call.outputs[0]
  return multiply_double(centred(x, source), scale_of(source) / scale_of(y))


def _leaky(call: Call, x: np.ndarray) -> np.ndarray:
  source, y = call.inputs[0], call.outputs[0]
  alpha, d = np.float32(call.option("alpha", 0.0)), centred(x, source)
  if call.arithmetic == "xnnpack":
    ratio = scale_of(source) / scale_of(y)
    positive, negative = (int(np.rint(part * np.float32(1 << _DELEGATE_BITS)))
                          for part in (ratio, ratio * alpha))
    return shift_up(np.where(d >= 0, d * positive, d * negative), _DELEGATE_BITS)
  slope = scale_of(source) * alpha / scale_of(y)
  return np.where(d >= 0, _scaled(call, x), multiply_double(d, slope))


def _hard_swish(call: Call, x: np.ndarray) -> np.ndarray:
  """Returns gate * product: x on the output's grid, times (x / 3 clamped to [-1, 1] + 1) / 2."""
  source, y = call.inputs[0], call.outputs[0]
  fine, step = centred(x, source) * 128, scale_of(source) / np.float32(128)
  q, exponent = (int(part) for part in quantize_multiplier(step / scale_of(y)))
  product = _high_multiply_16(fine, q)
  gate_q, gate_exponent = (int(part) for part in quantize_multiplier(step / _GATE_SCALE))
  gate = _saturated_16(fine << (gate_exponent - 1)) if gate_exponent > 0 else fine
  gate = _high_multiply_16(gate, gate_q)
  gate = _saturated_16(gate << 1) if gate_exponent > 0 else shift_away(gate, -gate_exponent)
  raised = ((gate + 2**15) >> 1) * product
  return shift_away(np.sign(raised) * (np.abs(raised) >> 15), -exponent)


def _high_multiply_16(v: np.ndarray, q: int) -> np.ndarray:
  """Returns v * q / 2^31 of 16-bit v with the upper 16 bits of q, ties up."""
  return (v * min((q + 2**15) >> 16, 2**15 - 1) + 2**14) >> 15


def _saturated_16(v: np.ndarray) -> np.ndarray:
  return np.clip(v, -2**15, 2**15 - 1)
