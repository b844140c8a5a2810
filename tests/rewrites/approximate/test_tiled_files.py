"""Tiled squeeze-and-excite as integers: certified files, open batches, 16 bits, training with quantizers."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.graph.graph import Graph
from kquant.qmodel.quantize_activation import QuantizeActivation
from tests.models import randomized
from tflite_export.proof.runtime import Runtime

IMAGE = (9, 7, 3)


def network():
  """Two blocks: convolutions and a sigmoid; dense layers, reshapes and a hard sigmoid."""
  image = keras.Input(IMAGE)
  x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
  gate = layers.Conv2D(4, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
  x = layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid")(gate)])
  x = layers.Conv2D(8, 3, strides=2)(x)
  gate = layers.Dense(4, "swish")(layers.GlobalAveragePooling2D()(x))
  x = layers.Multiply()([x, layers.Reshape((1, 1, 8))(layers.Dense(8, "hard_sigmoid")(gate))])
  return keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def images(count=48, shape=IMAGE):
  return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def assert_certified(result, path, x, **options):
  """Every tensor of both kernel sets equals our arithmetic, on images, random integers and rounding ties."""
  written = kq.export(result, path, verify=x, certify=True, **options)
  assert written.verification.ok and not written.verification.float_operators
  assert written.certificate["exact"] and set(written.certificate["kernel_sets"]) == {"xnnpack", "reference"}
  return written


@pytest.mark.parametrize("options", [{"rows": 2}, {"columns": 2}, {"tile": (2, 2)}], ids=str)
def test_files_are_exact(options, tmp_path):
  model, x = kq.tile_squeeze_excite(network(), **options), images()
  result = kq.quantize(model, x, effort=None)
  written = assert_certified(result, tmp_path / "m.tflite", x[:3])
  assert not {"QUANTIZE", "DEQUANTIZE"} & set(written.program.operator_counts())
  assert written.program.operator_counts()["RESIZE_NEAREST_NEIGHBOR"] == 2
  noise = result.model(x).numpy() - model(x).numpy()
  assert np.square(noise).mean() < 0.01 * np.square(model(x)).mean()


def test_open_batches(tmp_path):
  model, x = kq.tile_squeeze_excite(network(), rows=2), images()
  result = kq.quantize(model, x, effort=None)
  assert_certified(result, tmp_path / "open.tflite", x[:3], batch="dynamic")
  kq.export(result, tmp_path / "one.tflite")
  integers = result.encodings["input_1"].quantize(x[:4]).astype(np.int8)
  one, four = (Runtime(tmp_path / f"{name}.tflite").run_many([integers])[0] for name in ("one", "open"))
  np.testing.assert_array_equal(one, four)


def test_activations_of_16_bits(tmp_path):
  model, x = kq.tile_squeeze_excite(network(), rows=2), images()
  result = kq.quantize(model, x, config="int16x8", effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=x[:3])
  assert written.verification.ok and not written.verification.float_operators


def test_rules_find_means_and_gates_by_the_names_of_the_user():
  model = kq.tile_squeeze_excite(network(), rows=2)
  for match in ("^global_average_pooling2d$", "^multiply$"):
    config = kq.QuantConfig(rules=(kq.Rule(match=match, activations=kq.TensorSpec(bits=6)), kq.Rule()))
    quantizers = [layer for layer in kq.insert_quantizers(model, config).layers
                  if isinstance(layer, QuantizeActivation)]
    assert any(layer.quantizer.bits == 6 for layer in quantizers)


def test_quantization_aware_training_and_its_file(tmp_path):
  model, x = kq.tile_squeeze_excite(network(), rows=2), images()
  qmodel = kq.calibrate(kq.insert_quantizers(model), x)
  qmodel.compile("sgd", "mse")
  losses = qmodel.fit(x, model(x) + 0.1, epochs=3, verbose=0).history["loss"]
  assert losses[-1] < losses[0]
  result = kq.finalize(qmodel)
  written = kq.export(result, tmp_path / "m.tflite", verify=x[:3])
  assert written.verification.ok and not written.verification.float_operators


@pytest.mark.slow
def test_mobilenet_v3_in_tiles_of_7_rows(tmp_path):
  shape = (128, 128, 3)
  model = randomized(keras.applications.MobileNetV3Small(weights=None, input_shape=shape, classes=10))
  graph = Graph.from_model(model)
  kq.tile_squeeze_excite(graph, rows=7)
  assert [edit.what for edit in graph.edits] == [
      "gates of 'expanded_conv/squeeze_excite/AvgPool' for tiles of 7 x 32",
      *(f"gates of 'expanded_conv_{n}/squeeze_excite/AvgPool' for tiles of 7 x 8" for n in range(3, 8))]
  x = np.random.default_rng(0).uniform(0, 255, (8, *shape)).astype(np.float32)
  assert_certified(kq.quantize(graph.to_model(), x, effort=None), tmp_path / "m.tflite", x[:1])
