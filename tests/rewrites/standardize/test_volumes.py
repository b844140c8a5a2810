"""Convolutions of three dimensions and of weights of their own at every position."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from tests.models import randomized
from tests.rewrites.standardize.written import assert_written


@pytest.mark.parametrize("seed", range(8))
def test_conv_3d_is_one_convolution(seed):
  rng = np.random.default_rng(seed)
  taps, steps = (tuple(rng.integers(1, 4, 3).tolist()) for _ in range(2))
  step_of = {"dilation_rate": steps} if seed % 3 == 0 else {"strides": steps}
  layer = layers.Conv3D(4, taps, padding=("same", "valid")[seed % 2], groups=1 + seed % 2, **step_of)
  assert "Conv3D" not in assert_written(layer, (7, 8, 7, 4), seed=seed)


@pytest.mark.parametrize("seed", range(8))
def test_conv_3d_transpose_is_one_convolution(seed):
  rng = np.random.default_rng(seed)
  taps, strides = (tuple(rng.integers(1, 5, 3).tolist()) for _ in range(2))
  layer = layers.Conv3DTranspose(2, taps, strides, ("same", "valid")[seed % 2])
  assert "Conv3DTranspose" not in assert_written(layer, (3, 4, 3, 2), seed=seed)


@pytest.mark.parametrize("layer, shape", [
    (lambda: layers.LocallyConnected1D(3, 3, 2, activation="relu"), (9, 4)),
    (lambda: layers.LocallyConnected1D(3, 1, use_bias=False), (5, 4)),
    (lambda: layers.LocallyConnected1D(3, 1, 2), (5, 4)),
    (lambda: layers.LocallyConnected2D(2, (3, 2), (2, 1)), (7, 6, 3))])
def test_windows_are_groups_of_channels(layer, shape):
  assert not {"LocallyConnected1D", "LocallyConnected2D"} & assert_written(layer(), shape)


def test_a_network_of_volumes_has_one_convolution_a_layer_and_no_batch_norm(tmp_path):
  x = image = keras.Input((4, 8, 8, 2))
  for filters in (4, 6):
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv3D(filters, 3, padding="same")(x)))
    x = layers.MaxPooling3D(2)(x)
  model = randomized(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling3D()(x))))
  inputs = np.random.default_rng(0).normal(size=(16, 4, 8, 8, 2)).astype(np.float32)
  result = kq.quantize(model, inputs, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=inputs[:3], certify=True)
  assert written.certificate["exact"]
  counts = written.program.operator_counts()
  assert counts["CONV_2D"] == 2 and "DEPTHWISE_CONV_2D" not in counts
  expected = model(inputs).numpy()
  assert np.square(result.qmodel(inputs) - expected).mean() < 0.001 * np.square(expected).mean()


@pytest.mark.parametrize("layer, shape", [
    (lambda: layers.Conv3DTranspose(2, 3, 2, output_padding=1), (3, 4, 3, 2)),
    (lambda: layers.Conv3D(2, 2), (None, 4, 4, 2)),
    (lambda: layers.LocallyConnected1D(3, 2, implementation=2), (8, 4))])
def test_other_forms_are_refused_with_a_remedy(layer, shape):
  image = keras.Input(shape)
  data = np.zeros((2, *(size or 4 for size in shape)), np.float32)
  with pytest.raises(UnsupportedLayerError, match="output_padding|open shape|implementation=1"):
    kq.quantize(keras.Model(image, layer()(image)), data, effort=None)
