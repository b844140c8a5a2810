"""Rounds the weights of a quantized model layer after layer, each on what the layers before give it.

In topological order, for each layer: the moments of its quantized inputs, its integers and their scale
(`rounding`), then its bias, so that its mean output is the float network's. What the layers
before did wrong in a way that this one can undo, it undoes (`input_moments.undoing`). The method "judged"
fits the integers to one half of the images first: where they have no less output error than nearest integers
on the other half, by its moments, the layer stays rounded to nearest.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import tf_keras as keras
from absl import logging
from threadpoolctl import threadpool_limits

from kquant.core import data
from kquant.core.encodings import Encoding
from kquant.core.recipe import ROUNDINGS
from kquant.graph import keras_calls
from kquant.graph.fused_lstm import GATES
from kquant.graph.graph import Graph
from kquant.ptq.layerwise import rounding
from kquant.ptq.layerwise.adaround import adaround
from kquant.ptq.layerwise.bias_correction import (
  correct_mean,
  correct_shift,
  linear_params,
  wrapped_layers,
)
from kquant.ptq.layerwise.gate_rounding import Rounded, round_gates
from kquant.ptq.layerwise.input_moments import (
  Moments,
  cuts,
  fitted_problem,
  measure_moments,
  moments_of_calls,
  moments_of_steps,
)
from kquant.ptq.layerwise.patches import Patches
from kquant.ptq.layerwise.rounding import RoundingProblem
from kquant.ptq.layerwise.streaming import LayerTurn, layer_turns
from kquant.qmodel.calibrate import Statistics, observe
from kquant.qmodel.states import recurrent_form
from kquant.rewrites.standardize.standardize import standardize

METHODS = ROUNDINGS[1:]
LEFT_REASON = "not linear, or a class of its own: its weights are rounded to nearest, its bias stays"
JUDGED_REASON = "nearest integers have no more output error on images that the others were not fitted to"
_FEW_INPUTS = 640
"""Up to so many the threads of BLAS wait for one another longer than they compute."""


def round_weights(qmodel: keras.Model, float_model: keras.Model, calibration: Any, *,
                  method: str = "closed_form", seed: int = 0) -> keras.Model:
  """Chooses the integers of every kernel, and with them the biases, in place.

  The kernels afterwards lie on their grids, whose scales may have changed. Those of a layer that is
  called more than once follow from what all its calls read in the float network, its bias is corrected
  locally. Both kernels of a gate of a fused LSTM are rounded together, on what all of its steps read; its
  biases are corrected locally, too. Layers of a user's class with weights are rounded to nearest; a warning
  of absl names them.

  Args:
    qmodel: calibrated.
    float_model: the float model that it was made from, batch norms folded.
    calibration: inputs, as `calibrate` takes them.
    method: "closed_form" (`kquant.ptq.layerwise.rounding`), "adaround" (`kquant.ptq.layerwise.adaround`), or
      "judged": closed form where it has less output error than nearest integers on half of the images when it
      is fitted to the other half.
    seed: of the positions that are looked at.

  Returns:
    qmodel.

  Raises:
    ValueError: an unknown method; the data do not fit; qmodel is not calibrated, was not made from
      float_model, or has a layer whose batch norm still learns (`batch_norm="train"` or "absorb").
    TypeError: data of another kind.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> qmodel = kq.calibrate(kq.insert_quantizers(model, "w4a8"), images)
    >>> _ = kq.round_weights(qmodel, model, images)
    >>> grid, kernel = kq.finalize(qmodel)[1]["dense/kernel"], qmodel.get_layer("dense").layer.kernel.numpy()
    >>> bool(np.allclose(grid.dequantize(grid.quantize(kernel)), kernel))  # it lies on its grid
    True
  """
  graph = standardize(Graph.from_model(float_model), recurrent=recurrent_form(qmodel))
  float_params = linear_params(graph)
  wrapped_layers(qmodel, float_params, where="round_weights")  # raises where it was not made from float_model
  images = data.gather(calibration, keras_calls.input_specs(qmodel))
  turns = layer_turns(qmodel, images, float_params=float_params)
  left = round_layers(turns, float_params, observe(qmodel, images), method=method, seed=seed)
  for name, reason in left.items():
    if reason == LEFT_REASON:
      logging.warning("round_weights: layer %r is %s.", name, reason)
  return qmodel


def round_layers(turns: Iterable[LayerTurn], float_params: dict[str, dict[str, np.ndarray]],
                 statistics: Statistics, *, method: str = "closed_form", seed: int = 0) -> dict[str, str]:
  """`round_weights` on statistics that exist; returns {layer that is rounded to nearest: why}.

  Args:
    turns: of all layers with quantized weights, with their float inputs (`layer_turns`).
    float_params: {layer: its float weights by name}.
    statistics: of the float network.
    method, seed: as in `round_weights`.
  """
  if method not in METHODS:
    raise ValueError(f"round_weights: method must be one of {', '.join(METHODS)}, got {method!r}.")
  generator, judged = np.random.default_rng(seed), {}

  def change(turn: LayerTurn, params: dict[str, np.ndarray]) -> None:
    if not _round_layer(turn, generator, method=method):
      judged[turn.layer.name] = JUDGED_REASON

  return change_layers(turns, float_params, statistics, change) | judged


def round_some(turns: Iterable[LayerTurn], float_params: dict[str, dict[str, np.ndarray]],
               statistics: Statistics, layers: Collection[str], *, seed: int = 0) -> dict[str, str]:
  """Rounds some layers in closed form and corrects the biases of all iteratively; returns as `round_layers`.

  Args:
    turns, float_params, statistics, seed: as `round_layers` takes them; biases are corrected locally.
    layers: names of those that are rounded.
  """
  generator = np.random.default_rng(seed)

  def change(turn: LayerTurn, params: dict[str, np.ndarray]) -> None:
    if turn.layer.name in layers:
      _round_layer(turn, generator)

  return change_layers(turns, float_params, statistics, change)


def change_layers(turns: Iterable[LayerTurn], float_params: dict[str, dict[str, np.ndarray]],
                  statistics: Statistics,
                  change: Callable[[LayerTurn, dict[str, np.ndarray]], None]) -> dict[str, str]:
  """Changes each linear or fused layer at its first turn, then corrects its biases; returns {other: why}.

  Args:
    change: may set the integers of a layer, whose float weights it is given.
  """
  left, done = {}, set()
  for turn in turns:
    name = turn.layer.name
    if not turn.is_known:
      left[name] = LEFT_REASON
    elif name not in done:
      done.add(name)
      change(turn, float_params[name])
      _correct_layer(turn, float_params[name], statistics)
  return left


def _round_layer(turn: LayerTurn, generator: np.random.Generator, *, method: str = "closed_form") -> bool:
  """Sets the integers and the scales of a layer; False: it stays rounded to nearest."""
  grids, halves = turn.layer.weight_encodings(), moments_of(turn, generator)
  if method == "judged" and not _holds(turn, grids, halves):
    return False
  (rounded,) = round_kernels(turn, [grids], halves, method="closed_form" if method == "judged" else method)
  for name, (integers, scale) in rounded.items():
    turn.layer.set_scale(name, scale)
    turn.layer.set_integers(name, integers)
  return True


def _holds(turn: LayerTurn, grids: dict[str, Encoding], halves: list[Moments]) -> bool:
  """Whether closed form, fitted to one half, has less output error on the other one than nearest integers.

  Where there are no two halves, nothing speaks against it.
  """
  if len(halves) < 2:
    return True
  fitted_on, judge = halves
  (rounded,) = round_kernels(turn, [grids], [fitted_on])
  errors = {name: dataclasses.replace(grids[name], scale=scale).dequantize(integers) - turn.float_params[name]
            for name, (integers, scale) in rounded.items()}
  nearest = {name: grid.dequantize(grid.quantize(turn.float_params[name])) - turn.float_params[name]
             for name, grid in grids.items()}
  return _output_error(turn, errors, judge) < _output_error(turn, nearest, judge)


def _output_error(turn: LayerTurn, errors: dict[str, np.ndarray], moments: Moments) -> float:
  """Returns the sum of e^T H e over all outputs of a linear or fused layer.

  Args:
    errors: {weight: rounded less float kernel}.
    moments: with H.
  """
  if turn.is_fused:
    matrices = [np.concatenate([errors[f"kernel_{gate}"], errors[f"recurrent_{gate}"]])[None]
                for gate in GATES]
  else:
    (error,) = errors.values()
    matrices = [_cut_matrix(turn.patches, error)]
  return sum(rounding.output_error(matrix, moments.gram).sum() for matrix in matrices)


def moments_of(turn: LayerTurn, generator: np.random.Generator) -> list[Moments]:
  """Returns the moments of what a layer reads, in its turn or, where it is shared, in all of its calls."""
  if turn.is_fused:
    return moments_of_steps(turn)
  return (moments_of_calls if turn.is_shared else measure_moments)(turn, generator)


def fitting_threads(inputs: int) -> threadpool_limits:
  """Returns a context in which BLAS has as many threads as a layer of so many inputs is worth."""
  return threadpool_limits(1 if inputs <= _FEW_INPUTS else None, user_api="blas")


def _correct_layer(turn: LayerTurn, params: dict[str, np.ndarray], statistics: Statistics) -> None:
  """Sets the biases of a layer whose integers are chosen; a shared one has no mean of its own to meet.

  Nor has a fused one: what its gates read depends on its biases. (JapaneseVowels, w4a8, LSTM(32) and both
  directions, 3 seeds each: SQNR of the states 25.1 dB; 15.8 where each gate's mean over all steps is met
  once, 11.6 three times.)
  """
  if turn.is_shared or turn.is_fused:
    correct_shift(turn.layer, params, statistics)
  else:
    correct_mean(turn, statistics)


def round_kernels(turn: LayerTurn, choices: Sequence[dict[str, Encoding]], halves: list[Moments], *,
                  method: str = "closed_form") -> list[Rounded]:
  """Returns the integers and the scale of each kernel of a linear or fused layer, on each choice of grids.

  Args:
    turn: of the layer, with its float weights.
    choices: {weight: gives the bits, and whether scales are per-channel}, one or more.
    halves: moments of what the layer reads, as `moments_of` returns them.
  """
  with fitting_threads(halves[0].gram.shape[-1]):
    if turn.is_fused:
      return [round_gates(turn, grids, halves, method=method) for grids in choices]
    (name,) = choices[0]
    problem = problem_of(turn, turn.float_params[name], halves, choices[0][name].limits[1])
    return [{name: round_kernel(turn.patches, problem, grids[name], method=method)} for grids in choices]


def round_kernel(patches: Patches, problem: RoundingProblem, grid: Encoding, *,
                 method: str = "closed_form") -> tuple[np.ndarray, np.ndarray]:
  """Returns (integers in Keras layout, scale [channels] or [1]) of a float kernel.

  Args:
    patches: of the kernel's layer.
    problem: what `problem_of` returned, of any grid.
    grid: gives the bits, and whether scales are per-channel.
  """
  problem, per_channel = problem.at(grid.limits[1]), grid.axis is not None
  parts, whole = cuts(patches.inputs), (patches.blocks, patches.inputs, patches.outputs)
  weight = np.diagonal(problem.gram, axis1=1, axis2=2).reshape(patches.blocks, patches.inputs)
  scale = rounding.weighted_scale(problem.kernel.reshape(whole), weight, problem.qmax,
                                  per_channel=per_channel)
  if method == "adaround":
    integers = adaround(problem, _spread(scale, patches, parts))
  elif patches.inputs <= rounding.LARGEST_ENUMERATED:
    integers, scale = rounding.enumerated(problem, scale, per_channel=per_channel)
  elif parts == 1:
    integers, scale = rounding.rounded(problem, scale)
  else:  # one scale for several parts: it stays
    integers, _ = rounding.rounded(problem, _spread(scale, patches, parts), keep_scale=True)
  return patches.kernel(integers.reshape(whole)), scale.reshape(-1)


def problem_of(turn: LayerTurn, kernel: np.ndarray, halves: list[Moments], qmax: int) -> RoundingProblem:
  """Returns what the integers of a float kernel are chosen by; inputs of a large layer are cut into parts.

  Args:
    turn: of the kernel's layer.
    kernel: float, in Keras layout.
    halves: moments of the layer's inputs, as `moments_of` returns them.
    qmax: the last integer.
  """
  return fitted_problem(_cut_matrix(turn.patches, kernel), halves, qmax, turn.images)


def _cut_matrix(patches: Patches, kernel: np.ndarray) -> np.ndarray:
  """Returns a kernel in Keras layout as [blocks * parts, inputs / parts, outputs]."""
  parts = cuts(patches.inputs)
  return patches.matrix(kernel).reshape(patches.blocks * parts, patches.inputs // parts, patches.outputs)


def _spread(scale: np.ndarray, patches: Patches, parts: int) -> np.ndarray:
  """A scale for each part of a block that is cut."""
  return np.repeat(np.broadcast_to(scale, (patches.blocks, 1, patches.outputs)), parts, axis=0)
