"""GradientQuantizer: what flows back into a tensor is put on a grid; the tensor stays as it is."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics
from kquant.core.fake_quantization import GridTensors, affine_grid_tf, fake_quantize, symmetric_grid_tf
from kquant.quantizers import base
from kquant.quantizers.base import Variables
from kquant.quantizers.moving_average import MovingAverageQuantizer
from kquant.quantizers.replicas import replica_id

_PHILOX = 1
Watch = Callable[[tf.Tensor, Variables, tf.Tensor], None]


class GradientQuantizer:
  """Quantizes the gradient of a tensor in training (Fournarakis & Nagel 2021, arXiv 2105.04246).

  Forward y = x. Backward, with noise u drawn evenly from 0 to 1 for each value in each step:

    g_q = scale * (clip(floor(g / scale + u) + zero_point, n, p) - zero_point)

  so that the mean of g_q is g (stochastic rounding). The noise of a step follows from the seed, the number of
  the step and the replica; the number is a variable, so that a resumed training draws what it would have.

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
    def passed(x):
      return tf.identity(x), lambda upstream: self.quantize(upstream, variables, watch=watch)

    return passed(x)

  def quantize(self, gradient: tf.Tensor, variables: Variables, *, watch: Watch | None = None) -> tf.Tensor:
    """Returns the quantized gradient of a step, and moves the range.

    Args:
      gradient: any shape.
      variables, watch: as of the call.
    """
    used = self.ranges.follow(gradient, variables)
    y = fake_quantize(gradient, self.grid(used), noise=self._noise(gradient, variables["steps"]))
    if watch is not None:
      watch(gradient, used, y)
    return y

  def grid(self, variables: Variables) -> GridTensors:
    """Returns the grid over a range, of scalars; gradients may be tiny: its width is at least 1e-30.

    Args:
      variables: what `build` or `MovingAverageQuantizer.follow` returned.
    """
    low, high = (tf.reshape(variables[end], []) for end in ("min", "max"))
    bits, smallest = self.ranges.bits, numerics.SMALLEST_GRADIENT_WIDTH
    if self.ranges.symmetric:
      scale = symmetric_grid_tf(tf.maximum(-low, high), bits, smallest=smallest)
      return GridTensors(scale, tf.zeros_like(scale), bits)
    return GridTensors(*affine_grid_tf(low, high, bits, smallest=smallest), bits)

  def _noise(self, gradient: tf.Tensor, steps: tf.Variable) -> tf.Tensor | None:
    if not self.stochastic:
      return None
    seed = tf.stack([self.seed + replica_id(), steps])
    steps.assign_add(1)
    generator = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    return tf.raw_ops.StatelessRandomUniformV2(  # tf.random.stateless_uniform is slower: it scales [0, 1)
        shape=tf.shape(gradient), key=generator.key, counter=generator.counter, alg=_PHILOX)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of the constructor."""
    return {"ranges": base.serialize(self.ranges), "stochastic": self.stochastic, "seed": self.seed}
