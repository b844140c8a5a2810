"""A linear layer as a matrix product: patches @ matrix is what the Keras layer computes."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from kquant.ptq.layerwise.patches import Patches

CASES = {
    "dense": (layers.Dense(5), (7,)),
    "dense on rows": (layers.Dense(5), (3, 4)),
    "conv1d": (layers.Conv1D(4, 3, strides=2, padding="same"), (11, 3)),
    "causal": (layers.Conv1D(4, 3, dilation_rate=2, padding="causal"), (9, 2)),
    "conv": (layers.Conv2D(4, 3, padding="same"), (7, 6, 3)),
    "pointwise": (layers.Conv2D(4, 1), (5, 6, 3)),
    "pointwise, stride 2": (layers.Conv2D(4, 1, strides=2), (5, 6, 3)),
    "conv, stride 2": (layers.Conv2D(4, (3, 5), strides=2, padding="same"), (8, 9, 3)),
    "conv, dilated": (layers.Conv2D(4, 3, dilation_rate=2), (9, 8, 2)),
    "groups": (layers.Conv2D(6, 3, groups=2, padding="same"), (6, 5, 4)),
    "depthwise": (layers.DepthwiseConv2D(3, strides=2, padding="same"), (8, 7, 5)),
    "depthwise x2": (layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 7, 3)),
    "transposed": (layers.Conv2DTranspose(4, 3, strides=2, padding="same"), (5, 4, 3)),
    "transposed, valid": (layers.Conv2DTranspose(2, 4, strides=3), (4, 3, 2)),
    "transposed, gaps": (layers.Conv2DTranspose(2, 2, strides=3, padding="same"), (4, 3, 2)),
}


def build(name):
  tf_keras.utils.set_random_seed(0)
  layer, shape = CASES[name]
  layer = type(layer).from_config(layer.get_config())
  x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
  output = layer(x).numpy().reshape(3, -1, layer.compute_output_shape((3, *shape))[-1])
  kernel = layer.get_weights()[0]
  return Patches(type(layer).__name__, layer.get_config(), kernel.shape, shape), x, kernel, output


@pytest.mark.parametrize("name", CASES)
def test_patches_times_matrix_is_the_layer(name):
  patches, x, kernel, expected = build(name)
  rows = patches.rows(tf.constant(x), patches.draw(10**6, np.random.default_rng(0))).numpy()
  assert rows.shape == (patches.blocks, 3 * patches.positions, patches.inputs)
  found = np.moveaxis(rows @ patches.matrix(kernel), 0, 1).reshape(expected.shape)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_means_are_those_of_all_patches(name):
  patches, x, kernel, expected = build(name)
  means = patches.means(tf.constant(x))
  rows = patches.rows(tf.constant(x), np.arange(patches.positions)).numpy()
  rows = rows.reshape(patches.blocks, 3, patches.positions, patches.inputs)
  np.testing.assert_allclose(means, np.moveaxis(rows.mean(axis=2), 0, 1), atol=1e-6)
  outputs = np.einsum("nbk,bko->nbo", means, patches.matrix(kernel)).reshape(3, -1)
  np.testing.assert_allclose(outputs, expected.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_kernel_and_matrix_are_inverse(name):
  patches, _, kernel, _ = build(name)
  np.testing.assert_array_equal(patches.kernel(patches.matrix(kernel)), kernel)


def test_drawn_positions_are_seeded_distinct_and_ascending():
  patches, x, _, _ = build("conv")
  chosen = patches.draw(9, np.random.default_rng(3))
  assert len(set(chosen)) == 9 and (np.diff(chosen) > 0).all() and chosen.max() < patches.positions
  np.testing.assert_array_equal(chosen, patches.draw(9, np.random.default_rng(3)))
  some, every = (patches.rows(tf.constant(x), which).numpy() for which in (chosen, np.arange(42)))
  np.testing.assert_array_equal(some.reshape(3, 9, -1), every.reshape(3, 42, -1)[:, chosen])
