"""Stateful models as files whose state goes in and out: integers that are fed back unchanged."""

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter
from tf_keras import layers

import kquant as kq
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.execution import Execution
from tests.models import randomized

FEATURES, LENGTH = 4, 8

LAYERS = {
    "lstm": lambda **given: layers.LSTM(3, name="rnn", **given),
    "gru": lambda **given: layers.GRU(3, name="rnn", **given),
    "gru, reset before": lambda **given: layers.GRU(3, name="rnn", reset_after=False, **given),
    "simple": lambda **given: layers.SimpleRNN(3, name="rnn", **given),
    "cell": lambda **given: layers.RNN(layers.LSTMCell(3), name="rnn", **given),
}


def sequences(count=24, shape=(FEATURES,)):
  return np.random.default_rng(0).normal(size=(count, LENGTH, *shape)).astype(np.float32)


def models(layer, steps, shape=(FEATURES,)):
  """A stateful model of a few steps a run, and the same network over whole sequences."""
  keras.backend.clear_session()
  keras.utils.set_random_seed(0)

  def model(x, **given):
    sequence = layer(return_sequences=True, **given)(x)
    return keras.Model(x, layers.Dense(2, name="answer")(sequence))

  whole = randomized(model(keras.Input((LENGTH, *shape), name="x")))
  stateful = model(keras.Input(batch_shape=(1, steps, *shape), name="x"), stateful=True)
  stateful.set_weights(whole.get_weights())
  return stateful, whole


def looped(path, sequence, steps, states):
  """Runs a file over a sequence; what it returns as a state goes back in as it is."""
  run = Interpreter(model_path=str(path)).get_signature_runner()
  details, outputs = run.get_input_details(), []
  scale, zero = details["x"]["quantization"]
  state = {name: np.full(details[name]["shape"], details[name]["quantization"][1], details[name]["dtype"])
           for name in states}
  for start in range(0, LENGTH, steps):
    x = np.clip(np.round(sequence[None, start:start + steps] / scale) + zero, -128, 127).astype(np.int8)
    result = run(x=x, **state)
    state = {name: result[name] for name in states}
    scale_out, zero_out = run.get_output_details()["answer"]["quantization"]
    outputs.append((result["answer"].astype(np.float32) - zero_out) * scale_out)
  return np.concatenate(outputs, axis=1)[0]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_the_stream_computes_what_the_stateful_model_does_run_by_run(name, steps):
  stateful, whole = models(LAYERS[name], steps)
  stream, data = kq.streaming(stateful), sequences(2)
  found = stream(kq.stream_inputs(stream, data))["answer"].numpy().reshape(2, LENGTH, 2)
  np.testing.assert_allclose(found, whole(data), atol=1e-5)
  for start in range(0, LENGTH, steps):
    expected = stateful(data[:1, start:start + steps]).numpy()
    np.testing.assert_allclose(found[:1, start:start + steps], expected, atol=1e-5)


@pytest.mark.parametrize("name, steps", [(name, 1) for name in LAYERS] + [("lstm", 2), ("gru", 2)])
def test_a_file_is_looped_with_its_integers_and_answers_as_the_whole_sequence(name, steps, tmp_path):
  stateful, whole = models(LAYERS[name], steps)
  stream, path, data = kq.streaming(stateful), tmp_path / "m.tflite", sequences()
  inputs = kq.stream_inputs(stream, data)
  result = kq.quantize(stream, inputs)
  written = kq.export(result, path, verify={key: value[:8] for key, value in inputs.items()}, certify=True)
  assert written.certificate["exact"] and not written.verification.float_operators
  states = [key for key in inputs if key != "x"]
  assert states == (["rnn_h", "rnn_c"] if name in ("lstm", "cell") else ["rnn_h"])
  run = Interpreter(model_path=str(path)).get_signature_runner()
  for state in states:
    entering, leaving = (details()[state] for details in (run.get_input_details, run.get_output_details))
    assert entering["quantization"] == leaving["quantization"] and entering["dtype"] == leaving["dtype"]
  wide = {"lstm": "rnn_c", "cell": "rnn_c", "gru": "rnn_h", "gru, reset before": "rnn_h"}.get(name)
  assert {state: run.get_input_details()[state]["dtype"] for state in states} == {
      state: np.int16 if state == wide else np.int8 for state in states}
  expected = whole(data[:4]).numpy()
  found = np.stack([looped(path, sequence, steps, states) for sequence in data[:4]])
  assert np.abs(found - expected).max() < 0.03 * np.ptp(expected)


def test_a_state_of_8_bits_is_read_as_it_is():
  stream = kq.streaming(models(LAYERS["gru"], 1)[0])
  inputs = kq.stream_inputs(stream, sequences(4))
  result = kq.quantize(stream, inputs, config=kq.QuantConfig(memory_bits=8), effort=None)
  assert {grid.bits for key, grid in result.encodings.grids.items() if not key.endswith("bias")} == {8}
  assert not [layer.name for layer in result.model.layers if "requantize" in layer.name]


def test_states_of_images(tmp_path):
  stateful, whole = models(
      lambda **given: layers.ConvLSTM2D(2, 3, padding="same", name="rnn", **given), 1, (5, 4, 2))
  stream, data = kq.streaming(stateful), sequences(4, (5, 4, 2))
  inputs = kq.stream_inputs(stream, data)
  assert list(inputs) == ["x", "rnn_h", "rnn_c"]
  found = stream(inputs)["answer"].numpy().reshape(whole(data).shape)
  np.testing.assert_allclose(found, whole(data), atol=1e-5)
  few = {name: values[:4] for name, values in inputs.items()}
  result = kq.quantize(stream, inputs, effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=few, certify=True)
  assert written.certificate["exact"]


def test_a_streaming_model_is_saved_and_loaded(tmp_path):
  stream, data = kq.streaming(models(LAYERS["lstm"], 1)[0]), sequences(2)
  stream.save(tmp_path / "m.keras")
  loaded = kq.load_model(tmp_path / "m.keras")
  inputs = kq.stream_inputs(stream, data)
  np.testing.assert_array_equal(loaded(inputs)["answer"], stream(inputs)["answer"])
  assert kq.quantize(loaded, inputs, effort=None).encodings["rnn_c"].bits == 16


def test_a_stream_trains_with_quantizers_on_equal_grids(tmp_path):
  stream = kq.streaming(models(LAYERS["gru"], 1)[0])
  inputs = kq.stream_inputs(stream, sequences(4))
  qmodel = kq.calibrate(kq.insert_quantizers(stream), inputs)
  qmodel.compile("adam", "mse")
  qmodel.fit(inputs, stream.predict(inputs, verbose=0), epochs=1, verbose=0)
  few = {name: values[:4] for name, values in inputs.items()}
  written = kq.export(kq.finalize(qmodel), tmp_path / "m.tflite", verify=few, certify=True)
  assert written.certificate["exact"]
  run = Interpreter(model_path=str(written.path)).get_signature_runner()
  assert run.get_input_details()["rnn_h"]["quantization"] == run.get_output_details()["rnn_h"]["quantization"]


def test_what_is_no_stream_is_refused_with_the_remedy():
  stateful, whole = models(LAYERS["lstm"], 2)
  with pytest.raises(UnsupportedLayerError, match="'rnn'.*kquant.streaming"):
    kq.quantize(stateful, sequences()[:, :2], effort=None)
  with pytest.raises(ValueError, match="stateful=True, model .* has none"):
    kq.streaming(whole)
  stream = kq.streaming(stateful)
  with pytest.raises(ValueError, match=r"expected sequences for \['x'\], got \['y'\]"):
    kq.stream_inputs(stream, {"y": sequences()})
  x = keras.Input(batch_shape=(1, 2, FEATURES))
  for layer in (layers.Bidirectional(layers.LSTM(2, stateful=True)),
                layers.RNN([layers.GRUCell(2), layers.LSTMCell(2)], stateful=True)):
    with pytest.raises(UnsupportedLayerError, match="use layers of one cell"):
      kq.streaming(keras.Model(x, layer(x)))


def gru_model(name="x", head="answer", keys=()):
  """A model of a GRU "g", maybe with dicts of these keys as input and output."""
  keras.backend.clear_session()
  x = keras.Input(batch_shape=(1, 1, FEATURES), name=name)
  y = layers.Dense(2, name=head)(layers.GRU(3, stateful=True, name="g")(x))
  return keras.Model({keys[0]: x}, {keys[1]: y}) if keys else keras.Model(x, y)


@pytest.mark.parametrize("given", [{"name": "g_h"}, {"head": "g_h"}, {"head": "g_h", "keys": ("a", "b")},
                                   {"keys": ("g_h", "b")}, {"keys": ("a", "g_h")}])
def test_the_name_of_a_state_must_be_free(given):
  with pytest.raises(ValueError, match="no input, output or layer named 'g_h'.*state of layer 'g'"):
    kq.streaming(gru_model(**given))


def test_the_names_of_dicts_stay():
  stream = kq.streaming(gru_model(keys=("audio", "score")))
  assert set(stream.input) == {"audio", "g_h"} and set(stream.output) == {"score", "g_h"}
  result = kq.quantize(stream, kq.stream_inputs(stream, {"audio": sequences(4)}), effort=None)
  assert result.encodings.input_names == ["audio", "g_h"]
  assert result.encodings.output_names == ["g_h", "score"]


def test_an_input_that_is_an_output_is_no_state():
  model = gru_model()
  stream = kq.streaming(keras.Model(model.input, [model.input, model.output]))
  inputs = kq.stream_inputs(stream, sequences(2))
  np.testing.assert_array_equal(inputs["x"], sequences(2).reshape(-1, 1, FEATURES))
  assert inputs["g_h"].any()


def with_context(steps=1):
  """A model of steps and of a context [batch, 5] without steps."""
  x, context = keras.Input(batch_shape=(1, steps, FEATURES), name="x"), keras.Input((5,), 1, name="context")
  y = layers.GRU(3, stateful=True, name="g")(x)
  return keras.Model([x, context], layers.Dense(2)(layers.Concatenate()([y, context])))


@pytest.mark.parametrize("steps, given, message", [
    (2, {"x": (3, 7, 4), "context": (3, 3, 5)}, r"input 'x' a multiple of the steps of one run.*\[3, 7, 4\]"),
    (1, {"x": (8, 4), "context": (3, 8, 5)}, r"\[sequences, runs, 1, 4\].*got \[8, 4\]; cut"),
    (1, {"x": (3, 8, 3), "context": (3, 8, 5)}, r"\[sequences, runs, 1, 4\].*got \[3, 8, 3\]"),
    (1, {"x": (3, 8, 4), "context": (3, 5)}, r"'context': \(3, 1\).*repeat what has no steps"),
    (1, {"x": (3, 8, 4), "context": (2, 8, 5)}, r"as many sequences.*'context': \(2, 8\)"),
    (1, {"x": (3, 0, 4), "context": (3, 0, 5)}, "at least one of both"),
    (1, {"x": (0, 8, 4), "context": (0, 8, 5)}, "at least one of both"),
    (None, {"x": (3, 8, 4), "context": (3, 8, 5)}, "'x' of fixed sizes.*number of steps")])
def test_sequences_that_do_not_fit_are_refused_with_the_remedy(steps, given, message):
  stream = kq.streaming(with_context(steps))
  with pytest.raises(ValueError, match=f"stream_inputs: expected .*{message}"):
    kq.stream_inputs(stream, {name: np.zeros(shape, np.float32) for name, shape in given.items()})


def test_a_model_that_carries_no_state_has_no_stream_inputs():
  stream = kq.streaming(gru_model())
  for model in (gru_model(), kq.insert_quantizers(stream)):
    with pytest.raises(ValueError, match="that kq.streaming returned"):
      kq.stream_inputs(model, sequences())


def test_an_input_without_steps_is_given_for_each_run():
  stream = kq.streaming(with_context(2))
  context = np.random.default_rng(1).normal(size=(3, 4, 5))
  inputs = kq.stream_inputs(stream, {"x": sequences(3), "context": context})
  np.testing.assert_array_equal(inputs["context"], context.reshape(12, 5).astype(np.float32))
  np.testing.assert_array_equal(inputs["x"][1], sequences(3)[0, 2:4])


def test_sequences_run_within_bounded_memory(monkeypatch):
  taken = []
  monkeypatch.setattr(Execution, "images_at_once",
                      lambda self, images, most: taken.append(len(images[0])) or 4)
  stream = kq.streaming(gru_model())
  inputs = kq.stream_inputs(stream, sequences(6))
  assert taken == [6] * LENGTH
  expected = stream(inputs)["g_h"].numpy().reshape(6, LENGTH, 3)[:, :-1]
  np.testing.assert_allclose(inputs["g_h"].reshape(6, LENGTH, 3)[:, 1:], expected, atol=1e-6)
