"""GradientQuantizer: what flows back into a tensor is put on a grid; the tensor stays as it is."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.core.fake_quantization import affine_grid_tf, symmetric_grid_tf
from kquant.quantizers import base
from kquant.quantizers.base import Variables
from kquant.quantizers.moving_average import MovingAverageQuantizer
from kquant.quantizers.noise import noise, noise_table
from kquant.quantizers.replicas import replica_id

Watch = Callable[[tf.Tensor, Variables, tf.Tensor], None]


class GradientQuantizer:
  """Quantizes the gradient of a tensor in training (Fournarakis & Nagel 2021, arXiv 2105.04246).

  Forward y = x. Backward, with noise u drawn evenly from 0 to 1 for each value in each step:

    g_q = scale * (clip(floor(g / scale + u) + zero_point, n, p) - zero_point)

  so that the mean of g_q is g (stochastic rounding, Gupta et al. 2015, section 3). The noise of a step
  follows from the seed, the number of the step and the replica; the number is a variable, so that a resumed
  training draws what it would have.

  Args:
    ranges: of what range a grid is; or what `base.serialize` made of it.
    stochastic: False rounds to the nearest integer: u = 1/2.
    seed: of the noise.
  """

  def __init__(self, ranges: MovingAverageQuantizer | dict[str, Any], *, stochastic: bool = True,
               seed: int = 0):
    self.ranges = base.deserialize(ranges) if isinstance(ranges, dict) else ranges
    self.stochastic = stochastic
    self.seed = seed

  def build(self, layer: keras.layers.Layer) -> Variables:
    """Adds `gradient_min`, `gradient_max`, `gradient_frozen` and `gradient_steps` to the layer.

    The steps count while the rounding is stochastic.
    """
    steps = layer.add_weight(name="gradient_steps", shape=(), dtype=tf.int64, trainable=False,
                             initializer="zeros")
    return {**self.ranges.build((), "gradient", layer), "steps": steps}

  def __call__(self, x: tf.Tensor, variables: Variables, *, watch: Watch | None = None) -> tf.Tensor:
    """Returns x; its gradient is quantized, and then the range moves.

    Args:
      x: any shape.
      variables: what `build` returned.
      watch: called with the gradient, the variables that it is quantized with, and the quantized gradient.
    """
    @tf.custom_gradient
    def passed(x, table):  # TensorFlow saves no function whose gradient alone reads a constant
      return tf.identity(x), lambda upstream: (self._quantized(upstream, table, variables, watch), None)

    return passed(x, noise_table())

  def _quantized(self, gradient: tf.Tensor, table: tf.Tensor, variables: Variables,
                 watch: Watch | None) -> tf.Tensor:
    """Returns the quantized gradient of a step, and moves the range."""
    used = self.ranges.follow(gradient, variables)
    scale, low, high = self._grid(used)
    x = gradient
    if self.stochastic:
      seed = tf.stack([self.seed + replica_id(), variables["steps"]])
      variables["steps"].assign_add(1)
      x += tf.reshape(noise(tf.size(x), seed, table), tf.shape(x)) * scale
    y = tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=self.ranges.bits)
    if watch is not None:
      watch(gradient, used, y)
    return y

  def _grid(self, variables: Variables) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns (scale, lowest, highest value) of the grid over a range; it may be as narrow as 1e-30."""
    low, high = (tf.reshape(variables[end], []) for end in ("min", "max"))
    bits, smallest = self.ranges.bits, numerics.SMALLEST_GRADIENT_WIDTH
    if self.ranges.symmetric:
      scale = symmetric_grid_tf(tf.maximum(-low, high), bits, smallest=smallest)
      zero_point = tf.zeros_like(scale)
    else:
      scale, zero_point = affine_grid_tf(low, high, bits, smallest=smallest)
    qmin, qmax = numerics.grid_limits(bits, narrow=False)
    zero_point = tf.cast(zero_point, tf.float32)
    return scale, scale * (qmin - zero_point), scale * (qmax - zero_point)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {"ranges": base.serialize(self.ranges), "stochastic": self.stochastic, "seed": self.seed}
