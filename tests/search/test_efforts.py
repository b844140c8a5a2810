"""Efforts: what is tried, what is kept, and what the report says of it."""

import math

import numpy as np
import pytest
import tf_keras as keras

import kquant
import tflite_export
from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import Recipe
from kquant.core.records import Report, Trial
from kquant.graph.graph import Graph
from kquant.qmodel.outputs import network_outputs
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.scaling.channel_statistics import RunningChannels
from kquant.rewrites.standardize.standardize import standardize
from kquant.search import efforts, float_network
from kquant.search.efforts import effort_steps
from kquant.search.float_network import FloatNetwork
from kquant.search.trials import HeldBack, image_divergence, image_sqnr_db, paired_change
from tests import models


def folded(name):
  graph = Graph.from_model(models.build(name))
  standardize(graph)
  fold_batch_norm(graph)
  return graph


def with_effort(config, effort, graph, images, report, *, decided=None):
  """The library's with_effort on the steps of an effort."""
  return efforts.with_effort(config, effort_steps(effort, decided), FloatNetwork(graph, images), report)


def test_sqnr_of_an_image_by_hand():
  reference = np.array([[3.0, 4.0], [10.0, 0.0]])
  found = image_sqnr_db([reference + [[0.0, 0.5], [1.0, 0.0]]], [reference])
  np.testing.assert_allclose(found, [20.0, 20.0])  # 25 / 0.25, 100 / 1
  assert np.isfinite(image_sqnr_db([reference], [reference])).all()


def test_divergence_of_an_image_by_hand():
  reference, output = np.log([[[0.5, 0.5]], [[0.9, 0.1]]]), np.log([[[0.25, 0.75]], [[0.9, 0.1]]])
  found = image_divergence([output + 7.0], [reference])  # the level does not matter
  np.testing.assert_allclose(found, [0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0.0], atol=1e-12)


def test_paired_change_by_hand():
  change, error = paired_change(np.array([2.0, 4.0]), np.array([1.0, 1.0]))
  assert change == 2.0 and np.isclose(error, 1.0)  # differences 1 and 3: deviation sqrt(2), over sqrt(2)
  assert paired_change(np.array([2.0]), np.array([1.0])) == (1.0, np.inf)


def dictate(monkeypatch, *changes):
  """Lets trials find 20 dB, then (mean, half width) dB more each, on 10 images; returns graph and images."""
  found = [np.full(10, 20.0)]
  for mean, width in changes:
    found.append(found[-1] + np.linspace(mean - width, mean + width, 10))
  qualities = iter(found)
  monkeypatch.setattr(efforts, "_outputs", lambda *_: [])
  monkeypatch.setattr(HeldBack, "quality", lambda *_: next(qualities))
  return folded("mobile_block"), models.sample_inputs(models.build("mobile_block"), images=40)


RANGES_AND_JOINT = [Recipe(), Recipe(ranges="mse"), Recipe(equalize="joint")]


@pytest.mark.parametrize("ranges, joint, kept", [
    ((0.0, 1.0), (0.1, 1.0), [True, False]),  # one that brings nothing stays if it costs nothing
    ((-0.3, 1.0), (0.4, 1.0), [True, True]),  # the standard error is 0.21 dB
    ((-0.3, 1.0), (0.25, 1.0), [False, False]),  # each holds, together they are worse than fast
    ((-0.5, 1.0), (0.1, 1.0), [False, False])])
def test_steps_are_kept_by_their_error_and_their_cost(ranges, joint, kept, monkeypatch):
  graph, inputs = dictate(monkeypatch, ranges, joint)
  report = Report()
  efforts.with_effort(QuantConfig(), RANGES_AND_JOINT, FloatNetwork(graph, inputs), report)
  assert [trial.kept for trial in report.trials] == kept


@pytest.mark.parametrize("enough, kept, rounding", [
    (19.0, [], "nearest"), (22.9, [True], "nearest"), (24.0, [True, True], "nearest"),
    (30.0, [True, True], "judged"), (math.inf, [True, True], "judged")])
def test_nothing_is_tried_or_added_beyond_enough(enough, kept, rounding, monkeypatch):
  graph, inputs = dictate(monkeypatch, (3.0, 1.0), (2.0, 1.0))
  report = Report()
  network, steps = FloatNetwork(graph, inputs), [*RANGES_AND_JOINT, Recipe(rounding="judged")]
  config = efforts.with_effort(QuantConfig(), steps, network, report, enough=enough)
  assert [trial.kept for trial in report.trials] == kept and config.recipe.rounding == rounding


def test_where_enough_is_named_a_method_must_gain(monkeypatch):
  graph, inputs = dictate(monkeypatch, (0.1, 1.0), (0.1, 1.0))
  report = Report()
  efforts.with_effort(QuantConfig(), RANGES_AND_JOINT, FloatNetwork(graph, inputs), report, enough=90)
  assert [trial.kept for trial in report.trials] == [False, False]


@pytest.mark.parametrize("preset, rounding", [("int8", "nearest"), ("w4a8", "judged")])
def test_scaling_is_tried_on_rounded_weights_below_8_bits_alone(preset, rounding, monkeypatch):
  graph, inputs = dictate(monkeypatch, (3.0, 1.0))
  report, tried = Report(), []
  monkeypatch.setattr(efforts, "_outputs", lambda config, *_: tried.append(config.recipe.rounding))
  config = with_effort(QuantConfig.preset(preset), "balanced", graph, inputs, report)
  assert [(trial.method, trial.kept) for trial in report.trials] == [("joint", True)]
  assert tried == [rounding] * 2
  assert (config.recipe.equalize, config.recipe.rounding) == ("joint", "judged")


def test_a_step_that_does_harm_is_left_out(monkeypatch):
  graph, inputs = dictate(monkeypatch, (-9.0, 1.0))
  report = Report()
  config = with_effort(QuantConfig.preset("w4a8"), "best", graph, inputs, report)
  assert config.recipe == Recipe("none", "judged", "iterative", "qft", "minmax")
  assert [(trial.method, trial.kept) for trial in report.trials] == [("joint", False)]
  (harmful,) = report.trials
  assert (harmful.images, harmful.unit) == (10, "dB") and np.isclose(harmful.change, -9.0)
  assert "-9.00 dB" in str(harmful) and "10 held-back images" in str(harmful)
  assert report.to_json()["trials"][0]["kept"] is False and "left out" in str(report)


def test_scaling_is_found_on_all_images_each_of_which_is_measured_once(monkeypatch):
  seen, scaled_on, absorb = [], [], RunningChannels.absorb
  monkeypatch.setattr(RunningChannels, "absorb", lambda self, images: (
      seen.append(images[0]), absorb(self, images))[1])
  monkeypatch.setattr(float_network, "equalize", lambda graph, *, statistics, **more: scaled_on.append(
      statistics.images))
  monkeypatch.setattr(HeldBack, "try_change", lambda self, method, change, before, **more: (
      Trial(method, True, 10), (change(), before)[1]))
  model = models.build("mobile_block")
  inputs = models.sample_inputs(model, images=40)
  kquant.quantize(model, inputs, effort="balanced")
  assert [len(images) for images in seen] == [30, 10] and scaled_on == [30, 40]
  assert {image.tobytes() for images in seen for image in images} == {image.tobytes() for image in inputs[0]}


def test_a_scaling_is_the_same_when_it_is_made_again():
  images = models.sample_inputs(models.build("mobile_block"), images=80)
  network, config = FloatNetwork(folded("mobile_block"), images), QuantConfig().following(Recipe("joint"))
  first, second, fresh = (source.scaled(config, Report()) for source in (
      network, network, FloatNetwork(network.graph, images)))
  for a, b, c in zip(first.layers, second.layers, fresh.layers):
    for name, values in a.params.items():
      np.testing.assert_array_equal(values, b.params[name])
      np.testing.assert_array_equal(values, c.params[name])


def test_what_the_user_says_stays():
  graph, inputs = folded("mobile_block"), models.sample_inputs(models.build("mobile_block"), images=8)
  decided = Recipe(bias="local", equalize="none")
  config = with_effort(QuantConfig(), "balanced", graph, inputs, Report(), decided=decided)
  assert config.recipe == Recipe("none", "judged", "local", "none", "minmax")


def test_few_images_keep_every_step_and_say_so():
  graph, inputs = folded("mobile_block"), models.sample_inputs(models.build("mobile_block"), images=8)
  report = Report()
  assert with_effort(QuantConfig(), "balanced", graph, inputs, report).recipe.equalize == "joint"
  assert report.trials[0].change is None and "8 images are too few" in str(report.trials[0])


def test_the_graph_is_not_changed_by_trying():
  graph, inputs = folded("mobile_block"), models.sample_inputs(models.build("mobile_block"), images=40)
  before = network_outputs(graph.to_model(), inputs)
  kernels = {node.name: node.layer.params for node in graph.nodes}
  with_effort(QuantConfig.preset("w4a8"), "balanced", graph, inputs, Report())
  assert all(node.layer.params is kernels[node.name] for node in graph.nodes)
  np.testing.assert_array_equal(network_outputs(graph.to_model(), inputs)[0], before[0])


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("config", ["int8", "w4a8"])
def test_efforts_end_in_exact_files(effort, config, tmp_path):
  model = models.build("mobile_block")
  inputs = models.sample_inputs(model, images=48)
  result = kquant.quantize(model, inputs, config=config, effort=effort)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=[inputs[0][:2]], certify=True)
  assert written.verification.max_lsb <= 1
  assert [trial.method for trial in result.report.trials] == ([] if effort == "fast" else ["joint"])


def test_unknown_efforts_and_missing_images_are_refused():
  model = models.build("mobile_block")
  inputs = models.sample_inputs(model, images=4)
  with pytest.raises(ValueError, match="effort must be one of auto, .*, best, or None, got 'more'"):
    kquant.quantize(model, inputs, effort="more")
  with pytest.raises(ValueError, match="need calibration images"):
    kquant.quantize(model, kquant.InputRange(-1, 1), effort="fast")


def test_each_scaling_is_found_and_calibrated_once(monkeypatch):
  graph, inputs = folded("mobile_block"), models.sample_inputs(models.build("mobile_block"), images=40)
  found, calibrated = [], efforts.Calibrated
  monkeypatch.setattr(efforts, "Calibrated", lambda graph, config, *rest: (
      found.append(config.recipe.equalize), calibrated(graph, config, *rest))[1])
  with_effort(QuantConfig.preset("w4a8"), "balanced", graph, inputs, Report())
  assert found == ["none", "joint"]


def test_trials_quantize_on_a_part_and_judge_on_others(monkeypatch):
  graph = folded("mobile_block")
  inputs = models.sample_inputs(models.build("mobile_block"), images=120)
  seen, judged, calibrated = [], [], efforts.Calibrated
  monkeypatch.setattr(efforts, "Calibrated", lambda graph, config, images, report: (
      seen.append(images[0]), calibrated(graph, config, images, report))[1])

  def watched(model, images, **more):
    judged.append(images[0])
    return network_outputs(model, images, **more)

  monkeypatch.setattr(efforts, "network_outputs", watched)
  with_effort(QuantConfig.preset("w4a8"), "balanced", graph, inputs, Report())
  assert [len(x) for x in seen] == [64] * 2 and [len(x) for x in judged] == [30] * 3
  both = {x.tobytes() for x in seen[0]} & {x.tobytes() for x in judged[0]}
  assert not both and all((x == seen[0]).all() for x in seen)


def test_outputs_of_a_quantized_model_without_softmax_are_rounded():
  x = keras.Input((4,))
  model = keras.Model(x, keras.layers.Dense(3, name="dense")(x))
  inputs = [np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)]
  qmodel = kquant.calibrate(kquant.insert_quantizers(model), inputs)
  (found,) = network_outputs(qmodel, inputs)
  np.testing.assert_allclose(found, qmodel.predict(inputs[0], verbose=0), atol=1e-6)


def test_outputs_are_taken_before_the_softmax():
  model = models.build("mobile_block")
  inputs = models.sample_inputs(model, images=4)
  (found,) = network_outputs(model, inputs)
  probe = keras.Model(model.input, model.get_layer("logits").output)
  np.testing.assert_allclose(found, probe.predict(inputs[0], verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("effort", [None, "fast", "balanced"])
def test_the_model_is_read_once(effort, monkeypatch):
  """From the user's model to the file one graph goes along; what is made of it is not read again."""
  model = models.build("mobile_block")
  read, from_model = [], Graph.from_model

  def watched(model, **more):
    read.append(model)
    return from_model(model, **more)

  monkeypatch.setattr(Graph, "from_model", watched)
  result = kquant.quantize(model, models.sample_inputs(model, images=40), config="w4a8", effort=effort)
  assert len(result.report.trials) == (1 if effort == "balanced" else 0)
  assert len(read) == 1 and read[0] is model
