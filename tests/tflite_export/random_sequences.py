"""Layers of sequences for random Keras models (see random_layers): recurrent ones, masks and attention."""

from collections.abc import Callable

import tensorflow as tf
from tf_keras import layers

_ACTIVATIONS = ("tanh", "tanh", "tanh", "relu", None, "elu")


def _mask(builder, x, step):
  """Where all features of a step are a number: 0, as behind a ReLU, or one that data may hold."""
  a, b, *_ = step.numbers
  return layers.Masking((0.0, 0.0, 0.5, -1.0)[b % 4])(tf.nn.relu(x) if a % 2 else x)


def _mean(builder, x, step):
  return layers.GlobalAveragePooling1D(keepdims=bool(step.numbers[0] % 2))(x)


def _attention(builder, x, step):
  a, b, c, *_ = step.numbers
  value, given = builder.mate(x, step), {"use_causal_mask": b % 3 == 0, "return_attention_scores": c % 4 == 0}
  layer = (layers.Attention(use_scale=a % 2 > 0), layers.AdditiveAttention(),
           layers.Attention(score_mode="concat"))[a % 3]
  return layer([x, value], **given)


def _multi_head(builder, x, step):
  a, b, c, d, _ = step.numbers
  return layers.MultiHeadAttention(1 + a % 2, 1 + b % 4, use_bias=d % 2 > 0)(
      x, builder.mate(x, step), use_causal_mask=b % 3 == 0, return_attention_scores=c % 4 == 0)


def _started(builder, x, step):
  """A recurrent layer that is given a state: a vector, or that with which another one ended."""
  a, b, c, d, e = step.numbers
  vectors = [tensor for tensor in builder.tensors if len(tensor.shape) == 2]
  if not vectors or e % 3 == 0:
    units, sequences = 1 + a % 4, b % 2 > 0
    _, *states = layers.LSTM(units, return_sequences=True, return_state=True)(x)
    return layers.LSTM(units, return_sequences=sequences, go_backwards=d > 8)(x, initial_state=states)
  state = vectors[-1 - step.second % len(vectors)]
  cls = (layers.GRU, layers.SimpleRNN)[c % 2]
  layer = cls(state.shape[-1], return_sequences=b % 2 > 0, return_state=d > 8)
  return layer(x, initial_state=state)


def _masked(builder, x, step):
  """A recurrent layer with the mask of another sequence of as many steps, or of its own one cut by a ReLU."""
  a, b, c, d, e = step.numbers
  rows = builder.mate(x, step, axes=1)
  mask = tf.reduce_any(tf.not_equal(tf.nn.relu(rows), 0.0), axis=-1)
  inner = (layers.LSTM, layers.GRU, layers.SimpleRNN)[a % 3](
      1 + b % 4, return_sequences=c % 2 > 0, go_backwards=d > 8)
  return (layers.Bidirectional(inner) if e > 8 else inner)(x, mask=mask)


def _convolutional(builder, x, step):
  """ConvLSTM1D over the rows of an image, or ConvLSTM2D over its rows as images of one row."""
  a, b, c, d, e = step.numbers
  options = {"padding": ("same", "valid")[c % 2], "use_bias": c % 3 > 0, "return_sequences": b % 2 > 0,
             "go_backwards": b > 8, "recurrent_activation": ("hard_sigmoid", "sigmoid")[d % 2]}
  size = 1 + d % min(3, x.shape[2])
  options["strides" if e % 2 else "dilation_rate"] = 1 + (e > 5 and size == 1)
  if a % 2:
    return builder.call(layers.ConvLSTM1D(1 + a % 3, size, **options), x)
  rows, columns, channels = x.shape[1:]
  result = layers.ConvLSTM2D(1 + a % 3, (1, size), **options)(layers.Reshape((rows, 1, columns, channels))(x))
  return layers.Reshape((*result.shape[1:2], -1, result.shape[-1]))(result)


def _lstm(builder, x, step):
  """An LSTM as most are: it can be one operator. Its cell is read by nothing, or by everything behind it."""
  a, b, c, d, e = step.numbers
  layer = layers.LSTM(1 + a % 5, use_bias=b % 4 > 0, return_sequences=c % 2 > 0, go_backwards=c > 8,
                      return_state=d > 7)
  mode = ("concat", "sum", "mul", "ave", None)[e % 5]
  layer = layers.Bidirectional(layer, merge_mode=mode) if e > 6 else layer
  made = builder.call(layer, x)
  first = 1 + (e > 6 and mode is None)
  return [*made[:first], *made[first::1 + (d > 8)]] if d > 7 else made


def _recurrent(builder, x, step):
  """LSTM, GRU, SimpleRNN or a list of their cells, in one or both directions."""
  a, b, c, d, e = step.numbers
  options = {"activation": _ACTIVATIONS[d % 6], "use_bias": c % 4 > 0}
  gates = {**options, "recurrent_activation": ("sigmoid", "hard_sigmoid")[d // 6]}
  outer = {"return_sequences": b % 2 > 0, "go_backwards": b > 8, "return_state": c > 9}
  units, reset = 1 + a % 4, {"reset_after": e % 2 > 0}
  if a > 9:
    layer = layers.RNN([layers.GRUCell(units, **gates, **reset), layers.SimpleRNNCell(2, **options)], **outer)
  elif a % 3 == 2:
    layer = layers.SimpleRNN(units, **options, **outer)
  else:
    layer = layers.GRU(units, **gates, **reset, **outer) if a % 3 else layers.LSTM(units, **gates, **outer)
  if e > 7:
    layer = layers.Bidirectional(layer, merge_mode=("concat", "sum", "mul", "ave", None)[e % 5])
  return builder.call(layer, x)


def _distributed(builder, x, step):
  """A layer for each step of a sequence, or of a sequence of images' rows."""
  a, b, *_ = step.numbers
  if len(x.shape) == 4:
    inner = (layers.Conv1D(1 + b % 4, 1, activation="relu"), layers.GlobalMaxPooling1D(), layers.Flatten(),
             layers.GRU(2))[a % 4]
  else:
    number = a % 2 if getattr(x, "_keras_mask", None) is None else 0  # Keras' Reshape takes no mask
    inner = (layers.Dense(1 + b % 4, activation="tanh"), layers.Reshape((1, x.shape[-1])))[number]
  return builder.call(layers.TimeDistributed(inner), x)


SEQUENCES: dict[str, tuple[tuple[int, ...], Callable]] = {
    "mask": ((3,), _mask), "mean": ((3,), _mean), "attention": ((3,), _attention),
    "multi_head": ((3,), _multi_head), "recurrent": ((3,), _recurrent), "lstm": ((3,), _lstm),
    "started": ((3,), _started), "masked": ((3,), _masked), "convolutional": ((4,), _convolutional),
    "distributed": ((3, 4), _distributed)}
