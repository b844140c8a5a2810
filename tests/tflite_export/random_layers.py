"""The layers of random Keras models: what each kind of step makes of its tensor and its numbers.

A maker is called with the Builder, a tensor and the Step; it returns a tensor, several, or None where the
step does not fit. `step.numbers` are five integers of 0..11.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from tests.tflite_export.random_sequences import SEQUENCES

ACTIVATIONS = ("relu", "relu6", "sigmoid", "tanh", "swish", "elu", "gelu", "softplus", "hard_sigmoid", "selu",
               "softsign", "exponential", "softmax")


def _window(step, x, *, same_strides: bool = False) -> dict:
  """Kernel size, strides, padding and dilation that fit x [n, h, w, c]."""
  a, b, c, d, _ = step.numbers
  padding = ("same", "valid")[c % 2]
  size = [1 + a % 3, 1 + b % 3] if d < 9 else [1 + a % 6, 1 + b % 6]
  strides, dilation = [1, 1], [1, 1]
  if c in (4, 5, 6):
    strides = [2, 2] if same_strides else [1 + a % 3, 1 + d % 2]
  elif c in (7, 8):
    dilation = [2, 2] if same_strides else [1 + d % 2, 2]
  if padding == "valid":
    for axis in range(2):
      size[axis] = min(size[axis], x.shape[1 + axis])
      if (size[axis] - 1) * dilation[axis] + 1 > x.shape[1 + axis]:
        dilation[axis] = 1
    if same_strides:
      dilation = [min(dilation)] * 2
  return {"kernel_size": size, "strides": strides, "padding": padding, "dilation_rate": dilation}


def _activation(number: int) -> str | None:
  return (None, None, None, None, "relu", "relu6", "tanh", "sigmoid", "swish", None, "elu", "relu")[number]


def _conv_2d(builder, x, step):
  filters, number = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17)[step.numbers[3]], step.numbers[4]
  groups = 2 if number in (1, 9) and x.shape[-1] % 2 == 0 else 1
  layer = layers.Conv2D(filters * groups, **_window(step, x), groups=groups, use_bias=number % 3 > 0,
                        activation=_activation(number))
  return builder.call(layer, x)


def _depthwise(builder, x, step):
  number = step.numbers[4]
  return builder.call(layers.DepthwiseConv2D(**_window(step, x, same_strides=True), use_bias=number % 3 > 0,
                                             depth_multiplier=1 + step.numbers[3] % 3,
                                             activation=_activation(number)), x)


def _separable(builder, x, step):
  return builder.call(layers.SeparableConv2D(1 + step.numbers[3], **_window(step, x, same_strides=True),
                                             depth_multiplier=1 + step.numbers[4] % 2,
                                             activation=_activation(step.numbers[4])), x)


def _transposed(builder, x, step):
  a, b, c, d, e = step.numbers
  return builder.call(layers.Conv2DTranspose(1 + d, (1 + a % 4, 1 + b % 4), strides=(1 + c % 3, 1 + e % 3),
                                             padding=("same", "valid")[a // 4 % 2], use_bias=e % 2 > 0,
                                             activation=_activation(e)), x)


def _conv_1d(builder, x, step):
  a, b, c, d, e = step.numbers
  padding, size, dilation = ("same", "valid", "causal")[c % 3], 1 + a % 4, 1 + (b > 8)
  if padding == "valid" and (size - 1) * dilation + 1 > x.shape[1]:
    size = 1
  return builder.call(layers.Conv1D(1 + d, size, strides=1 if dilation > 1 else 1 + b % 3, padding=padding,
                                    dilation_rate=dilation, use_bias=e % 2 > 0, activation=_activation(e)), x)


def _dense(builder, x, step):
  a, b, *_ = step.numbers
  return builder.call(layers.Dense(1 + a, use_bias=a % 2 > 0, activation=_activation(b)), x)


def _activate(builder, x, step):
  return layers.Activation(ACTIVATIONS[(step.numbers[0] * 12 + step.numbers[1]) % len(ACTIVATIONS)])(x)


def _rectify(builder, x, step):
  a, b, *_ = step.numbers
  shared = list(range(1, len(x.shape) - 1)) if b % 2 else None
  return [layers.ReLU(), layers.ReLU(6.0), layers.ReLU((1.0, 4.0, 0.3)[b % 3]),
          layers.LeakyReLU((0.1, 0.3, 0.0, 1.5)[b % 4]), layers.PReLU(shared_axes=shared),
          layers.ReLU(negative_slope=0.2)][a % 6](x)


def _pool_2d(builder, x, step):
  a, b, c, d, e = step.numbers
  cls = (layers.MaxPooling2D, layers.AveragePooling2D)[e % 2]
  padding = ("same", "valid")[c % 2]
  size = [1 + a % 3, 1 + b % 3]
  if padding == "valid":
    size = [min(taps, n) for taps, n in zip(size, x.shape[1:3])]
  return cls(size, strides=None if d % 2 else (1 + d // 2 % 3, 1 + d // 6), padding=padding)(x)


def _pool_1d(builder, x, step):
  a, b, c, *_ = step.numbers
  cls = (layers.MaxPooling1D, layers.AveragePooling1D)[c % 2]
  return cls(1 + a % min(3, x.shape[1]), strides=1 + b % 3, padding=("same", "valid")[c // 2 % 2])(x)


def _reduce(builder, x, step):
  a, b, *_ = step.numbers
  keep, sequence = b % 2 > 0, len(x.shape) == 3
  pools = ((layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D) if sequence else
           (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D))
  if a % 6 < 3:
    return pools[0](keepdims=keep)(x)
  if a % 6 == 3:
    return pools[1](keepdims=keep)(x)
  axis = (-1, 1, [1, len(x.shape) - 1], 1)[b % 4]
  if not keep and len(x.shape) - np.size(axis) < 2:
    return None
  return (tf.reduce_mean, tf.reduce_max, tf.reduce_sum, tf.reduce_min)[a // 6 * 2 + a % 2](x, axis, keep)


def _pad_2d(builder, x, step):
  a, b, c, d, _ = (n % 3 for n in step.numbers)
  return layers.ZeroPadding2D(((a, b), (c, d)))(x)


def _pad_1d(builder, x, step):
  return layers.ZeroPadding1D((step.numbers[0] % 3, step.numbers[1] % 3))(x)


def _crop(builder, x, step):
  crops = [(a % 2, b % 2) if n > 2 else (0, 0)
           for n, a, b in zip(x.shape[1:-1], step.numbers[::2], step.numbers[1::2])]
  return layers.Cropping1D(crops[0])(x) if len(x.shape) == 3 else layers.Cropping2D(crops)(x)


def _resize(builder, x, step):
  a, b, c, d, _ = step.numbers
  method = ("nearest", "bilinear")[c % 2]
  if d % 3:
    return layers.UpSampling2D((1 + a % 3, 1 + b % 3), interpolation=method)(x)
  return layers.Resizing(1 + a, 1 + b, interpolation=method)(x)


def _reshape(builder, x, step):
  shape, number = x.shape[1:], step.numbers[0] % 4
  if number == 0 or len(shape) == 1:
    return layers.Reshape((1, 1, shape[0]) if len(shape) == 1 else (int(np.prod(shape)),))(x)
  if number == 1:
    return layers.Flatten()(x)
  return layers.Reshape((int(np.prod(shape[:-1])), shape[-1]) if number == 2 else (shape[-1], *shape[:-1]))(x)


def _permute(builder, x, step):
  orders = {3: [(2, 1)], 4: [(2, 1, 3), (3, 1, 2), (1, 3, 2), (2, 3, 1), (3, 2, 1)]}[len(x.shape)]
  return layers.Permute(orders[step.numbers[0] % len(orders)])(x)


def _repeat(builder, x, step):
  return layers.RepeatVector(1 + step.numbers[0] % 4)(x)


def _slice(builder, x, step):
  """A slice of the channels, and of the first axis where it is long."""
  a, b, c, *_ = step.numbers
  start = a % x.shape[-1]
  x = x[..., start:start + 1 + b]
  return x[:, c % 2::1 + c % 3] if len(x.shape) > 2 and x.shape[1] > 3 else x


def _split(builder, x, step):
  parts = next((n for n in (2, 3, 1) if x.shape[-1] % n == 0), 1)
  return tf.split(x, parts, axis=-1) if parts > 1 else None


def _mixed_slices(builder, x, step):
  """A concatenation of slices of one tensor and another tensor of the same places."""
  channels, (a, b, *_) = x.shape[-1], step.numbers
  first, second = x[..., : 1 + a % channels], x[..., b % channels:]
  parts = [second, first] if a % 2 else [first, builder.mate(x, step, axes=1), second]
  return layers.Concatenate()(parts)


def _concatenate(builder, x, step):
  axis = step.numbers[0] % 4
  if axis and len(x.shape) > 2 and axis < len(x.shape) - 1:
    parts = [x, builder.mate(x, step)]
    masked = [getattr(part, "_keras_mask", None) is not None for part in parts]
    return layers.Concatenate(axis=axis)(parts) if masked[0] == masked[1] else None  # Keras joins no others
  return layers.Concatenate()([x, builder.mate(x, step, axes=1)])


def _combine(builder, x, step):
  cls = (layers.Add, layers.Add, layers.Multiply, layers.Subtract, layers.Average, layers.Maximum,
         layers.Minimum)[step.numbers[0] % 7]
  operands = [x, builder.mate(x, step)]
  if step.numbers[1] > 9 and cls is not layers.Subtract:
    operands.append(builder.mate(x, dataclasses.replace(step, second=step.second + 1)))
  y = cls()(operands)
  return layers.ReLU((None, 6.0)[step.numbers[2] % 2])(y) if step.numbers[2] > 6 else y


def _gate(builder, x, step):
  """Squeeze and excite, or x times its own hard sigmoid."""
  if len(x.shape) < 4 or step.numbers[0] % 3 == 0:
    return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)
  squeeze = layers.GlobalAveragePooling2D(keepdims=True)(x)
  squeeze = layers.Dense(2, activation="relu")(squeeze)
  excite = layers.Dense(x.shape[-1], activation=("sigmoid", "hard_sigmoid")[step.numbers[1] % 2])(squeeze)
  return layers.Multiply()([x, excite] if step.numbers[2] % 2 else [excite, x])


def _residual(builder, x, step):
  """Conv, batch norm, ReLU, conv, batch norm, + x, ReLU."""
  channels = x.shape[-1]
  y = layers.BatchNormalization()(layers.Conv2D(1 + step.numbers[0], 3, padding="same", use_bias=False)(x))
  y = layers.Conv2D(channels, 1 + step.numbers[1] % 2 * 2, padding="same")(layers.ReLU()(y))
  y = layers.Add()([layers.BatchNormalization()(y), x])
  return layers.ReLU()(y) if step.numbers[2] % 2 else y


def _constant(builder, x, step):
  """x * c, x + c, c - x, x / c, with one c, one a channel or one an element."""
  a, b, c, *_ = step.numbers
  rng = np.random.default_rng(a * 12 + b)
  shape = [(1,), x.shape[-1:], (1, *x.shape[1:])][b % 3]
  constant = (rng.normal(size=shape) + 0.01).astype(np.float32)
  constant = constant if b % 3 else float(constant[0])
  return [lambda: x * constant, lambda: x + constant, lambda: constant - x, lambda: x / constant,
          lambda: layers.Rescaling(0.5, -0.2)(x)][a % 5]()


def _batch_norm(builder, x, step):
  y = builder.call(layers.BatchNormalization(scale=step.numbers[0] % 5 > 0), x)
  return (None, layers.ReLU(), layers.ReLU(6.0), layers.LeakyReLU(0.2))[step.numbers[1] % 4](y) \
      if step.numbers[1] % 4 else y


def _elementwise(builder, x, step):
  return (lambda: tf.clip_by_value(x, -0.4, 0.7), lambda: tf.math.square(x), lambda: tf.math.abs(x),
          lambda: tf.nn.leaky_relu(x, 0.1), lambda: tf.math.exp(-x), lambda: tf.nn.softmax(x),
          lambda: tf.maximum(x, 0.1), lambda: -x, lambda: layers.Dropout(0.3)(x),
          lambda: tf.nn.silu(x))[step.numbers[0] % 10]()


def _blocks(builder, x, step):
  _, height, width, channels = x.shape
  if channels % 4 == 0 and step.numbers[0] % 2:
    return tf.nn.depth_to_space(x, 2)
  return tf.nn.space_to_depth(x, 2) if height % 2 == width % 2 == 0 else None


def _matmul(builder, x, step):
  other = builder.mate(x, step)
  return tf.matmul(x, other, transpose_b=True) if step.numbers[0] % 2 else layers.Dot((1, 1))([x, other])


def _stack(builder, x, step):
  if step.numbers[0] % 2 or len(x.shape) == 2:
    return tf.stack([x, builder.mate(x, step)], axis=1) if len(x.shape) < 4 else None
  return tf.unstack(x, axis=1) if x.shape[1] <= 4 else None


def _again(builder, x, step):
  """An earlier layer once more, on a tensor of the same shape: shared weights."""
  calls = [(layer, t) for layer, shape in builder.called for t in builder.tensors if tuple(t.shape) == shape]
  if not calls:
    return None
  layer, tensor = calls[-1 - step.second % len(calls)]
  return layer(tensor)


def _nested(builder, x, step):
  """A model inside the model; `_again` may call it twice."""
  inner = image = keras.Input(x.shape[1:])
  for part in step.numbers[:3]:
    layer = (layers.Dense(1 + part), layers.BatchNormalization(), layers.ReLU(),
             layers.Activation("sigmoid"))[part % 4]
    inner = layer(inner)
  outputs = [inner, layers.ReLU(6.0)(inner)] if step.numbers[3] > 9 else inner
  return builder.call(keras.Model(image, outputs), x)


_ANY, _IMAGE, _ROWS = (2, 3, 4), (4,), (3,)

STEPS: dict[str, tuple[tuple[int, ...], Callable]] = {
    "conv_2d": (_IMAGE, _conv_2d), "batch_norm": (_ANY, _batch_norm), "rectify": (_ANY, _rectify),
    "depthwise": (_IMAGE, _depthwise), "dense": (_ANY, _dense), "conv_1d": (_ROWS, _conv_1d),
    "separable": (_IMAGE, _separable), "transposed": (_IMAGE, _transposed), "activate": (_ANY, _activate),
    "pool_2d": (_IMAGE, _pool_2d), "pool_1d": (_ROWS, _pool_1d), "reduce": ((3, 4), _reduce),
    "pad_2d": (_IMAGE, _pad_2d), "pad_1d": (_ROWS, _pad_1d), "crop": ((3, 4), _crop),
    "resize": (_IMAGE, _resize), "reshape": (_ANY, _reshape), "permute": ((3, 4), _permute),
    "repeat": ((2,), _repeat), "slice": (_ANY, _slice), "split": (_ANY, _split),
    "mixed_slices": (_ANY, _mixed_slices), "concatenate": (_ANY, _concatenate), "combine": (_ANY, _combine),
    "gate": (_ANY, _gate), "residual": (_IMAGE, _residual), "constant": (_ANY, _constant),
    "elementwise": (_ANY, _elementwise), "blocks": (_IMAGE, _blocks), "matmul": (_ROWS, _matmul),
    "stack": ((2, 3), _stack), "again": (_ANY, _again), "nested": (_ANY, _nested), **SEQUENCES}
"""Kinds of steps: the ranks of tensors they read, batch included, and what makes them."""
