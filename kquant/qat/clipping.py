"""ReportClipping: which share of a network's outputs its ranges cut off while it trains."""

from typing import Any

import numpy as np
from absl import logging

from kquant.core import data
from kquant.graph.execution import Execution
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.qat.callback import TrainingCallback, quantized_model
from kquant.qmodel.quantize_activation import QuantizeActivation


class ReportClipping(TrainingCallback):
  """Logs the share of output values beyond the ranges of their grids, and warns once where it is large.

  What is clipped has no gradient: outputs that should grow further stop there. After each epoch the quantized
  network answers some images; the log "clipped" is the share of all values of its outputs, 0..1, that their
  quantizers clip. A softmax, whose grid is fixed, clips nothing.

  Args:
    images: inputs as `kquant.calibrate` takes them, a hundred or so.
    most: share above which a warning is logged.
    batch_size: images at once.

  Raises:
    ValueError: when training starts: the model has no quantizers, or the images do not fit.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]))
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> kq.calibrate(qmodel, images).compile("sgd", "mse")
    >>> history = qmodel.fit(images, images[:, :2], callbacks=[kq.ReportClipping(images)], verbose=0)
    >>> bool(0 <= history.history["clipped"][0] <= 1)
    True
  """

  def __init__(self, images: Any, *, most: float = 0.01, batch_size: int = 32):
    super().__init__()
    self._images, self._most, self._batch_size = images, most, batch_size
    self._warned = False

  def on_train_begin(self, logs=None):
    """Finds the quantizers of the outputs.

    Raises:
      ValueError: the model has no quantizers, or the images do not fit.
    """
    super().on_train_begin(logs)
    self.activation_layers()  # raises where there are none
    qmodel = quantized_model(self.model)
    graph = Graph.from_model(qmodel)
    quantizers = [node for node in map(_quantizer, graph.output_refs) if node is not None]
    execution = Execution(graph, qmodel)
    self._arrays = data.gather(self._images, execution.specs)
    self._layers = [execution.layers[node.layer.name] for node in quantizers]
    self._tap = execution.tap([node.inputs[0] for node in quantizers])

  def on_epoch_end(self, epoch, logs=None):
    """Adds the share to the logs."""
    share = self._share()
    if logs is not None:
      logs["clipped"] = share
    if share > self._most and not self._warned:
      self._warned = True
      logging.warning(
          "ReportClipping: %.1f %% of the output values lie beyond their ranges and have no gradient. "
          "Calibrate again on the trained network, or let the ranges follow: quantizer='moving_average'.",
          100 * share)

  def _share(self) -> float:
    clipped = total = 0
    for layer, values in zip(self._layers, self._tap(self._arrays, self._batch_size)):
      grid = layer.encoding()
      (low,), (high,), half = *grid.range, grid.scale[0] / 2
      clipped += np.count_nonzero((values < low - half) | (values > high + half))
      total += values.size
    return clipped / total if total else 0.0


def _quantizer(ref: Ref):
  """Returns the call of the quantizer that a tensor comes from, moved at most; None for a fixed grid."""
  while ref.node.facts.role in ("move", "identity"):
    ref = ref.node.inputs[0]
  node = ref.node
  return node if node.layer.cls is QuantizeActivation and node.layer.config["fixed"] is None else None
