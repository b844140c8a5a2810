"""The bytes of a training step, by hand; ratios as the in-hindsight paper has them for MobileNetV2."""

import json

import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq


def inner(size, layer, batch=1, **options):
  """The row of a layer behind one that reads the input of the model."""
  model = keras.Sequential([layers.Conv2D(size[-1], 1, input_shape=size, name="first"), layer])
  return kq.training_traffic(model, batch, **options).rows[-1]


def test_a_dense_layer_by_hand():
  model = keras.Sequential([layers.Dense(4, input_shape=(5,)), layers.Dense(3)])
  row = kq.training_traffic(model, batch=10).rows[1]
  x, y, w = 40, 30, 12
  assert row.forward == x + w + y
  assert row.backward == (y + w + x) + (x + y + 4 * w)
  assert (row.forward_extra, row.backward_extra) == (2 * y * 4, 2 * x * 4)
  assert row.static == 82 + 82 + 118 and row.dynamic == row.static + 240 + 320


def test_a_convolution_of_other_widths_by_hand():
  widths = {"weights": 4, "activations": 4, "gradients": 16, "accumulator": 24}
  row = inner((6, 6, 8), layers.Conv2D(16, 3), batch=2, **widths)
  x, y, w = 2 * 36 * 8, 2 * 16 * 16, 9 * 8 * 16
  assert row.forward == (x + y + w) / 2
  assert row.backward == (2 * y + w / 2 + 2 * x) + (x / 2 + 2 * y + 3 * w)
  assert (row.forward_extra, row.backward_extra) == (2 * y * 3, 2 * x * 3)


def test_the_first_layer_has_no_input_gradient():
  (row,) = kq.training_traffic(keras.Sequential([layers.Dense(4, input_shape=(8,))]), batch=2).rows
  assert (row.forward, row.backward) == (16 + 32 + 8, 16 + 8 + 4 * 32)
  assert (row.forward_extra, row.backward_extra) == (2 * 8 * 4, 0)


@pytest.mark.parametrize("size, layer, times", [
    ((112, 112, 16), layers.Conv2D(96, 1), 7.85),  # expands: 1 + 8 * 96 / 112; the paper's "up to 8 times"
    ((56, 56, 144), layers.DepthwiseConv2D(3, padding="same"), 5.0),  # as many outputs as inputs: 1 + 8 / 2
    ((112, 112, 96), layers.DepthwiseConv2D(3, 2, padding="same"), 2.6),  # a quarter of them: 1 + 8 / 5
    ((56, 56, 144), layers.Conv2D(24, 1), 2.13)])  # projects: 1 + 8 * 24 / 168
def test_layers_of_mobilenet_v2_move_several_times_the_bytes_with_dynamic_ranges(size, layer, times):
  row = inner(size, layer)
  assert 1 + row.forward_extra / row.forward == pytest.approx(times, abs=0.02)


def test_totals_table_and_json():
  model = keras.Sequential([layers.Conv2D(4, 3, input_shape=(8, 8, 3), name="stem"),
                            layers.BatchNormalization(), layers.SeparableConv2D(6, 3, name="pair"),
                            layers.Flatten(), layers.Dense(2)])
  traffic = kq.training_traffic(model, batch=4)
  assert len(traffic.rows) == 4  # the pair is two layers
  assert traffic.static == sum(row.static for row in traffic.rows) < traffic.dynamic
  assert json.loads(json.dumps(traffic.to_json()))["dynamic"] == traffic.dynamic
  assert "stem" in str(traffic) and str(traffic).splitlines()[-1].startswith("total")


def test_what_cannot_be_counted_is_refused():
  model = keras.Sequential([layers.Conv2D(4, 3, input_shape=(None, 8, 3), name="stem")])
  with pytest.raises(ValueError, match="layer 'stem' has an open size"):
    kq.training_traffic(model, batch=1)
  with pytest.raises(ValueError, match="batch and bits must be 1 or more, got batch=0"):
    kq.training_traffic(model, batch=0)
  with pytest.raises(ValueError, match="no layer with weights"):
    kq.training_traffic(keras.Sequential([layers.ReLU(input_shape=(3,))]), batch=1)
