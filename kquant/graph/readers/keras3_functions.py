"""More operations of keras.ops, written with functions of TensorFlow: one entry each.

Functions of one element, of two, and those that are products, joins and parts of others. The table has the
form of `keras3_operations.OPERATIONS`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError

_LOG2, _LOG10 = math.log(2.0), math.log(10.0)


def _celu(operation: Any, x: Any) -> Any:
  alpha = float(operation.alpha)
  return tf.nn.relu(x) + alpha * tf.math.expm1(tf.minimum(x, 0.0) / alpha)


def _hard_shrink(operation: Any, x: Any) -> Any:
  return tf.where(tf.abs(x) > operation.threshold, x, tf.zeros_like(x))


def _soft_shrink(operation: Any, x: Any) -> Any:
  bound = float(operation.threshold)
  return tf.nn.relu(x - bound) - tf.nn.relu(-x - bound)


def _threshold(operation: Any, x: Any) -> Any:
  limit, default = (float(value) for value in (operation.threshold, operation.default_value))
  return tf.where(x > limit, x, tf.zeros_like(x) + default)


def _squareplus(operation: Any, x: Any) -> Any:
  return (x + tf.sqrt(tf.square(x) + float(operation.b))) * 0.5


def _glu(operation: Any, x: Any) -> Any:
  first, second = tf.split(x, 2, axis=operation.axis)
  return first * tf.sigmoid(second)


def _sparse_sigmoid(x: Any) -> Any:
  return tf.clip_by_value(0.5 * (x + 1.0), 0.0, 1.0)


def _sparse_plus(x: Any) -> Any:
  return tf.nn.relu(x - 1.0) + 0.25 * tf.square(tf.clip_by_value(x, -1.0, 1.0) + 1.0)


def _logaddexp(first: Any, second: Any) -> Any:
  return tf.maximum(first, second) + tf.math.softplus(-tf.abs(first - second))


def _average(operation: Any, x: Any, weights: Any = None) -> Any:
  if weights is not None:
    raise UnsupportedLayerError(f"Operation {operation.name!r} averages with weights; write it as a product "
                                "and a sum.")
  return tf.reduce_mean(x, axis=operation.axis)


def _moments(operation: Any, x: Any) -> Any:
  mean = tf.reduce_mean(x, axis=operation.axes, keepdims=True)
  variance = tf.reduce_mean(tf.square(x - mean), axis=operation.axes, keepdims=operation.keepdims)
  return tf.reduce_mean(x, axis=operation.axes, keepdims=operation.keepdims), variance


def _difference(operation: Any, x: Any) -> Any:
  axis, size = operation.axis % len(x.shape), x.shape[operation.axis]
  for step in range(operation.n):
    count = size - step - 1
    later, earlier = (tf.gather(x, range(start, start + count), axis=axis) for start in (1, 0))
    x = later - earlier
  return x


def _span(operation: Any, x: Any) -> Any:
  highest, lowest = (reduce(x, axis=operation.axis, keepdims=operation.keepdims)
                     for reduce in (tf.reduce_max, tf.reduce_min))
  return highest - lowest


def _norm(operation: Any, x: Any) -> Any:
  if operation.ord not in (None, 2, "fro") or operation.axis is None:
    raise UnsupportedLayerError(f"Operation {operation.name!r} is a norm of order {operation.ord} over axis "
                                f"{operation.axis}; use the Euclidean norm over given axes.")
  return tf.sqrt(tf.reduce_sum(tf.square(x), axis=operation.axis, keepdims=operation.keepdims))


def _normalize(operation: Any, x: Any) -> Any:
  if operation.order != 2:
    raise UnsupportedLayerError(f"Operation {operation.name!r} normalizes by order {operation.order}; use 2.")
  return tf.math.l2_normalize(x, axis=operation.axis, epsilon=1e-14)


def _attention(operation: Any, query: Any, key: Any, value: Any, **options: Any) -> Any:
  """Over axes (batch, length, heads, size), no masks."""
  asked = [name for name in ("bias", "mask") if options.get(name) is not None]
  if operation.is_causal or operation.attn_logits_soft_cap or asked:
    raise UnsupportedLayerError(f"Operation {operation.name!r} is attention with a mask, a bias or a cap; "
                                "leave them out.")
  scale = options.get("scale")
  scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
  query, key, value = (keras.layers.Permute((2, 1, 3))(tensor) for tensor in (query, key, value))
  scores = keras.layers.Softmax()(tf.matmul(query * scale, key, transpose_b=True))
  return keras.layers.Permute((2, 1, 3))(tf.matmul(scores, value))


def _depthwise(operation: Any, inputs: Any, kernel: Any) -> Any:
  strides, rate = (np.broadcast_to(np.asarray(value), (2,)).tolist()
                   for value in (operation.strides, operation.dilation_rate))
  return tf.nn.depthwise_conv2d(inputs, tf.constant(kernel), [1, *strides, 1], operation.padding.upper(),
                                dilations=rate)


def _separable(operation: Any, inputs: Any, depthwise: Any, pointwise: Any) -> Any:
  return tf.nn.conv2d(_depthwise(operation, inputs, depthwise), tf.constant(pointwise), 1, "VALID")


def _triangle(lower: bool) -> Callable[..., Any]:
  def apply(operation: Any, x: Any) -> Any:
    mask = np.ones(x.shape[-2:], np.float32)
    return x * (np.tril(mask, operation.k) if lower else np.triu(mask, operation.k))
  return apply


def _parts(axis: int) -> Callable[..., Any]:
  def apply(operation: Any, x: Any) -> Any:
    parts = operation.indices_or_sections
    if not isinstance(parts, int):
      parts = np.diff([0, *[int(part) for part in np.atleast_1d(parts)], x.shape[axis]]).tolist()
    return tf.split(x, parts, axis=axis)
  return apply


def _unary(function: Callable[[Any], Any]) -> Callable[..., Any]:
  return lambda operation, x: function(x)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
  return lambda operation, x1, x2: function(x1, x2)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _unary(function) for name, function in {
        "Arccos": tf.acos, "Arccosh": tf.acosh, "Arcsin": tf.asin, "Arcsinh": tf.asinh, "Arctanh": tf.atanh,
        "Cbrt": lambda x: tf.sign(x) * tf.pow(tf.abs(x), 1.0 / 3.0), "Erfc": tf.math.erfc,
        "Deg2rad": lambda x: x * (math.pi / 180.0), "Rad2deg": lambda x: x * (180.0 / math.pi),
        "Exp2": lambda x: tf.exp(x * _LOG2), "Log2": lambda x: tf.math.log(x) * (1.0 / _LOG2),
        "Log10": lambda x: tf.math.log(x) * (1.0 / _LOG10), "Fabs": tf.abs, "NanToNum": lambda x: x,
        "Real": lambda x: x, "StopGradient": lambda x: x, "ConvertToTensor": lambda x: x,
        "Array": lambda x: x, "Trunc": lambda x: tf.sign(x) * tf.floor(tf.abs(x)),
        "SparseSigmoid": _sparse_sigmoid, "SparsePlus": _sparse_plus,
        "Fliplr": lambda x: tf.reverse(x, [1])}.items()},
    **{name: _binary(function) for name, function in {
        "Arctan2": tf.atan2, "Fmax": tf.maximum, "Fmin": tf.minimum, "DivideNoNan": tf.math.divide_no_nan,
        "Hypot": lambda a, b: tf.sqrt(tf.square(a) + tf.square(b)), "Logaddexp": _logaddexp,
        "Dot": lambda a, b: tf.tensordot(a, b, 1), "LogicalXor": tf.math.logical_xor}.items()},
    "Average": _average,
    "Celu": _celu,
    "HardShrink": _hard_shrink,
    "SoftShrink": _soft_shrink,
    "Threshold": _threshold,
    "Squareplus": _squareplus,
    "Glu": _glu,
    "Moments": _moments,
    "Diff": _difference,
    "Ptp": _span,
    "Norm": _norm,
    "Normalize": _normalize,
    "DotProductAttention": _attention,
    "DepthwiseConv": _depthwise,
    "SeparableConv": _separable,
    "Tril": _triangle(lower=True),
    "Triu": _triangle(lower=False),
    "Hsplit": _parts(1),
    "Dsplit": _parts(2),
    "Hstack": lambda operation, xs: tf.concat(xs, 1),
    "Dstack": lambda operation, xs: tf.concat(xs, 2),
    "Unstack": lambda operation, x: tf.unstack(x, operation.num, operation.axis),
    "Tensordot": lambda operation, x1, x2: tf.tensordot(x1, x2, operation.axes),
    "Cumsum": lambda operation, x: tf.cumsum(x, operation.axis),
    "FullLike": lambda operation, x, fill_value: tf.zeros_like(x) + fill_value,
    "Sort": lambda operation, x: tf.sort(x, operation.axis),
    "TopK": lambda operation, x: tuple(tf.math.top_k(x, operation.k, operation.sorted)),
}
"""{class of the operation: what it is in TensorFlow}."""
