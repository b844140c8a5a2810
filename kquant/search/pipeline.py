"""The order of the methods behind scaling: insert, calibrate, round, correct, fine-tune."""

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report, Skip
from kquant.graph.graph import Graph
from kquant.ptq.finetune.finetuning import FinetuneSettings, finetune, split_to_judge
from kquant.ptq.layerwise import bias_correction
from kquant.ptq.layerwise.bias_correction import (
  correct_analytic_shift,
  correct_iteratively,
  correct_local_shift,
  linear_params,
)
from kquant.ptq.layerwise.layer_rounding import round_layers, round_some
from kquant.ptq.layerwise.streaming import LayerTurn, layer_turns
from kquant.qmodel.calibrate import Statistics, narrow_tensors, observe, set_ranges
from kquant.qmodel.insert import insert_into_graph
from kquant.qmodel.outputs import network_outputs, output_function, split_outputs
from kquant.qmodel.placement import check_config
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize
from kquant.search.trials import HeldBack

_TUNED_ELEMENTS = 2**33
"""Activations that fine-tuning looks at, all its epochs together: minutes on two cores."""
_FEWEST_EPOCHS, _MOST_EPOCHS = 4, 100


def read(model: keras.Model, config: QuantConfig) -> Graph:
  """Reads a float model: standardized, batch norms folded.

  Raises:
    UnsupportedLayerError, ValueError: what `insert_quantizers` raises, before the work in front of it.
  """
  graph = Graph.from_model(model)
  standardize(graph, recurrent=config.recurrent_form)
  fold_batch_norm(graph)
  if config.split_outputs:
    split_outputs(graph)
  check_config(graph, config)
  return graph


class Calibrated:
  """A network with quantizers that are calibrated, whose integers are chosen as often as wanted.

  Args:
    graph: what `FloatNetwork.scaled` returned; it is edited.
    config: its rules and its target count.
    calibration, report: as `quantized` takes them.
    statistics: of another network of the same graph on these data, whose config differs in the bits of
      weights alone; None: the float network is run.

  Attributes:
    config: that it was made of.
    graph: with the quantizers.
    qmodel: the model that was made of it.
    float_params: {layer: its weights and biases before they were rounded and corrected}.
    statistics: of the float network on the calibration data.
  """

  def __init__(self, graph: Graph, config: QuantConfig, calibration: Any, report: Report,
               statistics: Statistics | None = None):
    self.config, self.graph, self._calibration = config, graph, calibration
    with report.stage("rewrite"):
      self.float_params = linear_params(graph)
      self.qmodel = insert_into_graph(graph, config)
    report.add_edits(graph.edits, graph.skips)
    with report.stage("calibrate"):
      self.statistics = statistics or observe(self.qmodel, calibration, graph=graph)
      set_ranges(self.qmodel, self.statistics, graph)
    report.narrow.extend(narrow_tensors(self.qmodel))
    self._start = self.qmodel.get_weights()

  def choose_integers(self, config: QuantConfig, report: Report, *, seed: int = 0,
                      rounded: Collection[str] = ()) -> None:
    """Rounds the float weights and corrects their biases as a config says, in place.

    The report names layers that were rounded to nearest beside others that were not, and shared ones that
    were corrected locally.

    Args:
      config, report, seed: as `quantized` takes them.
      rounded: layers that are rounded in closed form where the config rounds to nearest; all biases are then
        corrected iteratively.
    """
    self.qmodel.set_weights(self._start)
    if config.recipe.rounding != "nearest" or rounded:
      with report.stage("rounding"):
        left, name = self._round(config.recipe.rounding, seed, rounded), "round_weights"
    else:
      with report.stage("bias_correction"):
        shared = self._correct_bias(config.recipe.bias)
        left, name = dict.fromkeys(shared, bias_correction.SHARED_REASON), "correct_bias"
    report.add_edits([], [Skip(layer, name, reason) for layer, reason in left.items()])

  def _round(self, method: str, seed: int, rounded: Collection[str]) -> dict[str, str]:
    """Rounds all layers by a method, or some; returns {layer that stays rounded to nearest: why}."""
    turns = self._turns(float_params=self.float_params)
    if method != "nearest":
      return round_layers(turns, self.float_params, self.statistics, method=method, seed=seed)
    correct_local_shift(self.qmodel, self.float_params, self.statistics)
    return round_some(turns, self.float_params, self.statistics, rounded, seed=seed)

  def _correct_bias(self, method: str) -> list[str]:
    """Corrects biases by a method; returns the names of shared layers that it corrected by another."""
    if method in ("local", "iterative"):
      correct_local_shift(self.qmodel, self.float_params, self.statistics)
    elif method == "analytic":
      correct_analytic_shift(self.qmodel, self.float_params, self._calibration, graph=self.graph)
    if method == "iterative":
      return correct_iteratively(self._turns(), self.statistics)
    return []

  def _turns(self, **float_params: Any) -> Iterator[LayerTurn]:
    return layer_turns(self.qmodel, self._calibration, graph=self.graph, **float_params)


def quantized(graph: Graph, config: QuantConfig, calibration: Any, report: Report, *,
              seed: int = 0) -> Calibrated:
  """Returns the calibrated network that a config asks for, its integers chosen.

  Args:
    graph: what `FloatNetwork.scaled` returned; it is edited.
    calibration: what `calibrate` takes, and where methods look at it more than once a list of arrays; or
      an InputRange.
    report: takes the seconds, the edits and the skips.
    seed: of random choices.
  """
  if config.recipe.finetune == "none":
    return _rounded(graph, config, calibration, report, seed)
  train, judge = split_to_judge(calibration, seed=seed)  # what judges must be new to rounding
  with report.stage("finetune_trial"):
    teacher = graph.to_model()
    network = _rounded(graph.copy(), config, train, Report(), seed)
    trained = network.qmodel
    settings = _settings(trained, config.recipe.finetune, len(train[0]), seed)
    held_back = HeldBack(judge, network_outputs(teacher, judge, graph=graph),
                         "nats" if settings.output_loss == "kl" else "dB")
    answer, epochs = output_function(trained, graph=network.graph), []

    def tune() -> list[np.ndarray]:
      tuned = finetune(trained, teacher, train, method=config.recipe.finetune, settings=settings,
                       validation=judge)
      epochs.extend((tuned.best_epoch, len(tuned.losses) - 1))
      return answer(judge)

    trial, _ = held_back.try_change(config.recipe.finetune, tune, held_back.quality(answer(judge)),
                                    must_gain=True)
  report.trials.append(dataclasses.replace(trial, epochs=tuple(epochs)))
  network = _rounded(graph, config, calibration, report, seed)
  if trial.kept:
    with report.stage("finetune"):
      finetune(network.qmodel, teacher, calibration, method=config.recipe.finetune,
               settings=dataclasses.replace(settings, until=epochs[0]))
  return network


def _rounded(graph: Graph, config: QuantConfig, calibration: Any, report: Report, seed: int) -> Calibrated:
  network = Calibrated(graph, config, calibration, report)
  network.choose_integers(config, report, seed=seed)
  return network


def _settings(qmodel: keras.Model, method: str, images: int, seed: int) -> FinetuneSettings:
  """Returns how a network is fine-tuned: for as many epochs as it is small.

  Where activations have 8 bits the weights stay as they were rounded: a few hundred images do not improve on
  that (see `finetune`). Where they have fewer the outputs are too far off to be matched one by one:
  Kullback-Leibler divergence keeps the answers (ResNet-8, w4a4: top-1 0.705 where relative_l2 has 0.692).
  """
  quantizers = [layer for layer in qmodel.layers if isinstance(layer, QuantizeActivation)]
  elements = sum(math.prod(layer.get_output_at(0).shape[1:]) for layer in quantizers)
  epochs = min(max(_TUNED_ELEMENTS // (elements * images), _FEWEST_EPOCHS), _MOST_EPOCHS)
  few_bits = min(layer.quantizer.bits for layer in quantizers) < 8
  classes = min(output.shape[-1] for output in qmodel.outputs)  # of one the divergence is always 0
  return FinetuneSettings(
      learns=None if few_bits or method != "qft" else ("biases", "weight_scales", "activation_ranges"),
      epochs=epochs, learning_rate=0.04 if few_bits else 0.01, seed=seed,
      output_loss="kl" if few_bits and classes > 1 else "relative_l2")
