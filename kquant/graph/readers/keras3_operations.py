"""Operations of keras.ops as functions of TensorFlow on tf_keras tensors: one entry each.

A function gets the Keras 3 operation, whose settings are its attributes, and the arguments of the call.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.core.text import first_line
from kquant.graph.readers.keras3_functions import FUNCTIONS

Convert = Callable[..., Any]
ANY_BATCH = 1009
"""Images of a call that is traced with a number in place of an open batch; a prime that is no other size."""


def convert_operation(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
  """Returns what an operation makes of tf_keras tensors.

  Raises:
    UnsupportedLayerError: it has no entry in the table, or not for these arguments, by name.
  """
  kind = type(operation).__name__
  convert = OPERATIONS.get(kind)
  if convert is None:
    raise UnsupportedLayerError(f"Operation {operation.name!r} (keras.ops, {kind}) has no form in tf_keras "
                                "here; write it with other operations.")
  try:
    return convert(operation, *args, **kwargs)
  except UnsupportedLayerError:
    raise
  except Exception as error:  # TensorFlow's, about types and sizes that it does not take
    raise UnsupportedLayerError(f"Operation {operation.name!r} (keras.ops, {kind}) has no form in tf_keras "
                                f"for these arguments: {first_line(error).rstrip('.')}. Write it with other "
                                "operations.") from error


def _unary(function: Callable[[Any], Any]) -> Convert:
  return lambda operation, x: function(x)


def _binary(function: Callable[[Any, Any], Any]) -> Convert:
  return lambda operation, x1, x2: function(*_same_dtype(x1, x2))


def _same_dtype(x1: Any, x2: Any) -> tuple[Any, Any]:
  """Constants in the dtype of the tensor beside them."""
  def cast(value: Any, other: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and hasattr(other, "dtype") and not isinstance(
        other, (np.ndarray, np.generic)):
      value = value.astype(other.dtype.as_numpy_dtype)
      return value.item() if value.ndim == 0 else tf.constant(value)
    return value
  return cast(x1, x2), cast(x2, x1)


def _reduction(function: Callable[..., Any]) -> Convert:
  return lambda operation, x: function(x, axis=operation.axis, keepdims=operation.keepdims)


def _reshape(operation: Any, x: Any) -> Any:
  shape = [-1 if size is None else int(size) for size in operation.newshape]
  if operation.newshape[0] in (None, ANY_BATCH):
    shape[0] = -1
    if -1 in shape[1:] and None not in x.shape[1:]:  # the size that is left
      known = math.prod(size for size in shape[1:] if size != -1)
      shape[1:] = [math.prod(x.shape[1:]) // known if size == -1 else size for size in shape[1:]]
  if shape[0] in (-1, x.shape[0]) and -1 not in shape[1:] and shape[1:]:
    return keras.layers.Reshape(shape[1:])(x)
  if x.shape[0] is None and -1 in shape[1:] and shape[0] != -1:
    raise UnsupportedLayerError(f"Operation {operation.name!r} reshapes the batch axis; leave it alone.")
  return tf.reshape(x, shape)


def _transpose(operation: Any, x: Any) -> Any:
  axes = operation.axes
  axes = list(range(len(x.shape)))[::-1] if axes is None else [axis % len(x.shape) for axis in axes]
  return _permuted(x, axes)


def _permuted(x: Any, axes: Sequence[int]) -> Any:
  return keras.layers.Permute(axes[1:])(x) if axes[0] == 0 and len(axes) > 1 else tf.transpose(x, axes)


def _swapaxes(operation: Any, x: Any) -> Any:
  axes = list(range(len(x.shape)))
  first, second = operation.axis1, operation.axis2
  axes[first], axes[second] = axes[second], axes[first]
  return _permuted(x, axes)


def _moveaxis(operation: Any, x: Any) -> Any:
  rank = len(x.shape)
  sources, targets = ([int(axis) % rank for axis in np.atleast_1d(value)]
                      for value in (operation.source, operation.destination))
  order = [axis for axis in range(rank) if axis not in sources]
  for target, source in sorted(zip(targets, sources)):
    order.insert(target, source)
  return _permuted(x, order)


def _concatenate(operation: Any, xs: Any) -> Any:
  axis = operation.axis % len(xs[0].shape)
  return keras.layers.Concatenate(axis=axis)(list(xs)) if axis and len(xs) > 1 else tf.concat(xs, axis)


def _split(operation: Any, x: Any) -> Any:
  parts, axis = operation.indices_or_sections, operation.axis
  if not isinstance(parts, int):
    ends = [*[int(part) for part in np.atleast_1d(parts)], x.shape[axis]]
    parts = np.diff([0, *ends]).tolist()
  return tf.split(x, parts, axis=axis)


def _pad(operation: Any, x: Any, constant_values: Any = None) -> Any:
  widths = operation.pad_width
  widths = np.broadcast_to(np.asarray(widths), (len(x.shape), 2)).tolist()
  mode = {"constant": "CONSTANT", "reflect": "REFLECT", "symmetric": "SYMMETRIC"}.get(operation.mode)
  if mode is None:
    raise UnsupportedLayerError(f"Operation {operation.name!r} pads by mode {operation.mode!r}; use "
                                "constant, reflect or symmetric.")
  return tf.pad(x, widths, mode=mode, constant_values=0 if constant_values is None else constant_values)


def _take(operation: Any, x: Any, indices: Any) -> Any:
  if operation.axis is None:
    x, axis = tf.reshape(x, [-1]), 0
  else:
    axis = operation.axis
  return tf.gather(x, indices, axis=axis)


def _flip(operation: Any, x: Any) -> Any:
  if operation.axis is None:
    raise UnsupportedLayerError(f"Operation {operation.name!r} reverses the batch; name the axes.")
  return tf.reverse(x, np.atleast_1d(operation.axis).tolist())


def _where(operation: Any, condition: Any, x1: Any = None, x2: Any = None) -> Any:
  if x1 is None:
    raise UnsupportedLayerError(f"Operation {operation.name!r} returns indices; give it both values.")
  return tf.where(condition, x1, x2)


def _hard_sigmoid(x: Any) -> Any:
  return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


def _clip(operation: Any, x: Any) -> Any:
  return tf.clip_by_value(x, operation.x_min, operation.x_max)


def _getitem(operation: Any, x: Any, key: Any) -> Any:
  return x[key]


def _cast(operation: Any, x: Any) -> Any:
  dtype = "float32" if "float" in str(operation.dtype) else operation.dtype
  return x if x.dtype.name == dtype else tf.cast(x, dtype)


def _pool(function: Callable[..., Any]) -> Convert:
  def convert(operation: Any, inputs: Any) -> Any:
    _check_channels_last(operation)
    rank = len(inputs.shape) - 2
    size, strides = (_per_axis(value, rank) for value in (operation.pool_size, operation.strides or
                                                          operation.pool_size))
    return function(inputs, size, strides, operation.padding.upper())
  return convert


def _conv(operation: Any, inputs: Any, kernel: Any) -> Any:
  _check_channels_last(operation)
  rank = len(inputs.shape) - 2
  return tf.nn.convolution(inputs, tf.constant(kernel), _per_axis(operation.strides, rank),
                           operation.padding.upper(), dilations=_per_axis(operation.dilation_rate, rank))


def _check_channels_last(operation: Any) -> None:
  if operation.data_format not in (None, "channels_last"):
    raise UnsupportedLayerError(f"Operation {operation.name!r} is channels_first; build the model with "
                                "channels_last.")


def _per_axis(value: Any, rank: int) -> list[int]:
  return [int(part) for part in np.broadcast_to(np.asarray(value), (rank,))]


def _batch_norm(operation: Any, x: Any, mean: Any, variance: Any, *affine: Any, **named: Any) -> Any:
  offset, scale = (named.get(name, value) for name, value in zip(("offset", "scale"), (*affine, None, None)))
  if operation.axis % len(x.shape) != len(x.shape) - 1:
    raise UnsupportedLayerError(f"Operation {operation.name!r} normalizes axis {operation.axis}; normalize "
                                "the last one.")
  factor = np.asarray(1.0 if scale is None else scale) / np.sqrt(np.asarray(variance) + operation.epsilon)
  shift = np.asarray(0.0 if offset is None else offset) - np.asarray(mean) * factor
  return x * factor.astype(np.float32) + shift.astype(np.float32)


def _rms_norm(operation: Any, x: Any, scale: Any = None) -> Any:
  mean = tf.reduce_mean(tf.square(x), axis=operation.axis, keepdims=True)
  return _scaled(x * tf.math.rsqrt(mean + _epsilon(operation)), scale)


def _layer_norm(operation: Any, x: Any, gamma: Any = None, beta: Any = None) -> Any:
  """With `rms_scaling` Keras divides by the deviation and leaves the mean."""
  axis = [int(value) % len(x.shape) for value in np.atleast_1d(operation.axis)]
  if axis != [len(x.shape) - 1]:
    raise UnsupportedLayerError(f"Operation {operation.name!r} normalizes axes {axis}; normalize the last "
                                "one.")
  mean = tf.reduce_mean(x, axis=-1, keepdims=True)
  variance = tf.reduce_mean(tf.square(x - mean), axis=-1, keepdims=True)
  if not operation.rms_scaling:
    x = x - mean
  result = _scaled(x * tf.math.rsqrt(variance + _epsilon(operation)), gamma)
  return result if beta is None or operation.rms_scaling else result + np.asarray(beta, np.float32)


def _epsilon(operation: Any) -> float:
  return 1e-7 if operation.epsilon is None else float(operation.epsilon)


def _scaled(x: Any, scale: Any) -> Any:
  return x if scale is None else x * np.asarray(scale, np.float32)


def _resize(operation: Any, images: Any) -> Any:
  _check_channels_last(operation)
  if operation.antialias or operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio:
    raise UnsupportedLayerError(f"Operation {operation.name!r} resizes with antialias or by aspect ratio; "
                                "resize bilinear or nearest without them.")
  return keras.layers.Resizing(*operation.size, interpolation=operation.interpolation)(images)


OPERATIONS: dict[str, Convert] = {
    **FUNCTIONS,
    **{name: _unary(function) for name, function in {
        "Absolute": tf.abs, "Abs": tf.abs, "Negative": tf.negative, "Square": tf.square, "Sqrt": tf.sqrt,
        "Rsqrt": tf.math.rsqrt, "Exp": tf.exp, "Log": tf.math.log, "Log1p": tf.math.log1p,
        "Expm1": tf.math.expm1, "Floor": tf.floor, "Ceil": tf.math.ceil, "Round": tf.round, "Sign": tf.sign,
        "Sin": tf.sin, "Cos": tf.cos, "Tan": tf.tan, "Tanh": tf.tanh, "Sinh": tf.sinh, "Cosh": tf.cosh,
        "Arctan": tf.atan, "Reciprocal": tf.math.reciprocal, "Erf": tf.math.erf, "Relu": tf.nn.relu,
        "Relu6": tf.nn.relu6, "Sigmoid": tf.sigmoid, "Softplus": tf.math.softplus, "Softsign": tf.nn.softsign,
        "Silu": tf.nn.silu, "Selu": tf.nn.selu, "LogSigmoid": tf.math.log_sigmoid,
        "HardSigmoid": _hard_sigmoid, "HardSilu": lambda x: x * _hard_sigmoid(x),
        "TanhShrink": lambda x: x - tf.tanh(x), "LogicalNot": tf.logical_not,
        "Identity": lambda x: x, "Copy": lambda x: x, "ZerosLike": tf.zeros_like,
        "OnesLike": tf.ones_like}.items()},
    **{name: _binary(function) for name, function in {
        "Add": lambda a, b: a + b, "Subtract": lambda a, b: a - b, "Multiply": lambda a, b: a * b,
        "Divide": lambda a, b: a / b, "TrueDivide": lambda a, b: a / b, "Power": lambda a, b: a ** b,
        "FloorDivide": lambda a, b: a // b, "Mod": lambda a, b: a % b, "Maximum": tf.maximum,
        "Minimum": tf.minimum, "Greater": tf.greater, "GreaterEqual": tf.greater_equal, "Less": tf.less,
        "LessEqual": tf.less_equal, "Equal": tf.equal, "NotEqual": tf.not_equal,
        "LogicalAnd": tf.logical_and, "LogicalOr": tf.logical_or, "Matmul": tf.matmul,
        "SquaredDifference": tf.math.squared_difference}.items()},
    **{name: _reduction(function) for name, function in {
        "Mean": tf.reduce_mean, "Sum": tf.reduce_sum, "Max": tf.reduce_max, "Min": tf.reduce_min,
        "Amax": tf.reduce_max, "Amin": tf.reduce_min, "Prod": tf.reduce_prod, "Var": tf.math.reduce_variance,
        "Std": tf.math.reduce_std, "Logsumexp": tf.reduce_logsumexp, "Any": tf.reduce_any,
        "All": tf.reduce_all}.items()},
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Swapaxes": _swapaxes,
    "Moveaxis": _moveaxis,
    "Concatenate": _concatenate,
    "Split": _split,
    "Pad": _pad,
    "Take": _take,
    "Clip": _clip,
    "GetItem": _getitem,
    "Cast": _cast,
    "Stack": lambda operation, x: tf.stack(x, axis=operation.axis),
    "Squeeze": lambda operation, x: tf.squeeze(x, axis=operation.axis),
    "ExpandDims": lambda operation, x: tf.expand_dims(x, operation.axis),
    "BroadcastTo": lambda operation, x: tf.broadcast_to(x, operation.shape),
    "Tile": lambda operation, x: tf.tile(x, [1] * (len(x.shape) - len(operation.repeats)) +
                                         list(operation.repeats)),
    "Repeat": lambda operation, x: tf.repeat(x, operation.repeats, axis=operation.axis),
    "Roll": lambda operation, x: tf.roll(x, operation.shift, operation.axis),
    "Flip": _flip,
    "Where": _where,
    "Einsum": lambda operation, *operands: tf.einsum(operation.subscripts, *operands),
    "Argmax": lambda operation, x: tf.argmax(x, axis=operation.axis),
    "Argmin": lambda operation, x: tf.argmin(x, axis=operation.axis),
    "OneHot": lambda operation, x: tf.one_hot(x, operation.num_classes, axis=operation.axis),
    "Elu": lambda operation, x: keras.layers.ELU(operation.alpha)(x),
    "Gelu": lambda operation, x: tf.nn.gelu(x, approximate=operation.approximate),
    "LeakyRelu": lambda operation, x: keras.layers.LeakyReLU(operation.negative_slope)(x),
    "Softmax": lambda operation, x: keras.layers.Softmax(axis=operation.axis)(x),
    "LogSoftmax": lambda operation, x: tf.nn.log_softmax(x, axis=operation.axis),
    "MaxPool": _pool(tf.nn.max_pool),
    "AveragePool": _pool(tf.nn.avg_pool),
    "Conv": _conv,
    "BatchNorm": _batch_norm,
    "LayerNorm": _layer_norm,
    "RMSNorm": _rms_norm,
    "Resize": _resize,
    "DepthToSpace": lambda operation, x: tf.nn.depth_to_space(x, operation.block_size),
    "SpaceToDepth": lambda operation, x: tf.nn.space_to_depth(x, operation.block_size),
}
"""{class of the operation: what it is in TensorFlow}."""
