"""Layers of sequences for random Keras models (see random_layers): masks, and attention with them."""

from collections.abc import Callable

import tensorflow as tf
from tf_keras import layers


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


SEQUENCES: dict[str, tuple[tuple[int, ...], Callable]] = {
    "mask": ((3,), _mask), "mean": ((3,), _mean), "attention": ((3,), _attention),
    "multi_head": ((3,), _multi_head)}
