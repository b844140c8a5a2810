"""Equalization: hand-worked scales, the function of the network, the rules of Meller et al. and the guard."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from kquant.core.quant_config import QuantConfig
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.graph.passes import rewrite
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.scaling.channel_statistics import measure_channels
from kquant.rewrites.scaling.equalization_rules import (
  LARGEST_SCALE,
  kernel_extent,
  one_step,
  pairwise,
  two_step,
)
from kquant.rewrites.scaling.equalize import METHODS, equalize
from kquant.rewrites.scaling.noise_model import noise_model
from kquant.rewrites.scaling.scale_groups import scale_channels, scale_groups
from kquant.rewrites.standardize.standardize import standardize
from tests import models

IMAGE = (8, 8, 3)


def prepared(model):
  graph = Graph.from_model(model)
  standardize(graph)
  fold_batch_norm(graph)
  return graph


def chain(first, second, cap=None):
  """image [.., I] -> 1x1 conv `first` [I, C] -> ReLU -> 1x1 conv `second` [C, O], no biases."""
  first, second = np.float32(first), np.float32(second)
  image = keras.Input((4, 4, first.shape[0]))
  x = layers.Conv2D(first.shape[1], 1, name="first")(image)
  x = layers.Conv2D(second.shape[1], 1, name="second")(layers.ReLU(cap, name="relu")(x))
  model = keras.Model(image, x)
  model.get_layer("first").set_weights([first[None, None], np.zeros(first.shape[1])])
  model.get_layer("second").set_weights([second[None, None], np.zeros(second.shape[1])])
  return model


def uneven(seed=0, channels=16, cap=6.0, residual=True):
  """A network whose channels differ by orders of magnitude: per-tensor grids lose it."""
  keras.utils.set_random_seed(seed)
  image = keras.Input(IMAGE)
  x = layers.ReLU(cap)(layers.Conv2D(channels, 3, padding="same", name="stem")(image))
  x = layers.ReLU(cap)(layers.DepthwiseConv2D(3, padding="same", name="dw")(x))
  short = layers.Conv2D(channels, 1, name="pw")(x)
  x = layers.ReLU(cap)(layers.Conv2D(2 * channels, 1, name="expand")(short))
  x = layers.Conv2D(channels, 1, name="project")(x)
  x = layers.Add()([short, x]) if residual else x
  model = keras.Model(image, layers.Dense(5, name="out")(layers.GlobalAveragePooling2D()(x)))
  rng = np.random.default_rng(seed)
  for name in ("stem", "dw", "pw", "expand", "project"):
    kernel, bias = model.get_layer(name).get_weights()
    shape = kernel.shape[-2:-1] if name == "dw" else kernel.shape[-1:]
    scale = np.exp(rng.normal(0, 1.2, shape))
    kernel = kernel * (scale[:, None] if name == "dw" else scale)
    model.get_layer(name).set_weights([kernel, rng.normal(0, 0.3, bias.shape)])
  return model


def images(model, count=64, seed=1):
  return models.sample_inputs(model, images=count, seed=seed)[0]


def largest(graph, name):
  (node,) = (node for node in graph.nodes if node.name == name)
  return np.abs(node.layer.params[node.facts.kernel.name]).max()


def group_of(graph, groups, name):
  (node,) = (node for node in graph.nodes if node.name == name)
  return groups.index[Ref(node)]


# --- by hand ------------------------------------------------------------------------------------------


def test_pairwise_by_hand():
  graph = prepared(chain([[1.0, 4.0]], [[9.0], [1.0]]))
  groups = scale_groups(graph)
  scale = np.exp(pairwise(graph, groups))[group_of(graph, groups, "first")]
  np.testing.assert_allclose(scale, [np.sqrt(9 / 1), np.sqrt(1 / 4)], rtol=1e-6)


def test_pairwise_makes_the_extents_of_a_triple_equal():
  model = uneven(cap=None)
  graph = prepared(model)
  groups = scale_groups(graph)
  t = pairwise(graph, groups, sweeps=200)
  extents = {node.name: kernel_extent(node, groups) for node in graph.nodes if node.facts.role == "linear"}
  made = extents["stem"].by_group(t, extents["stem"].outputs, groups.count)
  read = extents["dw"].by_group(t, extents["dw"].inputs, groups.count)
  ids = group_of(graph, groups, "stem")
  np.testing.assert_allclose(made[ids], read[ids], rtol=2e-3)


def test_one_step_by_hand():
  graph = prepared(chain([[1.0, 4.0, 0.1]], [[1.0], [1.0], [1.0]]))
  groups = scale_groups(graph)
  scale = np.exp(one_step(graph, groups, None))[group_of(graph, groups, "first")]
  np.testing.assert_allclose(scale, [4.0, 1.0, 40.0], rtol=1e-6)


def test_one_step_stops_at_the_activation_and_at_the_cap_of_16():
  model = chain([[1.0, 4.0, 0.1]], [[1.0], [1.0], [1.0]])
  graph = prepared(model)
  statistics = measure_channels(graph, np.linspace(0, 1, 8 * 16, dtype=np.float32).reshape(8, 4, 4, 1))
  groups = scale_groups(graph)
  scale = np.exp(one_step(graph, groups, statistics))[group_of(graph, groups, "first")]
  np.testing.assert_allclose(scale, [4.0, 1.0, LARGEST_SCALE], rtol=1e-5)


def test_two_step_by_hand():
  """Channel 1 dominates but its reader has headroom: 0.25. k' = max(1, 4 / 4) = 1."""
  graph = prepared(chain([[1.0, 4.0]], [[1.0], [0.25]]))
  groups = scale_groups(graph)
  scale = np.exp(two_step(graph, groups, None))[group_of(graph, groups, "first")]
  np.testing.assert_allclose(scale, [1.0, 0.25], rtol=1e-6)


def test_noise_of_one_layer_by_hand():
  """y = w x: a per-tensor 8-bit step of max|w| / 127 and inputs of variance v give step^2 / 12 v each."""
  model = chain([[1.0, 0.5]], [[1.0], [1.0]])
  graph = prepared(model)
  x = np.random.default_rng(0).normal(0, 1, (256, 4, 4, 1)).astype(np.float32)
  statistics = measure_channels(graph, x, gains=True, batch_size=1)
  (first,) = (node for node in graph.nodes if node.name == "first")
  # d out / d w_j = x where relu lets it pass, at each of 16 positions; its mean is 0
  passed = (x > 0) * x
  expected = (passed**2).mean() * 16
  gain = statistics.weight_gain[first.layer].reshape(-1)
  np.testing.assert_allclose(gain, expected, rtol=0.35)
  assert np.isclose(statistics.gain[Ref(first)][0], 16 * (x > 0).mean(), rtol=0.2)


def test_the_slope_of_the_noise_is_its_derivative():
  model = uneven()
  graph = prepared(model)
  statistics = measure_channels(graph, images(model), gains=True)
  groups = scale_groups(graph)
  rng = np.random.default_rng(0)
  for preset in ("int8", "int8_per_tensor"):
    noise = noise_model(graph, groups, statistics, QuantConfig.preset(preset))
    t = np.where(groups.free, rng.normal(0, 0.4, groups.count), 0)
    direction = np.where(groups.free, rng.normal(0, 1, groups.count), 0)
    _, slope = noise.value_and_slope(t)
    measured = (noise(t + 1e-5 * direction) - noise(t - 1e-5 * direction)) / 2e-5
    assert np.isclose(slope @ direction, measured, rtol=1e-5)


# --- rules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cap", [None, 6.0])
def test_the_function_stays(method, cap):
  model = uneven(cap=cap)
  x = images(model)
  scaled = equalize(method=method, calibration=x, guard=False)
  rewritten = rewrite(model, [standardize, fold_batch_norm, scaled])
  fresh = images(model, seed=2) * 3
  before, after = model.predict(fresh, verbose=0), rewritten.predict(fresh, verbose=0)
  assert np.abs(before - after).max() <= 2e-5 * np.abs(before).max()


def test_calibrated_caps_keep_the_function_on_the_data_and_add_no_layer():
  model = uneven()
  x = images(model)
  graph = prepared(model)
  equalize(graph, method="joint", calibration=x, cap="calibrated")
  assert not graph.find("CappedReLU")
  before, after = model.predict(x, verbose=0), graph.to_model().predict(x, verbose=0)
  assert np.abs(before - after).max() <= 2e-5 * np.abs(before).max()


@pytest.mark.parametrize("cap", ["drop", "range"])
def test_dropped_caps_change_the_function(cap):
  model = uneven()
  for name in ("stem", "dw"):  # so that caps are reached
    layer = model.get_layer(name)
    layer.set_weights([20 * layer.get_weights()[0], layer.get_weights()[1]])
  x = images(model)
  graph = prepared(model)
  equalize(graph, method="one_step", calibration=x, cap=cap, guard=False)
  assert not graph.find("CappedReLU")
  before, after = model.predict(x, verbose=0), graph.to_model().predict(x, verbose=0)
  assert np.abs(before - after).max() > 1e-3 * np.abs(before).max()


def test_one_step_keeps_maxima_and_is_idempotent():
  model = uneven(cap=None, residual=False)
  graph = prepared(model)
  names = ("stem", "dw", "pw", "expand", "project")
  before = {name: largest(graph, name) for name in names}
  groups = scale_groups(graph)
  t = one_step(graph, groups, None)
  assert (t >= -1e-9).all()
  scale_channels(graph, groups, np.exp(t))
  assert largest(graph, "stem") == pytest.approx(before["stem"], rel=1e-5)
  assert all(largest(graph, name) <= before[name] * (1 + 1e-5) for name in names)
  np.testing.assert_allclose(one_step(graph, scale_groups(graph), None), 0, atol=1e-5)


def test_two_step_lets_no_kernel_grow():
  model = uneven(cap=None)
  graph = prepared(model)
  names = ("stem", "dw", "pw", "expand", "project", "out")
  before = {name: largest(graph, name) for name in names}
  groups = scale_groups(graph)
  scale_channels(graph, groups, np.exp(two_step(graph, groups, None)))
  assert all(largest(graph, name) <= before[name] * (1 + 1e-5) for name in names)


@pytest.mark.parametrize("preset", ["int8", "int8_per_tensor"])
def test_joint_predicts_less_noise_than_every_other_method(preset):
  model = uneven()
  graph = prepared(model)
  statistics = measure_channels(graph, images(model), gains=True)
  groups = scale_groups(graph)
  noise = noise_model(graph, groups, statistics, QuantConfig.preset(preset))
  rules = [np.zeros(groups.count), one_step(graph, groups, statistics), two_step(graph, groups, statistics),
           pairwise(graph, groups)]
  equalize(graph, method="joint", statistics=statistics, config=preset)
  (line,) = (edit.what for edit in graph.edits if "predicted" in edit.what)
  reached = float(line.split()[3])
  base = noise(rules[0])
  assert all(reached <= 10 * np.log10(noise(t) / base) + 0.05 for t in rules)


def test_joint_helps_a_per_tensor_network_in_truth():
  from kquant.api import quantize
  from kquant.core.recipe import Recipe
  model = uneven()
  x, fresh = images(model), images(model, count=128, seed=5)
  reference = model.predict(fresh, verbose=0)

  def noise(network):
    final = quantize(network, x, config="int8_per_tensor", recipe=Recipe(equalize="none"), effort=None).qmodel
    return ((final.predict(fresh, verbose=0) - reference) ** 2).sum()

  rewritten = rewrite(model, [standardize, fold_batch_norm, equalize(calibration=x)])
  assert noise(rewritten) < 0.5 * noise(model)


def test_the_guard_refuses_what_raises_the_noise():
  """A network that is even already: two big channels read by a depthwise layer gain nothing by pairwise."""
  model = uneven()
  x = images(model)
  graph = prepared(model)
  equalize(graph, calibration=x, method="joint")
  best = graph.to_model()
  again = prepared(best)
  equalize(again, calibration=x, method="pairwise")
  assert any("not applied" in skip.reason for skip in again.skips)
  np.testing.assert_array_equal(again.to_model().predict(x, verbose=0), best.predict(x, verbose=0))


def test_per_channel_weights_into_depthwise_are_named(caplog):
  model = uneven()
  graph = prepared(model)
  equalize(graph, calibration=images(model), config="int8", guard=False)
  assert [skip.layer for skip in graph.skips if "depthwise" in skip.reason] == ["stem"]
  assert "cannot help the kernels of 1 layers" in caplog.text


def test_kernels_that_lie_on_their_grid_are_left_on_it():
  model = chain([[1.0, 0.5]], np.array([[127, 3], [1, -127]]) / 64.0)
  graph = prepared(model)
  equalize(graph, calibration=images(model), config="int8", guard=False)
  assert "second" in [skip.layer for skip in graph.skips if "on the grid" in skip.reason]
  np.testing.assert_array_equal(largest(graph, "second"), np.float32(127 / 64))


@pytest.mark.parametrize("options, words", [
  ({"method": "best"}, "method must be one of"), ({"cap": "off"}, "cap must be one of"),
  ({"method": "joint"}, "needs calibration images"),
  ({"method": "pairwise", "cap": "calibrated"}, "needs calibration images")])
def test_bad_options_are_one_line(options, words):
  with pytest.raises(ValueError, match=words):
    rewrite(chain([[1.0]], [[1.0]]), [equalize(**options)])


@pytest.mark.parametrize("stack", [[layers.MaxPooling2D(2)], [layers.Conv2D(2, 1)]])
def test_networks_with_nothing_to_scale(stack):
  from kquant.api import quantize
  model = keras.Sequential([keras.Input(IMAGE), *stack])
  result = quantize(model, images(model), config="int8_per_tensor", effort=None)
  assert not any("scaled" in edit.what for edit in result.report.edits)


def test_pairwise_needs_no_data():
  model = uneven(cap=None)
  rewritten = rewrite(model, [standardize, fold_batch_norm, equalize(method="pairwise")])
  x = images(model)
  before, after = model.predict(x, verbose=0), rewritten.predict(x, verbose=0)
  np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
