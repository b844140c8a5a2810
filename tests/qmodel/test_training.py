"""A quantized model under compile and fit: what trains, what stays, what the file then holds."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
import tflite_export
from kquant import QuantConfig, Rule, TensorSpec
from kquant.qmodel.quantize_activation import QuantizeActivation
from tests import models
from tflite_export.proof.runtime import Runtime

FOLD = [kq.standardize, kq.fold_batch_norm]
# {(weights, activations): what a step of training moves besides kernels and biases}.
PAIRS = {("lsq", "lsq"): {"kernel_log_step", "output_log_step"},
         ("lsq_plus", "lsq_plus"): {"kernel_log_step", "output_log_step", "output_shift"},
         ("moving_average", "moving_average"): {"kernel_min", "kernel_max", "output_min", "output_max"},
         ("dorefa", "pact"): {"kernel_scale", "output_alpha"},
         ("minmax", "minmax"): set()}


def config_of(weights, activations):
  return QuantConfig.preset("w4a8").with_quantizers(weights=weights, activations=activations)


def calibrated(name, config):
  """Returns (float model, its quantized one, its input)."""
  model = kq.rewrite(models.build(name), FOLD)
  (x,) = models.sample_inputs(model, images=16)
  return model, kq.calibrate(kq.insert_quantizers(model, config), x), x


def tails(variables):
  return {variable.name.split(":")[0].rsplit("/", 1)[-1] for variable in variables}


def fit(qmodel, teacher, x, *, optimizer="adam", **options):
  qmodel.compile(optimizer, "mse")
  return qmodel.fit(x, teacher.predict(x, verbose=0), batch_size=4, verbose=0, shuffle=False, **options)


def trained_file(qmodel, x, path):
  """Exports the trained model, with proof; returns its certificate and the file's outputs for x."""
  final, encodings = kq.finalize(qmodel)
  result = kq.QuantizationResult(final, encodings, qmodel, None)
  written = tflite_export.export(result, path, verify=x[:2], certify=True, io="float32")
  return written.certificate, Runtime(path).run_many([x])[0].reshape(len(x), -1)


@pytest.mark.parametrize("pair", PAIRS)
def test_quantized_model_trains_and_its_file_is_what_was_trained(pair, tmp_path):
  model, qmodel, x = calibrated("mobile_block", config_of(*pair))
  before = {w.name: w.numpy() for w in qmodel.weights}
  losses = fit(qmodel, model, x, epochs=8).history["loss"]
  assert losses[-1] < 0.75 * losses[0]
  changed = tails(w for w in qmodel.weights if not np.array_equal(w.numpy(), before[w.name]))
  moved = {name.removeprefix("depthwise_") for name in changed}
  assert moved == {"kernel", "bias"} | PAIRS[pair]
  certificate, outputs = trained_file(qmodel, x, tmp_path / "m.tflite")
  assert certificate["exact"]
  steps = 256 * np.abs(outputs - qmodel.predict(x, verbose=0))  # an integer on a tie may fall either way
  assert steps.mean() < 0.5 and steps.max() < 3.1


@pytest.mark.parametrize("bits", [1, 2, 7])
def test_odd_integers_reach_the_file(bits, tmp_path):
  weights = TensorSpec(bits=bits, symmetric=True, per_channel=True, quantizer="dorefa")
  model, qmodel, x = calibrated("conv_bn_relu", QuantConfig((Rule(weights=weights),)))
  kq.correct_bias(qmodel, model, x)
  fit(qmodel, model, x, epochs=2)
  certificate, _ = trained_file(qmodel, x, tmp_path / "m.tflite")
  assert certificate["exact"]
  _, encodings = kq.finalize(qmodel)
  for name in ("conv", "dense"):
    integers = encodings.integers[f"{name}/kernel"]
    assert (integers % 2 == 1).all() and np.abs(integers.astype(int)).max() == 2 ** bits - 1
    assert encodings[f"{name}/kernel"].packed == (bits < 4)


def test_eight_bits_of_odd_integers_are_refused_at_finalize_with_a_remedy():
  weights = TensorSpec(symmetric=True, per_channel=True, quantizer="dorefa")
  _, qmodel, _ = calibrated("conv_bn_relu", QuantConfig((Rule(weights=weights),)))
  with pytest.raises(ValueError, match="'conv'.*9 bits.*at most 7 bits, or train with lsq"):
    kq.finalize(qmodel)


@pytest.mark.parametrize("pair", [("lsq", "lsq"), ("dorefa", "pact")])
def test_kernels_of_the_file_are_the_integers_that_were_simulated(pair):
  model, qmodel, x = calibrated("convolutions", config_of(*pair))
  fit(qmodel, model, x, epochs=3)
  final, encodings = kq.finalize(qmodel)
  for layer in (layer for layer in qmodel.layers if hasattr(layer, "weight_encodings")):
    ((name, quantizer, state),) = layer._quantized
    simulated = quantizer(tf.convert_to_tensor(getattr(layer.layer, name)), False, state).numpy()
    np.testing.assert_array_equal(getattr(final.get_layer(layer.name), name).numpy(), simulated)
    np.testing.assert_array_equal(encodings[f"{layer.name}/kernel"].dequantize(
        encodings.integers[f"{layer.name}/kernel"]), simulated)


def test_untrained_quantizers_give_the_files_of_min_max():
  model = kq.rewrite(models.build("mobile_block"), FOLD)
  (x,) = models.sample_inputs(model, images=16)
  found = [kq.finalize(kq.calibrate(kq.insert_quantizers(model, config_of(name, name)), x))[1]
           for name in ("minmax", "moving_average", "lsq", "lsq_plus")]
  assert found[0] == found[1] == found[2] == found[3]


def test_softmax_that_ends_the_model_trains_in_float_so_that_the_cross_entropy_has_a_gradient():
  _, qmodel, x = calibrated("mobile_block", config_of("lsq", "lsq"))
  qmodel.get_layer("logits").layer.bias.assign([12.0, 0.0, 0.0, 0.0])  # the other classes round to 0
  logits = qmodel.get_layer("logits/quantize")
  logits.set_range(-15.0, 15.0)
  assert (qmodel(x, training=False).numpy()[:, 1:] == 0).all()
  assert (qmodel(x, training=True).numpy()[:, 1:] > 0).all()
  with tf.GradientTape() as tape:
    loss = keras.losses.SparseCategoricalCrossentropy()(np.ones(len(x)), qmodel(x, training=True))
  assert float(loss) < 14 and np.abs(tape.gradient(loss, qmodel.get_layer("logits").layer.bias)).max() > 0.5


def test_fixed_grid_inside_the_model_is_simulated_in_training():
  _, qmodel, _ = calibrated("branches", config_of("lsq", "lsq"))
  assert not qmodel.get_layer("excite/sigmoid/quantize").float_in_training


def test_fixed_grids_are_not_learned():
  _, qmodel, _ = calibrated("mobile_block", config_of("lsq_plus", "lsq_plus"))
  assert not qmodel.get_layer("softmax/quantize").trainable_weights
  assert tails(qmodel.get_layer("add/quantize").trainable_weights) == {"output_log_step", "output_shift"}


# --- plain Keras -----------------------------------------------------------------------------------


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, clipnorm=1.0),
    "adam": lambda: keras.optimizers.Adam(1e-3, global_clipnorm=1.0),
    "adamw": lambda: keras.optimizers.AdamW(1e-3, weight_decay=1e-4, clipvalue=0.5),
    "rmsprop": lambda: keras.optimizers.RMSprop(1e-3),
    "averaged": lambda: keras.optimizers.SGD(0.01, use_ema=True, ema_overwrite_frequency=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_optimizer_trains_from_a_dataset_with_class_weights(optimizer):
  _, qmodel, x = calibrated("conv_bn_relu", config_of("lsq_plus", "lsq_plus"))
  labels = np.arange(len(x)) % 4
  batches = tf.data.Dataset.from_tensor_slices((x, labels)).shuffle(16, seed=0).batch(6).prefetch(1)
  before = {w.name: w.numpy() for w in qmodel.weights}
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  qmodel.compile(OPTIMIZERS[optimizer](), loss, weighted_metrics=["accuracy"])
  history = qmodel.fit(batches, epochs=4, verbose=0, class_weight={0: 1.0, 1: 2.0, 2: 0.5, 3: 1.0},
                       validation_data=batches, callbacks=[keras.callbacks.ReduceLROnPlateau(patience=1)])
  losses = history.history["loss"]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]
  changed = {w.name for w in qmodel.weights if not np.array_equal(w.numpy(), before[w.name])}
  assert changed <= {w.name for w in qmodel.trainable_weights}
  assert all(np.isfinite(w.numpy()).all() for w in qmodel.trainable_weights)
  assert len(kq.finalize(qmodel)[1])


def test_a_loop_of_ones_own_and_accumulated_gradients_train_too():
  model, qmodel, x = calibrated("conv_bn_relu", config_of("lsq", "pact"))
  targets, optimizer = model.predict(x, verbose=0), keras.optimizers.Adam(0.01)

  @tf.function
  def step(parts):
    total = [tf.zeros_like(v) for v in qmodel.trainable_weights]
    for inputs, wanted in parts:
      with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(qmodel(inputs, training=True) - wanted))
      total = [a + g for a, g in zip(total, tape.gradient(loss, qmodel.trainable_weights))]
    optimizer.apply_gradients(zip(total, qmodel.trainable_weights))
    return loss

  parts = [(x[:8], targets[:8]), (x[8:], targets[8:])]
  first = float(step(parts))
  for _ in range(20):
    last = float(step(parts))
  assert last < 0.7 * first


def test_frozen_quantizers_leave_the_weights_to_train():
  model, qmodel, x = calibrated("conv_bn_relu", config_of("lsq", "lsq"))
  for layer in qmodel.layers:
    if isinstance(layer, QuantizeActivation):
      layer.trainable = False
  before = {w.name: w.numpy() for w in qmodel.weights}
  fit(qmodel, model, x, epochs=2)
  changed = tails(w for w in qmodel.weights if not np.array_equal(w.numpy(), before[w.name]))
  assert changed == {"kernel", "bias", "kernel_log_step"}
