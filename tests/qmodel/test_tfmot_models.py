"""tfmot's annotate, apply and fit with kquant's quantizers, to a certified file."""

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from kquant.qmodel.configs import KernelQuantizeConfig, OutputQuantizeConfig
from kquant.qmodel.tfmot_models import from_tfmot, is_tfmot
from kquant.quantizers import LSQQuantizer, MovingAverageQuantizer
from tflite_export.proof.runtime import Runtime

annotate = tfmot.quantization.keras.quantize_annotate_layer


def moving():
  return MovingAverageQuantizer(momentum=0.8)


def linear(layer, axis, *, kernel=MovingAverageQuantizer, output=moving):
  config = KernelQuantizeConfig(kernel(bits=4, symmetric=True, narrow=True, axis=axis), output and output())
  return annotate(layer, config)


def network(*, add=True, batch_norm=False, dense=True):
  """A small annotated residual network, applied."""
  x = image = keras.Input((8, 8, 3), name="image")
  x = short = linear(layers.Conv2D(4, 3, padding="same", activation="relu", name="stem"), (3,))(x)
  x = linear(layers.DepthwiseConv2D(3, padding="same", name="depthwise"), (2, 3), kernel=LSQQuantizer)(x)
  if batch_norm:
    x = layers.BatchNormalization(name="bn")(x)
  join = layers.Add(name="add")
  x = (annotate(join, OutputQuantizeConfig(moving())) if add else join)([x, short])
  x = layers.Flatten(name="flatten")(layers.MaxPooling2D(2, name="pool")(x))
  out = layers.Dense(3, name="out")
  return tfmot.quantization.keras.quantize_apply(
      keras.Model(image, (linear(out, (1,), kernel=LSQQuantizer) if dense else out)(x)))


def data():
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (32, 8, 8, 3)).astype(np.float32)
  return x, 10 * x.mean(axis=(1, 2))


def wrapper(model, name):
  return next(layer for layer in model.layers if layer.name == f"quant_{name}")


def fit(model, x, y):
  for name, axes in (("depthwise", (0, 1)), ("out", (0,))):
    ((kernel, quantizer, state),) = wrapper(model, name)._weight_vars
    high = np.abs(kernel.numpy()).max(axis=axes).reshape(-1)
    quantizer.set_range(state, -high, high)
  model.compile(keras.optimizers.Adam(0.01), "mse")
  return model.fit(x, y, epochs=10, batch_size=8, verbose=0).history["loss"]


def test_trained_model_becomes_a_certified_file_of_what_was_trained(tmp_path):
  model, (x, y) = network(), data()
  losses = fit(model, x, y)
  assert losses[-1] < losses[0] and is_tfmot(model)
  final, encodings = kq.finalize(model)
  for name in ("stem", "depthwise", "out"):
    ((kernel, quantizer, state),) = wrapper(model, name)._weight_vars
    key = f"{name}/kernel"
    np.testing.assert_array_equal(encodings[key].scale, quantizer.encoding(state).scale)
    np.testing.assert_array_equal(encodings.integers[key], quantizer.encoding(state).quantize(kernel.numpy()))
  assert encodings["stem/relu"] == wrapper(model, "stem").quantize_config.output.encoding(
      wrapper(model, "stem")._output_quantizer_vars)
  assert encodings["pool"] == encodings["flatten"] == encodings["add"]
  result = kq.QuantizationResult(final, encodings, model, None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=x[:2], certify=True, io="float32")
  assert written.certificate["exact"]
  assert 0 < kq.analyze(result, x).whole < 0.1
  steps = np.abs(Runtime(tmp_path / "m.tflite").run_many([x])[0].reshape(len(x), -1)
                 - model.predict(x, verbose=0)) / encodings["out"].scale[0]
  assert steps.mean() < 0.5 and steps.max() < 4


def test_input_keeps_the_grid_that_tfmot_rounded_it_to():
  model, (x, y) = network(), data()
  fit(model, x, y)
  qmodel, simulated = from_tfmot(model), model.layers[1](x).numpy()
  encoding = qmodel.get_layer("image/quantize").encoding()
  np.testing.assert_allclose(encoding.dequantize(encoding.quantize(simulated)), simulated, atol=1e-6)
  np.testing.assert_allclose(qmodel(x).numpy(), model.predict(x, verbose=0), atol=0.02 * np.abs(y).max())


@pytest.mark.parametrize("options, message", [
    ({"add": False}, r"'add' has no quantizer; annotate the layer that writes it.*OutputQuantizeConfig"),
    ({"dense": False}, r"'out' has no quantizer for its kernel; annotate it with a KernelQuantizeConfig"),
    ({"batch_norm": True}, r"'bn' .*fold it first: kq.rewrite")])
def test_what_is_missing_is_an_error_that_names_the_remedy(options, message):
  with pytest.raises(UnsupportedLayerError, match=message):
    kq.finalize(network(**options))


def test_tfmots_own_quantizers_of_kernels_are_refused_with_a_remedy():
  x = keras.Input((4,))
  model = tfmot.quantization.keras.quantize_model(keras.Model(x, layers.Dense(2, name="dense")(x)))
  with pytest.raises(UnsupportedLayerError, match="of another package; annotate its layer with a Kernel"):
    kq.finalize(model)


def test_a_description_says_that_the_annotations_decided():
  model, (x, y) = network(), data()
  fit(model, x, y)
  rows = {row.layer: row for row in kq.describe(model).rows}
  assert rows["stem"].weights[0].rule == rows["add"].output.rule == "annotated in tfmot"
  assert rows["stem"].note.startswith("one integer operator with stem/relu")
