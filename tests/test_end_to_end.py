"""float model -> quantize -> file -> LiteRT, on every model of the tiny zoo."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
import tflite_export
from tests import models
from tflite_export.proof.runtime import Runtime

layers = keras.layers


@pytest.mark.parametrize("name", models.ZOO)
def test_zoo_becomes_a_verified_integer_file(name, tmp_path):
  model = models.build(name)
  inputs = models.sample_inputs(model, images=32)
  before = [weight.copy() for weight in model.get_weights()]
  result = kq.quantize(model, inputs, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=[x[:4] for x in inputs])
  assert written.verification.ok
  assert written.verification.max_lsb <= 1
  assert not written.verification.float_operators
  assert written.path.stat().st_size == written.bytes
  for mine, theirs in zip(before, model.get_weights()):
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", models.ZOO)
def test_integer_outputs_follow_the_float_model(name, tmp_path):
  model = models.build(name)
  inputs = models.sample_inputs(model, images=32)
  result = kq.quantize(model, inputs, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", io="float32")
  outputs = Runtime(tmp_path / "m.tflite").run_many(inputs)
  reference = model.predict(dict(zip(model.input_names, inputs)) if inputs[1:] else inputs[0], verbose=0)
  reference = list(reference.values()) if isinstance(reference, dict) else [reference]
  keys = [name.removesuffix("/float32") for name in written.program.outputs]
  by_size = {output.shape: output for output in outputs}
  assert len(keys) == len(reference) == len(outputs)
  for expected in reference:
    mine = by_size[expected.shape]
    noise = np.square(mine - expected).mean() / np.square(expected).mean()
    assert noise < 0.01, (name, noise)


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_borders_give_the_same_integers(io, tmp_path):
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model, images=8)
  result = kq.quantize(model, x, effort=None)
  grid, out_grid = result.encodings["image"], result.encodings["softmax"]
  plain = tflite_export.export(result, tmp_path / "int8.tflite")
  integers = grid.quantize(x).astype(np.int8)
  expected = Runtime(plain.path).run_many([integers])[0]
  written = tflite_export.export(result, tmp_path / "other.tflite", io=io, verify=x)
  assert written.verification.ok
  given = {"int8": integers, "uint8": (integers.astype(np.int16) + 128).astype(np.uint8),
           "float32": grid.dequantize(integers)}[io]
  output = Runtime(written.path).run_many([given])[0]
  assert output.dtype == np.dtype(io)
  back = {"int8": lambda y: y, "uint8": lambda y: y.astype(np.int16) - 128, "float32": out_grid.quantize}[io]
  np.testing.assert_array_equal(back(output), expected)


@pytest.mark.parametrize("preset", ["int8", "int8_per_tensor", "w4a8", "w2a8"])
def test_presets_give_verified_files(preset, tmp_path):
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model)
  result = kq.quantize(model, x, config=preset, effort=None)
  assert tflite_export.export(result, tmp_path / "m.tflite", verify=x[:2]).verification.ok
  bits = int(preset[1]) if preset[0] == "w" else 8
  kernel = result.encodings.integers["depthwise/kernel"]
  assert np.abs(kernel).max() == 2 ** (bits - 1) - 1
  channels = kernel.shape[2]
  assert len(result.encodings["depthwise/kernel"].scale) == (1 if "tensor" in preset else channels)


def test_result_is_the_same_for_any_order_and_batch_size_of_the_images():
  model = models.build("branches")
  (x,) = models.sample_inputs(model, images=70)
  first, *others = [kq.quantize(model, data, effort=None).encodings
                    for data in (x, x[::-1].copy(), (batch for batch in np.split(x, 10)))]
  for other in others:
    models.assert_same_encodings(first, other)


def test_step_by_step_is_the_one_call(tmp_path):
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model)
  rewritten = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  qmodel = kq.insert_quantizers(rewritten, kq.QuantConfig.preset("int8"))
  kq.calibrate(qmodel, x)
  kq.correct_bias(qmodel, rewritten, x)
  kq.correct_bias(qmodel, rewritten, x)
  _, encodings = kq.finalize(qmodel)
  models.assert_same_encodings(encodings, kq.quantize(model, x, effort=None).encodings)


def test_dead_and_constant_channels_are_no_error(tmp_path):
  model = models.build("conv_bn_relu")
  kernel = model.get_layer("conv").kernel
  dead = kernel.numpy()
  dead[..., 2] = 0.0
  dead[..., 3] *= 1e-12
  kernel.assign(dead)
  (x,) = models.sample_inputs(model)
  result = kq.quantize(model, x, effort=None)
  assert tflite_export.export(result, tmp_path / "m.tflite", verify=x[:4]).verification.ok
  assert [edit for edit in result.report.edits if "channel 2 raised" in edit.what]


def test_constant_calibration_images_still_give_a_file_that_loads(tmp_path):
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model)
  result = kq.quantize(model, np.zeros_like(x), effort=None)
  assert tflite_export.export(result, tmp_path / "m.tflite", verify=x[:2] * 0).verification.ok


def test_a_config_that_does_not_fit_is_refused_before_any_image_is_read():
  def images():
    raise AssertionError("an image was read")
    yield

  config = kq.QuantConfig((kq.Rule("^nowhere$"), kq.Rule()))
  with pytest.raises(ValueError, match="matches no layer"):
    kq.quantize(models.ZOO["conv_bn_relu"](), images, config=config, effort="balanced")


@pytest.mark.parametrize("index", [-1, 9])
def test_indices_outside_of_a_table_are_one_line_at_the_start(index):
  x = keras.Input((4,), dtype="int32", name="ids")
  y = layers.Flatten()(layers.Embedding(9, 3)(x))
  model = keras.Model(x, layers.Dense(2)(y))
  ids = np.random.default_rng(0).integers(0, 9, (12, 4))
  assert kq.quantize(model, ids, effort=None).encodings.grids
  ids[7, 2] = index
  for run in (kq.quantize, lambda model, ids: kq.calibrate(kq.insert_quantizers(model), ids)):
    with pytest.raises(ValueError, match=f"'ids': expected indices from 0 to 8, .*got {index} in sample 7"):
      run(model, ids)


def test_a_float_model_is_no_result(tmp_path):
  with pytest.raises(TypeError, match=r"got Functional\. Quantize it first"):
    kq.export(models.ZOO["conv_bn_relu"](), tmp_path / "m.tflite")
