"""Rounding to a grid in the forward pass, with straight-through estimators (STE) as gradients."""

import tensorflow as tf

from kquant.core import numerics
from kquant.core.fake_quantization import GridTensors, fake_quantize

_SLACK = 1 + 2.0**-20  # the element that set a range lies inside it, however its scale was rounded


def onto_grid(x: tf.Tensor, grid: GridTensors, *, on: tf.Tensor | None = None,
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
    grid: scale float32, [channels] or [1]; zero_point the same shape, integers as floats.
    on: bool scalar; where it is false x and its gradient are returned as they are.
    rounding_gradient: False lets dy/dscale be 0 inside (Choi et al. 2018, PACT, eq. 3).
  """
  shape = numerics.channel_shape(x.shape, grid.axis)
  taps = None if grid.axis is None else [i for i in range(x.shape.rank) if i not in grid.axis]

  @tf.custom_gradient
  def apply(x, scale, zero_point):
    over_x = GridTensors(tf.reshape(scale, shape), tf.reshape(zero_point, shape), grid.bits, grid.narrow)
    rounded = fake_quantize(x, over_x, dtype=tf.float64 if grid.narrow else tf.float32)
    y = switched(on, rounded, x)

    def gradient(upstream):
      if taps is None:
        of_x, outside, ends = _split(x, upstream, over_x)
        times_scale = ends + tf.reduce_sum(of_x * (y - x)) if rounding_gradient else ends
      else:
        of_x, beyond = _split_channels(x, upstream, over_x)
        outside = tf.reduce_sum(beyond, taps)
        times_scale = tf.reduce_sum(upstream * y - of_x * x if rounding_gradient else beyond * y, taps)
      of_scale = tf.reshape(times_scale, scale.shape) / scale
      of_zero_point = tf.reshape(-outside, scale.shape) * scale
      if on is not None:
        of_scale, of_zero_point = (tf.where(on, g, tf.zeros_like(g)) for g in (of_scale, of_zero_point))
      return switched(on, of_x, upstream), of_scale, of_zero_point

    return y, gradient

  return apply(x, grid.scale, tf.cast(grid.zero_point, grid.scale.dtype))


def switched(on: tf.Tensor | None, x: tf.Tensor, otherwise: tf.Tensor) -> tf.Tensor:
  """Returns x where the bool scalar `on` is true or None, else `otherwise`.

  tf.where would broadcast the scalar over the tensor, which takes as long as the quantization itself.

  Args:
    on: bool scalar or None.
    x, otherwise: of one shape and type.
  """
  return x if on is None else tf.raw_ops.Select(condition=on, x=x, y=otherwise)


def _ends(grid: GridTensors) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the ends of a grid's range, _SLACK further apart."""
  (qmin, qmax), wide = grid.limits, grid.scale * _SLACK
  return wide * (qmin - grid.zero_point), wide * (qmax - grid.zero_point)


def _split(x, upstream, grid):
  """Returns (upstream inside the range, its sum outside, that of upstream * y outside); of one scale.

  The gradient of TensorFlow's own fake quantization makes them in one operator.
  """
  low, high = _ends(grid)
  inside, below, above = tf.quantization.fake_quant_with_min_max_vars_gradient(
      upstream, x, low, high, num_bits=grid.bits, narrow_range=grid.narrow)
  return inside, below + above, (low * below + high * above) / _SLACK


def _split_channels(x, upstream, grid):
  """Returns upstream inside the range and outside, for scales that broadcast over x."""
  inside = upstream * tf.cast(tf.equal(tf.clip_by_value(x, *_ends(grid)), x), upstream.dtype)
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


@tf.custom_gradient
def with_gradient_of(value: tf.Tensor, path: tf.Tensor):
  """Returns value; the gradient goes to path.

  Args:
    value: any shape.
    path: of the same shape.

  >>> with_gradient_of(tf.constant([3.0]), tf.constant([2.5])).numpy().tolist()
  [3.0]
  """
  return tf.identity(value), lambda upstream: (None, upstream)
