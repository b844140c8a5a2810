"""QUANTIZE and DEQUANTIZE: from one grid, or float, to another."""

from collections.abc import Callable

import numpy as np

from tflite_export.kernels.call import Call, by_code, centred, finish, output_limits, scale_of, zero_point_of
from tflite_export.kernels.multipliers import (
  cast_int32,
  multiply_double,
  multiply_double_up,
  round_away,
  shift_up,
)

_DELEGATE_BITS = 8
_VECTOR, _SHORT_VECTOR = 16, 8
"""Elements that the vector code of `builtin` takes at once: of int8; of float32 for int16."""
_Function = Callable[[np.ndarray], np.ndarray]


def quantize(call: Call, x: np.ndarray) -> list:
  """Returns [x on the output's grid]; x is float32 or lies on a grid."""
  return [(_from_float if call.inputs[0].dtype == "float32" else _from_grid)(call, x)]


def dequantize(call: Call, x: np.ndarray) -> list:
  """Returns [s_x (q - z_x)], float32."""
  source = call.inputs[0]
  return [scale_of(source) * (x.astype(np.float32) - np.float32(zero_point_of(source)))]


def _from_float(call: Call, x: np.ndarray) -> np.ndarray:
  """`reference` divides by the scale and rounds ties away from zero; the others multiply by its inverse."""
  y = call.outputs[0]
  if y.dtype == "int16" and call.arithmetic == "builtin":
    return _in_vectors(x, _SHORT_VECTOR, lambda v: finish(call, cast_int32(np.rint(v * (1 / scale_of(y))))),
                       lambda v: finish(call, cast_int32(round_away(v.astype(np.float64) / scale_of(y)))))
  if call.arithmetic == "reference":
    return finish(call, cast_int32(round_away(x / scale_of(y))))
  low, high = (np.float32(limit - zero_point_of(y)) for limit in output_limits(call))
  return finish(call, np.clip(np.rint(x * (np.float32(1) / scale_of(y))), low, high))


def _from_grid(call: Call, x: np.ndarray) -> np.ndarray:
  if call.arithmetic != "builtin" or "int16" in (call.inputs[0].dtype, call.outputs[0].dtype):
    return by_code(x, lambda codes: _scaled(call, codes, vector=False))
  return _in_vectors(x, _VECTOR, lambda v: by_code(v, lambda codes: _scaled(call, codes, vector=True)),
                     lambda v: by_code(v, lambda codes: _scaled(call, codes, vector=False)))


def _in_vectors(x: np.ndarray, length: int, vectors: _Function, rest: _Function) -> np.ndarray:
  """Returns one function of the elements of each image in whole vectors, and another of those behind."""
  size = int(np.prod(x.shape[1:]))
  flat, whole = x.reshape(len(x), size), size // length * length
  return np.concatenate([vectors(flat[:, :whole]), rest(flat[:, whole:])], axis=1).reshape(x.shape)


def _scaled(call: Call, x: np.ndarray, *, vector: bool) -> np.ndarray:
  """Returns (q - z_x) s_x / s_y + z_y; the vector code of `builtin` rounds ties up."""
  source, y = call.inputs[0], call.outputs[0]
  d = centred(x, source)
  if call.arithmetic == "xnnpack":
    m = int(np.rint(scale_of(source) / scale_of(y) * np.float32(1 << _DELEGATE_BITS)))
    return finish(call, shift_up(d * m, _DELEGATE_BITS))
  multiply = multiply_double_up if vector else multiply_double
  return finish(call, multiply(d, np.float64(scale_of(source)) / np.float64(scale_of(y))))
