"""Every layer class of tf_keras becomes exact integers, or is refused by name with a remedy."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from tests import layer_cases
from tests.models import randomized
from tests.tflite_export import layer_sweep

HANDLED = layer_cases.HANDLED | layer_cases.HANDLED_FORMS


def run(model, inputs):
  arrays = [x.astype(tensor.dtype.name) for x, tensor in zip(inputs, model.inputs)]
  outputs = tf.nest.flatten(model(arrays if arrays[1:] else arrays[0], training=False))
  return np.concatenate([output.numpy().reshape(len(arrays[0]), -1) for output in outputs], axis=1)


def test_every_class_is_in_one_of_the_tables():
  tables = (layer_cases.HANDLED, layer_cases.REFUSED, layer_cases.NOT_IN_GRAPHS)
  assert sorted(name for table in tables for name in table) == layer_cases.layer_classes()


@pytest.mark.parametrize("name", HANDLED)
def test_layer_becomes_exact_integers(name, tmp_path):
  model = randomized(HANDLED[name]())
  inputs = layer_cases.inputs_of(model)
  result = kq.quantize(model, inputs, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=[x[:3] for x in inputs], certify=True)
  assert written.certificate["exact"]
  assert not written.verification.float_operators
  expected, simulated = (run(m, inputs) for m in (model, result.qmodel))
  assert np.square(simulated - expected).mean() < 0.01 * np.square(expected).mean()


@pytest.mark.parametrize("name, preset, border", [
    (name, layer_sweep.PRESETS[1 + index % 3], layer_sweep.BORDERS[1 + index // 3 % 3])
    for index, name in enumerate(layer_cases.HANDLED)])
def test_layer_under_another_preset_border_and_batch(name, preset, border, tmp_path):
  assert layer_sweep.check(name, preset, border, str(tmp_path))  # exact, or refused by name


def test_the_document_names_every_class():
  text = (pathlib.Path(__file__).parents[1] / "docs" / "layers.md").read_text()
  assert not [name for name in layer_cases.layer_classes() if f"| {name} |" not in text]


@pytest.mark.parametrize("name", [*layer_cases.REFUSED, *layer_cases.REFUSED_FORMS])
def test_layer_is_refused_by_name_with_a_remedy(name):
  model = (layer_cases.REFUSED | layer_cases.REFUSED_FORMS)[name]()
  data = [np.zeros((4, *(n or 1 for n in tensor.shape[1:])), np.float32) for tensor in model.inputs]
  with pytest.raises(UnsupportedLayerError, match=r"^(Layer|Tensor) '.*; .*\.$"):
    kq.quantize(model, data, effort=None)
