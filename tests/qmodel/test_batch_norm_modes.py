"""Batch norms that learn in a quantized model: where they are taken out, how they are absorbed, the files."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.encodings import Encoding
from kquant.core.metrics import sqnr_db
from kquant.graph.graph import Graph
from kquant.qmodel.batch_norm_modes import scaled_integers, take_out_batch_norms
from kquant.qmodel.folded_conv import FoldedConv
from kquant.qmodel.quantize_weights import QuantizeWeights
from tests import models
from tflite_export.proof.runtime import Runtime

MODES = ("fold", "train", "absorb")


def calibrated(name, mode, config="w4a8"):
  model = models.build(name)
  (x,) = models.sample_inputs(model, images=32)
  still = kq.QuantConfig.preset(config).with_quantizers(weights="minmax", activations="minmax")
  return model, kq.calibrate(kq.insert_quantizers(model, still, batch_norm=mode), x), x


def trained(name, mode, config="w4a8", steps=4):
  """A quantized model whose batch norms, kernels and biases have moved."""
  model, qmodel, x = calibrated(name, mode, config)
  y = np.random.default_rng(2).normal(size=model(x).shape)
  qmodel.compile(keras.optimizers.SGD(0.02), "mse")
  qmodel.fit(x, y, batch_size=32, epochs=steps, verbose=0)
  return qmodel, x


# --- absorbing into integers -----------------------------------------------------------------------


def test_scaled_integers_by_hand():
  grid = Encoding(np.float32([0.5, 0.25]), [0, 0], bits=4, axis=(1,), narrow=True)
  integers, scaled = scaled_integers(np.array([[1, -7], [3, 0]]), grid, np.array([2.0, -4.0]))
  assert integers.tolist() == [[1, 7], [3, 0]]
  assert scaled == Encoding(np.float32([1.0, 1.0]), [0, 0], bits=4, axis=(1,), narrow=True)


@pytest.mark.parametrize("seed", range(5))
def test_scaling_keeps_integers_but_for_the_sign(seed):
  rng = np.random.default_rng(seed)
  grid = Encoding(rng.uniform(1e-4, 0.1, 6), np.zeros(6), axis=(2, 3), narrow=True)
  integers = rng.integers(-127, 127, (3, 3, 2, 3), endpoint=True)
  factor = rng.normal(size=6)
  flipped, scaled = scaled_integers(integers, grid, factor)
  np.testing.assert_array_equal(flipped, integers * np.sign(factor).reshape(2, 3))
  np.testing.assert_allclose(scaled.dequantize(flipped),
                             grid.dequantize(integers) * factor.reshape(2, 3), rtol=1e-6)
  np.testing.assert_array_equal(scaled.quantize(scaled.dequantize(flipped)), flipped)


def test_a_channel_that_is_multiplied_by_zero_has_zeros_and_a_positive_scale():
  grid = Encoding(np.float32([0.5, 0.5]), [0, 0], axis=(1,), narrow=True)
  integers, scaled = scaled_integers(np.array([[100, 100]]), grid, np.array([0.0, 1.0]))
  assert integers.tolist() == [[0, 100]] and (scaled.scale > 0).all()


# --- which batch norms learn -----------------------------------------------------------------------


@pytest.mark.parametrize("name, learning", [("conv_bn_relu", ["conv"]), ("sequence", ["strided"]),
                                            ("lone_batch_norm", []), ("nested_shared", ["inner/conv"]),
                                            ("mobile_block", ["stem", "expand", "depthwise", "project"])])
def test_batch_norms_behind_a_layer_of_their_own_are_taken_out_and_the_others_folded(name, learning):
  model = models.build(name)
  graph = kq.standardize(Graph.from_model(model))
  taken = take_out_batch_norms(graph, "train")
  assert [layer.name for layer in taken] == learning
  assert not graph.find("BatchNormalization")
  assert all("bias" not in layer.params for layer in taken)


def test_a_batch_norm_behind_a_learning_one_is_folded_forward():
  x = image = keras.Input((6, 6, 3), name="image")
  x = layers.BatchNormalization(name="learns")(layers.Conv2D(4, 3, name="conv")(x))
  x = layers.BatchNormalization(name="second")(layers.ReLU()(x))
  model = models.randomized(keras.Model(image, layers.Conv2D(2, 1, name="last")(x)))
  (x,) = models.sample_inputs(model)
  qmodel = kq.calibrate(kq.insert_quantizers(model, batch_norm="train"), x)
  assert [layer.name for layer in qmodel.layers if isinstance(layer, FoldedConv)] == ["conv"]
  assert sqnr_db(qmodel.predict(x, verbose=0), model.predict(x, verbose=0)) > 30


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["conv_bn_relu", "mobile_block", "sequence", "lone_batch_norm"])
def test_every_mode_starts_as_the_float_function(name, mode):
  model, qmodel, x = calibrated(name, mode, "int8")
  assert sqnr_db(qmodel.predict(x, verbose=0), model.predict(x, verbose=0)) > 20
  assert any(layer.name == "conv" and layer.layer.use_bias == (mode == "fold")
             for layer in qmodel.layers if isinstance(layer, QuantizeWeights)) or name != "conv_bn_relu"


def test_what_learns():
  names = {mode: {v.name.split(":")[0] for v in calibrated("conv_bn_relu", mode)[1].trainable_variables}
           for mode in MODES}
  dense = {"dense/kernel", "dense/bias"}
  assert names == {"fold": dense | {"conv/kernel", "conv/bias"},
                   "train": dense | {"conv/kernel", "conv/gamma", "conv/beta"},
                   "absorb": dense | {"conv/kernel", "bn/gamma", "bn/beta"}}


# --- mistakes --------------------------------------------------------------------------------------


def test_an_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="'fold', 'train' or 'absorb', got 'freeze'"):
    kq.insert_quantizers(models.build("conv_bn_relu"), batch_norm="freeze")


def test_absorbing_needs_a_scale_a_channel():
  with pytest.raises(ValueError, match=r"'conv' has one scale.*per_channel"):
    kq.insert_quantizers(models.build("conv_bn_relu"), "int8_per_tensor", batch_norm="absorb")


@pytest.mark.parametrize("mode", ["train", "absorb"])
def test_bias_correction_refuses_a_batch_norm_that_learns(mode):
  model, qmodel, x = calibrated("conv_bn_relu", mode)
  with pytest.raises(ValueError, match="'conv' has a batch norm that learns"):
    kq.correct_bias(qmodel, model, x)


def test_bias_correction_takes_the_float_model_as_insert_quantizers_does():
  model, qmodel, x = calibrated("conv_bn_relu", "fold")
  kq.correct_bias(qmodel, model, x)
  _, encodings = kq.finalize(qmodel)
  models.assert_same_encodings(encodings, kq.quantize(model, x, config="w4a8", effort=None).encodings)


# --- the file is what was trained ------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name, config", [("conv_bn_relu", "w2a8"), ("mobile_block", "w4a8")])
def test_the_file_computes_what_was_trained(name, config, mode, tmp_path):
  qmodel, x = trained(name, mode, config)
  final, encodings = kq.finalize(qmodel)
  assert not Graph.from_model(final).find("BatchNormalization")
  written = tflite_export.export((final, encodings), tmp_path / "m.tflite", verify=x[:2], certify=True,
                                 io="float32")
  assert written.verification.max_lsb <= 1 and not written.verification.float_operators
  outputs = Runtime(written.path).run_many([x])[0]
  grid = encodings[written.program.outputs[0].removesuffix("/float32")]
  steps = np.abs(outputs - qmodel.predict(x, verbose=0)) / grid.scale[0]
  assert steps.max() < 2.1  # the simulation leaves roundings of pools and ties to the runtime


@pytest.mark.parametrize("mode", ["train", "absorb"])
def test_the_integers_are_those_that_inference_multiplied_with(mode):
  qmodel, _ = trained("mobile_block", mode)
  final, encodings = kq.finalize(qmodel)
  for wrapper in (layer for layer in qmodel.layers if isinstance(layer, QuantizeWeights)):
    ((name, quantized),) = wrapper.simulated_weights().items()
    norm = next((layer for layer in qmodel.layers if isinstance(layer, layers.BatchNormalization)
                 and layer.input is wrapper.output), None)
    exported = getattr(final.get_layer(wrapper.name), name).numpy()
    if norm is None:
      np.testing.assert_array_equal(quantized.numpy(), exported)
      continue
    ((_, grid),) = wrapper.weight_encodings().items()
    sign = np.sign(norm.gamma.numpy()).reshape([n if i in grid.axis else 1
                                                for i, n in enumerate(exported.shape)])
    np.testing.assert_array_equal(grid.quantize(quantized.numpy()) * sign,
                                  encodings.integers[f"{wrapper.name}/kernel"])


@pytest.mark.parametrize("mode", ["train", "absorb"])
def test_a_negative_and_a_zero_gamma_reach_the_file(mode, tmp_path):
  model, qmodel, x = calibrated("conv_bn_relu", mode)
  (gamma,) = (v for v in qmodel.trainable_variables if "gamma" in v.name)
  gamma.assign([-1.0, 0.0, 0.5, -2.0, 1.0, 1.0, 1.0, 1.0])
  final, encodings = kq.finalize(qmodel)
  assert (encodings["conv/kernel"].scale > 0).all()
  assert not encodings.integers["conv/kernel"][..., 1].any()
  np.testing.assert_allclose(final.predict(x, verbose=0), qmodel.predict(x, verbose=0), atol=0.05)
  assert tflite_export.export((final, encodings), tmp_path / "m.tflite", verify=x[:2]).verification.ok


@pytest.mark.parametrize("mode, ending", [("train", "m.keras"), ("train", "m.h5"), ("absorb", "m.keras")])
def test_a_saved_model_is_loaded_as_it_was(mode, ending, tmp_path):
  qmodel, x = trained("conv_bn_relu", mode)
  qmodel.save(tmp_path / ending)
  loaded = keras.models.load_model(tmp_path / ending)
  np.testing.assert_array_equal(loaded.predict(x, verbose=0), qmodel.predict(x, verbose=0))
  models.assert_same_encodings(kq.finalize(loaded)[1], kq.finalize(qmodel)[1])
