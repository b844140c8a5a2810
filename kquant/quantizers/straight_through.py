"""Rounding onto a grid in a forward pass, and the gradients that training uses in its place."""

from collections.abc import Sequence

import tensorflow as tf

from kquant.core import numerics

_SLACK = 1 + 2.0**-20  # the element that set a range lies inside it, however its scale was rounded


def onto_grid(x: tf.Tensor, scale: tf.Tensor, zero_point: tf.Tensor, *, bits: int, narrow: bool,
              axis: Sequence[int] | None = None, rounding_gradient: bool = True) -> tf.Tensor:
  """Returns y = scale * (clip(round(x / scale) + zero_point, n, p) - zero_point), straight through.

  Gradients, with v = x / scale and the range [scale (n - zero_point), scale (p - zero_point)]:

    dy/dx           1 inside the range, 0 outside
    dy/dscale       round(v) - v inside; n - zero_point below, p - zero_point above
    dy/dzero_point  0 inside, -scale outside

  (Esser et al. 2020, LSQ, eq. 3 and 5; Bhalgat et al. 2020, LSQ+, eq. 4 and 5, whose offset is
  -scale * zero_point). The integers of a narrow grid, which weights have, are those of
  `numerics.quantize`, bit for bit.

  Args:
    x: any shape, float32.
    scale: float32, [channels] or [1].
    zero_point: whole numbers as floats, the same shape.
    bits, narrow: of the grid.
    axis: channel axes of x, ascending; None for one grid.
    rounding_gradient: False lets dy/dscale be 0 inside (Choi et al. 2018, PACT, eq. 3).
  """
  shape = [] if axis is None else [n if i in axis else 1 for i, n in enumerate(x.shape)]
  taps = None if axis is None else [i for i in range(x.shape.rank) if i not in axis]
  qmin, qmax = numerics.grid_limits(bits, narrow=narrow)

  @tf.custom_gradient
  def apply(x, scale, zero_point):
    scale_of_x, zero_of_x = (tf.reshape(tf.cast(v, x.dtype), shape) for v in (scale, zero_point))
    y = numerics.fake_quantize(x, scale_of_x, zero_of_x, bits=bits, narrow=narrow,
                               dtype=tf.float64 if narrow else tf.float32)

    def gradient(upstream):
      wide = scale_of_x * _SLACK
      inside = tf.logical_and(x >= wide * (qmin - zero_of_x), x <= wide * (qmax - zero_of_x))
      of_x = tf.where(inside, upstream, tf.zeros_like(upstream))
      of_scale = tf.reduce_sum(upstream * y - of_x * (x if rounding_gradient else y), taps)  # times scale
      of_zero_point = -tf.reduce_sum(upstream - of_x, taps)  # over scale
      return (of_x, tf.cast(tf.reshape(of_scale, scale.shape) / tf.cast(scale, x.dtype), scale.dtype),
              tf.cast(tf.reshape(of_zero_point, scale.shape) * tf.cast(scale, x.dtype), zero_point.dtype))

    return y, gradient

  return apply(x, scale, zero_point)


@tf.custom_gradient
def scale_gradient(x: tf.Tensor, factor: tf.Tensor):
  """Returns x; its gradient is multiplied by `factor`."""
  return tf.identity(x), lambda upstream: (upstream * factor, None)


@tf.custom_gradient
def round_through(x: tf.Tensor):
  """Returns x rounded, ties to even; the gradient is that of x."""
  return tf.round(x), lambda upstream: upstream
