"""Outlier channel splitting: the function stays, the largest weight halves, rounding stays exact."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from kquant.core import numerics
from kquant.graph.graph import Graph
from kquant.graph.passes import rewrite
from kquant.graph.weights import WeightFacts
from kquant.rewrites.scaling.outlier_channels import split_kernel, split_outlier_channels
from kquant.rewrites.standardize.standardize import standardize
from tests import models


def network(between=(), reader=None):
  image = keras.Input((8, 8, 3))
  x = layers.Conv2D(6, 3, name="first")(image)
  for layer in (layers.ReLU(), *between):
    x = layer(x)
  model = keras.Model(image, (reader or layers.Conv2D(4, 3, name="second"))(x))
  return models.randomized(model)


def kernels(model, **options):
  graph = Graph.from_model(model)
  standardize(graph)
  split_outlier_channels(graph, **options)
  linear = [node for node in graph.nodes if node.facts.role == "linear"]
  return graph, {node.name: node.layer.params["kernel"] for node in linear}


@pytest.mark.parametrize("between", [(), (layers.MaxPooling2D(2),), (layers.GlobalAveragePooling2D(),)])
@pytest.mark.parametrize("ratio", [0.02, 0.5, 1.0])
def test_the_function_stays(between, ratio):
  reader = layers.Dense(3) if any(type(layer).__name__.startswith("Global") for layer in between) else None
  model = network([type(layer).from_config(layer.get_config()) for layer in between], reader)
  x = models.sample_inputs(model, images=4)[0]
  after = rewrite(model, [standardize, split_outlier_channels(ratio=ratio)])
  assert after.layers[1].output.shape[-1] == 6 + max(1, int(6 * ratio))
  np.testing.assert_allclose(after.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


def test_an_outlier_halves():
  model = network()
  kernel, bias = model.get_layer("second").get_weights()
  kernel[1, 1, 2, 0] = 40.0
  model.get_layer("second").set_weights([kernel, bias])
  _, found = kernels(model, ratio=0.02)
  step = 20 / 127
  assert np.abs(found["second"]).max() == pytest.approx(20.0 + step / 4, rel=1e-3)
  np.testing.assert_array_equal(found["first"][..., 6], found["first"][..., 2])


def test_the_rounded_halves_add_up_to_the_rounded_weight():
  model = network()
  before = model.get_layer("second").get_weights()[0]
  _, found = kernels(model, ratio=0.02)
  (channel,) = np.flatnonzero((found["second"][:, :, :6] != before).any(axis=(0, 1, 3)))
  largest = np.abs(before).max(axis=(0, 1, 3))
  step = numerics.symmetric_grid(max(largest[channel] / 2, np.delete(largest, channel).max()), 8)[0]
  halves = [np.rint(found["second"][:, :, i].astype(np.float64) / step) for i in (channel, 6)]
  np.testing.assert_allclose(sum(halves), np.rint(before[:, :, channel] / step), atol=1)
  assert (sum(halves) == np.rint(before[:, :, channel] / step)).mean() > 0.95


def test_a_tensor_with_two_readers_is_left_and_named():
  image = keras.Input((4, 4, 2))
  x = layers.ReLU()(layers.Conv2D(4, 1, name="first")(image))
  branches = [layers.Conv2D(3, 1, name=name)(x) for name in "ab"]
  model = keras.Model(image, layers.Add()(branches))
  graph, found = kernels(model)
  assert found["first"].shape[-1] == 4 and {skip.layer for skip in graph.skips} >= {"a", "b"}


def test_a_scale_an_output_channel_by_hand():
  facts = WeightFacts("kernel", out_axes=(1,), in_axes=(0,))
  kernel = np.float32([[8.0, 1.0], [2.0, 3.0], [1.0, 5.0]])  # input 0: 64 -> 16; input 2: 25 -> 9
  halves, sources = split_kernel(kernel, facts, ratio=0.01, bits=8, per_channel=True)
  assert sources.tolist() == [0, 1, 2, 0]
  first, second = 4 / 127, 5 / 127  # the steps behind it
  np.testing.assert_allclose(halves[0], [4 - first / 4, 0.5 - second / 4], rtol=1e-6)
  np.testing.assert_allclose(halves[3], [4 + first / 4, 0.5 + second / 4], rtol=1e-6)
  np.testing.assert_array_equal(halves[1:3], kernel[1:])


def test_a_single_input_channel():
  facts = WeightFacts("kernel", out_axes=(1,), in_axes=(0,))
  halves, sources = split_kernel(np.float32([[6.0]]), facts, ratio=1.0, bits=8)
  assert sources.tolist() == [0, 0] and np.abs(halves).max() == pytest.approx(3 + 3 / 127 / 4)


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_ratio_must_be_a_part(ratio):
  with pytest.raises(ValueError, match="ratio must be above 0 and at most 1"):
    kernels(network(), ratio=ratio)
