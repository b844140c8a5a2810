"""quantize(): the one-call route. Nothing but calls to the parts below."""

import dataclasses
from typing import Any

import tf_keras as keras

from kquant.core.encodings import Encodings
from kquant.core.graph import Graph
from kquant.core.report import Report
from kquant.core.spec import QuantConfig
from kquant.core.target import target
from kquant.ptq.bias_correction import correct_local_shift, linear_params
from kquant.qmodel.calibrate import observe, set_ranges
from kquant.qmodel.finalize import finalize_with_edits
from kquant.qmodel.insert import insert_into_graph
from kquant.rewrites.batch_norm import fold_batch_norm
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


def quantize(model: keras.Model, calibration: Any, *,
             config: QuantConfig | str = "int8") -> QuantizationResult:
  """Quantizes a float model after training; the model itself is not changed.

  Args:
    model: functional or Sequential tf_keras model.
    calibration: unlabelled inputs as the model takes them, a hundred or more: an array
      [images, ...], a list or dict of them, a tf.data.Dataset, a generator, a .npz or .npy file.
    config: a QuantConfig, or a preset: "int8", "int8_per_tensor", "w4a8".

  Raises:
    TypeError: not a tf_keras functional model.
    UnsupportedLayerError: a layer that has no integer form, by name.
    ValueError: calibration data that do not fit, a weight that is not finite, an unknown preset.
  """
  config = QuantConfig.preset(config) if isinstance(config, str) else config
  report = Report()
  with report.stage("rewrite"):
    graph = Graph.from_model(model)
    standardize(graph)
    fold_batch_norm(graph)
    float_params = linear_params(graph)
    qmodel = insert_into_graph(graph, config)
  report.add_edits(graph.edits, graph.skips)
  with report.stage("calibrate"):
    statistics = observe(qmodel, calibration)
    set_ranges(qmodel, statistics)
  with report.stage("bias_correction"):
    from kquant.ptq.bias_correction import correct_iteratively
    import os
    if os.environ.get("IBC"):
      correct_iteratively(qmodel, float_params, statistics, [calibration] if not isinstance(calibration, list) else calibration)
    else:
      correct_local_shift(qmodel, float_params, statistics)
  with report.stage("finalize"):
    final, encodings, edits = finalize_with_edits(qmodel, target=target(config.target))
  report.add_edits(edits, [])
  return QuantizationResult(final, encodings, qmodel, report)
