"""Saves, loads and widens a model that a strategy with two replicas trains: what test_strategy starts.

python -m tests.anyprecision.strategy_files FOLDER
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tests.anyprecision.networks import any_network, data


def fitted(anymodel: keras.Model, epochs: int = 1) -> list[np.ndarray]:
  """Trains for a few steps; returns the weights."""
  x, y = data()
  batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16, drop_remainder=True)
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
  anymodel.fit(batches.with_options(options), epochs=epochs, verbose=0)
  return anymodel.get_weights()


def main(folder: str) -> None:
  """Asserts that training goes on alike behind a file, and with a width more."""
  cpu = tf.config.list_physical_devices("CPU")[0]
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    anymodel = any_network((2, 8))
  fitted(anymodel)
  path = pathlib.Path(folder) / "any.keras"
  anymodel.save(path)
  with strategy.scope():
    loaded = keras.models.load_model(path)
  for mine, theirs in zip(fitted(loaded), fitted(anymodel), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)  # sums over replicas have any order
  images, labels = data()
  loaded.add_width(4, images, batches=2)  # outside of the scope
  before = loaded.at(4).get_weights()
  fitted(loaded)
  assert loaded.widths == (8, 4, 2)
  assert any(not np.array_equal(*pair) for pair in zip(before, loaded.at(4).get_weights()))
  assert set(loaded.evaluate_widths(images, labels)) == {8, 4, 2}


if __name__ == "__main__":
  main(*sys.argv[1:])
