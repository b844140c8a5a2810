"""The grid in TensorFlow: what `numerics` computes, bit for bit, inside a traced function."""

import dataclasses

import tensorflow as tf

from kquant.core import numerics


def affine_grid_tf(low: tf.Tensor, high: tf.Tensor, bits: int, *,
                   smallest: float = numerics.SMALLEST_ACTIVATION_WIDTH) -> tuple[tf.Tensor, tf.Tensor]:
  """`affine_grid` in TensorFlow: the same float32 scale and zero_point (as float64), bit for bit.

  Args:
    smallest: lower bound of the width high - low.
  """
  qmin, qmax = numerics.grid_limits(bits, narrow=False)
  low = tf.minimum(tf.cast(low, tf.float64), 0.0)
  high = tf.maximum(tf.cast(high, tf.float64), 0.0)
  high = tf.maximum(high, low + smallest)
  zero_point = tf.round(qmin - low * (qmax - qmin) / (high - low))
  above, below = tf.maximum(qmax - zero_point, 0.5), tf.maximum(zero_point - qmin, 0.5)
  return tf.cast(tf.maximum(high / above, -low / below), tf.float32), zero_point


def symmetric_grid_tf(magnitude: tf.Tensor, bits: int, *,
                      smallest: float = numerics.SMALLEST_WEIGHT_SCALE) -> tf.Tensor:
  """`symmetric_grid` in TensorFlow, bit for bit."""
  _, qmax = numerics.grid_limits(bits, narrow=True)
  return tf.cast(tf.maximum(tf.cast(magnitude, tf.float64) / qmax, smallest), tf.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class GridTensors:
  """A grid whose scale and zero point are tensors: what `Encoding` is in NumPy.

  Attributes:
    scale: [channels] or [1], or of a shape that broadcasts over the tensor.
    zero_point: of the same shape.
    bits, narrow: as in `numerics.grid_limits`.
    axis: the channel axes of the tensor, ascending, where the scale is [channels]; else None.
  """

  scale: tf.Tensor
  zero_point: tf.Tensor
  bits: int
  narrow: bool = False
  axis: tuple[int, ...] | None = None

  @property
  def limits(self) -> tuple[int, int]:
    """(qmin, qmax) of the grid."""
    return numerics.grid_limits(self.bits, narrow=self.narrow)


def fake_quantize(x: tf.Tensor, grid: GridTensors, *, dtype: tf.DType = tf.float32) -> tf.Tensor:
  """Returns scale * (clip(round(x / scale) + zero_point) - zero_point) in x's dtype, no gradient rule.

  Args:
    x: any shape.
    grid: its scale broadcasts over x.
    dtype: precision of the quotient. float64 gives exactly the integers of `quantize`; float32 is
      enough for activations, whose integers the runtime decides.
  """
  qmin, qmax = grid.limits
  scale, zero_point = tf.cast(grid.scale, dtype), tf.cast(grid.zero_point, dtype)
  q = tf.round(tf.cast(x, dtype) / scale)
  limits = qmin - zero_point, qmax - zero_point
  if scale.shape.rank:
    q = tf.clip_by_value(q, *limits)
  else:  # one operator instead of two
    q = tf.raw_ops.ClipByValue(t=q, clip_value_min=limits[0], clip_value_max=limits[1])
  return tf.cast(q * scale, x.dtype)
