"""Moments of a normal variable that is clipped, as a ReLU or ReLU6 clips it.

With x ~ N(mu, sd^2), al = (a - mu) / sd, be = (b - mu) / sd, Phi and phi the normal distribution and
density (Nagel et al. 2019, appendix C):

  E[clip(x, a, b)]   = a Phi(al) + b (1 - Phi(be)) + mu (Phi(be) - Phi(al)) + sd (phi(al) - phi(be))
  E[clip(x, a, b)^2] = a^2 Phi(al) + b^2 (1 - Phi(be)) + (mu^2 + sd^2) (Phi(be) - Phi(al))
                       + sd ((a + mu) phi(al) - (b + mu) phi(be))
"""

import numpy as np
from scipy.special import ndtr

_SMALLEST_DEVIATION = 1e-12


def clipped_normal(mean: np.ndarray, deviation: np.ndarray, low,
                   high) -> tuple[np.ndarray, np.ndarray]:
  """Returns (mean, variance) of clip(x, low, high), x ~ N(mean, deviation^2), float64.

  Args:
    mean, deviation: [channels]; a deviation of 0 is a constant.
    low, high: scalars or [channels], low <= high; infinite where there is no limit.
  """
  mean, low, high = (np.asarray(values, np.float64) for values in (mean, low, high))
  deviation = np.maximum(np.asarray(deviation, np.float64), _SMALLEST_DEVIATION * (np.abs(mean) + 1))
  alpha, beta = (low - mean) / deviation, (high - mean) / deviation
  low, high = (np.where(np.isfinite(end), end, 0.0) for end in (low, high))  # their weights are 0 there
  inside = ndtr(beta) - ndtr(alpha)
  first = (low * ndtr(alpha) + high * ndtr(-beta) + mean * inside
           + deviation * (_density(alpha) - _density(beta)))
  second = (low**2 * ndtr(alpha) + high**2 * ndtr(-beta) + (mean**2 + deviation**2) * inside
            + deviation * ((low + mean) * _density(alpha) - (high + mean) * _density(beta)))
  return first, np.maximum(second - first**2, 0.0)


def _density(z: np.ndarray) -> np.ndarray:
  return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
