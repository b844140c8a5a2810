"""The effort that watches its result: fast where that is near the float network, more where it is not.

An eighth of the calibration images is held back from everything. The network is quantized by the fast recipe
on the others and run on these. Where the SQNR of its outputs reaches the tolerance that is the result, and
where these images are all the same. Else methods are tried in turn, each on top of those that were kept
(`efforts.with_effort`), until the tolerance is reached or the list ends. What was kept is run on all images
but those held back. The result is the one of both that is nearer on the held-back images.
"""

import numpy as np

from kquant.core import data, metrics
from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import TOLERANCE_DB, Recipe
from kquant.core.records import Closeness, Report
from kquant.qmodel.outputs import network_outputs
from kquant.search.efforts import with_effort
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import Calibrated, quantized
from kquant.search.trials import HeldBack

_HELD_BACK, _FEWEST, _MOST = 1 / 8, 16, 64
"""Of the images; below so many none is held back and nothing more is tried; most that are held back."""


def automatic(config: QuantConfig, steps: list[Recipe], network: FloatNetwork, report: Report, *,
              tolerance: float = TOLERANCE_DB) -> Calibrated:
  """Returns a network whose integers are chosen by as many methods as it takes.

  Args:
    config: which grids, and the methods that the user decided.
    steps: what `effort_steps` returned: the first is taken as it is, the others are tried.
    network: the float graph and the calibration images; neither is changed.
    report: takes how near the result is, the trials, and the seconds of each stage.
    tolerance: SQNR in dB of the outputs before a closing softmax that is good enough, mean over images.
  """
  train, judge = _split(network)
  rest = FloatNetwork(network.graph, train, network.seed)
  with report.stage("watch"):
    held_back = HeldBack(judge, network_outputs(network.graph.to_model(), judge, graph=network.graph))

  def watched(config: QuantConfig) -> tuple[Calibrated, Report]:
    attempt = Report()
    made = quantized(rest.scaled(config, attempt), config, train, attempt, seed=network.seed)
    with attempt.stage("watch"):
      outputs = network_outputs(made.qmodel, judge, graph=made.graph)
    attempt.closeness = closeness(held_back, outputs, tolerance, apart=train is not judge)
    return made, attempt

  first, *more = steps
  config = config.following(first)
  made, attempt = watched(config)
  if not (attempt.closeness.good or attempt.closeness.constant) and attempt.closeness.held_back:
    better = with_effort(config, [Recipe(), *more], rest, report, enough=tolerance)
    if better != config:
      second, second_attempt = watched(better)
      if second_attempt.closeness.sqnr_db > attempt.closeness.sqnr_db:
        made, attempt, second_attempt = second, second_attempt, attempt
      report.add_seconds(second_attempt.seconds)
  report.absorb(attempt)
  return made


def _split(network: FloatNetwork) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Returns (images to choose by, images to judge by); all of them twice where they are few."""
  count = len(network.images[0])
  if count < _FEWEST:
    return network.images, network.images
  return data.hold_back(network.images, min(_HELD_BACK, _MOST / count), seed=network.seed)


def closeness(held_back: HeldBack, outputs: list[np.ndarray], tolerance: float, *, apart: bool) -> Closeness:
  """Returns how near the outputs of a quantized network are to the float network's.

  Args:
    held_back: the images, and what the float network answers.
    outputs: what the quantized one answers.
    tolerance: SQNR in dB that is good enough.
    apart: whether nothing was chosen by these images.
  """
  scores, reference = outputs[0], held_back.reference[0]
  is_classifier = reference.ndim == 2 and reference.shape[1] > 1
  return Closeness(float(held_back.quality(outputs).mean()),
                   metrics.agreement(scores, reference) if is_classifier else None, len(held_back.images[0]),
                   apart, tolerance, data.all_equal(held_back.images))
