"""quantize(): the one-call route. Nothing but calls to the parts below."""

import dataclasses
from typing import Any

import tf_keras as keras

from kquant.core import keras_calls
from kquant.core.data import gather
from kquant.core.encodings import Encodings
from kquant.core.graph import Graph
from kquant.core.input_range import InputRange
from kquant.core.report import Report
from kquant.core.spec import QuantConfig
from kquant.core.target import target
from kquant.ptq.bias_correction import (
  correct_analytic_shift,
  correct_iteratively,
  correct_local_shift,
  linear_params,
)
from kquant.qmodel.calibrate import observe, set_ranges
from kquant.qmodel.finalize import finalize_with_edits
from kquant.qmodel.insert import insert_into_graph
from kquant.rewrites.batch_norm import fold_batch_norm
from kquant.rewrites.channel_statistics import measure_channels
from kquant.rewrites.dead_channels import prune_dead_channels
from kquant.rewrites.equalize import equalize as scale_across_layers
from kquant.rewrites.moment_propagation import as_statistics, propagate_moments
from kquant.rewrites.standardize import standardize


@dataclasses.dataclass
class QuantizationResult:
  """What `quantize` found.

  Attributes:
    model: plain tf_keras model whose weights lie on their grids.
    encodings: the grids, and the integers of weights and biases.
    qmodel: the calibrated model with its quantizers: a simulation that can be trained further.
    report: seconds a stage, what was rewritten, what was skipped and why.
  """

  model: keras.Model
  encodings: Encodings
  qmodel: keras.Model
  report: Report


def quantize(model: keras.Model, calibration: Any, *, config: QuantConfig | str = "int8",
             equalize: str | None = None, bias: str | None = None) -> QuantizationResult:
  """Quantizes a float model after training; the model itself is not changed.

  Args:
    model: functional or Sequential tf_keras model.
    calibration: unlabelled inputs as the model takes them, a hundred or more: an array
      [images, ...], a list or dict of them, a tf.data.Dataset, a generator, a .npz or .npy file. Where
      there are none an InputRange: ranges and bias corrections then follow from the batch norms.
    config: a QuantConfig, or a preset: "int8", "int8_per_tensor", "w4a8".
    equalize: how channels are scaled across layers before (`kquant.equalize`; dead channels are pruned
      first): "none", "one_step", "two_step", "pairwise", "joint"; None leaves it to the config.
    bias: how biases are corrected: "none", "local", "analytic", "iterative"; None leaves it to the config.

  Raises:
    TypeError: not a tf_keras functional model.
    UnsupportedLayerError: a layer that has no integer form, by name.
    ValueError: calibration data that do not fit, a weight that is not finite, an unknown preset, a method
      that needs images where there are none.
  """
  config = QuantConfig.preset(config) if isinstance(config, str) else config
  config = dataclasses.replace(config, equalize=equalize or config.equalize, bias=bias or config.bias)
  data_free = isinstance(calibration, InputRange)
  if data_free and (config.equalize == "joint" or config.bias == "iterative"):
    raise ValueError("quantize: equalize='joint' and bias='iterative' need calibration images; with an "
                     "InputRange choose equalize='none' or 'two_step', and bias='analytic'.")
  report = Report()
  with report.stage("rewrite"):
    graph = Graph.from_model(model)
    standardize(graph)
    fold_batch_norm(graph)
  if not data_free and (config.equalize != "none" or config.bias == "iterative"):  # more than one pass
    calibration = gather(calibration, keras_calls.input_specs(model))
  if config.equalize != "none":
    with report.stage("equalize"):
      if data_free:
        channels = as_statistics(propagate_moments(graph, calibration))
      else:
        channels = measure_channels(graph, calibration, gains=True)
      prune_dead_channels(graph, statistics=channels)
      scale_across_layers(graph, method=config.equalize, config=config, statistics=channels)
  with report.stage("rewrite"):
    float_params = linear_params(graph)
    qmodel = insert_into_graph(graph, config)
  report.add_edits(graph.edits, graph.skips)
  with report.stage("calibrate"):
    statistics = observe(qmodel, calibration)
    set_ranges(qmodel, statistics)
  with report.stage("bias_correction"):
    if config.bias == "local":
      correct_local_shift(qmodel, float_params, statistics)
    elif config.bias == "analytic":
      correct_analytic_shift(qmodel, float_params, calibration)
    elif config.bias == "iterative":
      correct_iteratively(qmodel, float_params, statistics, calibration)
  with report.stage("finalize"):
    final, encodings, edits = finalize_with_edits(qmodel, target=target(config.target))
  report.add_edits(edits, [])
  return QuantizationResult(final, encodings, qmodel, report)
