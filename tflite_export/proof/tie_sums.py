"""Input integers that put sums of one window (`operators.sums`) on rounding ties."""

import numpy as np

from tflite_export.operators.sums import Sums

_SOLVED_TAPS = 48
"""Taps of a window that are solved for, the largest and the smallest weights; the others are random."""
_NEAREST = 8
"""Of so many nearest ties one is drawn."""
_ATTEMPTS = 4


def integers_on_ties(sums: Sums, centre: int, limits: tuple[int, int],
                     rng: np.random.Generator) -> np.ndarray:
  """Returns int8 values [windows, places of the image] that put a sum of every group next to a tie.

  Args:
    sums: what is summed.
    centre: z, the zero point of x.
    limits: ends of y without its zero point.
    rng: draws the ties, and what is not solved for.
  """
  values = rng.integers(-128, 128, (sums.windows, int(np.prod(sums.image))))
  rows = np.repeat(np.arange(sums.windows), len(sums.places) // sums.windows)[:, None]
  targets, unsolved = _targets(sums, centre, limits, rng), np.arange(len(rows))
  for _ in range(_ATTEMPTS):
    drawn = rng.integers(-128, 128, (len(unsolved), sums.places.shape[1]))
    solved, missing = _solve(drawn - centre, sums.weights[unsolved], centre, (targets - sums.bias)[unsolved])
    values[rows[unsolved], sums.places[unsolved]] = solved + centre
    unsolved = unsolved[missing != 0]
  return values


def _targets(sums: Sums, centre: int, limits: tuple[int, int],
             rng: np.random.Generator) -> np.ndarray:
  """Returns an accumulator for each window and group: one of those nearest to a tie in its reach."""
  halves = np.arange(limits[0], max(limits[1], limits[0] + 1)) + 0.5
  wanted = np.rint(halves / sums.real[:, None])
  ends = np.stack([(-128 - centre) * sums.weights, (127 - centre) * sums.weights])
  low, high = (bound.sum(1, keepdims=True) + sums.bias[:, None] for bound in (ends.min(0), ends.max(0)))
  apart = np.abs(wanted * sums.real[:, None] - halves) + np.where((wanted < low) | (wanted > high), np.inf, 0)
  nearest = np.argsort(apart, axis=1)[:, :_NEAREST]
  drawn = np.take_along_axis(nearest, rng.integers(0, nearest.shape[1], (len(nearest), 1)), 1)
  drawn = np.where(np.isinf(np.take_along_axis(apart, drawn, 1)), nearest[:, :1], drawn)
  return np.take_along_axis(wanted, drawn, 1)[:, 0].clip(low[:, 0], high[:, 0]).astype(np.int64)


def _solve(x: np.ndarray, weights: np.ndarray, centre: int,
           targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Changes x - z tap by tap, from the largest weight on, towards sum of weight * (x - z) = target.

  Args:
    x: x - z, int64 [rows, taps].
    weights: [rows, taps].
    centre: z.
    targets: [rows].

  Returns:
    x and what is missing to the targets.
  """
  order = np.argsort(-np.abs(weights), axis=1, kind="stable")
  if order.shape[1] > _SOLVED_TAPS:
    nonzero, half = np.count_nonzero(weights, axis=1)[:, None], _SOLVED_TAPS // 2
    last = np.minimum(np.maximum(nonzero - half, half) + np.arange(half), order.shape[1] - 1)
    order = np.concatenate([order[:, :half], np.take_along_axis(order, last, 1)], axis=1)
  missing, rows = targets - (x * weights).sum(1), np.arange(len(x))
  for column in order.T:
    weight, value = weights[rows, column], x[rows, column]
    steps = np.rint(missing / np.where(weight == 0, np.inf, weight)).astype(np.int64)
    changed = np.clip(value + steps, -128 - centre, 127 - centre)
    x[rows, column] = changed
    missing -= (changed - value) * weight
  return x, missing
