"""How hard to try: which methods a run tries, and which of them it keeps.

A quarter of the calibration images is held back. Method after method is added, quantized on the rest, and
kept unless the outputs on the held-back images are worse by more than two standard errors of the paired
difference; scaling, which may add operators to the file, only where they are better by more than one. All of
them are left out where they are worse together than what the search started from, the fast recipe. Trials
quantize on a part of the rest; what was kept is then run on all images. (So is scaling: found on three
quarters of 256 images ResNet-8 had 30.7 dB at int8, the mean of four seeds, found on all 31.9.)

Rounding and fine-tuning are not tried here. Rounding judges each layer in the one pass over all images, by
the moments of the half that it is not fitted to (the method "judged"); fine-tuning holds images back itself.
"""

import dataclasses
import functools
import math

import numpy as np

from kquant.core import data
from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import EFFORTS, Recipe
from kquant.core.records import Report, Trial
from kquant.qmodel.outputs import network_outputs
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import Calibrated
from kquant.search.trials import HeldBack

_BALANCED = (Recipe(bias="iterative"), Recipe(rounding="judged"), Recipe(equalize="joint"))
STEPS: dict[str, tuple[Recipe, ...]] = dict(zip(EFFORTS, (
    (*_BALANCED, Recipe(ranges="mse")), _BALANCED[:1], _BALANCED, (*_BALANCED, Recipe(finetune="qft")))))
"""What each effort adds: the first is taken as it is, the others are tried or judge themselves. What "auto"
adds, and when, stands in `automatic`."""

_TRIED_ON = 64  # images that a trial quantizes on
_FEWEST = 32


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
    report: takes a trial for each method that is tried, and the seconds of trying as the stage "trials".
    enough: mean SQNR in dB of the held-back images from which on nothing more is tried or added; each method
      that is tried then must gain.
  """
  first, *rest = steps
  config, count = config.following(first), len(network.images[0])
  rest = [step for step in rest if config.following(step) != config]
  rounding, tuning = [step for step in rest if step.rounding], [step for step in rest if step.finetune]
  tried = [step for step in rest if step not in (*rounding, *tuning)]
  if min(rule.weights.bits for rule in config.rules) < 8:  # nearest integers say nothing of what is tried
    config, rounding = functools.reduce(QuantConfig.following, rounding, config), []
  found = -math.inf
  if tried and count >= _FEWEST:
    with report.stage("trials"):
      config, found = _with_those_that_hold(config, tried, network, report, enough)
  else:
    for step in tried:
      config = config.following(step)
      report.trials.append(Trial(_name(step), kept=True, images=count))
  more = [*(rounding if found < enough else []), *tuning]
  return functools.reduce(QuantConfig.following, more, config)


def _name(step: Recipe) -> str:
  (method,) = step.methods().values()
  return method


def _with_those_that_hold(config: QuantConfig, steps: list[Recipe], network: FloatNetwork, report: Report,
                          enough: float) -> tuple[QuantConfig, float]:
  """Tries steps in turn, each on top of those that were kept; returns (the config with these, its quality).

  Where they are worse together than the config as it was, none of them is kept.
  """
  train, judge = network.split()
  chosen = data.choose(len(train[0]), min(_TRIED_ON, len(train[0])), seed=network.seed)
  part = [array[chosen] for array in train]
  held_back = HeldBack(judge, network_outputs(network.graph.to_model(), judge, graph=network.graph))
  quality = held_back.quality(_outputs(config, network, part, judge))
  start, at_start, trials = config, quality.mean(), []
  for step in steps:
    if quality.mean() >= enough:
      break
    candidate = config.following(step)
    change = functools.partial(_outputs, candidate, network, part, judge)
    trial, candidate_quality = held_back.try_change(_name(step), change, quality,
                                                    must_gain=step.equalize is not None or enough < math.inf)
    trials.append(trial)
    if trial.kept:
      config, quality = candidate, candidate_quality
  found = quality.mean()
  if found < at_start:
    config, found, trials = start, at_start, [dataclasses.replace(trial, kept=False) for trial in trials]
  report.trials += trials
  return config, float(found)


def _outputs(config: QuantConfig, network: FloatNetwork, images: list[np.ndarray],
             judge: list[np.ndarray]) -> list[np.ndarray]:
  """Returns what a network answers to judging images with the integers that a config chooses.

  Args:
    images: that it is quantized on.
  """
  made = Calibrated(network.scaled(config, Report(), tried=True), config, images, Report())
  made.choose_integers(config, Report(), seed=network.seed)
  return network_outputs(made.qmodel, judge, graph=made.graph)
