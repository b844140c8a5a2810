"""Attention over 500 positions, whose SOFTMAX has many rows near a tie, is exact on both sets of kernels."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export


@pytest.mark.parametrize("seed", [0, 1])
def test_attention_over_500_positions_certifies(seed, tmp_path):
  keras.utils.set_random_seed(seed)
  x = keras.Input((500, 16))
  joined = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)])
  model = keras.Model(x, layers.Dense(4)(layers.Dense(16, activation="relu")(joined)))
  images = np.random.default_rng(seed).normal(size=(8, 500, 16)).astype(np.float32)
  result = kq.quantize(model, images, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=images[:1], certify=True)
  assert written.certificate["exact"]
  for kernels in written.certificate["kernel_sets"].values():
    assert kernels["operators"]["SOFTMAX"]["mismatching"] == 0
