"""Operators on elements, reductions and products: layers of Keras where it has them, else functions."""

from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.keras_calls import is_symbol
from kquant.graph.readers.tflite.call import Call, Convert, same_dtype
from kquant.graph.readers.tflite.views import Merged, as_in_file


def _unary(symbol: str) -> Convert:
  return lambda call: call.function(symbol, call.input(0))


def _binary(symbol: str, cls: type | None = None) -> Convert:
  """A layer of two tensors of one rank, else a function: a constant is an operand of its own."""
  def convert(call: Call) -> Any:
    a, b = call.inputs[:2]
    if is_symbol(a) and is_symbol(b):
      if cls is not None and len(a.shape) == len(b.shape) and a.dtype.is_floating:
        return call.activated(call.layer(cls, [a, b]))
    elif is_symbol(a):
      b = same_dtype(b, a)
    elif is_symbol(b):
      a = same_dtype(a, b)
    return call.activated(call.function(symbol, a, b))
  return convert


def _divide(call: Call) -> Any:
  """x / y of two tensors is x * (1 / y): a function of one element and a product."""
  a, b = call.inputs[:2]
  if is_symbol(a) and is_symbol(b) and len(a.shape) == len(b.shape) and a.dtype.is_floating:
    inverse = call.function("math.reciprocal", b, part="reciprocal")
    return call.activated(call.layer(keras.layers.Multiply, [a, inverse]))
  return _binary("math.truediv" if call.input(0).dtype.name.startswith("float") else "math.floordiv")(call)


def _squared_difference(call: Call) -> Any:
  a, b = call.inputs[:2]
  if is_symbol(a) and is_symbol(b) and len(a.shape) == len(b.shape):
    difference = call.layer(keras.layers.Subtract, [a, b], part="difference")
  else:
    difference = call.function("math.subtract", a, b, part="difference")
  return call.function("math.square", difference)


def _add_n(call: Call) -> Any:
  return call.layer(keras.layers.Add, list(call.inputs))


def _matmul(call: Call) -> Any:
  """A constant second matrix makes it a Dense layer without bias."""
  a, b = call.inputs[:2]
  transpose_a, transpose_b = bool(call.option("adjX", False)), bool(call.option("adjY", False))
  if isinstance(b, np.ndarray) and b.size == b.shape[-1] * b.shape[-2] and is_symbol(a) and not transpose_a:
    kernel = b.reshape(b.shape[-2:])
    kernel = kernel.T if transpose_b else kernel
    return call.layer(keras.layers.Dense, a, weights=[kernel], units=kernel.shape[1], use_bias=False)
  return call.function("linalg.matmul", a, b, transpose_a=transpose_a, transpose_b=transpose_b)


# --- reductions ------------------------------------------------------------------------------------

_GLOBAL = {
    "math.reduce_mean": {3: keras.layers.GlobalAveragePooling1D, 4: keras.layers.GlobalAveragePooling2D},
    "math.reduce_max": {3: keras.layers.GlobalMaxPooling1D, 4: keras.layers.GlobalMaxPooling2D},
}


def _reduction(symbol: str) -> Convert:
  """Over all positions of each channel: a global pool; else a function."""
  def convert(call: Call) -> Any:
    value, keep = call.input(0), bool(call.option("keepDims", False))
    rank = value.rank if isinstance(value, Merged) else len(value.shape)
    axes = sorted({axis % rank for axis in call.integers(1, "axes")}) if rank else []
    if isinstance(value, Merged) and 0 not in axes:
      moved = value.count - 1
      return value.of(_reduced(call, symbol, value.tensor, ([axis + moved for axis in axes], keep)))
    return _reduced(call, symbol, as_in_file(call, value), (axes, keep))
  return convert


def _reduced(call: Call, symbol: str, x: Any, how: tuple[list[int], bool]) -> Any:
  axes, keep = how
  rank = len(x.shape)
  pool = _GLOBAL.get(symbol, {}).get(rank)
  if is_symbol(x) and pool is not None and axes == list(range(1, rank - 1)):
    return call.layer(pool, x, keepdims=keep)
  return call.function(symbol, x, axis=axes, keepdims=keep)


def _arg_extreme(symbol: str) -> Convert:
  def convert(call: Call) -> Any:
    x = as_in_file(call, call.input(0))
    (axis,) = call.integers(1, "axis")
    return call.function(symbol, x, axis=axis, output_type="int32" if call.option("outputType", 2) == 2 else
                         "int64")
  return convert


ELEMENTS: dict[str, Convert] = {
    "ADD": _binary("math.add", keras.layers.Add),
    "SUB": _binary("math.subtract", keras.layers.Subtract),
    "MUL": _binary("math.multiply", keras.layers.Multiply),
    "DIV": _divide,
    "MAXIMUM": _binary("math.maximum", keras.layers.Maximum),
    "MINIMUM": _binary("math.minimum", keras.layers.Minimum),
    "POW": _binary("math.pow"),
    "FLOOR_DIV": _binary("math.floordiv"),
    "FLOOR_MOD": _binary("math.floormod"),
    "SQUARED_DIFFERENCE": _squared_difference,
    "ADD_N": _add_n,
    "BATCH_MATMUL": _matmul,
    **{kind: _binary(symbol) for kind, symbol in {
        "GREATER": "math.greater", "GREATER_EQUAL": "math.greater_equal", "LESS": "math.less",
        "LESS_EQUAL": "math.less_equal", "EQUAL": "math.equal", "NOT_EQUAL": "math.not_equal",
        "LOGICAL_AND": "math.logical_and", "LOGICAL_OR": "math.logical_or"}.items()},
    **{kind: _unary(symbol) for kind, symbol in {
        "EXP": "math.exp", "LOG": "math.log", "SQRT": "math.sqrt", "RSQRT": "math.rsqrt", "ABS": "math.abs",
        "NEG": "math.negative", "SQUARE": "math.square", "SIN": "math.sin", "COS": "math.cos",
        "FLOOR": "math.floor", "CEIL": "math.ceil", "ROUND": "math.round", "SIGN": "math.sign",
        "LOGICAL_NOT": "math.logical_not"}.items()},
}
"""Functions of one element, and matrix products, which leave the axes before the last two alone."""

REDUCTIONS: dict[str, Convert] = {
    "MEAN": _reduction("math.reduce_mean"),
    "SUM": _reduction("math.reduce_sum"),
    "REDUCE_MAX": _reduction("math.reduce_max"),
    "REDUCE_MIN": _reduction("math.reduce_min"),
    "REDUCE_PROD": _reduction("math.reduce_prod"),
    "REDUCE_ANY": _reduction("math.reduce_any"),
    "REDUCE_ALL": _reduction("math.reduce_all"),
    "ARG_MAX": _arg_extreme("math.argmax"),
    "ARG_MIN": _arg_extreme("math.argmin"),
}
