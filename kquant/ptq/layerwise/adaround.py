"""AdaRound: learned rounding, up or down, by gradient descent (Nagel et al. 2020, eq. 21 to 25).

w_hat = s clip(floor(w / s) + h(V), -qmax, qmax), h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), and
V minimises E ||(W_hat - W)^T x||^2 + lambda sum 1 - |2 h(V) - 1|^beta, beta falling from 20 to 2, so that h
ends at 0 or 1. The first term is e^T H e with the Gram matrix H of the inputs (`rounding`): no image
is run again. The activation behind the layer, which the paper puts into it, is thereby left out.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.ptq.layerwise.rounding import RoundingProblem

_ZETA, _GAMMA = 1.1, -0.1
_BETA = (20.0, 2.0)
_WARM_START = 0.2


def rectified_sigmoid(v: tf.Tensor) -> tf.Tensor:
  """Returns h(V), in [0, 1] (eq. 23)."""
  return tf.clip_by_value(tf.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA, 0.0, 1.0)


def inverse_sigmoid(h: np.ndarray) -> np.ndarray:
  """Returns the V with h(V) = h, for 0 <= h <= 1."""
  return -np.log((_ZETA - _GAMMA) / (h - _GAMMA) - 1.0)


def adaround(problem: RoundingProblem, scale: np.ndarray, *, iterations: int = 1000,
             learning_rate: float = 0.02, strength: float = 1.0) -> np.ndarray:
  """Returns integers, each the weight over its scale rounded down or up.

  Args:
    problem, scale: as in `kquant.ptq.layerwise.rounding`.
    iterations: steps of Adam; in the first fifth of them there is no regulariser.
    learning_rate: of V. (The paper's 10,000 steps at 0.001 come to as much movement; here a step is exact.)
    strength: lambda, the error counted in units of H_kk s^2 / 12, what a weight's rounding leaves.
  """
  kernel, gram, qmax = problem.kernel, problem.gram, problem.qmax
  lower = np.clip(np.floor(kernel / scale), -qmax, qmax - 1)
  fraction = np.clip(kernel / scale - lower, 0.0, 1.0)
  spread = np.diagonal(gram, axis1=1, axis2=2)[:, :, None] * scale**2 / 12
  unit = max(float(np.broadcast_to(spread, kernel.shape).mean()), 1e-30)
  v = tf.Variable(inverse_sigmoid(fraction).astype(np.float32))
  optimizer = keras.optimizers.Adam(learning_rate)
  base, gram, scale = (tf.constant(a, tf.float32) for a in (lower * scale - kernel, gram / unit, scale))

  @tf.function(autograph=False)
  def step(beta, weight):
    with tf.GradientTape() as tape:
      h = rectified_sigmoid(v)
      error = base + scale * h
      loss = tf.reduce_sum(error * tf.matmul(gram, error))
      loss += weight * tf.reduce_sum(1.0 - tf.abs(2.0 * h - 1.0)**beta)
    optimizer.minimize(loss, [v], tape=tape)

  warm = int(_WARM_START * iterations)
  for number in range(iterations):
    done = max(0, number - warm) / max(1, iterations - warm)
    beta = _BETA[1] + 0.5 * (_BETA[0] - _BETA[1]) * (1 + np.cos(np.pi * done))
    step(tf.constant(beta, tf.float32), tf.constant(strength * (number >= warm), tf.float32))
  return lower + (rectified_sigmoid(v).numpy() >= 0.5)
