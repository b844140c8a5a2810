"""Recurrent layers as layers of one step: the same function, one grid, one set of integers in all steps."""

import sys

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

import kquant as kq
from tests.models import randomized

STEPS, FEATURES = 4, 4

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
    "both": lambda: layers.Bidirectional(layers.LSTM(3, return_state=True)),
    "both, sum of sequences": lambda: layers.Bidirectional(layers.GRU(3, return_sequences=True), "sum"),
    "both, product": lambda: layers.Bidirectional(layers.SimpleRNN(3), "mul"),
    "both, average of two kinds": lambda: layers.Bidirectional(
        layers.LSTM(3, return_sequences=True), "ave", backward_layer=layers.GRU(
            3, return_sequences=True, go_backwards=True, use_bias=False)),
    "both, apart": lambda: layers.Bidirectional(
        layers.RNN([layers.GRUCell(3), layers.SimpleRNNCell(2)]), None),
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


@pytest.mark.parametrize("layer, states", [
    (lambda: layers.LSTM(3, return_state=True), (3, 3)), (lambda: layers.GRU(3), (3,)),
    (lambda: layers.SimpleRNN(3), (3,)), (lambda: layers.Bidirectional(layers.GRU(3)), (3, 3))])
def test_given_states_are_read(layer, states, tmp_path):
  model = model_of(layer(), *states)
  assert_equal_in_float(model)
  assert_exact(model, tmp_path)


def test_one_grid_one_kernel_one_bias_for_all_steps(tmp_path):
  result = assert_exact(model_of(layers.LSTM(3, return_sequences=True, name="lstm")), tmp_path)
  grids = {}
  for key, grid in result.encodings.grids.items():
    grids.setdefault(key.split("@")[0], set()).add((float(grid.scale[0]), int(grid.zero_point[0]), grid.bits))
  assert {"lstm/state/to_8_bits", "lstm/cell", "lstm/sum_gates", "lstm/recurrent_gates"} <= grids.keys()
  assert all(len(kinds) == 1 for kinds in grids.values())
  assert [key for key in result.encodings.integers if "recurrent_gates" in key] == [
      "lstm/recurrent_gates/kernel", "lstm/recurrent_gates/bias"]


def sizes_of(model, tmp_path):
  """(bytes of the file, kernels in it)."""
  data = data_of(model, 8)
  result = kq.quantize(model, data if data[1:] else data[0], effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=[x[:2] for x in data], certify=True)
  assert written.certificate["exact"]
  return written.bytes, [key for key in result.encodings.integers if key.endswith("/kernel")]


def test_a_layer_that_is_called_twice_stores_its_weights_once(tmp_path):
  def model(first, second):
    inputs = [keras.Input((2, 30), name=name) for name in "ab"]
    return randomized(keras.Model(inputs, [first(inputs[0]), second(inputs[1])]))

  keras.backend.clear_session()
  layer = layers.Bidirectional(layers.LSTM(20, name="cell"), name="both")
  shared = model(layer, layer)
  assert_equal_in_float(shared)
  apart, kernels = sizes_of(model(*(layers.Bidirectional(layers.LSTM(20)) for _ in "ab")), tmp_path)
  together, own = sizes_of(shared, tmp_path)
  weights = 2 * 4 * 20 * (30 + 20)
  assert (len(kernels), len(own)) == (16, 8) and apart - together > 0.95 * weights


def test_a_layer_in_time_distributed_stores_its_weights_once(tmp_path):
  keras.backend.clear_session()
  x = keras.Input((3, 2, 4), name="x")
  model = randomized(keras.Model(x, layers.TimeDistributed(layers.GRU(3, return_sequences=True))(x)))
  assert_equal_in_float(model)
  assert len(sizes_of(model, tmp_path)[1]) == 5


@pytest.mark.parametrize("cudnn, plain", [(CuDNNLSTM, layers.LSTM), (CuDNNGRU, layers.GRU)])
@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.Bidirectional])
def test_layers_of_cudnn_are_read_as_those_of_keras(cudnn, plain, wrap, tmp_path):
  expected = model_of(wrap(plain(3, return_sequences=True)))
  x = keras.Input((STEPS, FEATURES), name="x")
  model = randomized(keras.Model(x, wrap(cudnn(3, return_sequences=True))(x)))  # runs on a GPU alone
  for layer in (model.layers[1], expected.layers[1]):
    layer._name = "same"
  model.save_weights(tmp_path / "w.h5")
  expected.load_weights(tmp_path / "w.h5")  # Keras converts them
  data = data_of(model)[0]
  np.testing.assert_allclose(kq.standardize(model)(data), expected(data), atol=1e-5)
  assert_exact(model, tmp_path)


def test_what_is_remembered_has_16_bits_unless_the_config_says_8(tmp_path):
  model = model_of(layers.LSTM(3, return_sequences=True, name="lstm"))
  bits = {key: grid.bits for key, grid in assert_exact(model, tmp_path).encodings.grids.items()}
  assert bits["lstm/cell"] == bits["lstm/gates"] == 16
  assert bits["lstm/state/to_8_bits"] == bits["lstm/sequence"] == 8
  config = kq.QuantConfig(memory_bits=8)
  bits = {grid.bits for key, grid in assert_exact(model, tmp_path, config).encodings.grids.items()
          if not key.endswith("bias")}
  assert bits == {8}
  assert kq.QuantConfig.from_json(config.to_json()) == config
  with pytest.raises(ValueError, match="memory_bits must be 8 or 16, got 4"):
    kq.QuantConfig(memory_bits=4)


def test_a_cell_that_forgets_nothing_holds_its_value_over_many_steps():
  steps, units = 16, 1
  cell = layers.LSTM(units, name="lstm")
  x = keras.Input((steps, 1), name="x")
  model = keras.Model(x, cell(x))
  kernel, recurrent, bias = (np.zeros_like(value) for value in cell.get_weights())
  kernel[0, 2 * units:3 * units] = 1.0  # the candidate
  kernel[0, :units] = 20.0  # enters where x is not 0
  bias[:units], bias[units:2 * units], bias[3 * units:] = -10.0, 10.0, 10.0  # keeps and shows all
  cell.set_weights([kernel, recurrent, bias])
  data = np.zeros((16, steps, 1), np.float32)
  data[:, 0, 0] = np.linspace(0.6, 1.4, 16)
  expected = model(data).numpy()

  def error(bits):
    result = kq.quantize(model, data, config=kq.QuantConfig(memory_bits=bits), effort=None)
    return np.abs(result.qmodel(data).numpy() - expected).max()

  assert expected.min() > 0.4
  assert error(16) < 0.02 < 0.04 < error(8)


def test_dropout_stays_in_training_with_one_mask_for_all_steps():
  model = model_of(layers.LSTM(3, name="lstm", dropout=0.5, recurrent_dropout=0.5))
  assert not [layer for layer in kq.standardize(model).layers if "dropout" in layer.name]
  qmodel = kq.calibrate(kq.insert_quantizers(model), data_of(model))
  assert qmodel.get_layer("lstm/dropout").noise_shape == (None, 1, None)
  x, y = data_of(model)[0], np.zeros((16, 3), np.float32)
  qmodel.compile("sgd", "mse")
  before = qmodel.get_layer("lstm/recurrent_gates").layer.kernel.numpy()
  qmodel.fit(x, y, epochs=1, verbose=0)
  assert np.abs(qmodel.get_layer("lstm/recurrent_gates").layer.kernel.numpy() - before).max() > 0


def test_a_quantized_model_deeper_than_pythons_stack_is_saved_and_loaded(tmp_path):
  keras.backend.clear_session()
  x = keras.Input((120, 2), name="x")
  model = keras.Model(x, layers.SimpleRNN(2)(x))
  data = np.random.default_rng(0).normal(size=(4, 120, 2)).astype(np.float32)
  qmodel = kq.insert_quantizers(model)
  assert len(qmodel._nodes_by_depth) > sys.getrecursionlimit()
  qmodel.save(tmp_path / "m.keras")
  np.testing.assert_array_equal(kq.load_model(tmp_path / "m.keras")(data), qmodel(data))


def test_rules_reach_the_steps_by_the_name_and_the_kind_of_the_layer():
  for rule in (kq.Rule(match="^lstm$", weights=kq.TensorSpec(bits=4)),
               kq.Rule(kinds=("LSTM",), weights=kq.TensorSpec(bits=4))):
    model = model_of(layers.Bidirectional(layers.LSTM(3), name="lstm"))
    result = kq.quantize(model, data_of(model), config=kq.QuantConfig(rules=(rule, kq.Rule())), effort=None)
    assert {grid.bits for key, grid in result.encodings.grids.items() if key.endswith("/kernel")} == {4}
