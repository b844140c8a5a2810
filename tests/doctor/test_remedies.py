"""The weights of a remedy are those of the network that it makes, biases of a fused LSTM among them."""

import dataclasses

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.core.records import Report
from kquant.doctor.patient import Patient
from kquant.doctor.remedies import rounded_weights
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import read
from tests.analysis.test_layer_errors import chain, photos
from tests.ptq.layerwise.test_gate_rounding import FEATURES, STEPS, UNITS, sequences


def fused():
  """A fused LSTM and its sequences."""
  keras.utils.set_random_seed(1)
  x = keras.Input((STEPS, FEATURES))
  return keras.Model(x, layers.LSTM(UNITS, name="lstm", return_sequences=True)(x)), sequences(32)


@pytest.mark.parametrize("make, name", [(fused, "lstm"), (lambda: (chain(), photos(24)), "conv2")])
def test_on_the_grids_that_they_have_weights_and_biases_stay_as_they_are(make, name):
  model, images = make()
  config = dataclasses.replace(kq.QuantConfig.preset("w4a8"), recurrent="fused")
  patient = Patient(FloatNetwork(read(model, config), [images], 0), config, Report())
  network, layer = patient.for_analysis(), patient.calibrated.qmodel.get_layer(name)
  found = rounded_weights(network, layer, config.rules[0].weights, patient.calibrated.statistics)
  biases = [key for key in found if key.startswith("bias")]
  assert any(np.abs(found[key] - network.float_params[name][key]).max() > 1e-4 for key in biases)
  for key in biases:
    np.testing.assert_allclose(found[key], getattr(layer.layer, key).numpy(), atol=1e-6, err_msg=key)
  for key, value in layer.simulated_weights().items():
    np.testing.assert_allclose(found[key], value, atol=1e-6, err_msg=key)
