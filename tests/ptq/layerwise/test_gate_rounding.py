"""Rounding of a fused LSTM: better than nearest, by what all steps read, exact in the file."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.allocation.rounded import rounded_layers
from kquant.core.records import Report
from kquant.doctor.patient import Patient
from kquant.graph.fused_lstm import GATES, one_step_later
from kquant.graph.graph import Graph
from kquant.ptq.layerwise import rounding
from kquant.ptq.layerwise.bias_correction import correct_bias, linear_params
from kquant.ptq.layerwise.gate_rounding import _rounded_parts
from kquant.ptq.layerwise.input_moments import merged, moments_of_steps
from kquant.ptq.layerwise.layer_rounding import round_weights
from kquant.ptq.layerwise.rounding import RoundingProblem
from kquant.ptq.layerwise.streaming import layer_turns
from kquant.qmodel.calibrate import observe
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import read

STEPS, FEATURES, UNITS = 8, 4, 6


def sequences(count, seed=0):
  """Walks of few directions: features, and steps one behind the other, depend on each other."""
  rng = np.random.default_rng(seed)
  mixed = rng.normal(size=(count, STEPS, 2)) @ np.random.default_rng(9).normal(size=(2, FEATURES))
  return (np.cumsum(mixed, 1) / 3 + 0.3 + 0.1 * rng.normal(size=mixed.shape)).astype(np.float32)


def prepared(preset="w4a8", *, both=False):
  """(float model, calibrated qmodel, sequences) of an LSTM that returns all states."""
  keras.utils.set_random_seed(1)
  lstm = layers.LSTM(UNITS, name="lstm", return_sequences=True)
  x = keras.Input((STEPS, FEATURES))
  model = keras.Model(x, layers.Bidirectional(lstm)(x) if both else lstm(x))
  config = dataclasses.replace(kq.QuantConfig.preset(preset), recurrent="fused")
  return model, kq.calibrate(kq.insert_quantizers(model, config), sequences(96)), sequences(96)


def turn_of(model, qmodel, x):
  params = linear_params(kq.standardize(Graph.from_model(model), recurrent="fused"))
  return params["lstm"], next(layer_turns(qmodel, [x], float_params=params))


@pytest.mark.parametrize("method, share", [("closed_form", 0.5), ("adaround", 0.8)])
def test_rounding_beats_nearest_with_the_same_bias_correction(method, share):
  errors, fresh = {}, sequences(96, seed=3)
  for name in ("nearest", method):
    model, qmodel, x = prepared()
    if name == "nearest":
      correct_bias(qmodel, model, x)
    else:
      round_weights(qmodel, model, x, method=name)
    errors[name] = np.square(qmodel.predict(fresh, verbose=0) - model.predict(fresh, verbose=0)).sum()
  assert errors[method] < share * errors["nearest"]


@pytest.mark.parametrize("preset", ["w4a8", "int8"])
def test_rounded_layers_lie_on_their_grids_and_are_exact_in_the_file(preset, tmp_path):
  model, _, x = prepared(both=True)
  config = dataclasses.replace(kq.QuantConfig.preset(preset), recurrent="fused")
  result = kq.quantize(model, x, config=config, effort="balanced")
  assert not [skip for skip in result.report.skips if skip.pass_name == "round_weights"]
  for layer in ("forward_lstm", "backward_lstm"):
    wrapper = next(each for each in result.qmodel.layers if each.name.endswith(layer.split("_")[0]))
    for name, grid in wrapper.weight_encodings().items():
      kernel = getattr(wrapper.layer, name).numpy()
      np.testing.assert_array_equal(grid.dequantize(grid.quantize(kernel)), kernel)
  written = kq.export(result, tmp_path / "m.tflite", verify=[x[:3]], certify=True)
  assert written.certificate["exact"] and written.verification.max_lsb <= 1


def test_moments_are_those_of_inputs_and_of_the_states_before():
  model, qmodel, x = prepared()
  _, turn = turn_of(model, qmodel, x)
  own = np.concatenate(list(turn.inputs()))
  states = model.predict(own, verbose=0)
  read = np.concatenate([own, np.concatenate([0 * states[:, :1], states[:, :-1]], 1)], -1)
  halves = moments_of_steps(turn)
  for half, part in zip(halves, np.split(read.reshape(-1, FEATURES + UNITS).astype(np.float64), 2)):
    np.testing.assert_allclose(half.gram[0], np.cov(part.T, bias=True), atol=1e-4)
  assert merged(halves).rows == 96 * STEPS


def test_two_parts_are_rounded_as_one_problem_on_two_scales():
  """By hand: inputs 0 and 1 are the same but for their parts' scales, so that 1 makes up for 0."""
  gram = np.ones((1, 2, 2)) + 1e-6 * np.eye(2)
  problem = RoundingProblem(np.array([[[0.0, 1.0, 0.4], [0.01, 0.0, 0.002]]]), gram, 127)
  (first, scale), (second, fine) = _rounded_parts(problem, 1, "closed_form")
  assert scale > 50 * fine  # each part keeps a scale of its own
  error = (first * scale)[0] + (second * fine)[0] - problem.kernel[0].sum(0)
  assert np.abs(error).max() < fine  # what 0 does wrong, 1 undoes in its finer steps


def test_parts_of_any_scales_beat_nearest_on_their_own_scales():
  errors = np.zeros(2)
  for seed in range(8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 7)) @ rng.normal(size=(7, 7))
    kernel = rng.normal(size=(1, 7, 5)) * np.repeat([1, 0.05], [3, 4])[None, :, None]
    problem = RoundingProblem(kernel, (x.T @ x / 200)[None], 7)
    found = _rounded_parts(problem, 3, "closed_form")
    nearest = []
    for cut in (slice(3), slice(3, None)):
      scale = np.abs(kernel[:, cut]).max() / 7
      nearest.append((rounding.nearest(kernel[0, cut], scale, 7), scale))
    errors += [problem.output_error(np.concatenate([q * scale for q, scale in parts])[None], 1).sum()
               for parts in (found, nearest)]
  assert errors[0] < 0.5 * errors[1]


def test_biases_take_out_the_mean_error_of_both_kernels():
  model, qmodel, x = prepared()
  params, _ = turn_of(model, qmodel, x)
  statistics = observe(qmodel, x)
  states = one_step_later(tf.constant(model.predict(x, verbose=0))).numpy()
  np.testing.assert_allclose(statistics.state_means["lstm"], states.mean((0, 1)), atol=1e-5)
  correct_bias(qmodel, model, x, method="iterative")  # locally, too
  layer, grids = qmodel.get_layer("lstm").layer, qmodel.get_layer("lstm").weight_encodings()
  for gate in GATES:
    shift = 0.0
    for name, mean in ((f"kernel_{gate}", x.mean((0, 1))), (f"recurrent_{gate}", states.mean((0, 1)))):
      shift += mean @ (grids[name].dequantize(grids[name].quantize(params[name])) - params[name])
    found = getattr(layer, f"bias_{gate}").numpy() - params[f"bias_{gate}"]
    np.testing.assert_allclose(found, -shift, atol=1e-5)
    assert np.abs(shift).max() > 1e-4


def test_allocation_measures_gates_as_they_will_be_rounded():
  model, _, x = prepared()
  config = kq.QuantConfig(recurrent="fused", recipe=kq.Recipe(rounding="closed_form"))
  patient = Patient(FloatNetwork(read(model, config), [x]), config, Report())
  found = rounded_layers(patient, [x], (4,))["lstm"][4]
  four = dataclasses.replace(kq.QuantConfig.preset("w4a8"), recurrent="fused")
  wrapper = kq.quantize(model, x, config=four, effort=None).qmodel.get_layer("lstm")
  nearest = {name: grid.quantize(wrapper.weight_values()[name]) for name, grid in
             wrapper.weight_encodings().items()}
  assert found.integers.keys() == nearest.keys() and len(nearest) == 8
  for name, integers in found.integers.items():
    assert np.abs(integers).max() <= 7 and np.any(integers != nearest[name])
