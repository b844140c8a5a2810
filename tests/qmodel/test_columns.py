"""Columns of inputs and outputs that get a few steps of the grid are named, and can be mended."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.core.metrics import sqnr_db
from tests import models

ROWS = np.random.default_rng(0).uniform(-1, 1, (64, 4)) * [1000, 1, 10, 1000] + [0, 3, 0, 0]
ROWS = ROWS.astype(np.float32)


def of_a_table(*outputs):
  x = keras.Input((4,), name="table")
  y = layers.Dense(8, activation="relu", name="hidden")(x)
  return models.randomized(keras.Model(x, [layer(y) for layer in outputs] if outputs[1:] else outputs[0](y)))


def of_boxes(join=layers.Concatenate, name="detections"):
  """Boxes of some thousands beside scores in 0..1."""
  image = keras.Input((6, 6, 3), name="image")
  x = layers.Conv2D(8, 3, activation="relu")(image)
  boxes = layers.Conv2D(4, 1, name="boxes")(x)
  scores = layers.Conv2D(2, 1, name="scores", activation="relu")(x)
  model = models.randomized(keras.Model(image, join(name=name)([boxes, scores])))
  for layer, factor in ((model.get_layer("boxes"), 1e4), (model.get_layer("scores"), 1.0)):
    layer.set_weights([factor * values for values in layer.get_weights()])
  return model


def images(model, count=32):
  return models.sample_inputs(model, images=count)[0]


@pytest.fixture(scope="module")
def table():
  return kq.quantize(of_a_table(layers.Dense(2)), ROWS, effort=None)  # which holds no rows back


def test_features_that_use_a_few_steps_are_named_with_their_numbers(table):
  (narrow,) = table.report.narrow
  assert (narrow.tensor, narrow.is_input) == ("table", True)
  assert [column.column for column in narrow.columns] == [1, 2]
  scale = float(table.encodings["table"].scale[0])
  for column in narrow.columns:
    values = ROWS[:, column.column]
    assert (column.low, column.high) == (values.min(), values.max())
    assert column.steps == pytest.approx((values.max() - values.min()) / scale) and column.steps < 8
  np.testing.assert_allclose(narrow.mean, ROWS.mean(axis=0, dtype=np.float64), atol=1e-4)
  np.testing.assert_allclose(narrow.deviation, ROWS.std(axis=0, dtype=np.float64), rtol=1e-5)


def test_they_are_in_every_report(table):
  for text in (str(table), str(kq.describe(table.qmodel))):
    assert "table" in text and "steps" in text
  (row,) = [row for row in kq.describe(table.qmodel).rows if row.layer == "table"]
  assert row.output.narrow == table.report.narrow[0]
  assert "2 of 4 columns (1, 2) have fewer than 8 steps" in row.note
  (record,) = json.loads(json.dumps(table.report.to_json()))["narrow"]
  assert record["columns"][0]["column"] == 1 and len(record["mean"]) == 4


def test_one_warning_says_what_to_do(caplog):
  kq.quantize(of_a_table(layers.Dense(2)), ROWS)
  (message,) = [record.message for record in caplog.records if "steps" in record.message]
  assert "\n" not in message and "'table'" in message and "Normalization" in message


def test_a_table_of_like_columns_is_no_matter(caplog):
  result = kq.quantize(of_a_table(layers.Dense(2)), ROWS / [1000, 1, 10, 1000])
  assert result.report.narrow == [] and not [r for r in caplog.records if "steps" in r.message]
  assert "steps" not in str(result)


def test_constant_columns_and_fixed_grids_are_no_matter():
  rows = ROWS * np.float32([1, 0, 0, 1])
  result = kq.quantize(of_a_table(layers.Dense(300, activation="softmax"), layers.Dense(2)), rows)
  assert result.report.narrow == []


def test_neither_batch_size_nor_order_changes_the_columns():
  found = []
  for rows, size in ((ROWS, 32), (ROWS[::-1], 5), (ROWS, 1)):
    qmodel = kq.insert_quantizers(of_a_table(layers.Dense(2)))
    found.append(kq.describe(kq.calibrate(qmodel, rows, batch_size=size)).rows[0].output.narrow)
  assert found[0].columns == found[1].columns == found[2].columns
  for other in found[1:]:
    np.testing.assert_allclose(other.mean, found[0].mean, rtol=1e-5)
    np.testing.assert_allclose(other.deviation, found[0].deviation, rtol=1e-5)


def test_without_images_there_are_none():
  result = kq.quantize(models.build("conv_bn_relu"), kq.InputRange(-1, 1))
  assert result.report.narrow == []


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_they_outlive_a_file(table, suffix, tmp_path):
  table.qmodel.save(tmp_path / f"q{suffix}")
  again = kq.describe(kq.load_model(tmp_path / f"q{suffix}"))
  assert again.rows[0].output.narrow == table.report.narrow[0]


def test_columns_of_an_output_are_named():
  model = of_boxes()
  (narrow,) = kq.quantize(model, images(model)).report.narrow
  assert (narrow.tensor, narrow.is_input, narrow.mean) == ("detections", False, ())
  assert [column.column for column in narrow.columns] == [4, 5]


def test_normalized_outside_every_feature_is_told_apart(table):
  """The remedy that the warning names: the inverse folds into the first layer."""
  model = of_a_table(layers.Dense(2))
  (narrow,) = table.report.narrow
  mean, deviation = np.float32(narrow.mean), np.float32(narrow.deviation)
  inverse = layers.Normalization(mean=mean, variance=deviation**2, invert=True, input_shape=(4,))
  rows = (ROWS - mean) / deviation
  result = kq.quantize(keras.Sequential([inverse, model]), rows)
  assert result.report.narrow == [] and [node.kind for node in result.graph.nodes] == [
      "InputLayer", "Dense", "ReLU", "Dense"]
  expected = model(ROWS).numpy()
  assert sqnr_db(result.qmodel(rows).numpy(), expected) > 25


# --- outputs of their own --------------------------------------------------------------------------

SPLIT = kq.QuantConfig(split_outputs=True)


def concat(name):
  return lambda parts: tf.concat(parts, axis=-1, name=name)


@pytest.mark.parametrize("join", [layers.Concatenate, concat])
def test_joined_outputs_get_grids_of_their_own(join, tmp_path):
  model = of_boxes(join)
  x, name = images(model), model.output_names[0]
  result = kq.quantize(model, x, config=SPLIT)
  assert result.report.narrow == [] and [output.shape[-1] for output in result.model.outputs] == [4, 2]
  written = kq.export(result, tmp_path / "m.tflite", verify=x[:3], certify=True, io="float32")
  assert written.certificate["exact"] and not written.verification.float_operators
  assert written.program.signature[1] == dict(zip((f"{name}:0", f"{name}:1"), written.program.outputs))
  expected = model(x).numpy()
  for part, reference in zip(result.qmodel(x), (expected[..., :4], expected[..., 4:])):
    assert sqnr_db(part.numpy(), reference) > 25


def test_one_grid_for_both_is_useless():
  model = of_boxes()
  x = images(model)
  result, expected = kq.quantize(model, x), model(x).numpy()
  assert sqnr_db(result.qmodel(x).numpy()[..., 4:], expected[..., 4:]) < 3


def test_lists_and_dicts_of_outputs_are_split_in_place():
  inner = of_boxes(name="both")
  both = layers.Concatenate(name="both")([inner.get_layer("boxes").output, inner.get_layer("scores").output])
  third = layers.ReLU(name="third")(inner.get_layer("boxes").output)
  x = images(inner)
  of_list = kq.quantize(keras.Model(inner.input, [third, both]), x, config=SPLIT)
  assert of_list.encodings.output_names == ["third", "both:0", "both:1"]
  of_dict = kq.quantize(keras.Model(inner.input, {"z": third, "a": both}), x, config=SPLIT)
  assert of_dict.encodings.output_names == ["a:0", "a:1", "z"]
  assert sorted(of_dict.model(x)) == ["a:0", "a:1", "z"]


def test_training_sees_the_parts_too():
  qmodel = kq.insert_quantizers(of_boxes(), SPLIT)
  assert qmodel.output_names == ["detections:0", "detections:1"]


@pytest.mark.parametrize("last", [layers.ReLU(), layers.UpSampling2D(2), lambda x: tf.tile(x, [1, 1, 1, 2])])
def test_nothing_to_split_is_an_error(last):
  model = of_boxes()
  model = keras.Model(model.input, last(model.get_layer("boxes").output))
  with pytest.raises(ValueError, match="split_outputs.*no output .*Concatenate") as error:
    kq.quantize(model, images(model), config=SPLIT)
  assert "\n" not in str(error.value)


def test_the_config_is_read_back():
  assert kq.QuantConfig.from_json(json.loads(json.dumps(SPLIT.to_json()))) == SPLIT
  fields = {key: value for key, value in SPLIT.to_json().items() if key != "split_outputs"}
  assert not kq.QuantConfig.from_json(fields).split_outputs
