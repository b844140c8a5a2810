"""What tests of layers that are written as other layers share."""

import numpy as np
import tf_keras as keras

import kquant as kq


def assert_written(layer, shape, *, seed: int = 0) -> set[str]:
  """Asserts that a model of that layer computes the same standardized; returns the classes of its layers."""
  keras.backend.clear_session()
  rng = np.random.default_rng(seed)
  image = keras.Input(shape)
  model = keras.Model(image, layer(image))
  for weight in model.weights:
    weight.assign(rng.normal(size=weight.shape))
  x = rng.normal(size=(3, *shape)).astype(np.float32)
  expected, written = model(x, training=False).numpy(), kq.standardize(model)
  np.testing.assert_allclose(written(x).numpy(), expected, atol=1e-5 * np.abs(expected).max())
  return {type(layer).__name__ for layer in written.layers[1:]}
