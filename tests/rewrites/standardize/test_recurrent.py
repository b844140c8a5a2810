"""Recurrent layers as layers of one step: the same function, one grid and one set of integers for all steps."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from tests.models import randomized

STEPS, FEATURES = 5, 4

LAYERS = {
    "lstm": lambda: layers.LSTM(3),
    "lstm, sequence and state": lambda: layers.LSTM(3, return_sequences=True, return_state=True),
    "lstm, backwards": lambda: layers.LSTM(3, return_sequences=True, go_backwards=True),
    "lstm, hard_sigmoid": lambda: layers.LSTM(3, recurrent_activation="hard_sigmoid", use_bias=False),
    "lstm, relu": lambda: layers.LSTM(3, activation="relu", unit_forget_bias=False, implementation=1),
    "gru": lambda: layers.GRU(3, return_state=True),
    "gru, reset before": lambda: layers.GRU(3, reset_after=False, implementation=1, unroll=True),
    "gru, hard_sigmoid": lambda: layers.GRU(3, recurrent_activation="hard_sigmoid", go_backwards=True),
    "gru, elu": lambda: layers.GRU(3, activation="elu", use_bias=False),
    "simple": lambda: layers.SimpleRNN(3, return_sequences=True),
    "simple, linear": lambda: layers.SimpleRNN(3, activation=None, use_bias=False, return_state=True),
    "cell": lambda: layers.RNN(layers.GRUCell(3, reset_after=False)),
    "stacked": lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2), layers.SimpleRNNCell(4)],
                                  return_state=True),
    "stacked, backwards": lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], go_backwards=True,
                                             return_sequences=True),
}


def model_of(layer, *states):
  keras.backend.clear_session()
  keras.utils.set_random_seed(0)
  inputs = [keras.Input((STEPS, FEATURES), name="x"), *(keras.Input((size,)) for size in states)]
  outputs = layer(inputs[0], initial_state=inputs[1:]) if states else layer(inputs[0])
  return randomized(keras.Model(inputs, outputs))


def data_of(model, count=16):
  rng = np.random.default_rng(0)
  return [rng.normal(0, 1, (count, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs]


def outputs_of(model, data):
  outputs = model(data if data[1:] else data[0], training=False)
  return [np.asarray(output) for output in (outputs if isinstance(outputs, list | tuple) else [outputs])]


def assert_exact(model, tmp_path, preset="int8"):
  data = data_of(model)
  result = kq.quantize(model, data, config=preset, effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=[x[:3] for x in data], certify=True)
  assert written.certificate["exact"]
  assert not written.verification.float_operators
  return result


def assert_equal_in_float(model):
  data = data_of(model)
  for expected, found in zip(outputs_of(model, data), outputs_of(kq.standardize(model), data), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_steps_compute_what_the_layer_does_and_become_exact_integers(name, tmp_path):
  model = model_of(LAYERS[name]())
  assert_equal_in_float(model)
  assert_exact(model, tmp_path)


@pytest.mark.parametrize("layer, states", [(layers.LSTM, (3, 3)), (layers.GRU, (3,)), (layers.SimpleRNN, (3,))])
def test_given_states_are_read(layer, states, tmp_path):
  model = model_of(layer(3, return_state=True), *states)
  assert_equal_in_float(model)
  assert_exact(model, tmp_path)


def test_one_grid_one_kernel_one_bias_for_all_steps(tmp_path):
  result = assert_exact(model_of(layers.LSTM(3, return_sequences=True, name="lstm")), tmp_path)
  grids = {}
  for key, grid in result.encodings.grids.items():
    grids.setdefault(key.split("@")[0], set()).add((float(grid.scale[0]), int(grid.zero_point[0]), grid.bits))
  assert {"lstm/state", "lstm/cell", "lstm/sum_gates", "lstm/recurrent_gates"} <= grids.keys()
  assert all(len(kinds) == 1 for kinds in grids.values())
  assert [key for key in result.encodings.integers if "recurrent_gates" in key] == [
      "lstm/recurrent_gates/kernel", "lstm/recurrent_gates/bias"]


def test_rules_reach_the_steps_by_the_name_and_the_kind_of_the_layer():
  for rule in (kq.Rule(match="^lstm$", weights=kq.TensorSpec(bits=4)),
               kq.Rule(kinds=("LSTM",), weights=kq.TensorSpec(bits=4))):
    model = model_of(layers.LSTM(3, name="lstm"))
    result = kq.quantize(model, data_of(model), config=kq.QuantConfig(rules=(rule, kq.Rule())), effort=None)
    assert {grid.bits for key, grid in result.encodings.grids.items() if key.endswith("/kernel")} == {4}
