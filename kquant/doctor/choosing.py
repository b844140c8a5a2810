"""Which tensors are at fault, and which remedy each of them gets: decided by measured noise alone."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kquant.search.trials import GAIN

_DEVIATIONS = 3.0
"""Median absolute deviations above the median: a tensor below that makes no more noise than others do."""


@dataclasses.dataclass(frozen=True)
class Option:
  """A remedy for a tensor, as measured on held-back images.

  Attributes:
    remedy: in words.
    noise: at the output with the tensor alone quantized, with the remedy: its power over the signal's.
    gain_db: mean over images of the noise without over that with it, in dB.
    error_db: standard error of `gain_db`.
    wide: it takes one of the 16-bit activations that may be had.
  """

  remedy: str
  noise: float
  gain_db: float
  error_db: float
  wide: bool = False


def threshold(noises: Sequence[float]) -> float:
  """Returns median + 3 MAD of the noises of all tensors.

  >>> threshold([1.0, 2.0, 3.0, 4.0, 90.0])
  6.0
  """
  median = np.median(noises)
  return float(median + _DEVIATIONS * np.median(np.abs(np.asarray(noises) - median)))


def at_fault(noises: Sequence[float], coverage: float) -> list[int]:
  """Returns the places of the tensors to be mended, the largest noise first.

  They are the fewest that make a part `coverage` of all noise, without those below `threshold`.

  >>> at_fault([1.0, 60.0, 2.0, 30.0, 2.0], 0.8), at_fault([1.0, 1.0, 1.0], 0.8)
  ([1, 3], [])
  """
  order = np.argsort(-np.asarray(noises), kind="stable")
  before = np.cumsum([0.0, *np.asarray(noises)[order][:-1]])
  limit, enough = threshold(noises), coverage * sum(noises)
  return [int(place) for place, reached in zip(order, before) if reached < enough and noises[place] > limit]


def choose(options: Sequence[Option], noise: float, limit: float) -> Option | None:
  """Returns the cheapest remedy that brings a tensor below a limit; where none does, that of least noise.

  Args:
    options: cheap to dear.
    noise: of the tensor without a remedy.
    limit: `threshold` of all tensors.

  Returns:
    The remedy; None where none lowers the noise by more than `search.trials.GAIN` standard errors.

  >>> mse, rounding = Option("range mse", 2.0, 7.0, 0.1), Option("closed-form rounding", 0.1, 20.0, 0.1)
  >>> choose([mse, rounding], 10.0, 3.0).remedy, choose([mse, rounding], 10.0, 1.0).remedy
  ('range mse', 'closed-form rounding')
  """
  helping = [option for option in options
             if option.noise < noise and option.gain_db > GAIN * option.error_db]
  for option in helping:
    if option.noise <= limit:
      return option
  return min(helping, key=lambda option: option.noise, default=None)


def assign(noises: Sequence[float], options: Sequence[Sequence[Option]], limit: float,
           most_wide: int) -> list[Option | None]:
  """Returns a remedy for each tensor at fault; 16 bits go where most noise is left without them.

  Args:
    noises: of each tensor, without a remedy.
    options: of each tensor, cheap to dear.
    limit: `threshold` of all tensors.
    most_wide: so many tensors get 16 bits, at most.

  >>> mse, wide = Option("range mse", 2.0, 7.0, 0.1), Option("16 bits", 0.1, 20.0, 0.1, wide=True)
  >>> [option.remedy for option in assign([10.0, 8.0], [[mse, wide], [wide]], 1.0, most_wide=1)]
  ['range mse', '16 bits']
  """
  chosen = [choose([option for option in own if not option.wide], noise, limit)
            for noise, own in zip(noises, options)]
  left = [noise if option is None else option.noise for noise, option in zip(noises, chosen)]
  for place in sorted(range(len(left)), key=lambda place: -left[place]):
    better = choose(options[place], noises[place], limit)
    if left[place] > limit and most_wide and better is not None and better.wide:
      chosen[place] = better
      most_wide -= 1
  return chosen
