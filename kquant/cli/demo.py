"""The embedded demo: a small MobileNet-style network trained on scikit-learn's bundled digits."""

import numpy as np
import tf_keras as keras
from sklearn.datasets import load_digits
from tf_keras import layers

TEST_IMAGES = 360
EPOCHS = 12


def digits(seed: int = 0) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """Returns ((x, y) to train on, (x, y) held back); x: float32 [images, 8, 8, 1] in 0..1."""
  bunch = load_digits()
  order = np.random.default_rng(seed).permutation(len(bunch.target))
  x = (bunch.images[order, ..., None] / 16.0).astype(np.float32)
  y = bunch.target[order]
  return (x[TEST_IMAGES:], y[TEST_IMAGES:]), (x[:TEST_IMAGES], y[:TEST_IMAGES])


def digits_network() -> keras.Model:
  """Returns an untrained network: conv, depthwise blocks with a residual add, ReLU6, softmax."""
  x = image = keras.Input((8, 8, 1), name="image")
  x = _block(x, layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv"))
  for index, (channels, stride) in enumerate([(16, 1), (32, 2)], start=1):
    shortcut = x
    x = _block(x, layers.Conv2D(64, 1, use_bias=False, name=f"expand_{index}"))
    x = _block(x, layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False,
                                         name=f"depthwise_{index}"))
    x = layers.Conv2D(channels, 1, use_bias=False, name=f"project_{index}")(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"project_{index}_bn")(x)
    if stride == 1:
      x = layers.Add(name=f"add_{index}")([shortcut, x])
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  return keras.Model(image, layers.Dense(10, activation="softmax", name="classes")(x), name="digits")


def _block(x, layer: layers.Layer):
  x = layers.BatchNormalization(momentum=0.9, name=f"{layer.name}_bn")(layer(x))
  return layers.ReLU(6.0, name=f"{layer.name}_relu")(x)


def train_digits(seed: int = 0) -> keras.Model:
  """Returns the network trained for a few epochs of `model.fit`."""
  keras.utils.set_random_seed(seed)
  (x, y), _ = digits(seed)
  model = digits_network()
  optimizer = keras.optimizers.Adam(3e-3, jit_compile=False)
  model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
  model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0)
  return model
