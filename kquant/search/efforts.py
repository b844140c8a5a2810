"""How hard to try: which methods a run tries, and which of them it keeps.

A quarter of the calibration images is held back. Method after method is added, quantized on the rest, and
kept unless the outputs on the held-back images are worse by more than two standard errors of the paired
difference; scaling, which may add operators to the file, only where they are better by more than one. Trials
quantize on a part of the rest; what was kept is then run on all images. (So is scaling: found on three
quarters of 256 images ResNet-8 had 30.7 dB at int8, the mean of four seeds, found on all 31.9.)
"""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from kquant.core import data
from kquant.core.records import Report
from kquant.core.spec import EFFORTS, QuantConfig
from kquant.graph.graph import Graph
from kquant.qmodel.outputs import network_outputs, output_function
from kquant.search.pipeline import Calibrated, scaled
from kquant.search.trials import GAIN, HARM, image_sqnr_db, paired_change, told

_BALANCED = [{"bias": "iterative"}, {"rounding": "closed_form"}, {"equalize": "joint"}]
STEPS: dict[str, list[dict[str, str]]] = dict(zip(EFFORTS, (
    [{"bias": "iterative"}], _BALANCED, [*_BALANCED, {"finetune": "qft"}])))
"""What each effort adds to a config: the first is taken as it is, the others are tried; fine-tuning holds
images back itself."""

_TRIED_ON = 64  # images that a trial quantizes on
_FEWEST = 32


def with_effort(config: QuantConfig, effort: str, graph: Graph, images: list[np.ndarray], report: Report, *,
                said: Sequence[str] = (), seed: int = 0) -> QuantConfig:
  """Returns the config with the methods of an effort that hold on held-back images.

  Args:
    graph: of the float model, standardized and folded.
    said: fields of the config that the user decided: they stay.
    report: takes a line for each method, and the seconds of trying as the stage "trials".

  Raises:
    ValueError: an unknown effort.
  """
  if effort not in EFFORTS:
    raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}.")
  first, *rest = [{name: value for name, value in step.items() if name not in said}
                  for step in STEPS[effort]]
  config = dataclasses.replace(config, **first)
  tried = [step for step in rest if step and "finetune" not in step
           and dataclasses.replace(config, **step) != config]
  tuning = {name: value for step in rest for name, value in step.items() if name == "finetune"}
  count = len(images[0])
  if tried and count >= _FEWEST:
    with report.stage("trials"):
      config = _kept(config, _cheapest_first(tried, config), graph, images, report, seed)
  else:
    for step in tried:
      config = dataclasses.replace(config, **step)
      report.add_step(*step.values(), f"not tried: {count} images are too few to hold some back", kept=True)
  return dataclasses.replace(config, **tuning)


def _cheapest_first(steps: list[dict[str, str]], config: QuantConfig) -> list[dict[str, str]]:
  """Scaling before rounding, unless some weights have so few bits that nearest integers tell nothing."""
  if min(rule.weights.bits for rule in config.rules) < 8:
    return steps
  return sorted(steps, key=lambda step: "rounding" in step)


def _kept(config: QuantConfig, steps: list[dict[str, str]], graph: Graph, images: list[np.ndarray],
          report: Report, seed: int) -> QuantConfig:
  """Tries steps in turn, each on top of those that were kept; returns the config with these."""
  train, judge = data.hold_back(images, seed=seed)
  chosen = data.choose(len(train[0]), min(_TRIED_ON, len(train[0])), seed=seed)
  part = [array[chosen] for array in train]
  reference = network_outputs(graph.to_model(), judge)
  networks: dict[str, _Trials] = {}  # each scaling of the network is found and calibrated once

  def quality(config: QuantConfig) -> np.ndarray:
    if config.equalize not in networks:
      networks[config.equalize] = _Trials(scaled(graph.copy(), config, train, Report()), config, part)
    return image_sqnr_db(networks[config.equalize].outputs(config, judge, seed), reference)

  best = quality(config)
  for step in steps:
    start, candidate = time.perf_counter(), dataclasses.replace(config, **step)
    found = quality(candidate)
    change, error = paired_change(found, best)
    kept = change > GAIN * error if "equalize" in step else change >= -HARM * error
    what = f"{told(change, error, 'dB', len(judge[0]))}, {time.perf_counter() - start:.1f} s"
    report.add_step(*step.values(), what, kept=kept)
    if kept:
      config, best = candidate, found
  return config


class _Trials:
  """A scaled network, calibrated, whose integers are chosen again and again."""

  def __init__(self, graph: Graph, config: QuantConfig, images: list[np.ndarray]):
    self._network = Calibrated(graph, config, images, Report())
    self._answer = output_function(self._network.qmodel)

  def outputs(self, config: QuantConfig, judge: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Returns what the network answers with the integers that a config chooses."""
    self._network.choose_integers(config, Report(), seed=seed)
    return self._answer(judge)
