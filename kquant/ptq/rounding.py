"""Rounding a layer's weights together, in closed form: least squared error of its outputs.

The error of a layer's outputs is E |(W_hat - W)^T x|^2 = sum over outputs of e^T H e, with e a column of
W_hat - W and H = E x x^T the Gram matrix of its inputs. Where the bias is corrected afterwards the mean
of the inputs takes no part, and H = E x x^T - m m^T is centred.

`compensated` rounds one input after the other, the loudest first, and lets the rest make up for each error
(Hassibi & Stork 1993; Frantar et al. 2022, "GPTQ"); `descend` then moves single integers while the error
falls; `enumerated` tries every way of rounding up and down and takes the best: for the nine weights of a
depthwise kernel.

All take a layer's matrices as `kquant.ptq.patches.Patches` makes them: kernel [blocks, inputs, outputs],
gram [blocks, inputs, inputs] and scale [blocks, 1, outputs] that broadcasts; integers lie within
-qmax .. qmax.
"""

import functools

import numpy as np
import scipy.linalg

_AT_ONCE = 64
_CANDIDATES = np.linspace(1.02, 0.4, 32)
_RATIOS = (1.0, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1, 1.15, 1.2)
LARGEST_ENUMERATED = 9


def output_error(integers: np.ndarray, kernel: np.ndarray, gram: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Returns e^T H e of each output, [blocks, outputs]."""
  error = integers * scale - kernel
  return np.einsum("bko,bko->bo", error, gram @ error)


def damped(gram: np.ndarray, damping: float) -> np.ndarray:
  """Returns H + damping * mean(diag H) I of each block, so that it can be inverted."""
  level = np.trace(gram, axis1=1, axis2=2) / gram.shape[1]
  return gram + (damping * level + 1e-12)[:, None, None] * np.eye(gram.shape[1], dtype=gram.dtype)


def nearest(kernel: np.ndarray, scale: np.ndarray, qmax: int) -> np.ndarray:
  """Returns each weight's nearest integer."""
  return np.clip(np.rint(kernel / scale), -qmax, qmax)


def weighted_scale(kernel: np.ndarray, weight: np.ndarray, qmax: int, *, per_channel: bool) -> np.ndarray:
  """Returns the scale whose nearest integers have the least sum of weight_k e_k^2: [blocks, 1, outputs],
  or [1, 1, 1] for one scale.

  Candidates are max |w| / qmax times 1.02 to 0.4.

  Args:
    weight: of each input, [blocks, inputs]: the diagonal of the Gram matrix.
  """
  weight = weight[:, :, None]
  axes = 1 if per_channel else None
  full = np.maximum(np.abs(kernel).max(axis=axes, keepdims=True), 1e-12) / qmax
  best, least = full.copy(), np.full(full.shape, np.inf)
  for ratio in _CANDIDATES:
    scale = full * ratio
    error = nearest(kernel, scale, qmax) * scale - kernel
    error = (weight * error * error).sum(axis=axes, keepdims=True)
    best, least = np.where(error < least, scale, best), np.minimum(error, least)
  return best


def compensated(kernel: np.ndarray, gram: np.ndarray, scale: np.ndarray, qmax: int) -> np.ndarray:
  """Returns integers: inputs are rounded the loudest first, each error made up for by those behind it.

  With H^-1 = U^T U, U upper triangular, the error (w_k - w_hat_k) / U_kk of input k times U_k is taken from
  the weights behind it.

  Raises:
    numpy.linalg.LinAlgError: a Gram matrix is not positive definite; see `damped`.
  """
  return _compensated(kernel, _factors(gram), scale, qmax)


def _factors(gram: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns (order of the inputs, the U of H^-1 in that order) of each block."""
  factors = []
  for block in gram:
    order = np.argsort(-np.diagonal(block), kind="stable")
    inverse = scipy.linalg.cho_solve((np.linalg.cholesky(block[np.ix_(order, order)]), True),
                                     np.eye(len(block)))
    factors.append((order, np.linalg.cholesky(inverse).T))
  return factors


def _compensated(kernel: np.ndarray, factors: list[tuple[np.ndarray, np.ndarray]], scale: np.ndarray,
                 qmax: int) -> np.ndarray:
  integers = np.empty(kernel.shape)
  scale = np.broadcast_to(scale, (len(kernel), 1, kernel.shape[2]))
  for block, (order, upper) in enumerate(factors):
    integers[block, order] = _in_order(kernel[block, order].astype(np.float64), upper, scale[block, 0], qmax)
  return integers


def _in_order(rest: np.ndarray, upper: np.ndarray, scale: np.ndarray, qmax: int) -> np.ndarray:
  """One block of `compensated`; `rest` [inputs, outputs] is overwritten."""
  integers = np.empty(rest.shape)
  for start in range(0, len(rest), _AT_ONCE):
    stop = min(start + _AT_ONCE, len(rest))
    errors = np.empty((stop - start, rest.shape[1]))
    for k in range(start, stop):
      integers[k] = nearest(rest[k], scale, qmax)
      errors[k - start] = (rest[k] - integers[k] * scale) / upper[k, k]
      rest[k + 1:stop] -= upper[k, k + 1:stop, None] * errors[k - start]
    rest[stop:] -= upper[start:stop, stop:].T @ errors
  return integers


def descend(integers: np.ndarray, kernel: np.ndarray, gram: np.ndarray, scale: np.ndarray, qmax: int, *,
            sweeps: int = 4) -> np.ndarray:
  """Returns integers of which none can be moved by itself to a lower e^T H e, or those after `sweeps`.

  The best step of integer k is -(H e)_k / (H_kk s), rounded.
  """
  integers, gram = integers.astype(np.float32), gram.astype(np.float32)
  scale = np.broadcast_to(np.float32(scale), (len(kernel), 1, kernel.shape[2]))
  for block in range(len(kernel)):
    slope = gram[block] @ (integers[block] * scale[block] - kernel[block].astype(np.float32))
    for _ in range(sweeps):
      if not _sweep(integers[block], slope, gram[block], scale[block, 0], qmax):
        break
  return integers


def _sweep(integers: np.ndarray, slope: np.ndarray, gram: np.ndarray, scale: np.ndarray, qmax: int) -> bool:
  """Moves each input's integers once, in place, with slope = H e; says whether any moved."""
  moved = False
  for start in range(0, len(integers), _AT_ONCE):
    stop = min(start + _AT_ONCE, len(integers))
    own, local = gram[start:stop, start:stop], slope[start:stop].copy()
    steps = np.zeros((stop - start, integers.shape[1]), slope.dtype)
    for i, k in enumerate(range(start, stop)):
      wanted = integers[k] - np.rint(local[i] / (own[i, i] * scale))
      moves = np.clip(wanted, -qmax, qmax) - integers[k]
      if moves.any():
        integers[k] += moves
        steps[i] = moves * scale
        local[i + 1:] += own[i + 1:, i, None] * steps[i]
        moved = True
    slope += gram[:, start:stop] @ steps
  return moved


def refitted_scale(integers: np.ndarray, kernel: np.ndarray, gram: np.ndarray,
                   scale: np.ndarray) -> np.ndarray:
  """Returns the scale of least e^T H e for fixed integers: q^T H w / q^T H q, summed where it is shared.

  Where the integers are all zero, or it would not be positive, it is the old one.
  """
  projected = gram @ integers
  over, under = (np.einsum("bko,bko->bo", projected, side)[:, None] for side in (kernel, integers))
  if scale.size == 1:
    over, under = over.sum(keepdims=True), under.sum(keepdims=True)
  return np.where((under > 0) & (over > 0), over / np.maximum(under, 1e-30), scale)


def rounded(kernel: np.ndarray, gram: np.ndarray, scale: np.ndarray, qmax: int, *,
            keep_scale: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """Returns (integers, scale): `compensated`, `descend`, then `refitted_scale` and `descend` once more.

  0.8 to 1.2 times the scale are tried, the best one of each output, or of all where they share it. A refit
  is taken where it lowers the error.

  Args:
    keep_scale: the scale stays as it is.
  """
  if keep_scale:
    return descend(compensated(kernel, gram, scale, qmax), kernel, gram, scale, qmax), scale

  def judged(integers: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    errors = output_error(integers, kernel, gram, scale)[:, None]
    return integers, scale, errors.sum(keepdims=True) if scale.size == 1 else errors

  factors = _factors(gram)
  integers, scale, _ = functools.reduce(_better, (
      judged(_compensated(kernel, factors, scale * ratio, qmax), scale * ratio) for ratio in _RATIOS))
  integers = descend(integers, kernel, gram, scale, qmax)
  refit = refitted_scale(integers, kernel, gram, scale)
  moved = descend(integers, kernel, gram, refit, qmax)
  integers, scale, _ = _better(judged(integers, scale), judged(moved, refit))
  return integers, scale


def _better(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
  """Returns the (integers, scale, errors) of less error; errors broadcast over the others."""
  return tuple(np.where(other[-1] < one[-1], new, old) for old, new in zip(one, other))


def enumerated(kernel: np.ndarray, gram: np.ndarray, scale: np.ndarray, qmax: int, *,
               per_channel: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns (integers, scale): the best of all ways to round each weight down or up.

  Args:
    kernel: at most LARGEST_ENUMERATED inputs a block.
    scale: kept; with `per_channel` one more variable: 1.15 to 0.6 times it are tried for each output.
  """
  inputs = kernel.shape[1]
  patterns = (np.arange(2**inputs)[:, None] >> np.arange(inputs) & 1).astype(np.float64)  # [patterns, inputs]
  of_pattern = np.einsum("pk,bkl,pl->bp", patterns, gram, patterns, optimize=True)
  full = np.broadcast_to(scale, (len(kernel), 1, kernel.shape[2]))
  best, chosen = np.full(full.shape, np.inf), np.zeros(kernel.shape)
  best_scale = full.copy()
  for ratio in np.linspace(1.15, 0.6, 23) if per_channel else (1.0,):
    tried = full * ratio
    lower = np.clip(np.floor(kernel / tried), -qmax, qmax - 1)
    error = lower * tried - kernel
    slope = gram @ error
    cost = (np.einsum("bko,bko->bo", error, slope)[:, :, None]
            + 2 * tried[:, 0, :, None] * (np.swapaxes(slope, 1, 2) @ patterns.T)
            + (tried[:, 0, :, None] ** 2) * of_pattern[:, None, :])
    pattern = cost.argmin(axis=2)
    least = np.take_along_axis(cost, pattern[:, :, None], 2)[:, None, :, 0]
    better = least < best
    integers = lower + np.swapaxes(patterns[pattern], 1, 2)
    best, best_scale = np.where(better, least, best), np.where(better, tried, best_scale)
    chosen = np.where(better, integers, chosen)
  return chosen, (best_scale if per_channel else scale)
