"""Rounding to a grid in the forward pass, with straight-through estimators (STE) as gradients."""

from collections.abc import Sequence

import tensorflow as tf

from kquant.core import fake_quantization, numerics

_SLACK = 1 + 2.0**-20  # the element that set a range lies inside it, however its scale was rounded


def onto_grid(x: tf.Tensor, scale: tf.Tensor, zero_point: tf.Tensor, *, bits: int, narrow: bool,
              axis: Sequence[int] | None = None, on: tf.Tensor | None = None,
              rounding_gradient: bool = True) -> tf.Tensor:
  """Returns y = scale * (clip(round(x / scale) + zero_point, n, p) - zero_point).

  Straight-through gradients, with v = x / scale and the range
  [scale (n - zero_point), scale (p - zero_point)]:

    dy/dx           1 inside the range, 0 outside
    dy/dscale       round(v) - v inside; n - zero_point below, p - zero_point above
    dy/dzero_point  0 inside, -scale outside

  (Esser et al. 2020, LSQ, eq. 3 and 5; Bhalgat et al. 2020, LSQ+, eq. 4 and 5, whose offset is
  -scale * zero_point). The integers of a narrow grid, which weights have, are those of
  `numerics.quantize`, bit for bit.

  Args:
    x: any shape, float32.
    scale: float32, [channels] or [1].
    zero_point: integers as floats, the same shape.
    bits, narrow: of the grid.
    axis: channel axes of x, ascending; None: per-tensor.
    on: bool scalar; where it is false x and its gradient are returned as they are.
    rounding_gradient: False lets dy/dscale be 0 inside (Choi et al. 2018, PACT, eq. 3).
  """
  shape = numerics.channel_shape(x.shape, axis)
  taps = None if axis is None else [i for i in range(x.shape.rank) if i not in axis]
  qmin, qmax = numerics.grid_limits(bits, narrow=narrow)

  @tf.custom_gradient
  def apply(x, scale, zero_point):
    scale_of_x, zero_of_x = (tf.reshape(v, shape) for v in (scale, zero_point))
    rounded = fake_quantization.fake_quantize(x, scale_of_x, zero_of_x, bits=bits, narrow=narrow,
                                     dtype=tf.float64 if narrow else tf.float32)
    y = switched(on, rounded, x)

    def gradient(upstream):
      wide = scale_of_x * _SLACK
      limits = wide * (qmin - zero_of_x), wide * (qmax - zero_of_x)
      if taps is None:
        of_x, outside, ends = _split(x, upstream, *limits, bits, narrow)
        times_scale = ends + tf.reduce_sum(of_x * (y - x)) if rounding_gradient else ends
      else:
        of_x, beyond = _split_channels(x, upstream, *limits)
        outside = tf.reduce_sum(beyond, taps)
        times_scale = tf.reduce_sum(upstream * y - of_x * x if rounding_gradient else beyond * y, taps)
      of_scale = tf.reshape(times_scale, scale.shape) / scale
      of_zero_point = tf.reshape(-outside, scale.shape) * scale
      if on is not None:
        of_scale, of_zero_point = (tf.where(on, g, tf.zeros_like(g)) for g in (of_scale, of_zero_point))
      return switched(on, of_x, upstream), of_scale, of_zero_point

    return y, gradient

  return apply(x, scale, tf.cast(zero_point, scale.dtype))


def switched(on: tf.Tensor | None, x: tf.Tensor, otherwise: tf.Tensor) -> tf.Tensor:
  """Returns x where the bool scalar `on` is true or None, else `otherwise`.

  tf.where would broadcast the scalar over the tensor, which takes as long as the quantization itself.

  Args:
    on: bool scalar or None.
    x, otherwise: of one shape and type.
  """
  return x if on is None else tf.raw_ops.Select(condition=on, x=x, y=otherwise)


def _split(x, upstream, low, high, bits, narrow):
  """Returns (upstream inside [low, high], its sum outside, that of upstream * y outside); scalar limits.

  The gradient of TensorFlow's own fake quantization makes them in one operator.
  """
  inside, below, above = tf.quantization.fake_quant_with_min_max_vars_gradient(
      upstream, x, low, high, num_bits=bits, narrow_range=narrow)
  return inside, below + above, (low * below + high * above) / _SLACK


def _split_channels(x, upstream, low, high):
  """Returns upstream inside [low, high] and outside, for limits that broadcast over x."""
  inside = upstream * tf.cast(tf.equal(tf.clip_by_value(x, low, high), x), upstream.dtype)
  return inside, upstream - inside


@tf.custom_gradient
def scale_gradient(x: tf.Tensor, factor: tf.Tensor):
  """Returns x; its gradient is multiplied by a factor.

  Args:
    x: any shape.
    factor: a scalar, or of a shape that broadcasts over x.
  """
  return tf.identity(x), lambda upstream: (upstream * factor, None)


@tf.custom_gradient
def round_through(x: tf.Tensor):
  """Returns x rounded, ties to even; its gradient is 1 (straight-through).

  Args:
    x: any shape.

  >>> round_through(tf.constant([0.5, 1.5, -0.6])).numpy().tolist()
  [0.0, 2.0, -1.0]
  """
  return tf.round(x), lambda upstream: upstream
