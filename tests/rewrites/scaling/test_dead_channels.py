"""Dead channels lose their weights; what speaks, or is not seen often enough, keeps them."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from kquant.graph.graph import Graph
from kquant.rewrites.scaling.dead_channels import prune_dead_channels
from kquant.rewrites.standardize.standardize import standardize


def network(bias, kernel=None, relu=True):
  """image [2] -> 1x1 conv to 3 channels -> ReLU -> 1x1 conv to 1."""
  image = keras.Input((4, 4, 2))
  x = layers.Conv2D(3, 1, name="first")(image)
  x = layers.ReLU(name="relu")(x) if relu else x
  model = keras.Model(image, layers.Conv2D(2, 1, name="second")(x))
  rng = np.random.default_rng(0)
  kernel = rng.normal(0, 1, (1, 1, 2, 3)) if kernel is None else kernel
  model.get_layer("first").set_weights([np.float32(kernel), np.float32(bias)])
  model.get_layer("second").set_weights([rng.normal(0, 1, (1, 1, 3, 2)), np.zeros(2)])
  return model


def images(count=64, seed=1):
  return np.random.default_rng(seed).uniform(-1, 1, (count, 4, 4, 2)).astype(np.float32)


def pruned(model, x, **options):
  graph = Graph.from_model(model)
  standardize(graph)
  prune_dead_channels(graph, calibration=x, **options)
  return graph, {node.name: node.layer.params for node in graph.nodes if node.facts.role == "linear"}


def test_a_channel_that_relu_always_cuts_off():
  model = network(bias=[0.0, -100.0, 0.0])
  graph, params = pruned(model, images())
  assert not params["first"]["kernel"][..., 1].any() and params["first"]["bias"][1] == 0
  assert params["first"]["kernel"][..., [0, 2]].all()
  assert not params["second"]["kernel"][..., 1, :].any() and params["second"]["kernel"][..., [0, 2], :].all()
  fresh = images(seed=7)
  np.testing.assert_array_equal(graph.to_model().predict(fresh, verbose=0), model.predict(fresh, verbose=0))


def test_a_constant_channel_keeps_its_bias_and_its_readers():
  kernel = np.ones((1, 1, 2, 3))
  kernel[..., 2] = 1e-9
  model = network(bias=[0.0, 0.0, 5.0], kernel=kernel)
  graph, params = pruned(model, images())
  assert not params["first"]["kernel"][..., 2].any() and params["first"]["bias"][2] == pytest.approx(5.0)
  assert params["second"]["kernel"].all()
  after, before = graph.to_model().predict(images(), verbose=0), model.predict(images(), verbose=0)
  np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_a_channel_near_to_speaking_is_kept():
  """Its maximum on the data lies below zero by less than the margin."""
  x = images()
  kernel = np.ones((1, 1, 2, 3))
  top = x.sum(axis=-1).max()
  _, params = pruned(network(bias=[0.0, -top - 1e-3, 0.0], kernel=kernel), x)
  assert params["first"]["kernel"][..., 1].any()
  _, params = pruned(network(bias=[0.0, -top - 1e-3, 0.0], kernel=kernel), x, margin=0.0)
  assert not params["first"]["kernel"][..., 1].any()


def test_without_a_relu_nothing_is_cut_off():
  _, params = pruned(network(bias=[0.0, -100.0, 0.0], relu=False), images())
  assert params["first"]["kernel"].all()


def test_few_images_prune_nothing_and_say_so():
  graph, params = pruned(network(bias=[0.0, -100.0, 0.0]), images(8))
  assert params["first"]["kernel"].all() and "only 8 images" in graph.skips[0].reason


def test_a_residual_sum_speaks_if_one_of_its_members_does():
  image = keras.Input((4, 4, 2))
  parts = [layers.ReLU()(layers.Conv2D(3, 1, name=f"part{i}")(image)) for i in range(2)]
  model = keras.Model(image, layers.Conv2D(1, 1, name="second")(layers.Add()(parts)))
  model.get_layer("part0").set_weights([np.ones((1, 1, 2, 3)), np.float32([-100, -100, 0])])
  model.get_layer("part1").set_weights([np.ones((1, 1, 2, 3)), np.float32([0, -100, 0])])
  _, params = pruned(model, images())
  assert not params["part0"]["kernel"][..., :2].any()
  heard = params["second"]["kernel"].any(axis=(0, 1, 3))
  np.testing.assert_array_equal(heard, [True, False, True])


def test_data_are_needed():
  with pytest.raises(ValueError, match="give calibration=images"):
    pruned(network(bias=[0.0, 0.0, 0.0]), None)
