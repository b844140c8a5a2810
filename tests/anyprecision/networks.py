"""A small network with batch norms, and data for it."""

import numpy as np
import tf_keras as keras
from tf_keras import layers

import kquant as kq


def network() -> keras.Model:
  """Four kernels: the first and the last keep 8 bits."""
  norm = lambda name: layers.BatchNormalization(momentum=0.5, name=name)
  parts = [layers.Conv2D(4, 3, use_bias=False, name="first", input_shape=(6, 6, 2)),
           norm("first_bn"), layers.ReLU(name="first_relu"),
           layers.Conv2D(6, 3, name="middle"), norm("middle_bn"), layers.ReLU(),
           layers.DepthwiseConv2D(2, use_bias=False, name="depthwise"),
           norm("depthwise_bn"), layers.ReLU(6.0),
           layers.Flatten(), layers.Dense(3, activation="softmax", name="last")]
  return keras.Sequential(parts, name="net")


def data(images: int = 48) -> tuple[np.ndarray, np.ndarray]:
  """Images [n, 6, 6, 2] and classes."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(images, 6, 6, 2)).astype(np.float32)
  return x, (x[:, 0, 0, 0] > 0) + 1 * (x[:, 1, 1, 1] > 0)


def any_network(widths=(2, 4, 8), *, steps=False, **options) -> kq.AnyPrecisionModel:
  """A calibrated and compiled model; with `steps` trained for a few of them."""
  x, y = data()
  anymodel = kq.AnyPrecisionModel(network(), widths, **options).calibrate(x)
  anymodel.compile(keras.optimizers.Adam(1e-2, jit_compile=False), "sparse_categorical_crossentropy",
                   metrics=["accuracy"])
  if steps:
    anymodel.fit(x, y, batch_size=16, epochs=4, verbose=0, shuffle=False)
  return anymodel
