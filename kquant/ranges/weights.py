"""Ranges of kernels, per-channel or per-tensor."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from kquant.core import numerics
from kquant.core.tensor_spec import parse_range

_WEIGHTS_AT_ONCE = 1 << 16


def weight_range(kernel, axis: Sequence[int] | None, *, method: str = "minmax",
                 bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
  """Returns the symmetric range (low, high) of each channel of a kernel, low = -high, float64.

  Args:
    kernel: any shape.
    axis: the channel axes, ascending, as in `numerics.along`; None: per-tensor, [1].
    method: a `TensorSpec.range`. "minmax", "mean_extrema": max |w|. "percentile": that of |w|. "mse",
      "lp": the r * max |w| whose narrow grid has the least sum of |w - w_hat|^p, r = 1, 0.99, .. 0.01,
      then in steps of 0.001 around the best. "octav": see `octav_clip`.
    bits: bits of the narrow grid, at least 2.

  Raises:
    ValueError: an unknown method, fewer than 2 bits, an empty kernel, or one with NaN or infinity.

  >>> low, high = weight_range([[1.0, -4.0], [-2.0, 3.0]], (1,))
  >>> low.tolist(), high.tolist()
  ([-2.0, -4.0], [2.0, 4.0])
  """
  kernel = np.asarray(kernel, np.float32)
  name, number = parse_range(method)
  if name not in WEIGHT_METHODS:
    raise ValueError(f"weight_range: expected a method for weights, one of "
                     f"{', '.join(WEIGHT_METHODS)}, got {method!r}; choose one of those.")
  if bits < 2:
    raise ValueError(f"weight_range: expected at least 2 bits for a symmetric grid, got {bits}.")
  if not kernel.size or not np.isfinite(kernel).all():
    raise ValueError(f"weight_range: expected finite weights, got a kernel of shape {kernel.shape} "
                     "that is empty or holds NaN or infinity; check how the model was trained.")
  axis = () if axis is None else tuple(axis)
  channels = math.prod(kernel.shape[i] for i in axis)
  rows = np.abs(np.moveaxis(kernel, axis, range(len(axis))).reshape(channels, -1))
  high = rows.max(axis=1).astype(np.float64)
  filled, (_, qmax) = high > 0, numerics.grid_limits(bits, narrow=True)
  high[filled] *= WEIGHT_METHODS[name](rows[filled] / high[filled, None], qmax, number)
  return 0.0 - high, high


def _largest(rows: np.ndarray, qmax: int, number: float | None) -> np.ndarray:
  return np.ones(len(rows))


def _percentile(rows: np.ndarray, qmax: int, number: float | None) -> np.ndarray:
  ratios = np.quantile(rows, number / 100, axis=1)
  return np.where(ratios > 0, ratios, 1.0)


def _least_power_error(rows: np.ndarray, qmax: int, number: float | None) -> np.ndarray:
  """Returns the ratios of least sum |w - w_hat|^p, p = number, [channels]."""
  best = np.ones(len(rows))
  for step, count in ((-0.01, range(100)), (0.001, (0, *range(9, -10, -1)))):
    ratios = np.clip(best[:, None] + step * np.asarray(count), 0.001, 1.0)
    errors = rounding_errors(rows, ratios, qmax, number)
    best = np.take_along_axis(ratios, errors.argmin(axis=1)[:, None], axis=1)[:, 0]
  return best


def rounding_errors(rows: np.ndarray, ratios: np.ndarray, qmax: int, power: float) -> np.ndarray:
  """Returns sum over weights of |w - w_hat|^power: [channels, candidates].

  Args:
    rows: |w| over the channel's largest, [channels, weights].
    ratios: range over the channel's largest weight, [channels, candidates].
    qmax: last integer of the grid.
    power: of the error.
  """
  errors = np.zeros(ratios.shape)
  width = min(rows.shape[1], _WEIGHTS_AT_ONCE)
  height = _WEIGHTS_AT_ONCE // width
  for top in range(0, rows.shape[0], height):
    for left in range(0, rows.shape[1], width):
      part = rows[top:top + height, left:left + width]
      for k in range(ratios.shape[1]):
        step = ratios[top:top + height, k:k + 1] / qmax
        q = part / step
        np.clip(np.rint(q, out=q), -qmax, qmax, out=q)
        q *= step
        q -= part
        errors[top:top + height, k] += _power_sums(q, power)
  return errors


def _power_sums(x: np.ndarray, power: float) -> np.ndarray:
  """Returns sum |x|^power of each row; powers of single precision are 20 times as fast."""
  if power == 2:
    return np.einsum("cn,cn->c", x, x)
  return (np.abs(x, dtype=np.float32) ** np.float32(power)).sum(axis=1, dtype=np.float64)


def octav_clip(rows: np.ndarray, qmax: int) -> np.ndarray:
  """Returns the range s of least k s^2 n(0 < |w| < s) + sum over |w| >= s of (|w| - s)^2, [channels].

  k = 1 / (12 qmax^2): rounding noise against clipping (Sakr et al. 2022, see `ranges.octav`). With the
  m largest weights clipped the best s is sum of them / (k (n - m) + m), bounded by its neighbours; the
  best m is found by trying all, where Newton's iteration may circle around a weight.

  Args:
    rows: |w|, [channels, weights], each row's largest above 0.
    qmax: last integer of the grid.
  """
  ordered = -np.sort(-rows.astype(np.float64), axis=1)
  clipped = np.arange(rows.shape[1])
  sums, squares = (np.cumsum(ordered**p, axis=1) - ordered**p for p in (1, 2))
  noise = np.maximum((ordered > 0).sum(axis=1, keepdims=True) - clipped, 0) / (12 * qmax**2)
  above = np.concatenate([ordered[:, :1], ordered[:, :-1]], axis=1)
  s = np.clip(sums / np.maximum(noise + clipped, 1e-30), ordered, above)
  errors = noise * s**2 + squares - 2 * s * sums + clipped * s**2
  errors[ordered <= 0] = np.inf
  return np.take_along_axis(s, errors.argmin(axis=1)[:, None], axis=1)[:, 0]


WEIGHT_METHODS: dict[str, Callable[[np.ndarray, int, float | None], np.ndarray]] = {
    "minmax": _largest, "mean_extrema": _largest, "percentile": _percentile, "lp": _least_power_error,
    "mse": lambda rows, qmax, _: _least_power_error(rows, qmax, 2.0),
    "octav": lambda rows, qmax, _: octav_clip(rows, qmax)}
"""{name: function of (|w| over the channel's largest [channels, weights], last integer, number of the
method) that returns ratios of the largest weights, [channels]}."""
