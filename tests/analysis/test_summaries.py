"""An analysis in TensorBoard's event files."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq


def events(folder):
  """Returns {(tag, step): (plugin, value)} of the event files in a folder."""
  return {(value.tag, event.step): (value.metadata.plugin_data.plugin_name,
                                    tf.make_ndarray(value.tensor).item())
          for path in folder.rglob("events*") for record in tf.data.TFRecordDataset(str(path))
          for event in [tf.compat.v1.Event.FromString(record.numpy())] for value in event.summary.value}


def test_each_tensor_has_its_charts(tmp_path):
  model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
  analysis = kq.analyze(model, np.random.default_rng(0).random((16, 3), np.float32))
  analysis.to_tensorboard(tmp_path, step=3)
  found = events(tmp_path)
  row = analysis.rows[0]
  plugin, value = found[f"solo/{row.part}/{row.name}", 3]
  assert plugin == "scalars" and value == pytest.approx(row.solo, rel=1e-6)
  assert found["whole/noise", 3][1] == pytest.approx(analysis.whole, rel=1e-6)
  plugin, text = found["analysis", 3]
  assert plugin == "text" and analysis.summary() in text.decode()
  assert ("whole/divergence", 3) in found or analysis.divergence is None
