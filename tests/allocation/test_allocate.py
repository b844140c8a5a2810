"""allocate_bits end to end: files within their budgets, plans as they were predicted, errors in words."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from kquant.allocation import prices as prices_module
from kquant.allocation.choices import Plan
from kquant.allocation.latency import LatencyTable, measure_latency
from kquant.allocation.prices import Prices
from kquant.allocation.rounded import rounded_layers
from kquant.allocation.sensitivities import Subject, Widths, measured_noises, priced_choices
from kquant.core.records import Report, Trial
from kquant.core.target import LITERT
from kquant.core.tensor_spec import at_bits
from kquant.doctor import files
from kquant.doctor.patient import Patient, result_of
from kquant.doctor.rules import with_specs
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import read
from tests import models

NEAREST = kq.QuantConfig()


def zoo(name, images=48):
  """Returns (a model of the tiny zoo, its inputs); the same ones whatever ran before."""
  keras.utils.set_random_seed(0)
  model = models.randomized(getattr(models, name)())
  return model, models.sample_inputs(model, images)


@pytest.fixture(scope="module")
def block():
  return zoo("mobile_block")


@pytest.fixture(scope="module")
def allocation(block):
  return kq.allocate_bits(*block, budget=0.95)


def test_the_file_is_within_the_budget_and_certified(block, allocation, tmp_path):
  model, images = block
  result = kq.quantize(model, images, config=allocation.config)
  few = [array[:2] for array in images]
  exported = kq.export(result, tmp_path / "model.tflite", verify=few, certify=True)
  assert exported.bytes == allocation.bytes <= allocation.budget.bytes


def test_each_layer_and_grid_has_the_bits_of_its_row(block, allocation):
  grids = kq.quantize(*block, config=allocation.config, effort=None).encodings.grids
  for row in allocation.rows:
    key = f"{row.name}/kernel" if row.part == "weights" else row.name
    read = f"{key}/to_{row.bits}_bits"  # where its operator computes in 16 bits
    assert grids.get(read, grids[key]).bits == row.bits, row
  assert {row.bits for row in allocation.rows} > {8}


@pytest.mark.parametrize("name", ["convolutions", "functions", "rearranged"])
def test_every_plan_reaches_its_layers(name):
  """Parts of a layer with an activation of its own have other bits than the layer, whatever a plan says."""
  model, images = zoo(name, images=4)
  patient = Patient(FloatNetwork(read(model, NEAREST), images), NEAREST, Report())
  subject, rng = Subject(patient, Widths((2, 4, 8), (8, 16))), np.random.default_rng(0)
  plan = Plan(tuple(rng.choice((2, 4, 8), len(subject.layers)).tolist()),
              tuple(int(rng.choice(subject.grid_widths(grid))) for grid in subject.grids))
  config = with_specs(NEAREST, subject.changes(plan))
  encodings = kq.quantize(model, images, config=config, effort=None).encodings
  for site, bits in zip(subject.layers, plan.weights):
    assert encodings[f"{site.name}/kernel"].bits == bits, site.name
  for site, bits in zip(subject.grids, plan.activations):
    rounded = f"{site.name}/to_8_bits"  # an operator that computes in 16 bits is rounded behind it
    assert encodings[rounded if rounded in encodings else site.name].bits == bits, site.name


def test_numbers_that_are_not_finite_are_null_in_json(allocation):
  trial = Trial("refit", False, 12, np.nan, np.inf, "dB", 0.1)
  body = dataclasses.replace(allocation, trial=trial).to_json()
  assert body["trial"]["change"] is body["trial"]["error"] is None
  json.dumps(body, allow_nan=False)


def test_rules_are_exact_names(block, allocation):
  *rules, last = allocation.config.rules
  assert "^stem$" in {rule.match for rule in rules} and last.match == ""
  assert kq.QuantConfig.from_json(json.loads(json.dumps(allocation.to_json()))["config"]) == allocation.config


def test_prediction_and_refit(allocation):
  (predicted, measured), (refitted, measured_again) = allocation.predictions
  assert 0.5 < predicted / measured < 2 and 0.85 < refitted / measured_again < 1.18


def test_the_curve_rises_and_is_not_below_uniform_widths(allocation):
  points = sorted(allocation.curve, key=lambda point: point.bytes)
  levels = [point.sqnr_db for point in points]
  assert len(points) > 4 and all(b > a - 0.01 for a, b in zip(levels, levels[1:]))
  for point in allocation.uniform:
    best = max(other.sqnr_db for other in points if other.bytes <= point.bytes)
    assert best > point.sqnr_db - 0.5
  assert "w4a8" in allocation.curve_table() and allocation.plot().axes


def test_no_plan_of_the_proxy_is_above_the_curve(allocation):
  """Both are predicted by the same measured noise."""
  assert len(allocation.proxy) > 2 and "hawq" in allocation.curve_table()
  points = sorted(allocation.curve, key=lambda point: point.bytes)
  for point in allocation.proxy:
    above = next((other for other in points if other.bytes >= point.bytes), points[-1])
    assert point.sqnr_db < above.sqnr_db + 0.01


def test_a_network_without_derivatives_is_refused(block, monkeypatch):
  def refuses(*_, **__):
    raise LookupError("gradient registry has no entry for: Odd")

  monkeypatch.setattr(tf.GradientTape, "gradient", refuses)
  with pytest.raises(kq.UnsupportedLayerError, match="operators with derivatives, got .*entry for: Odd"):
    kq.allocate_bits(*block, budget=0.95, weights=(4, 8), activations=(8,))


def test_a_budget_of_bit_operations():
  model, images = zoo("branches")
  found = kq.allocate_bits(model, images, budget=kq.Budget(bops=2.9e6, bytes=6e3), weights=(2, 4, 8),
                           activations=(8,))
  assert found.bops <= 2.9e6 and found.bytes <= 6e3
  assert {row.bits for row in found.rows if row.part == "activation"} == {8}


def test_sixteen_bits_go_where_they_help_most(tmp_path):
  """Activations make most of the noise of 8-bit weights: with bytes to spare they get 16."""
  model, images = zoo("mobile_block")
  found = kq.allocate_bits(model, images, budget=1.2)
  assert 16 in {row.bits for row in found.rows}
  result = kq.quantize(model, images, config=found.config)
  few = [array[:2] for array in images]
  exported = kq.export(result, tmp_path / "model.tflite", verify=few, certify=True)
  assert exported.bytes <= found.budget.bytes


def test_a_table_of_sixteen_bits_is_left_out_where_it_does_not_fit():
  """ELU of 16 bits takes a table of 128 KB, which no prediction knows."""
  x = keras.Input((12,))
  y = keras.layers.Dense(8, name="first")(x)
  y = keras.layers.Dense(4, name="last")(keras.layers.Activation("elu", name="elu")(y))
  model = keras.Model(x, y)
  images = np.random.default_rng(0).normal(size=(32, 12)).astype(np.float32)
  found = kq.allocate_bits(model, images, budget=1.5)
  assert found.bytes <= found.budget.bytes < 10_000


def test_compressed_bytes_tell_five_bits_from_eight(block, allocation):
  compressed = kq.allocate_bits(*block, budget=kq.Budget(bytes=9e5, storage="entropy"), weights=(5, 6, 8),
                                activations=(8,))
  file, entropy = ({point.label: point.bytes for point in each.uniform} for each in (allocation, compressed))
  assert file["w5a8"] == file["w8a8"] and entropy["w5a8"] < entropy["w6a8"] < entropy["w8a8"]


def test_training_starts_from_an_allocation(block, allocation):
  model, _ = block
  qmodel = kq.insert_quantizers(model, allocation.config.for_training(), batch_norm="train")
  widths = {row.layer: row.weights[0].bits for row in kq.describe(qmodel).rows if row.weights}
  assert widths == {row.name: row.bits for row in allocation.rows if row.part == "weights"}


def test_noise_of_a_width_is_that_of_the_analysis(block):
  model, images = block
  at_four = kq.QuantConfig(rules=(kq.Rule(weights=at_bits(kq.Rule().weights, 4)),))
  analysis = kq.analyze(kq.quantize(model, images, config=at_four, effort=None), images)
  patient = Patient(FloatNetwork(read(model, NEAREST), images), NEAREST, Report())
  subject = Subject(patient, Widths((4,), (8,)))
  file = files.contents(result_of(patient.calibrated, NEAREST, Report()))
  prices = Prices(kq.Budget(bytes=1), LITERT, {"base": file})
  rounded = rounded_layers(patient, images, (4,))
  choices = priced_choices(subject, rounded, measured_noises(subject, rounded, images), prices)
  rows = {(row.part, row.name): row.solo for row in analysis.rows}
  for layer in choices.layers:
    assert layer.noise[0] == pytest.approx(rows["weights", layer.name], rel=0.3), layer.name
  for grid in choices.grids:
    assert grid.noise[0] == pytest.approx(rows["activation", grid.name], rel=0.3), grid.name


def test_a_model_without_weights_is_refused():
  model = keras.Sequential([keras.layers.ReLU(input_shape=(4,))])
  with pytest.raises(ValueError, match="expected a model whose layers have weights"):
    kq.allocate_bits(model, np.ones((16, 4), np.float32), budget=0.9)


def test_a_budget_that_cannot_be_met_says_the_least(block):
  with pytest.raises(ValueError, match=r"expected 4,784 bytes or more, .* got 1,000 bytes\. Raise it"):
    kq.allocate_bits(*block, budget=kq.Budget(bytes=1000), activations=(8,))


@pytest.mark.parametrize("change, message", [
    ({"weights": (4, 9)}, r"weights must be some of 2, 3, 4, 5, 6, 7, 8, .* got \(4, 9\)"),
    ({"activations": (4,)}, r"activations must be some of 8, 16"), ({"weights": ()}, r"got \(\)"),
    ({"config": kq.QuantConfig(recipe=kq.Recipe(finetune="bft"))}, "without fine-tuning"),
    ({"budget": 0.0}, "bytes must be above 0"), ({"budget": 6500}, r"give kq.Budget\(bytes=6500\)\.$"),
    ({"images": 8}, "expected 16 images or more, got 8")])
def test_what_is_asked_for_is_checked(block, change, message):
  model, images = block
  images = [array[:change.pop("images", 48)] for array in images]
  with pytest.raises(ValueError, match=message):
    kq.allocate_bits(model, images, **{"budget": 0.9, **change})


@pytest.mark.parametrize("limits, message", [({}, "expected a limit"), ({"bytes": -1}, "above 0, got -1"),
                                             ({"bytes": 1, "storage": "zip"}, "storage must be one of")])
def test_a_budget_is_checked(limits, message):
  with pytest.raises(ValueError, match=message):
    kq.Budget(**limits)


@pytest.fixture
def known_latencies(monkeypatch):
  """INT4 kernels take 2 ms, operators over 16 bits 3, all others 1, as on no machine."""
  def timed(files, *, table=None):
    keys = measure_latency(files, runs=1).milliseconds
    return LatencyTable({key: 3.0 if "int16" in key else 2.0 if "int4" in key else 1.0 for key in keys})

  monkeypatch.setattr(prices_module, "measure_latency", timed)


def test_a_budget_of_latency_keeps_what_is_slow_out(block, known_latencies):
  """At the latency of int8 there are no INT4 kernels and no 16-bit activations; with more there are."""
  least = 9.0  # operators of the int8 file
  found = kq.allocate_bits(*block, budget=kq.Budget(latency_ms=least))
  assert found.latency_ms == least and {row.bits for row in found.rows} == {8}
  found = kq.allocate_bits(*block, budget=kq.Budget(latency_ms=least + 10), weights=(4, 8))
  assert least < found.latency_ms <= least + 10 and 16 in {row.bits for row in found.rows}
  with pytest.raises(ValueError, match="expected 9 ms or more, .* got 8 ms"):
    kq.allocate_bits(*block, budget=kq.Budget(latency_ms=8))


def test_latency_is_measured_where_no_table_is_given(block):
  found = kq.allocate_bits(*block, budget=kq.Budget(latency_ms=1e6), weights=(8,), activations=(8,))
  again = kq.Budget(latency_ms=1e6, latencies=found.budget.latencies)  # nothing is timed anew
  known = kq.allocate_bits(*block, budget=again, weights=(8,), activations=(8,))
  assert known.latency_ms == found.latency_ms and known.budget.latencies == found.budget.latencies
  assert found.latency_ms > 0 and "ms" in found.summary() and found.to_json()["budget"]["latencies"] is None
