"""Scaled networks in the file: per-channel caps are one MINIMUM, exact in both sets of kernels."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.graph.capped_relu import CappedReLU
from kquant.graph.graph import Graph
from kquant.rewrites.scaling.scale_groups import scale_channels, scale_groups
from kquant.rewrites.standardize.standardize import standardize
from tests import models

IMAGE = (8, 8, 3)


def with_caps(stack, scale_of_channel):
  """A model whose first ReLU6 has a cap a channel, made by scaling."""
  x = image = keras.Input(IMAGE, name="image")
  for layer in stack:
    x = layer(x)
  graph = Graph.from_model(models.randomized(keras.Model(image, x)))
  standardize(graph)
  groups = scale_groups(graph)
  scale = np.ones(groups.count)
  (relu,) = graph.find("ReLU")
  scale[groups.index[relu.inputs[0]]] = scale_of_channel
  scale_channels(graph, groups, scale)
  return graph.to_model()


def certified(model, tmp_path, x, config="int8"):
  result = kq.quantize(model, x, config=config, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=x[:4], certify=True)
  assert written.certificate["exact"]
  return result, written


def bright(seed=0, images=32):
  """Inputs so large that caps are reached."""
  return np.random.default_rng(seed).normal(0, 8, (images, *IMAGE)).astype(np.float32)


@pytest.mark.parametrize("before", [
    lambda: layers.Conv2D(4, 3), lambda: layers.Conv2DTranspose(4, 2, strides=2),
    lambda: layers.DepthwiseConv2D(3, depth_multiplier=2)])
def test_caps_are_one_minimum_behind_the_layer(tmp_path, before):
  first = before()
  channels = 6 if isinstance(first, layers.DepthwiseConv2D) else 4
  model = with_caps([first, layers.ReLU(6.0), layers.Conv2D(2, 1)], np.linspace(0.5, 2.0, channels))
  _, written = certified(model, tmp_path, bright())
  counts = written.program.operator_counts()
  assert counts["MINIMUM"] == 1 and "RELU" not in counts and "RELU6" not in counts


def test_caps_hold_in_the_file(tmp_path):
  model = with_caps([layers.Conv2D(2, 1), layers.ReLU(6.0), layers.Conv2D(2, 1)], [0.5, 2.0])
  result, written = certified(model, tmp_path, bright())
  (caps,) = (key for key in result.encodings.integers if key.endswith("/caps"))
  grid = result.encodings[caps]
  values = grid.dequantize(result.encodings.integers[caps])
  np.testing.assert_allclose(values, [3.0, 12.0], atol=grid.scale[0])
  x = bright(seed=4)
  noise = result.model.predict(x, verbose=0) - model.predict(x, verbose=0)
  assert (noise**2).mean() < 1e-3 * (model.predict(x, verbose=0) ** 2).mean()


def test_caps_above_the_end_of_the_grid_cost_nothing(tmp_path):
  model = with_caps([layers.Conv2D(2, 1), layers.ReLU(6.0), layers.Conv2D(2, 1)], [1.0, 3.0])
  _, written = certified(model, tmp_path, 1e-3 * bright())
  assert "MINIMUM" not in written.program.operator_counts()


def test_caps_behind_a_tensor_that_others_read(tmp_path):
  image = keras.Input(IMAGE)
  x = layers.Conv2D(3, 1)(image)
  capped = CappedReLU(name="capped")
  out = layers.Concatenate()([layers.MaxPooling2D(1)(x), capped(x)])
  model = models.randomized(keras.Model(image, layers.Conv2D(2, 1)(out)))
  capped.caps.assign([1.0, 4.0, 9.0])
  _, written = certified(model, tmp_path, bright())
  assert written.program.operator_counts()["MINIMUM"] == 1


@pytest.mark.parametrize("name", ["mobile_block", "convolutions", "branches", "nested_shared", "two_inputs"])
@pytest.mark.parametrize("equalize", ["joint", "pairwise"])
def test_equalized_zoo_is_exact(name, equalize, tmp_path):
  model = models.build(name)
  inputs = models.sample_inputs(model, images=16)
  result = kq.quantize(model, inputs, config="int8_per_tensor", recipe=kq.Recipe(equalize=equalize),
                       effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=[x[:2] for x in inputs], certify=True)
  assert not [line for line in tflite_export.proof.certificate.inexact_operators(written.certificate)]


def test_int16_activations_keep_their_caps(tmp_path):
  model = with_caps([layers.Conv2D(2, 1), layers.ReLU(6.0), layers.Conv2D(2, 1)], [0.5, 2.0])
  _, written = certified(model, tmp_path, bright(), config="int16x8")
  assert written.program.operator_counts()["MINIMUM"] == 1


def test_a_capped_model_survives_saving(tmp_path):
  model = with_caps([layers.Conv2D(2, 1), layers.ReLU(6.0), layers.Conv2D(2, 1)], [0.5, 2.0])
  x = bright(images=4)
  for name in ("m.keras", "m.h5"):
    model.save(tmp_path / name)
    again = keras.models.load_model(tmp_path / name)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
