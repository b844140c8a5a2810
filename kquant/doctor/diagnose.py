"""diagnose(): the tensors at fault in a quantized network, a local remedy for each, the mended network."""

import dataclasses
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.analysis.layer_errors import check_images, with_quantizers
from kquant.core import data
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report
from kquant.doctor.findings import KnownNetwork
from kquant.doctor.mending import Parts, mend
from kquant.doctor.patient import EFFORTS, Patient, resolved
from kquant.doctor.results import Diagnosis
from kquant.doctor.settings import LABELLED_IMAGES, DiagnosisSettings
from kquant.doctor.weight_findings import nonfinite_weights, outlier_weights
from kquant.graph import keras_calls
from kquant.graph.keras_reader import check_is_model, check_model
from kquant.graph.model_forms import as_tf_keras
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import read

_FEWEST = 16
"""With fewer images none are held back."""


def diagnose(model: Any, images: Any, labels: np.ndarray | None = None, *,
             config: QuantConfig | str = "int8", calibration: Any = None, effort: str | None = "auto",
             settings: DiagnosisSettings | None = None) -> Diagnosis:
  """Quantizes a float model, finds the tensors at fault, and mends each by the cheapest local remedy.

  The tensors that make most of the noise at the output (`kquant.analyze`) get, one by one, other range
  estimators, a scale a channel, closed-form rounding, 16 bits (activations) or 8 bits (weights of fewer). The
  cheapest that brings the tensor below the median of all + 3 median absolute deviations stays; where none
  does, the one that lowers its noise most. What no grid can mend, as wrong preprocessing, is named.

  Args:
    model: a built float model, as `quantize` takes it; it is not changed.
    images: inputs, in any form that `quantize` takes. A quarter of them is judged by, and the network is
      calibrated on the others.
    labels: class indices [images], to judge the float model by.
    config: which grids.
    calibration: images to calibrate on; all of `images` are then judged by.
    effort: how the network is quantized first, as in `quantize`: "auto", "fast", "balanced"; None: as config
      says.
    settings: how far it goes; None: as by default.

  Returns:
    The tensors and their remedies, the findings, and the mended network, which holds what `quantize` returns.

  Raises:
    ValueError: images or labels that do not fit, fewer than two images, an unknown preset or effort.
    TypeError: not a float model.
    UnsupportedLayerError: a layer that has no integer form, by name.

  Example:
    >>> layers = [keras.layers.Dense(4, input_shape=(3,)), keras.layers.ReLU(), keras.layers.Dense(2)]
    >>> images = np.random.default_rng(0).random((32, 3), np.float32)
    >>> rules = [kq.Rule(match="^first$", weights=kq.TensorSpec(bits=2)), kq.Rule()]
    >>> layers[0]._name = "first"
    >>> diagnosis = kq.diagnose(keras.Sequential(layers), images, config=kq.QuantConfig(rules), effort="fast")
    >>> diagnosis.rows[0].name, diagnosis.rows[0].part, diagnosis.sqnr_db[1] > diagnosis.sqnr_db[0] + 5
    ('first', 'weights', True)
  """
  config = QuantConfig.preset(config) if isinstance(config, str) else config
  settings = settings or DiagnosisSettings()
  config = config.following(settings.recipe)
  _check(model, config, effort)
  report, model = Report(), as_tf_keras(model)
  check_is_model(model)
  findings = nonfinite_weights(model)
  if findings:
    return Diagnosis((), tuple(findings), None, config)
  check_model(model)
  parts = _parted(model, images, labels, calibration, settings)
  with report.stage("findings"):
    known = KnownNetwork(model, parts.train, parts.judge, parts.labelled)
    broken = known.broken()
    findings = broken or [*outlier_weights(model), *known.findings()]
  if broken:
    return Diagnosis((), tuple(findings), None, config, seconds=report.seconds)
  network = FloatNetwork(read(model, config), parts.train, settings.seed)
  patient = Patient(network, resolved(network, config, effort, settings.recipe, report), report)
  mended = mend(patient, parts, settings, report)
  notes = () if parts.held_back else (f"{len(parts.train[0])} images are too few to hold some back: remedies "
                                      "are judged by what is calibrated on.",)
  return dataclasses.replace(mended, findings=tuple(findings), notes=(*notes, *mended.notes),
                             seconds=report.seconds)


def _check(model: Any, config: QuantConfig, effort: str | None) -> None:
  if hasattr(model, "qmodel") or isinstance(model, keras.Model) and with_quantizers(model) is not None:
    raise TypeError("diagnose: expected a float model, got a quantized one; give the model that it was made "
                    "of, with its config.")
  if effort not in EFFORTS:
    raise ValueError(f"diagnose: effort must be one of {', '.join(map(str, EFFORTS))}, got {effort!r}.")
  if config.recipe.finetune != "none":
    raise ValueError(f"diagnose: expected a recipe without fine-tuning, got finetune="
                     f"{config.recipe.finetune!r}; leave it out.")


def _parted(model: keras.Model, images: Any, labels: np.ndarray | None, calibration: Any,
            settings: DiagnosisSettings) -> Parts:
  """Returns what is calibrated on and judged by."""
  specs = keras_calls.input_specs(model)
  images = data.gather(images, specs, where="diagnosis")
  check_images(images, labels, where="diagnose")
  count = len(images[0])
  judge = np.arange(count)
  if calibration is not None:
    train = data.gather(calibration, specs)
  elif count < _FEWEST:
    train = images
  else:
    (rest,), (judge,) = data.hold_back([judge], seed=settings.seed)
    train = [array[rest] for array in images]
  labelled = None
  if labels is not None:
    many = judge[data.choose(len(judge), LABELLED_IMAGES, seed=settings.seed)]
    labelled = [array[many] for array in images], np.asarray(labels)[many]
  judge = judge[data.choose(len(judge), settings.images, seed=settings.seed)]
  labels = None if labels is None else np.asarray(labels)[judge]
  return Parts(train, [array[judge] for array in images], labels, labelled, held_back=train is not images)
