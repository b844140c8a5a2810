"""High-bias absorption: the part of a channel that is always there moves behind the ReLU."""

import numpy as np
import tf_keras as keras
from tf_keras import layers

from kquant.graph.graph import Graph
from kquant.rewrites.scaling.absorb_bias import absorb_bias
from kquant.rewrites.scaling.scale_groups import scale_channels, scale_groups
from kquant.rewrites.standardize.standardize import standardize


def images(count=32, seed=1):
  return np.random.default_rng(seed).uniform(-1, 1, (count, 4, 4, 2)).astype(np.float32)


def network(reader, cap=None):
  image = keras.Input((4, 4, 2))
  x = layers.ReLU(cap, name="relu")(layers.Conv2D(3, 1, name="first")(image))
  model = keras.Model(image, reader(x))
  rng = np.random.default_rng(0)
  model.get_layer("first").set_weights([rng.normal(0, 0.2, (1, 1, 2, 3)), np.float32([3.0, 0.0, -1.0])])
  return model


def absorbed(model, x, **options):
  graph = Graph.from_model(model)
  standardize(graph)
  absorb_bias(graph, calibration=x, **options)
  return graph, {node.name: node.layer.params for node in graph.nodes if node.facts.role == "linear"}


def test_the_constant_moves_and_the_function_stays():
  model = network(layers.Conv2D(2, 3, name="second"))
  x = images()
  graph, params = absorbed(model, x, margin=0.0)
  first = model.get_layer("first")
  low = (x @ first.kernel.numpy()[0, 0] + first.bias.numpy()).reshape(-1, 3).min(axis=0)
  np.testing.assert_allclose(params["first"]["bias"], np.float32([3 - low[0], 0.0, -1.0]), rtol=1e-5)
  moved = model.get_layer("second").kernel.numpy()[:, :, 0].sum(axis=(0, 1)) * low[0]
  np.testing.assert_allclose(params["second"]["bias"], moved, rtol=1e-4)
  np.testing.assert_allclose(graph.to_model().predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


def test_depthwise_and_dense_readers():
  for reader in (layers.DepthwiseConv2D(2, depth_multiplier=2), layers.Dense(3)):
    model, x = network(reader), images()
    graph, _ = absorbed(model, x)
    assert "moved behind" in graph.edits[-1].what
    np.testing.assert_allclose(graph.to_model().predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


def test_padding_pools_and_capped_relus_forbid_it():
  for reader, cap, words in ((layers.Conv2D(2, 3, padding="same", name="second"), None, "pads"),
                             (layers.GlobalAveragePooling2D(), None, "reads it"),
                             (layers.Conv2D(2, 1), 6.0, "one cap")):
    graph, params = absorbed(network(reader, cap), images())
    assert params["first"]["bias"][0] == 3.0
    assert any(words in skip.reason for skip in graph.skips), graph.skips


def test_caps_of_scaled_channels_move_along():
  model, x = network(layers.Conv2D(2, 1, name="second"), 6.0), images()
  graph = Graph.from_model(model)
  standardize(graph)
  groups = scale_groups(graph)
  scale = np.where(groups.free, 2.0, 1.0)
  scale[groups.index[graph.find("ReLU")[0].inputs[0]][1]] = 3.0
  scale_channels(graph, groups, scale)
  assert graph.find("CappedReLU")
  absorb_bias(graph, calibration=x)
  assert "moved behind" in graph.edits[-1].what
  x = np.concatenate([x, 40 * np.abs(x)])  # far above the caps, as well
  low = model.get_layer("first")(x).numpy()[..., 0] > 2.0
  x = x[low.all(axis=(1, 2))]
  np.testing.assert_allclose(graph.to_model().predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)
