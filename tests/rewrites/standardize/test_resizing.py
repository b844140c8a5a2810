"""Crops and every way to resize, in float."""

import pytest
import tensorflow as tf
from tf_keras import layers

from tests.rewrites.standardize.written import assert_written

IMAGE = (9, 8, 3)
PRODUCTS = {"Permute", "Dense"}


@pytest.mark.parametrize("layer, kinds", [
    (layers.CenterCrop(4, 5), {"Cropping2D"}),
    (layers.CenterCrop(9, 8), set()),
    (layers.CenterCrop(12, 5), {"Cropping2D", "Resizing"}),
    (layers.RandomCrop(4, 5), {"Cropping2D", "Resizing"}),
    (layers.Resizing(7, 5, crop_to_aspect_ratio=True), {"Cropping2D", "Resizing"})])
def test_crops(layer, kinds):
  assert assert_written(layer, IMAGE) == kinds


@pytest.mark.parametrize("method", ["area", "bicubic", "gaussian", "lanczos3", "lanczos5", "mitchellcubic"])
def test_resizing_by_constant_matrices(method):
  assert assert_written(layers.Resizing(7, 15, interpolation=method), IMAGE) == PRODUCTS
  assert assert_written(layers.UpSampling2D((2, 3), interpolation=method), IMAGE) == PRODUCTS
  assert assert_written(lambda x: tf.image.resize(x, (4, 5), method, antialias=True), IMAGE) == PRODUCTS


@pytest.mark.parametrize("options, kinds", [
    ({}, {"Resizing"}), ({"antialias": True}, PRODUCTS),
    ({"method": "nearest", "antialias": True}, {"Resizing"})])
def test_the_function_of_tensorflow(options, kinds):
  assert assert_written(lambda x: tf.image.resize(x, (4, 5), **options), IMAGE) == kinds
