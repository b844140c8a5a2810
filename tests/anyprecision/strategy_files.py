"""Saves, loads and widens a model that a strategy with two replicas trains: what test_strategy starts.

python -m tests.anyprecision.strategy_files FOLDER
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tests.anyprecision.networks import any_network, data


def fit(anymodel: keras.Model) -> None:
  """Trains for a few steps."""
  x, y = data()
  batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16, drop_remainder=True)
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
  anymodel.fit(batches.with_options(options), verbose=0)


def main(folder: str) -> None:
  """Asserts that a file has what was trained, and that training goes on behind it with a width more."""
  cpu = tf.config.list_physical_devices("CPU")[0]
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    anymodel = any_network((2, 8))
  fit(anymodel)
  path = pathlib.Path(folder) / "any.keras"
  anymodel.save(path)
  with strategy.scope():
    loaded = keras.models.load_model(path)
  for bits in loaded.widths:
    for mine, theirs in zip(loaded.at(bits).get_weights(), anymodel.at(bits).get_weights(), strict=True):
      np.testing.assert_array_equal(mine, theirs)
  images, labels = data()
  loaded.add_width(4, images, batches=2)  # outside of the scope
  before = loaded.at(4).get_weights()
  fit(loaded)
  assert loaded.widths == (8, 4, 2)
  assert any(not np.array_equal(*pair) for pair in zip(before, loaded.at(4).get_weights()))
  assert set(loaded.evaluate_widths(images, labels)) == {8, 4, 2}


if __name__ == "__main__":
  main(*sys.argv[1:])
