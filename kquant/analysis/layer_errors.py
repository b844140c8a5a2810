"""analyze(): what part each tensor and each layer has in the noise at a quantized network's output."""

from typing import Any

import numpy as np
import tf_keras as keras

from kquant.analysis.calls import Params
from kquant.analysis.measure import Network, measure
from kquant.analysis.results import Analysis
from kquant.analysis.rows import analysis_of
from kquant.analysis.sites import sites
from kquant.core import data
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report
from kquant.graph import keras_calls
from kquant.graph.graph import Graph
from kquant.graph.keras_reader import check_model
from kquant.graph.model_forms import as_tf_keras
from kquant.qmodel.outputs import answers
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.tfmot_models import from_tfmot, is_tfmot
from kquant.search.efforts import effort_steps
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import quantized, read

FEWEST_IMAGES = 2


def analyze(model: Any, images: Any, labels: np.ndarray | None = None, *, config: QuantConfig | str = "int8",
            calibration: Any = None, seed: int = 0) -> Analysis:
  """Finds what part each tensor and each layer has in the noise at a quantized network's output.

  Each is quantized alone, and all but it, on the same images (Gluska & Grobman 2020). What lies behind the
  answers that are compared, as a closing softmax, is not looked at.

  Args:
    model: what `quantize` returned; or a calibrated or trained model with quantizers, which is compared with
      its own float weights; or a float model, which is quantized with the effort "fast" first.
    images: inputs to look at, two or more, in any form that `quantize` takes; 64 are enough to rank by.
    labels: class indices [images], for top-1.
    config: which grids, of a float model.
    calibration: images to quantize a float model on; None: `images`.
    seed: of random choices in quantizing it.

  Returns:
    The noise of each tensor and each layer, the largest first.

  Raises:
    ValueError: a tensor was not calibrated, images or labels that do not fit, fewer than two images.
    TypeError: not a model.
    UnsupportedLayerError: a layer that has no integer form, by name.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> analysis = kq.analyze(model, np.eye(3, dtype=np.float32))
    >>> analysis.layers[0].name, 0.0 < analysis.whole < 1e-3
    ('dense', True)
  """
  float_params = getattr(model, "float_params", None)
  model = as_tf_keras(getattr(model, "qmodel", model))
  check_model(model)
  qmodel = with_quantizers(model)
  images = data.gather(images, keras_calls.input_specs(model), where="analysis")
  check_images(images, labels, where="analyze")
  if qmodel is None:
    qmodel, float_params = _quantized(model, config, images if calibration is None else calibration, seed)
  network = network_of(qmodel, float_params)
  measured = measure(network, sites(network.graph), images, labels)
  return analysis_of(network, measured, has_labels=labels is not None)


def with_quantizers(model: keras.Model) -> keras.Model | None:
  """Returns a quantized model as kquant makes them; None for a float model."""
  if is_tfmot(model):
    return from_tfmot(model)
  return model if any(isinstance(layer, QuantizeActivation) for layer in model.layers) else None


def check_images(images: list[np.ndarray], labels: np.ndarray | None, *, where: str) -> None:
  """Raises ValueError unless there are enough images, and a label for each where there are labels."""
  count = len(images[0])
  if count < FEWEST_IMAGES:
    raise ValueError(f"{where}: expected {FEWEST_IMAGES} images or more, got {count}; the signal is what "
                     "differs between images, so give some more.")
  if labels is not None and np.shape(labels) != (count,):
    raise ValueError(f"{where}: expected the class index of each of {count} images, got labels of shape "
                     f"{np.shape(labels)}; give one integer an image.")


def _quantized(model: keras.Model, config: QuantConfig | str, calibration: Any,
               seed: int) -> tuple[keras.Model, Params]:
  """Quantizes a float model with the effort "fast"; returns it with its float weights."""
  config = QuantConfig.preset(config) if isinstance(config, str) else config
  config = config.following(effort_steps("fast")[0])
  calibration = data.gather(calibration, keras_calls.input_specs(model))
  graph = FloatNetwork(read(model, config), calibration, seed).scaled(config, Report())
  network = quantized(graph, config, calibration, Report(), seed=seed)
  return network.qmodel, network.float_params


def network_of(qmodel: keras.Model, float_params: Params | None) -> Network:
  """Returns a calibrated network up to the answers that are compared."""
  graph = Graph.from_model(qmodel)
  compared = list(dict.fromkeys(answers(graph)))
  graph.outputs = compared
  graph.normalize()
  return Network(qmodel, graph, compared, float_params)
