"""Second moments of what reaches a layer, and what they say of the errors made before it."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import scipy.linalg
import tensorflow as tf

from kquant.graph import keras_calls
from kquant.graph.fused_lstm import one_step_later
from kquant.ptq.layerwise import rounding
from kquant.ptq.layerwise.rounding import RoundingProblem
from kquant.ptq.layerwise.streaming import LayerTurn

LARGEST_GRAM = 4608
"""Inputs of a layer beyond which its Gram matrix is cut into blocks: one has 170 MB in float64."""

_FEWEST_ROWS, _MANY_ROWS = 2**13, 2**15
_ROWS_OF_FEW, _ROWS_OF_MANY = 512, 12
"""Sampled positions an input: the first up to _MANY_ROWS together, from there on the second. (Twice as many
of both change the SQNR of ResNet-8 and MobileNetV1 0.25 by less than its error, 0.1 dB, at int8 and w4a8.)"""
_CHUNK_ELEMENTS = 2**24
_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 0.1, 0.02, 0.5
"""Of the Gram matrix, the first times inputs over images: with few images its small eigenvalues are chance.
(w4a8, SQNR on new images, 0.05 throughout and this: MobileNetV2 8.0 and 8.3 dB, MobileNetV1 0.25 10.9 and
11.2, ResNet-8 with 256 images 23.6 and 23.6.)"""
_RIDGES = (0.02, 0.2)
_ROWS_TO_JUDGE = 2


@dataclasses.dataclass
class Moments:
  """Centred second moments of a layer's inputs over sampled positions; all [blocks, inputs, inputs].

  Attributes:
    gram: covariance of the quantized inputs.
    cross: covariance of the quantized inputs with what the float ones have more.
    rows: how many positions were sampled.
  """

  gram: np.ndarray
  cross: np.ndarray
  rows: int


def measure_moments(turn: LayerTurn, generator: np.random.Generator) -> list[Moments]:
  """Returns the moments of two halves of the images, at sampled output positions (one, of one image).

  A layer with more than LARGEST_GRAM inputs has its blocks cut into equal ones of at most as many.
  """
  positions = _positions(turn)
  step = max(1, _CHUNK_ELEMENTS // (positions * turn.patches.blocks * turn.patches.inputs))

  def rows(inputs: tf.Tensor, floats: tf.Tensor) -> list[tf.Tensor]:
    chosen = turn.patches.draw(positions, generator)
    return [_cut(turn.patches.rows(x, chosen)) for x in (inputs, floats)]

  return _of_halves(turn, step, rows)


def moments_of_steps(turn: LayerTurn) -> list[Moments]:
  """Returns the moments of what all steps of a fused LSTM read, x_t and h_{t-1}, of two halves of the images.

  The states are those that its float weights make of its quantized and of its float inputs.
  """
  weights = {name: tf.constant(value) for name, value in turn.float_params.items()}

  def rows(*sequences: tf.Tensor) -> list[tf.Tensor]:
    read = [tf.concat([x, one_step_later(keras_calls.call_with(turn.layer.layer, x, weights))], -1)
            for x in sequences]
    return [tf.reshape(x, [1, -1, x.shape[-1]]) for x in read]

  return _of_halves(turn, turn.images, rows)


def _of_halves(turn: LayerTurn, step: int,
               rows: Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]]) -> list[Moments]:
  """Returns the moments of two halves of the images.

  Args:
    step: images at once.
    rows: of quantized and of float inputs, [blocks, rows, inputs] each.
  """
  sums: list[list[np.ndarray] | None] = [None, None]
  seen = 0
  for inputs, floats in zip(turn.inputs(), turn.float_inputs()):
    for part in _parts(len(inputs), step, turn.images // 2 - seen):
      own, more = rows(inputs[part], floats[part])
      half = int(seen + part.start >= turn.images // 2)
      sums[half] = _added(sums[half], own, more - own)
    seen += len(inputs)
  return [_centred(parts) for parts in sums if parts is not None]


def moments_of_calls(turn: LayerTurn, generator: np.random.Generator) -> list[Moments]:
  """Returns the moments of what all calls of a layer read in the float network, as those of one part.

  What they read in the quantized network is not known when the weights are chosen: they read what it makes.
  """
  positions = math.ceil(_positions(turn) / len(turn.calls))
  step = max(1, _CHUNK_ELEMENTS // (positions * turn.patches.blocks * turn.patches.inputs))
  sums = None
  for inputs in turn.call_inputs():
    for part in _parts(len(inputs), step, 0):
      rows = _cut(turn.patches.rows(inputs[part], turn.patches.draw(positions, generator)))
      sums = _added(sums, rows, tf.zeros_like(rows))
  return [_centred(sums)]


def _parts(count: int, step: int, border: int) -> list[slice]:
  """Cuts 0 .. count into slices of at most `step`, none across the border."""
  edges = sorted({0, count, *range(0, count, step), min(max(border, 0), count)})
  return [slice(*ends) for ends in zip(edges, edges[1:])]


def _positions(turn: LayerTurn) -> int:
  """Output positions to look at in each image."""
  inputs = min(turn.patches.inputs, LARGEST_GRAM)
  wanted = max(int(np.clip(_ROWS_OF_FEW * inputs, _FEWEST_ROWS, _MANY_ROWS)), _ROWS_OF_MANY * inputs)
  return min(turn.patches.positions, math.ceil(wanted / turn.images))


def cuts(inputs: int) -> int:
  """Returns into how many equal parts a block of that many inputs is cut."""
  return next(n for n in range(-(-inputs // LARGEST_GRAM), inputs + 1) if inputs % n == 0)


def _cut(rows: tf.Tensor) -> tf.Tensor:
  """[blocks, rows, inputs] -> [blocks * parts, rows, inputs / parts]."""
  blocks, count, inputs = rows.shape
  if (parts := cuts(inputs)) == 1:
    return rows
  apart = tf.transpose(tf.reshape(rows, [blocks, count, parts, -1]), [0, 2, 1, 3])
  return tf.reshape(apart, [blocks * parts, count, -1])


def _added(sums: list[np.ndarray] | None, rows: tf.Tensor, more: tf.Tensor) -> list[np.ndarray]:
  """Adds (count, sum x, sum d, sum x x^T, sum x d^T) of some rows x and of what they lack, d."""
  terms = [rows.shape[1], tf.reduce_sum(rows, 1), tf.reduce_sum(more, 1),
           tf.matmul(rows, rows, transpose_a=True), tf.matmul(rows, more, transpose_a=True)]
  terms = [np.asarray(term, np.float64) for term in terms]
  return terms if sums is None else [a + b for a, b in zip(sums, terms)]


def _centred(sums: list[np.ndarray]) -> Moments:
  count, mean, lack, square, product = sums[0], *(part / sums[0] for part in sums[1:])
  return Moments(square - mean[:, :, None] * mean[:, None, :], product - mean[:, :, None] * lack[:, None, :],
                 int(count))


def merged(parts: list[Moments]) -> Moments:
  """Returns the moments of all, those between the means of the parts left out."""
  rows = sum(part.rows for part in parts)
  return Moments(sum(part.gram * part.rows for part in parts) / rows,
                 sum(part.cross * part.rows for part in parts) / rows, rows)


def fitted_problem(matrix: np.ndarray, halves: list[Moments], qmax: int, images: int) -> RoundingProblem:
  """Returns what the integers of a float matrix are chosen by.

  Args:
    matrix: [blocks, inputs, outputs].
    halves: moments of its inputs, of disjoint images or of all.
    qmax: the last integer.
    images: of which the moments are.
  """
  matrix = matrix.astype(np.float64)
  damping = np.clip(_DAMPING * matrix.shape[1] / images, _LEAST_DAMPING, _MOST_DAMPING)
  gram = rounding.damped(merged(halves).gram, damping)
  return RoundingProblem(matrix + undoing(matrix, halves), gram, qmax)


def undoing(matrix: np.ndarray, halves: list[Moments]) -> np.ndarray:
  """Returns what to add to a layer's weights so that they undo what the layers before did wrong.

  On quantized inputs x the weights nearest to the float outputs W^T (x + d) are W + D, with
  D = (E x x^T)^-1 E x d^T W: fitted with a ridge, then scaled by the factor that the other half of the
  images asks for. Where no ridge helps there, or there are too few rows to decide, it is 0.

  Args:
    matrix: [blocks, inputs, outputs].
    halves: of disjoint images.
  """
  nothing = np.zeros(matrix.shape)
  if len(halves) < 2 or min(half.rows for half in halves) < _ROWS_TO_JUDGE * matrix.shape[1]:
    return nothing
  best, factor, ridge = 0.0, 0.0, 0.0
  for tried in _RIDGES:
    projection = power = 0.0
    for own, other in (halves, halves[::-1]):
      fitted = _fit(own, matrix, tried)
      projection += np.sum(fitted * (other.cross @ matrix))
      power += np.sum(fitted * (other.gram @ fitted))
    if projection > 0 and projection**2 / power > best:  # what it takes off the squared error there
      best, factor, ridge = projection**2 / power, min(projection / power, 1.0), tried
  return factor * _fit(merged(halves), matrix, ridge) if best else nothing


def _fit(moments: Moments, matrix: np.ndarray, ridge: float) -> np.ndarray:
  gram, wanted = rounding.damped(moments.gram, ridge), moments.cross @ matrix
  if len(gram) > 1:  # many small ones
    return np.linalg.solve(gram, wanted)
  return scipy.linalg.cho_solve((rounding.cholesky(gram[0]), True), wanted[0])[None]
