"""Recurrent layers as one operator: the same function, exact integers; others are unrolled or refused."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.fused_lstm import FusedLSTM
from kquant.rewrites.standardize.standardize import standardize
from tests.rewrites.standardize.test_recurrent import data_of, model_of, outputs_of


def without_cells(outputs):
  """What an LSTM with return_state=True returns, without its cells."""
  return [outputs[0], *outputs[1::2]]


FUSED = {
    "last": lambda: layers.LSTM(3),
    "sequence": lambda: layers.LSTM(3, return_sequences=True, unit_forget_bias=False),
    "backwards": lambda: layers.LSTM(3, return_sequences=True, go_backwards=True, use_bias=False),
    "backwards, last": lambda: layers.LSTM(3, go_backwards=True, implementation=1, unroll=True),
    "both": lambda: layers.Bidirectional(layers.LSTM(3)),
    "both, sum of sequences": lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True), "sum"),
    "state": lambda: lambda x: without_cells(layers.LSTM(3, return_state=True)(x)),
    "backwards, sequence and state": lambda: lambda x: without_cells(
        layers.LSTM(3, return_sequences=True, return_state=True, go_backwards=True)(x)),
    "both, sequences and states": lambda: lambda x: without_cells(
        layers.Bidirectional(layers.LSTM(3, return_sequences=True, return_state=True))(x)),
    "both, apart": lambda: layers.Bidirectional(layers.LSTM(3), None),
    "both, apart, with states": lambda: lambda x: [y for place, y in enumerate(layers.Bidirectional(
        layers.LSTM(3, return_sequences=True, return_state=True), None)(x)) if place not in (3, 5)],
    "dropout": lambda: layers.LSTM(3, dropout=0.5, recurrent_dropout=0.5),
}

UNROLLED = {
    "is no plain LSTM layer": lambda: layers.RNN(layers.LSTMCell(3)),
    "has activation='relu'": lambda: layers.LSTM(3, activation="relu"),
    "has recurrent_activation='hard_sigmoid'": lambda: layers.LSTM(3, recurrent_activation="hard_sigmoid"),
    "returns its cell, which something reads": lambda: layers.LSTM(3, return_state=True),
    "has a mask": lambda: lambda x: layers.LSTM(3)(layers.Masking()(x)),
    "is given a state to start from": lambda: lambda x: layers.LSTM(2)(x, initial_state=[x[:, 0, :2]] * 2),
}


def config(recurrent, **fields):
  return kq.QuantConfig(recurrent=recurrent, **fields)


def with_head(x):
  return layers.Dense(3, name="head")(layers.LSTM(4, name="lstm")(x))


def kinds(model):
  return {type(layer) for layer in model.layers}


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_layer_computes_what_the_layer_does_and_becomes_exact_integers(name, tmp_path):
  model = model_of(FUSED[name]())
  data = data_of(model)
  fused = standardize(model, recurrent="fused")
  assert FusedLSTM in kinds(fused)
  for found, expected in zip(outputs_of(fused, data), outputs_of(model, data), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)
  result = kq.quantize(model, data, config=config("fused"), effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=[data[0][:3]], certify=True)
  assert written.certificate["exact"] and written.verification.max_lsb <= 1
  counts = written.program.operator_counts()
  assert counts["UNIDIRECTIONAL_SEQUENCE_LSTM"] == counts["FILL"] / 2 == (2 if "both" in name else 1)


@pytest.mark.parametrize("reason", UNROLLED)
def test_what_has_no_fused_operator_is_unrolled_or_refused(reason):
  model = model_of(UNROLLED[reason]())
  with pytest.raises(UnsupportedLayerError, match=f"{re.escape(reason)}: .*recurrent='auto'"):
    kq.insert_quantizers(model, config("fused"))
  result = kq.quantize(model, data_of(model), config=config("auto"), effort=None)
  assert FusedLSTM not in kinds(result.model)
  assert reason in str(result.report)


REFUSED = {
    "is given a state of constants .*; make it an input": lambda x: layers.LSTM(2)(
        x, initial_state=[tf.ones((1, 2))] * 2),
    "keeps its state .*; kquant.streaming": lambda x: layers.LSTM(2, stateful=True)(x),
    "has its steps in front of the batch": lambda x: layers.LSTM(2, time_major=True)(x),
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("recurrent", ["fused", "auto", "unrolled"])
def test_what_has_no_form_at_all_is_refused_with_its_own_remedy(reason, recurrent):
  x = keras.Input(batch_shape=(1, 3, 4))
  model = keras.Model(x, REFUSED[reason](x))
  with pytest.raises(UnsupportedLayerError, match=reason):
    kq.insert_quantizers(model, config(recurrent))


def test_a_stream_is_unrolled_or_refused():
  step = keras.Input(batch_shape=(1, 1, 3), name="step")
  stream = kq.streaming(keras.Model(step, layers.LSTM(2, stateful=True, name="lstm")(step)))
  runs = kq.stream_inputs(stream, np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32))
  with pytest.raises(UnsupportedLayerError, match="'lstm' .* is given a state .*recurrent='auto'"):
    kq.quantize(stream, runs, config=config("fused"), effort=None)
  result = kq.quantize(stream, runs, config=config("auto"), effort=None)
  assert FusedLSTM not in kinds(result.model)
  assert "unrolled, not fused: it is given a state to start from" in str(result.report)


def test_masks_states_and_shared_layers_are_unrolled():
  x, state = keras.Input((4, 3)), keras.Input((2,))
  layer = layers.LSTM(2)
  outputs = [layers.LSTM(2)(layers.Masking()(x)), layers.LSTM(2)(x, initial_state=[state, state]), layer(x),
             layer(layers.Dense(3)(x)), layers.Bidirectional(layers.LSTM(2, return_state=True), None)(x)[-1]]
  model = standardize(keras.Model([x, state], outputs), recurrent="auto")
  assert FusedLSTM not in kinds(model)


def test_the_choice_is_one_of_three_and_goes_through_json():
  with pytest.raises(ValueError, match="recurrent must be one of unrolled, fused, auto, got 'both'"):
    config("both")
  assert kq.QuantConfig.from_json(config("fused").to_json()) == config("fused")
  fields = config("unrolled").to_json()
  del fields["recurrent"]
  assert kq.QuantConfig.from_json(fields).recurrent == "unrolled"


def test_rules_reach_it_by_its_name_and_by_its_kind(tmp_path):
  model = model_of(layers.LSTM(3, name="lstm"))
  for rule in (kq.Rule(match="^lstm$", weights=kq.TensorSpec(bits=4)),
               kq.Rule(kinds=("LSTM",), weights=kq.TensorSpec(bits=4))):
    result = kq.quantize(model, data_of(model), config=config("fused", rules=(rule, kq.Rule())), effort=None)
    assert result.encodings["lstm/kernel_forget"].bits == result.encodings["lstm/recurrent_output"].bits == 4
    assert result.encodings["lstm/kernel_forget"].scale.shape == (1,)  # though rules are per-channel
    assert kq.export(result, tmp_path / "m.tflite", verify=data_of(model)).verification.max_lsb <= 1


def test_activations_of_16_bits_are_refused():
  model = model_of(layers.LSTM(3, name="lstm"))
  wide = config("fused", rules=kq.QuantConfig.preset("int16x8").rules)
  with pytest.raises(UnsupportedLayerError, match="'lstm' .* takes activations of 8 bits alone"):
    kq.insert_quantizers(model, wide)
  qmodel = kq.insert_quantizers(model, dataclasses.replace(wide, recurrent="auto"))
  assert "lstm/recurrent_gates" in [layer.name for layer in qmodel.layers]


def test_inputs_whose_products_pass_the_operators_limit_are_refused_before_the_export():
  model = model_of(layers.LSTM(3))
  images = [1e6 * x for x in data_of(model)]
  with pytest.raises(ValueError, match=r"products .* below \d+, they can reach .*; scale the inputs"):
    kq.quantize(model, images, config=config("fused"), effort=None)


def test_the_cell_is_measured_and_has_a_scale_of_a_power_of_two():
  model = model_of(layers.LSTM(3, name="lstm", return_sequences=True))
  data = data_of(model)
  qmodel = kq.calibrate(kq.insert_quantizers(model, config("fused")), data)
  layer = qmodel.get_layer("lstm").layer
  largest = float(np.abs(layer.cells(data[0])).max())
  assert float(layer.cell_limit) == pytest.approx(largest, rel=1e-6)
  final, encodings = kq.finalize(qmodel)
  cell = encodings["lstm/cell"]
  assert cell.bits == 16 and np.log2(cell.scale[0]) == round(np.log2(cell.scale[0]))
  assert 2 * largest <= cell.range[1][0] * 1.001 < 4.004 * largest
  assert final.get_layer("lstm").state_grid[0] == encodings["lstm"].scale[0]


@pytest.mark.parametrize("size, named", [(0.01, True), (1.0, False)])
def test_a_layer_whose_outputs_are_finer_than_the_tables_is_named(size, named):
  model = model_of(layers.LSTM(3, name="lstm", use_bias=False))
  result = kq.quantize(model, [size * x for x in data_of(model)], config=config("fused"), effort=None)
  assert any("the operator's tanh may be off by" in edit.what for edit in result.report.edits) == named


def test_outputs_of_zeros_are_off_by_their_whole_grid_at_most():
  model = model_of(layers.LSTM(3, name="lstm", use_bias=False))
  result = kq.quantize(model, [0 * x for x in data_of(model)], config=config("fused"), effort=None)
  assert [edit for edit in result.report.edits if "may be off by 255 steps" in edit.what]


def counter(steps):
  """An LSTM of one unit whose cell adds up its input."""
  x = keras.Input((steps, 1))
  model = keras.Model(x, layers.LSTM(1, name="lstm")(x))
  model.set_weights([np.array([[0, 0, 8, 0]]), np.zeros((1, 4)), np.array([8, 8, 0, 8])])
  return model


@pytest.mark.parametrize("steps, reached", [(40, ""), (90, "88.6")])
def test_a_cell_that_passes_the_end_of_the_operator_is_named(steps, reached, caplog):
  data = np.ones((4, steps, 1), np.float32)
  for recurrent in ("auto", "fused"):
    report = kq.quantize(counter(steps), data, config=config(recurrent), effort=None).report
    found = [edit.what for edit in report.edits if "its cell reached" in edit.what]
    expected = f"its cell reached {reached}, the operator ends it at 64; use recurrent='unrolled'"
    assert found == ([expected] if reached else [])
    warned = [message for message in caplog.messages if "its cell reached" in message]
    assert len(warned) == len(found)
    caplog.clear()


def test_kernels_of_few_bits_are_named_once_a_layer():
  model = model_of(layers.LSTM(3, name="lstm"))
  narrow = dataclasses.replace(kq.QuantConfig.preset("w4a8"), recurrent="fused")
  report = kq.quantize(model, data_of(model), config=narrow, effort=None).report
  assert [edit.what for edit in report.edits if edit.what.startswith("kernel")] == [
      "kernel of 4 bits stored in int8: the operator of FusedLSTM takes no INT4 kernel"]


def test_the_finalised_layer_rounds_its_state_and_ends_where_the_operator_does():
  layer = FusedLSTM(2, state_grid=(0.25, 3))
  x = np.random.default_rng(0).normal(0, 4, (3, 6, 2)).astype(np.float32)
  layer(x)
  layer.cell_limit.assign(0.5)
  states = np.asarray(layer(x))
  np.testing.assert_array_equal(states, np.round(states / 0.25) * 0.25)
  assert np.abs(np.asarray(layer.cells(x))).max() == 0.5


def test_efforts_round_other_layers_and_correct_its_biases(tmp_path):
  model = model_of(with_head)
  data = data_of(model, 40)
  result = kq.quantize(model, data, config=config("fused"), effort="balanced")
  assert kq.export(result, tmp_path / "m.tflite", verify=[data[0][:3]], certify=True).certificate["exact"]


def test_methods_take_the_float_model_as_it_is():
  model = model_of(with_head)
  data = data_of(model)
  qmodel = kq.calibrate(kq.insert_quantizers(model, config("fused")), data)
  kq.round_weights(qmodel, model, data)
  kq.correct_bias(qmodel, model, data)
  kq.finetune(qmodel, model, data, method="qft")


def test_it_trains_and_is_saved(tmp_path):
  model = model_of(with_head)
  data = data_of(model)
  qmodel = kq.calibrate(kq.insert_quantizers(model, config("fused")), data)
  before = qmodel.get_layer("lstm").layer.recurrent_forget.numpy()
  qmodel.compile("adam", "mse")
  qmodel.fit(data[0], np.ones((16, 3)), epochs=1, verbose=0)
  assert np.any(qmodel.get_layer("lstm").layer.recurrent_forget.numpy() != before)
  for name in ("m.keras", "m.h5"):
    qmodel.save(tmp_path / name)
    loaded = keras.models.load_model(tmp_path / name)
    np.testing.assert_array_equal(loaded(data[0]), qmodel(data[0]))
    final, encodings = kq.finalize(loaded)
    written = kq.export((final, encodings), tmp_path / "m.tflite", verify=[data[0][:3]], certify=True)
    assert written.certificate["exact"]


@pytest.mark.parametrize("size", [1, 8])
def test_a_network_that_amplifies_its_rounding_is_verified_step_by_step(size, tmp_path):
  model = model_of(layers.LSTM(6, name="lstm", return_sequences=True))
  model.set_weights([size * weight for weight in model.get_weights()])  # products beyond +-8, too
  data = data_of(model)
  result = kq.quantize(model, data, config=config("fused"), effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=data, certify=True)
  assert written.certificate["exact"] and written.verification.layers["lstm"] <= 2
  data = (tmp_path / "m.tflite").read_bytes()
  result.model.get_layer("lstm").recurrent_output.assign_add(np.full((6, 6), 0.3))
  found = tflite_export.verify(data, result.model, result.encodings, images=data_of(model))
  assert "lstm: " in found.problems[0] and "LSB from the Keras layer" in found.problems[0]


def test_a_long_sequence_is_no_obstacle():
  x = keras.Input((2000, 2))
  model = keras.Model(x, layers.LSTM(2)(x))
  assert FusedLSTM in kinds(standardize(model, recurrent="auto"))
  with pytest.raises(UnsupportedLayerError, match="takes 2,000 steps"):
    kq.insert_quantizers(model)


def test_analysis_and_description_know_it():
  model = model_of(with_head)
  result = kq.quantize(model, data_of(model), config=config("fused"), effort=None)
  assert "FusedLSTM" in str(kq.describe(result.qmodel))
  assert "lstm" in str(kq.analyze(result, data_of(model)))
