"""How hard to try: which methods a run tries, and which of them it keeps.

A quarter of the calibration images is held back. Method after method is added, quantized on the rest, and
kept unless the outputs on the held-back images are worse by more than two standard errors of the paired
difference; scaling, which may add operators to the file, only where they are better by more than one. All of
them are left out where they are worse together than what the search started from, the fast recipe. Trials
quantize on a part of the rest; what was kept is then run on all images. (So is scaling: found on three
quarters of 256 images ResNet-8 had 30.7 dB at int8, the mean of four seeds, found on all 31.9.)
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kquant.core import data
from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import EFFORTS, Recipe
from kquant.core.records import Report, Trial
from kquant.graph.graph import Graph
from kquant.qmodel.outputs import network_outputs, output_function
from kquant.search.pipeline import Calibrated, scaled
from kquant.search.trials import HeldBack

_BALANCED = (Recipe(bias="iterative"), Recipe(rounding="closed_form"), Recipe(equalize="joint"))
STEPS: dict[str, tuple[Recipe, ...]] = dict(zip(EFFORTS, (
    (*_BALANCED, Recipe(ranges="mse")), _BALANCED[:1], _BALANCED, (*_BALANCED, Recipe(finetune="qft")))))
"""What each effort adds: the first is taken as it is, the others are tried; fine-tuning holds images back
itself. What "auto" tries, and when, stands in `automatic`."""

_TRIED_ON = 64  # images that a trial quantizes on
_FEWEST = 32


@dataclasses.dataclass(frozen=True)
class FloatNetwork:
  """What a search starts from.

  Attributes:
    graph: of the float model, standardized and folded.
    images: to calibrate on, one array a model input.
    seed: of the images held back and of every other random choice.
  """

  graph: Graph
  images: list[np.ndarray]
  seed: int = 0


def effort_steps(effort: str, decided: Recipe | None = None) -> list[Recipe]:
  """Returns what an effort adds, step by step, without the methods that the user decided.

  Raises:
    ValueError: an unknown effort.
  """
  if effort not in EFFORTS:
    raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, or None, got {effort!r}.")
  return [step.without(decided or Recipe()) for step in STEPS[effort]]


def with_effort(config: QuantConfig, steps: list[Recipe], network: FloatNetwork, report: Report, *,
                enough: float = math.inf) -> QuantConfig:
  """Returns the config with those methods of an effort that hold on held-back images.

  Args:
    config: what the search starts from.
    steps: what `effort_steps` returned.
    report: takes a trial for each method, and the seconds of trying as the stage "trials".
    enough: mean SQNR in dB of the held-back images from which on nothing more is tried; each method then must
      gain.
  """
  first, *rest = steps
  config = config.following(first)
  tried = [step for step in rest if step.finetune is None and config.following(step) != config]
  count = len(network.images[0])
  if tried and count >= _FEWEST:
    with report.stage("trials"):
      config = _with_those_that_hold(config, _cheapest_first(tried, config), network, report, enough)
  else:
    for step in tried:
      config = config.following(step)
      report.trials.append(Trial(_name(step), kept=True, images=count))
  for step in rest:
    if step.finetune is not None:
      config = config.following(step)
  return config


def _name(step: Recipe) -> str:
  (method,) = step.methods().values()
  return method


def _cheapest_first(steps: list[Recipe], config: QuantConfig) -> list[Recipe]:
  """Scaling before rounding, unless weights have so few bits that nearest integers say nothing of it."""
  if min(rule.weights.bits for rule in config.rules) < 8:
    return steps
  return sorted(steps, key=lambda step: step.rounding is not None)


def _with_those_that_hold(config: QuantConfig, steps: list[Recipe], network: FloatNetwork, report: Report,
                          enough: float) -> QuantConfig:
  """Tries steps in turn, each on top of those that were kept; returns the config with these.

  Where they are worse together than the config as it was, none of them is kept.
  """
  train, judge = data.hold_back(network.images, seed=network.seed)
  held_back = HeldBack(judge, network_outputs(network.graph.to_model(), judge, graph=network.graph))
  bench = _Bench(network.graph, train, judge, network.seed)
  quality = held_back.quality(bench.outputs(config))
  start, at_start, trials = config, quality.mean(), []
  for step in steps:
    candidate = config.following(step)
    change = functools.partial(bench.outputs, candidate)
    trial, candidate_quality = held_back.try_change(_name(step), change, quality,
                                                    must_gain=step.equalize is not None or enough < math.inf)
    trials.append(trial)
    if trial.kept:
      config, quality = candidate, candidate_quality
    if quality.mean() >= enough:
      break
  if quality.mean() < at_start:
    config, trials = start, [dataclasses.replace(trial, kept=False) for trial in trials]
  report.trials += trials
  return config


class _Bench:
  """Quantizes a float network as configs say; each scaling of it is found and calibrated once.

  Args:
    train: images that scales are found on, and a part of them that the network is quantized on.
    judge: images that it answers to.
  """

  def __init__(self, graph: Graph, train: list[np.ndarray], judge: list[np.ndarray], seed: int):
    chosen = data.choose(len(train[0]), min(_TRIED_ON, len(train[0])), seed=seed)
    self._graph, self._train, self._judge, self._seed = graph, train, judge, seed
    self._part = [array[chosen] for array in train]
    self._networks: dict[Any, tuple[Calibrated, Callable[..., list[np.ndarray]]]] = {}

  def outputs(self, config: QuantConfig) -> list[np.ndarray]:
    """Returns what the network answers to the judging images with the integers that a config chooses."""
    key = config.recipe.equalize, config.rules
    if key not in self._networks:
      graph = scaled(self._graph.copy(), config, self._train, Report())
      network = Calibrated(graph, config, self._part, Report())
      self._networks[key] = network, output_function(network.qmodel, graph=network.graph)
    network, answer = self._networks[key]
    network.choose_integers(config, Report(), seed=self._seed)
    return answer(self._judge)
