"""Models whose gradients are quantized: rules, what a step does, every form of fit, saving and resuming."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.graph.execution import live_layers

IN_HINDSIGHT = kq.TensorSpec(quantizer="in_hindsight")


def network():
  keras.utils.set_random_seed(0)
  image = keras.Input((6, 6, 2))
  x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, name="stem")(image)))
  x = layers.ReLU()(layers.DepthwiseConv2D(3, name="middle")(x))
  return keras.Model(image, layers.Dense(3, activation="softmax", name="head")(layers.Flatten()(x)))


def quantized(gradients=IN_HINDSIGHT, batch_norm="absorb", **rule):
  config = kq.QuantConfig((kq.Rule(activations=IN_HINDSIGHT, gradients=gradients, **rule),))
  return kq.insert_quantizers(network(), config, batch_norm=batch_norm)


def compiled(qmodel, optimizer=None, **options):
  qmodel.compile(optimizer or keras.optimizers.SGD(0.05, jit_compile=False),
                 "sparse_categorical_crossentropy", **options)
  return qmodel


def with_slots(name):
  """Returns a new optimizer that keeps averages of gradients."""
  if name == "momentum":
    return keras.optimizers.SGD(0.05, momentum=0.9, jit_compile=False)
  return keras.optimizers.Adam(0.01, jit_compile=False)


def data(count=32):
  rng = np.random.default_rng(0)
  return rng.normal(size=(count, 6, 6, 2)).astype(np.float32), rng.integers(0, 3, count)


def trained(qmodel, epochs=2, first=0, **options):
  x, y = data()
  qmodel.fit(x, y, batch_size=8, epochs=epochs, initial_epoch=first, shuffle=False, verbose=0, **options)
  return qmodel


def assert_equal(first, second):
  for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)


def gradient_state(qmodel):
  return {name: {key: np.array(value) for key, value in layer.gradient_variables.items()}
          for name, layer in live_layers(qmodel).items() if getattr(layer, "gradients", None) is not None}


def test_rules_say_which_layers_have_quantized_gradients():
  config = kq.QuantConfig((kq.Rule(match="^(stem|head)$"), kq.Rule(gradients=kq.TensorSpec(bits=4))))
  qmodel = kq.insert_quantizers(network(), config)
  assert list(gradient_state(qmodel)) == ["middle"]
  gradients = qmodel.get_layer("middle").gradients
  assert (gradients.ranges.bits, gradients.stochastic) == (4, True)
  assert type(gradients.ranges).__name__ == "InHindsightQuantizer"
  assert kq.QuantConfig.from_json(config.to_json()) == config
  notes = {row.layer: row.note for row in kq.describe(qmodel).rows}
  assert "in training its gradient has 4 bits" in notes["middle"] and "gradient" not in notes["stem"]


@pytest.mark.parametrize("fields, message", [
    ({"gradients": kq.TensorSpec(quantizer="lsq")}, "gradients take no quantizer 'lsq'"),
    ({"gradients": kq.TensorSpec(per_channel=True)}, "a gradient has one grid"),
    ({"gradients": kq.TensorSpec(range="mse")}, "a gradient has one grid"),
    ({"weights": kq.TensorSpec(quantizer="in_hindsight")}, "weights take no quantizer 'in_hindsight'"),
    ({"activations": kq.TensorSpec(rounding="stochastic")}, "stochastic rounding is for gradients")])
def test_rules_refuse_what_tensors_do_not_take(fields, message):
  with pytest.raises(ValueError, match=message):
    kq.Rule(**fields)


def test_an_unknown_rounding_is_refused():
  with pytest.raises(ValueError, match="unknown rounding 'up'; expected one of nearest, stochastic"):
    kq.TensorSpec(rounding="up")


def test_the_gradient_behind_a_layer_is_on_the_grid_and_that_of_its_weights_is_float():
  layer = quantized(kq.TensorSpec(bits=4, quantizer="current_minmax", rounding="nearest")).get_layer("head")
  rng = np.random.default_rng(0)
  x, upstream = (tf.constant(rng.normal(size=shape), tf.float32) for shape in ((5, 16), (5, 3)))
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = layer(x, training=True)
  of_x, of_kernel = tape.gradient(y, [x, layer.layer.kernel], output_gradients=upstream)
  low, high = float(tf.reduce_min(upstream)), float(tf.reduce_max(upstream))
  on_grid = tf.quantization.fake_quant_with_min_max_args(upstream, low, high, num_bits=4)
  assert len(np.unique(on_grid)) < 15 and not np.allclose(on_grid, upstream)
  kernel = layer.simulated_weights()["kernel"]
  tolerance = float(high - low) / 15
  np.testing.assert_allclose(of_x, on_grid @ tf.transpose(kernel), atol=tolerance)
  assert not np.allclose(of_x, upstream @ tf.transpose(kernel), atol=1e-3)
  np.testing.assert_allclose(of_kernel, tf.transpose(x) @ on_grid, atol=5 * tolerance)
  assert len(np.unique(of_kernel)) == of_kernel.shape.num_elements()


def test_wide_gradients_are_those_of_a_float_backward_pass():
  x, y = data()
  gradients = []
  for spec in (None, kq.TensorSpec(bits=16, symmetric=True, quantizer="current_minmax")):
    qmodel = kq.calibrate(quantized(spec), x)
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, qmodel(x, training=True)))
    gradients.append(tape.gradient(loss, qmodel.trainable_variables))
  for mine, theirs in zip(*gradients, strict=True):
    np.testing.assert_allclose(mine, theirs, atol=2e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("batch_norm", ["fold", "absorb", "train"])
def test_fit_moves_ranges_and_evaluate_and_predict_do_not(batch_norm):
  qmodel = trained(compiled(quantized(batch_norm=batch_norm)))
  for state in gradient_state(qmodel).values():
    assert state["min"] < 0 < state["max"] and state["steps"] == 8
  before = qmodel.get_weights()
  x, y = data()
  qmodel.evaluate(x, y, verbose=0)
  qmodel.predict(x, verbose=0)
  for a, b in zip(before, qmodel.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 4}])
def test_every_way_to_run_a_step_trains_the_same(options):
  expected = trained(compiled(quantized()))
  mine = trained(compiled(quantized(), **options))
  for a, b in zip(expected.get_weights(), mine.get_weights(), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  assert gradient_state(mine)["stem"]["steps"] == 8


def test_a_step_compiled_by_xla_moves_the_ranges():
  qmodel = compiled(quantized(), jit_compile=True)
  trained(qmodel, epochs=1)
  state = gradient_state(qmodel)["stem"]
  assert state["min"] < 0 < state["max"] and state["steps"] == 4


def test_a_strategy_of_one_device_takes_steps_compiled_by_xla():
  with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
    inputs = keras.Input((72,))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(inputs))
    config = kq.QuantConfig((kq.Rule(activations=IN_HINDSIGHT, gradients=IN_HINDSIGHT),))
    qmodel = compiled(kq.insert_quantizers(model, config), jit_compile=True)
  x, y = data()
  qmodel.fit(x.reshape(32, 72), y, batch_size=8, verbose=0)
  state = gradient_state(qmodel)["head"]
  assert state["min"] < 0 < state["max"] and state["steps"] == 4


def test_class_weights_scale_gradients_and_so_their_ranges():
  x, y = data()
  ranges = []
  for weight in (1.0, 8.0):
    qmodel = compiled(kq.calibrate(quantized(), x))
    qmodel.fit(x, y, batch_size=32, verbose=0, class_weight=dict.fromkeys(range(3), weight))
    ranges.append(gradient_state(qmodel)["head"])
  np.testing.assert_allclose(ranges[1]["max"], 8 * ranges[0]["max"], rtol=1e-4)


def test_accumulated_gradients_move_the_ranges_with_each_part():
  x, y = data(16)
  qmodel = kq.calibrate(quantized(), x)

  @tf.function
  def part(x, y):
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, qmodel(x, training=True)))
    return tape.gradient(loss, qmodel.trainable_variables)

  sums = [a + b for a, b in zip(part(x[:8], y[:8]), part(x[8:], y[8:]))]
  keras.optimizers.SGD(0.1).apply_gradients(zip(sums, qmodel.trainable_variables))
  assert all(state["steps"] == 2 for state in gradient_state(qmodel).values())


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_saved_model_goes_on_bit_for_bit(tmp_path, name):
  whole = trained(compiled(quantized(), with_slots(name)))
  half = trained(compiled(quantized(), with_slots(name)), epochs=1)
  for ending in ("m.keras", "m.h5", "m"):
    half.save(tmp_path / ending)
  half.save_weights(tmp_path / "checkpoint")
  for ending in ("m.keras", "m.h5", "m"):
    again = keras.models.load_model(tmp_path / ending)
    assert_equal(again, half)
    if ending == "m":
      again.load_weights(tmp_path / "m" / "variables" / "variables")
    assert_equal(trained(again, first=1), whole)
  again = compiled(quantized(), with_slots(name))
  again.load_weights(tmp_path / "checkpoint")
  assert_equal(trained(again, first=1), whole)


def test_keras_itself_loads_no_momentum_of_a_saved_folder(tmp_path):  # so the documents say: load its weights
  half = trained(compiled(network(), with_slots("momentum")), epochs=1)
  half.save(tmp_path / "m")
  again = keras.models.load_model(tmp_path / "m")
  again.optimizer.build(again.trainable_variables)
  assert int(half.optimizer.iterations) == 4 and int(again.optimizer.iterations) == 0
  slots = [variable for variable in again.optimizer.variables if variable.shape.rank]
  assert slots and not any(variable.numpy().any() for variable in slots)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path):
  class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
      if epoch == 1:
        raise KeyboardInterrupt

  def run(*callbacks):
    return trained(compiled(quantized(), with_slots("momentum")), callbacks=list(callbacks))

  whole = run()
  with pytest.raises(KeyboardInterrupt):
    run(keras.callbacks.BackupAndRestore(tmp_path), Stop())
  assert_equal(run(keras.callbacks.BackupAndRestore(tmp_path)), whole)


def test_a_trained_model_becomes_a_certified_file(tmp_path):
  x, _ = data()
  qmodel = trained(compiled(quantized()))
  written = kq.export(kq.finalize(qmodel), tmp_path / "m.tflite", verify=x[:2], certify=True)
  assert written.verification.max_lsb == 0


def test_a_frozen_layer_still_passes_quantized_gradients():
  qmodel = quantized()
  qmodel.get_layer("middle").trainable = False
  kernel = qmodel.get_layer("middle").layer.depthwise_kernel.numpy()
  trained(compiled(qmodel), epochs=1)
  np.testing.assert_array_equal(qmodel.get_layer("middle").layer.depthwise_kernel, kernel)
  assert gradient_state(qmodel)["middle"]["steps"] == 4
