"""Tensors of 8 and of 16 bits in one file: where a QUANTIZE stands, exact integers, refusals, training."""

import random

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from tests import models
from tests.tflite_export.random_models import with_wide_outputs
from tflite_export.file.writer import to_bytes
from tflite_export.proof.runtime import Runtime

INT8 = kq.QuantConfig.preset("int8")


def exported(model, config, path, **options):
  inputs = models.sample_inputs(model)
  result = kq.quantize(model, inputs, config=config, effort=None)
  return result, tflite_export.export(result, path, verify=[x[:3] for x in inputs], certify=True, **options)


def chain(*names, shape=(4,)):
  x = image = keras.Input(shape, name="image")
  for name in names:
    x = layers.Dense(3, name=name)(x)
  return keras.Model(image, x)


def operators(written):
  """Returns [(kind, types of what it reads and writes, weights left out)] in the order of the file."""
  rows = []
  for op in written.program.ops:
    tensors = [written.program.tensors[name] for name in (*op.inputs, *op.outputs)]
    rows.append((op.kind, *(tensor.dtype for tensor in tensors if tensor.data is None)))
  return rows


def assert_exact(written):
  assert written.certificate["exact"] and written.certificate["accumulators"]["proved"]
  for result in written.certificate["kernel_sets"].values():
    assert not result["not_simulated"] and not sum(row["mismatching"] for row in result["operators"].values())


@pytest.mark.parametrize(("name", "preset"), [*((name, "int8") for name in models.ZOO),
                                              ("convolutions", "w4a8")])
def test_the_zoo_with_random_layers_of_16_bits_is_exact(name, preset, tmp_path):
  model = models.build(name)
  names = [layer.name for layer in model.layers]
  wide = random.Random(name).sample(names, len(names) // 3)
  _, written = exported(model, with_wide_outputs(kq.QuantConfig.preset(preset), wide), tmp_path / "m.tflite")
  assert_exact(written)
  types = {tensor.dtype for tensor in written.program.tensors.values() if tensor.data is None}
  assert {"int8", "int16"} <= types


def test_an_operator_computes_in_the_widest_of_its_tensors(tmp_path):
  model = chain("first", "second", "third", "fourth")
  config = with_wide_outputs(INT8, ["second"])
  result, written = exported(model, config, tmp_path / "m.tflite")
  assert operators(written) == [
      ("FULLY_CONNECTED", "int8", "int8"), ("QUANTIZE", "int8", "int16"),
      ("FULLY_CONNECTED", "int16", "int16"), ("FULLY_CONNECTED", "int16", "int16"),
      ("QUANTIZE", "int16", "int8"), ("FULLY_CONNECTED", "int8", "int8")]
  integers = result.encodings.integers
  assert [integers[f"{name}/bias"].dtype for name in ("first", "second", "third", "fourth")] == [
      np.int32, np.int64, np.int64, np.int32]
  assert integers["second/kernel"].dtype == np.int8


def test_widening_is_exact_and_has_no_range_of_its_own(tmp_path):
  config = with_wide_outputs(INT8, ["second"])
  result, written = exported(chain("first", "second"), config, tmp_path / "m.tflite")
  narrow, wide = result.encodings["first"], result.encodings["first/to_16_bits"]
  assert wide.scale[0] == narrow.scale[0] / 128 and wide.zero_point[0] == 0 and wide.bits == 16
  watched = ["first", "first/to_16_bits"]
  images = np.random.default_rng(0).integers(-128, 128, (64, 4), np.int8)
  first, widened = Runtime(to_bytes(written.program.with_outputs(watched))).run_many([images])
  np.testing.assert_array_equal(widened, (first.astype(np.int64) - narrow.zero_point[0]) * 128)


def test_a_tensor_is_widened_once_for_all_its_readers(tmp_path):
  image = keras.Input((4,), name="image")
  x = layers.Dense(3, name="stem")(image)
  outputs = [layers.Dense(3, name=name)(x) for name in ("left", "right", "narrow")]
  _, written = exported(keras.Model(image, layers.Add(name="sum")(outputs)),
                        with_wide_outputs(INT8, ["left", "right"]), tmp_path / "m.tflite")
  ops = written.program.ops
  assert [op.inputs for op in ops if op.outputs[0] == "stem/to_16_bits"] == [["stem"]]
  assert sorted(op.source for op in ops if "stem/to_16_bits" in op.inputs) == ["left", "right"]
  assert ("FULLY_CONNECTED", "int8", "int8") in operators(written)


def test_a_hard_swish_between_requantizations(tmp_path):
  image = keras.Input((6, 6, 3), name="image")
  x = layers.Conv2D(4, 3, name="conv")(image)
  y = layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)
  x = layers.Multiply(name="swish")([x, y])
  model = keras.Model(image, layers.Conv2D(2, 1, name="next")(x))
  config = kq.QuantConfig(rules=(
      kq.Rule("^(conv|swish|re_lu|tf.*)$", activations=kq.TensorSpec(bits=16), optional=True), *INT8.rules))
  _, written = exported(model, config, tmp_path / "m.tflite")
  assert_exact(written)
  kinds = operators(written)
  assert ("MUL", "int16", "int16", "int16") in kinds
  assert [row for row in kinds if row[0] == "QUANTIZE"] == [
      ("QUANTIZE", "int8", "int16"), ("QUANTIZE", "int16", "int8")]


def test_tensors_that_share_a_grid_share_a_width(tmp_path):
  image = keras.Input((8, 8, 3), name="image")
  left = layers.MaxPooling2D(2, name="pool")(layers.Conv2D(4, 3, padding="same", name="left")(image))
  right = layers.Conv2D(4, 3, strides=2, padding="same", name="right")(image)
  model = keras.Model(image, layers.Concatenate(name="both")([left, right]))
  _, written = exported(model, with_wide_outputs(INT8, ["left"]), tmp_path / "m.tflite")
  tensors = written.program.tensors
  assert {tensors[name].dtype for name in ("left", "pool", "right", "both")} == {"int16"}
  with pytest.raises(ValueError, match="matches 'pool' alone, which has no grid of its own; expected the "
                                       "layer whose grid it has, 'left'"):
    kq.quantize(model, np.ones((2, 8, 8, 3), np.float32), config=kq.QuantConfig(
        rules=(kq.Rule("pool", activations=kq.TensorSpec(bits=16)), kq.Rule())))


def test_a_table_takes_one_width_and_gives_the_other(tmp_path):
  image = keras.Input((4,), name="image")
  x = layers.Activation("gelu", name="gelu")(layers.Dense(3, name="wide")(image))
  model = keras.Model(image, layers.Activation("elu", name="elu")(x))
  result, written = exported(model, with_wide_outputs(INT8, ["wide", "elu"]), tmp_path / "m.tflite")
  assert_exact(written)
  sizes = {key: (integers.size, integers.dtype.name) for key, integers in result.encodings.integers.items()
           if key.endswith("/table")}
  assert sizes == {"gelu/table": (65536, "int8"), "elu/table": (256, "int16")}
  assert written.program.operator_counts()["QUANTIZE"] == 1  # of the image, for the Dense layer


def test_a_softmax_behind_16_bits_has_the_grid_of_one_over_8(tmp_path):
  image = keras.Input((4,), name="image")
  model = keras.Model(image, layers.Softmax(name="out")(layers.Dense(3, name="logits")(image)))
  result, written = exported(model, with_wide_outputs(INT8, ["logits"]), tmp_path / "m.tflite")
  grid = written.program.tensors[written.program.outputs[0]]
  assert (grid.dtype, grid.scale[0], grid.zero_point[0]) == ("int8", 1 / 256, -128)
  assert result.encodings["out"].scale[0] == np.float32(1 / 32768)


def test_a_shared_layer_over_both_widths_has_a_bias_for_each(tmp_path):
  image = keras.Input((4,), name="image")
  shared = layers.Dense(4, name="shared", use_bias=True)
  x = shared(layers.Dense(4, name="wide")(image))
  model = models.randomized(keras.Model(image, layers.Add()([x, shared(image)])))
  config = with_wide_outputs(kq.QuantConfig.preset("w4a8"), ["wide"])
  result, written = exported(model, config, tmp_path / "m.tflite")
  assert_exact(written)
  assert {result.encodings.integers[f"{key}/bias"].dtype.name for key in ("shared", "shared@1")} == {
      "int32", "int64"}
  assert not result.encodings["shared/kernel"].packed  # over int16 no kernel is


def test_an_operator_without_a_kernel_over_int16_is_refused_before_a_file_is_written(tmp_path):
  image = keras.Input((6, 6, 3), name="image")
  x = tf.pad(layers.Conv2D(4, 3, name="conv")(image), [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
  model = keras.Model(image, layers.Conv2D(4, 3, name="next")(x))
  result = kq.quantize(model, np.ones((2, 6, 6, 3), np.float32), config=with_wide_outputs(INT8, ["conv"]),
                       effort=None)
  with pytest.raises(ValueError, match="MIRROR_PAD of layer 'tf.compat.v1.pad': LiteRT has no kernel of it "
                                       "over int16 activations; replace the layer, or give what it reads 8"):
    tflite_export.export(result, tmp_path / "m.tflite")
  assert not (tmp_path / "m.tflite").exists()


def test_the_description_and_the_report_say_why():
  model = chain("first", "second", "third", "fourth")
  (x,) = models.sample_inputs(model)
  result = kq.quantize(model, x, config=with_wide_outputs(INT8, ["second"]))
  rows = {row.layer: row for row in kq.describe(result.qmodel).rows}
  assert rows["first/to_16_bits"].note == "widened, exactly: second computes in 16 bits"
  assert rows["third/to_8_bits"].note == "narrowed: third computes in 16 bits"
  assert {name: row.output.bits for name, row in rows.items()} == {
      "image": 8, "first": 8, "first/to_16_bits": 16, "second": 16, "third": 16, "third/to_8_bits": 8,
      "fourth": 8}
  assert rows["second"].output.rule == "match '^second$'" and rows["third"].output.rule == "any layer"
  said = {(edit.layer, edit.what) for edit in result.report.edits}
  assert ("third", "computes in 16 bits, as it reads 16; rounded to 8 behind it") in said
  assert ("second", "reads first widened to 16 bits: it computes in 16 bits") in said


def test_bytes_of_biases_are_those_of_the_file():
  for name in ("mobile_block", "nested_shared"):
    model = models.build(name)
    qmodel = kq.calibrate(kq.insert_quantizers(model, with_wide_outputs(INT8, ["stem", "shared"])),
                          models.sample_inputs(model))
    _, encodings = kq.finalize(qmodel)
    expected = sum(integers.nbytes for integers in encodings.integers.values())
    assert sum(row.bytes for row in kq.describe(qmodel).rows) == expected


def test_what_rounds_behind_a_frozen_layer_is_frozen():
  model = chain("first", "second", "third")
  model.get_layer("second").trainable = False
  qmodel = kq.insert_quantizers(model, with_wide_outputs(INT8, ["first"]))
  learns = {layer.name: layer.trainable for layer in qmodel.layers if layer.name.endswith("/quantize")}
  assert learns == {"image/quantize": True, "first/quantize": True, "second/quantize": False,
                    "second/to_8_bits/quantize": False, "third/quantize": True}


@pytest.mark.parametrize("batch_norm", ["fold", "train", "absorb"])
def test_a_model_that_was_trained_is_the_file(batch_norm, tmp_path):
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model)
  config = with_wide_outputs(INT8, ["expand", "logits"])
  qmodel = kq.calibrate(kq.insert_quantizers(model, config, batch_norm=batch_norm), x)
  before = qmodel.predict(x, verbose=0)
  qmodel.compile(keras.optimizers.SGD(0.02), "categorical_crossentropy")
  qmodel.fit(x, np.eye(4, dtype=np.float32)[np.arange(len(x)) % 4], epochs=2, verbose=0)
  trained = qmodel.predict(x, verbose=0)
  assert np.abs(trained - before).max() > 1e-3
  qmodel.save(tmp_path / "q.keras")
  final, encodings = kq.finalize(kq.load_model(tmp_path / "q.keras"))
  written = tflite_export.export((final, encodings), tmp_path / "m.tflite", verify=x[:3], certify=True)
  assert_exact(written)
  (grid,) = (written.program.tensors[name] for name in written.program.outputs)
  (quantized,) = Runtime(written.path, kernels="reference").run_many(
      [encodings["image"].quantize(x).astype(written.program.tensors["image"].dtype)])
  off = np.abs((quantized - grid.zero_point[0]) * grid.scale[0] - trained) / grid.scale[0]
  assert off.max() <= 3
