"""Scale groups: whatever positive scales their free groups get, the network computes the same."""

import hypothesis
import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.scaling.scale_groups import describe_scale_groups, scale_channels, scale_groups
from kquant.rewrites.standardize.standardize import standardize
from tests import models
from tests.tflite_export import model_fuzz, random_models

IMAGE = (8, 8, 3)


def prepared(model):
  graph = Graph.from_model(model)
  standardize(graph)
  fold_batch_norm(graph)
  return graph


def random_scales(groups, seed=0):
  scale = np.exp(np.random.default_rng(seed).normal(0, 0.8, groups.count))
  return np.where(groups.free, scale, 1.0)


def assert_invariant(model, images):
  """Random scales on every free group leave the outputs as they were; returns the number of free groups."""
  graph = prepared(model)
  groups = scale_groups(graph)
  scale_channels(graph, groups, random_scales(groups))
  for a, b in zip(model_fuzz.outputs_of(model, images), model_fuzz.outputs_of(graph.to_model(), images)):
    assert np.abs(a - b).max(initial=0) <= 1e-5 * max(1.0, np.abs(a).max(initial=0))
  return int(groups.free.sum())


def groups_of(*stack):
  x = image = keras.Input(IMAGE)
  for layer in stack:
    x = layer(x)
  graph = prepared(models.randomized(keras.Model(image, x)))
  return graph, scale_groups(graph)


def ids(graph, groups, name):
  (node,) = (node for node in graph.nodes if node.name == name)
  return groups.index[Ref(node)]


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_random_scales_leave_the_zoo_as_it_is(name):
  model = models.build(name)
  assert_invariant(model, models.sample_inputs(model, images=4))


@pytest.mark.parametrize("producer", [
  lambda: layers.Conv2D(4, 3, name="first"),
  lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="first"),
  lambda: layers.Conv2DTranspose(4, 3, name="first"), lambda: layers.Dense(4, name="first")])
@pytest.mark.parametrize("between", [
  [layers.ReLU], [lambda: layers.ReLU(6.0)], [lambda: layers.LeakyReLU(0.2)],
  [lambda: layers.PReLU(alpha_initializer="normal")], [layers.ReLU, lambda: layers.MaxPooling2D(2)],
  [lambda: layers.ZeroPadding2D(1), lambda: layers.AveragePooling2D(2)],
  [lambda: layers.UpSampling2D(2, interpolation="bilinear")], [lambda: layers.Cropping2D(1)]])
@pytest.mark.parametrize("reader", [
  lambda: layers.Conv2D(4, 3, padding="same", name="second"),
  lambda: layers.DepthwiseConv2D(2, depth_multiplier=2, name="second"),
  lambda: layers.Conv2DTranspose(3, 2, strides=2, name="second"),
  lambda: layers.SeparableConv2D(3, 2, name="second"), lambda: layers.Dense(3, name="second")])
def test_scales_pass_from_every_producer_to_every_reader(producer, between, reader):
  x = image = keras.Input(IMAGE)
  for make in (producer, *between, reader):
    x = make()(x)
  model = models.randomized(keras.Model(image, x))
  assert assert_invariant(model, models.sample_inputs(model, images=2)) >= 4


def test_grouped_convolution_reads_slices():
  model = models.randomized(keras.Sequential([
    layers.Conv2D(6, 3, input_shape=IMAGE), layers.ReLU(), layers.Conv2D(9, 3, groups=3), layers.ReLU(),
    layers.Flatten(), layers.Dense(2)]))
  assert assert_invariant(model, models.sample_inputs(model, images=2)) == 6 + 9


def test_residual_members_share_their_scales():
  image = keras.Input(IMAGE)
  x = layers.Conv2D(4, 1, name="first")(image)
  y = layers.Conv2D(4, 1, name="second")(layers.ReLU()(x))
  out = layers.Conv2D(2, 1, name="out")(layers.Add(name="sum")([x, y]))
  graph = prepared(keras.Model(image, out))
  groups = scale_groups(graph)
  np.testing.assert_array_equal(ids(graph, groups, "first"), ids(graph, groups, "second"))
  np.testing.assert_array_equal(ids(graph, groups, "first"), ids(graph, groups, "sum"))
  assert groups.free[ids(graph, groups, "sum")].all() and not groups.free[ids(graph, groups, "out")].any()


def test_concatenation_is_made_of_slices():
  image = keras.Input(IMAGE)
  parts = [layers.Conv2D(n, 1, name=f"part{n}")(image) for n in (2, 3)]
  out = layers.Conv2D(1, 1)(layers.Concatenate(name="both")(parts))
  graph = prepared(keras.Model(image, out))
  groups = scale_groups(graph)
  np.testing.assert_array_equal(ids(graph, groups, "both"),
                                [*ids(graph, groups, "part2"), *ids(graph, groups, "part3")])


def test_flatten_repeats_the_channels():
  graph, groups = groups_of(layers.Conv2D(2, 7, name="conv"), layers.Flatten(name="flat"), layers.Dense(3))
  np.testing.assert_array_equal(ids(graph, groups, "flat"), np.tile(ids(graph, groups, "conv"), 4))


def test_a_shared_layer_has_one_scale_for_all_its_calls():
  first, second = keras.Input(IMAGE), keras.Input(IMAGE)
  shared = layers.Conv2D(4, 1, name="shared")
  out = layers.Add()([layers.ReLU()(shared(first)), shared(second)])
  model = models.randomized(keras.Model([first, second], layers.Conv2D(2, 1)(out)))
  assert assert_invariant(model, models.sample_inputs(model, images=2)) == 4


@pytest.mark.parametrize("stop", [
  lambda: layers.Activation("sigmoid"), lambda: layers.Activation("tanh"), lambda: layers.Softmax(),
  lambda: layers.ELU(), lambda: layers.Activation("gelu")])
def test_what_is_not_homogeneous_fixes_the_scales_before_it(stop):
  graph, groups = groups_of(layers.Conv2D(4, 1, name="conv"), stop(), layers.Conv2D(2, 1, name="out"))
  assert not groups.free[ids(graph, groups, "conv")].any()


def test_a_gate_is_fixed_and_what_it_gates_is_free():
  image = keras.Input(IMAGE)
  x = layers.Conv2D(4, 1, name="conv")(image)
  gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
  gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(layers.Conv2D(2, 1, activation="relu")(gate))
  out = layers.Conv2D(2, 1)(layers.Multiply(name="gated")([x, gate]))
  model = models.randomized(keras.Model(image, out))
  graph = prepared(model)
  groups = scale_groups(graph)
  assert groups.free[ids(graph, groups, "conv")].all() and not groups.free[ids(graph, groups, "gate")].any()
  assert assert_invariant(model, models.sample_inputs(model, images=2)) == 4 + 2


def test_a_cap_moves_with_its_channel():
  graph, groups = groups_of(layers.Conv2D(2, 1, name="conv"), layers.ReLU(6.0), layers.Conv2D(1, 1))
  scale = np.ones(groups.count)
  scale[ids(graph, groups, "conv")] = [2.0, 0.5]
  scale_channels(graph, groups, scale)
  (cap,) = graph.find("CappedReLU")
  np.testing.assert_allclose(cap.layer.params["caps"], [12.0, 3.0])


def test_equal_scales_keep_one_cap():
  graph, groups = groups_of(layers.Conv2D(2, 1, name="conv"), layers.ReLU(6.0), layers.Conv2D(1, 1))
  scale = np.ones(groups.count)
  scale[ids(graph, groups, "conv")] = 2.0
  scale_channels(graph, groups, scale)
  assert [node.config["max_value"] for node in graph.find("ReLU")] == [12.0] and not graph.find("CappedReLU")


def test_fixed_groups_cannot_be_scaled():
  graph, groups = groups_of(layers.Conv2D(2, 1, name="conv"))
  with pytest.raises(ValueError, match="expected a scale of 1"):
    scale_channels(graph, groups, np.full(groups.count, 2.0))


def test_the_table_names_tensors_makers_readers_and_reasons():
  image = keras.Input(IMAGE, name="image")
  x = layers.ReLU(name="relu")(layers.Conv2D(4, 1, name="conv")(image))
  text = describe_scale_groups(keras.Model(image, layers.Dense(2, name="out")(x)))
  lines = text.splitlines()
  assert any("conv, relu" in line and " 4 " in line and "out" in line for line in lines)
  assert any("input of the model" in line for line in lines)
  assert any("output of the model" in line for line in lines)


def test_random_scales_leave_random_graphs_as_they_are():
  seen = []

  @hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None,
                       suppress_health_check=list(hypothesis.HealthCheck))
  @hypothesis.given(random_models.recipes())
  def run(recipe):
    model = random_models.build(recipe)
    try:
      seen.append(assert_invariant(model, random_models.inputs_of(model, recipe, images=2)))
    except UnsupportedLayerError:
      seen.append(0)

  run()
  assert len(seen) >= 60 and sum(count > 0 for count in seen) >= 6
