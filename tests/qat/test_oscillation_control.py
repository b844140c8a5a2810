"""Callbacks against oscillations in model.fit: what is logged, what stays frozen, what reaches the file."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
import tflite_export
from kquant.qat import oscillation
from kquant.qat.oscillation_control import dampening_of
from kquant.qmodel.quantize_weights import QuantizeWeights
from tests import models


def quantized(name="conv_bn_relu", *, weights="minmax", bits=4, batch_norm="fold"):
  """Returns (calibrated model, inputs, targets): noisy targets, so that weights flip."""
  model = models.build(name)
  (x,) = models.sample_inputs(model, images=16)
  spec = kq.TensorSpec(bits=bits, symmetric=True, per_channel=True, quantizer=weights)
  config = kq.QuantConfig(rules=(kq.Rule(weights=spec),)).with_quantizers(activations="minmax")
  qmodel = kq.calibrate(kq.insert_quantizers(model, config, batch_norm=batch_norm), x)
  return qmodel, x, np.random.default_rng(2).normal(size=model(x).shape).astype(np.float32)


def fit(qmodel, x, y, callbacks, epochs=6, optimizer=None, **options):
  qmodel.compile(optimizer or keras.optimizers.SGD(0.3, momentum=0.5), "mse", jit_compile=False)
  return qmodel.fit(x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks, **options).history


def wrappers(qmodel):
  return [layer for layer in qmodel.layers if isinstance(layer, QuantizeWeights)]


def histories(qmodel):
  return {(layer.name, name, field): variable.numpy() for layer in wrappers(qmodel)
          for name, variables in layer.histories.items() for field, variable in variables.items()}


def freezing(**options):
  return kq.FreezeOscillations(**{"momentum": 0.05, "threshold": (0.12, 0.1), **options})


@pytest.mark.parametrize("weights", ["minmax", "lsq"])
def test_history_is_what_the_maths_says_of_the_integers_after_each_batch(weights):
  qmodel, x, y = quantized(weights=weights)
  expected, seen = {}, []

  def integers():
    return {layer.name: layer.weight_encodings()["kernel"].quantize(layer.layer.kernel.numpy())
            for layer in wrappers(qmodel)}

  def look(batch, logs):
    for name, now in integers().items():
      expected[name] = oscillation.follow(expected[name], tf.constant(now), 0.1)
    seen.append(integers())

  expected.update({name: oscillation.start(tf.constant(now)) for name, now in integers().items()})
  logs = fit(qmodel, x, y, [kq.TrackOscillations(momentum=0.1), keras.callbacks.LambdaCallback(
      on_train_batch_end=look)], epochs=3)
  assert any((a["conv"] != b["conv"]).any() for a, b in zip(seen, seen[1:]))
  for layer in wrappers(qmodel):
    for field, value in zip(oscillation.History._fields, expected[layer.name]):
      np.testing.assert_allclose(layer.histories["kernel"][field], value, atol=1e-6)
  above = [np.array(h.frequency) > 0.005 for h in expected.values()]
  assert logs["oscillating"][-1] == pytest.approx(sum(a.sum() for a in above) / sum(a.size for a in above))
  assert logs["oscillating"][-1] > 0 and logs["frozen"] == [0.0] * 3


@pytest.mark.parametrize("batch_norm", ["fold", "absorb"])
@pytest.mark.parametrize("weights", ["minmax", "lsq"])
def test_frozen_integers_never_change_again_and_reach_the_file(weights, batch_norm, tmp_path):
  qmodel, x, y = quantized(weights=weights, batch_norm=batch_norm)
  kept = {}

  def look(batch, logs):
    for layer in wrappers(qmodel):
      values = {k: v.numpy() for k, v in layer.histories["kernel"].items()}
      grid = layer.weight_encodings()["kernel"]
      used = np.rint(layer.simulated_weights()["kernel"].numpy() / grid.scale)
      for index in zip(*np.nonzero(values["frozen"])):
        key = layer.name, tuple(int(i) for i in index)
        assert kept.setdefault(key, values["integers"][index]) == values["integers"][index] == used[index]

  logs = fit(qmodel, x, y, [freezing(), keras.callbacks.LambdaCallback(on_train_batch_end=look)], epochs=8,
             optimizer=keras.optimizers.experimental.SGD(0.3, momentum=0.5, weight_decay=0.01))
  assert 0 < logs["frozen"][-1] < 1 and len(kept) > 3 and logs["frozen"][0] == 0
  final, encodings = kq.finalize(qmodel)
  signs = np.sign(qmodel.get_layer("bn").gamma.numpy()) if batch_norm == "absorb" else np.ones(8)
  for (name, index), integer in kept.items():
    sign = signs[index[-1]] if name == "conv" else 1
    assert encodings.integers[f"{name}/kernel"][index] == integer * sign
  written = tflite_export.export((final, encodings), tmp_path / "m.tflite", verify=x[:2], certify=True)
  assert written.verification.max_lsb <= 1


def test_frozen_weights_pass_their_gradient_to_the_scale_alone():
  qmodel, _, _ = quantized(weights="lsq", bits=4)
  layer = qmodel.get_layer("dense")
  layer.track()
  history = layer.histories["kernel"]
  frozen = np.zeros(history["frozen"].shape, bool)
  frozen[0] = True
  integers = np.arange(frozen.size).reshape(frozen.shape) % 15 - 7
  history["frozen"].assign(frozen)
  history["integers"].assign(integers.astype(np.int8))
  _, quantizer, state = layer._quantized[0]
  with tf.GradientTape() as tape:
    values = layer.simulated_weights(True)["kernel"]
    loss = tf.reduce_sum(values[0])
  to_kernel, to_step = tape.gradient(loss, [layer.layer.kernel, state["log_step"]])
  assert not to_kernel.numpy()[0].any()
  scale = quantizer.grid(state)[0].numpy()
  np.testing.assert_array_equal(values[0], scale * integers[0].astype(np.float32))
  g = quantizer._gradient_scale(layer.layer.kernel).numpy()
  np.testing.assert_allclose(to_step, integers[0] * g * scale / np.mean(scale**2), rtol=1e-5)


def test_above_every_frequency_nothing_freezes():
  qmodel, x, y = quantized()
  assert fit(qmodel, x, y, [freezing(threshold=(1.5, 1.5))], epochs=4)["frozen"] == [0.0] * 4


def test_only_narrow_weights_are_followed():
  qmodel, x, y = quantized(bits=8)
  with pytest.raises(ValueError, match="no weights of at most 4 bits"):
    fit(qmodel, x, y, [kq.TrackOscillations()])
  assert "oscillating" in fit(qmodel, x, y, [kq.TrackOscillations(bits=8)], epochs=1)


def test_thresholds_below_one_oscillation_are_refused():
  with pytest.raises(ValueError, match="at least twice"):
    kq.FreezeOscillations(momentum=0.01, threshold=(0.1, 0.01))


def test_an_unquantized_model_is_refused():
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model)
  with pytest.raises(ValueError, match="no QuantizeWeights layers"):
    fit(model, x, model.predict(x, verbose=0), [kq.TrackOscillations()])


def test_a_model_saved_with_frozen_weights_goes_on_as_it_was(tmp_path):
  qmodel, x, y = quantized(weights="lsq")
  fit(qmodel, x, y, [freezing()])
  for ending in ("m.keras", "m.h5"):
    qmodel.save(tmp_path / ending)
    loaded = keras.models.load_model(tmp_path / ending)
    assert histories(loaded).keys() == histories(qmodel).keys() and histories(qmodel)
    for key, value in histories(qmodel).items():
      np.testing.assert_array_equal(histories(loaded)[key], value)
    assert kq.finalize(loaded)[1] == kq.finalize(qmodel)[1]


@pytest.mark.parametrize("batch_norm", ["fold", "train"])
def test_a_training_that_is_killed_ends_as_the_unbroken_one(batch_norm, tmp_path):
  """BackupAndRestore in front of or behind the callback; masks, integers and averages come along."""

  class Killed(Exception):
    pass

  def kill(epoch, logs):
    if epoch == 3:
      raise Killed

  def training(folder, *, killed=False, first=True):
    keras.utils.set_random_seed(0)
    qmodel, x, y = quantized(weights="lsq", batch_norm=batch_norm)
    callbacks = [keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False), freezing()]
    callbacks = callbacks if first else callbacks[::-1]
    if batch_norm == "train":
      callbacks.append(kq.FreezeBatchNorm(epochs=1))
    if killed:
      callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=kill))
    qmodel.compile(keras.optimizers.SGD(0.3, momentum=0.5), "mse", jit_compile=False)
    logs = qmodel.fit(x, y, batch_size=4, epochs=6, verbose=0, shuffle=False, callbacks=callbacks)
    return qmodel, logs.history

  whole, logs = training(tmp_path / "whole")
  assert logs["frozen"][-1] > 0
  for first in (True, False):
    with pytest.raises(Killed):
      training(tmp_path / str(first), killed=True, first=first)
    resumed, rest = training(tmp_path / str(first), first=first)
    assert len(rest["loss"]) == 3
    for a, b in zip(whole.weights, resumed.weights):
      np.testing.assert_array_equal(a, b)


def test_dampening_is_part_of_the_loss_and_brings_weights_to_the_middle_of_their_bins():
  def distance(qmodel):
    return sum(float(dampening_of(layer)) for layer in wrappers(qmodel))

  found = {}
  for last in (0.0, 3.0):
    keras.utils.set_random_seed(0)
    qmodel, x, y = quantized(weights="lsq", bits=3)
    callback = kq.DampenOscillations(last=last, begin=0.0)
    logs = fit(qmodel, x, y, [callback], epochs=20, optimizer=keras.optimizers.SGD(0.02))
    assert logs["dampening"][-1] == pytest.approx(last, rel=0.05) and not qmodel.losses[0].numpy()
    found[last] = distance(qmodel)
  assert found[3.0] < 0.5 * found[0.0]


def test_dampening_adds_its_weight_times_its_loss():
  qmodel, x, y = quantized(bits=3)
  plain = fit(qmodel, x, y, [], epochs=1, optimizer=keras.optimizers.SGD(0.0))["loss"][0]
  expected = sum(float(dampening_of(layer)) for layer in wrappers(qmodel))
  logs = fit(qmodel, x, y, [kq.DampenOscillations(last=0.5, first=0.5)], epochs=1,
             optimizer=keras.optimizers.SGD(0.0))
  assert logs["loss"][0] == pytest.approx(plain + 0.5 * expected, rel=1e-4)


def test_callbacks_behind_see_the_fractions(tmp_path):
  qmodel, x, y = quantized()
  fit(qmodel, x, y, [kq.TrackOscillations(), keras.callbacks.CSVLogger(tmp_path / "log.csv")], epochs=2)
  assert (tmp_path / "log.csv").read_text().startswith("epoch,frozen,loss,oscillating")


def test_a_kernel_whose_batch_norm_learns_is_followed_when_that_is_frozen():
  qmodel, x, y = quantized(batch_norm="train")
  fit(qmodel, x, y, [kq.TrackOscillations(momentum=0.1)], epochs=2)
  assert not qmodel.get_layer("conv").histories["kernel"]["direction"].numpy().any()
  fit(qmodel, x, y, [kq.TrackOscillations(momentum=0.1), kq.FreezeBatchNorm(epochs=0)], epochs=2)
  assert qmodel.get_layer("conv").histories["kernel"]["direction"].numpy().any()


def test_fractions_are_keras_metrics_too():
  qmodel, x, y = quantized()
  qmodel.compile(keras.optimizers.SGD(0.3, momentum=0.5), "mse", metrics=[
      "mae", kq.OscillatingFraction(qmodel), kq.FrozenFraction(qmodel)])
  before = qmodel.evaluate(x, y, verbose=0, return_dict=True)
  assert np.isnan([before["oscillating"], before["frozen"]]).all()  # nothing is followed yet
  batches = []
  look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: batches.append(dict(logs)))
  logs = qmodel.fit(x, y, batch_size=4, epochs=6, verbose=0, callbacks=[look, freezing()]).history
  assert {"oscillating", "frozen", "mae"} <= set(batches[0])
  found = qmodel.evaluate(x, y, verbose=0, return_dict=True)
  assert found["frozen"] == pytest.approx(logs["frozen"][-1]) and found["frozen"] > 0
  frozen = np.concatenate([h.ravel() for (_, _, field), h in histories(qmodel).items() if field == "frozen"])
  assert float(kq.FrozenFraction(qmodel).result()) == pytest.approx(frozen.mean())


def test_metrics_of_weights_are_saved_without_their_model(tmp_path):
  qmodel, x, y = quantized()
  qmodel.compile("sgd", "mse", metrics=[kq.OscillatingFraction(qmodel, counted=0.1)])
  qmodel.fit(x, y, verbose=0)
  qmodel.save(tmp_path / "m.keras")
  loaded = kq.load_model(tmp_path / "m.keras", compile=True)
  assert np.isnan(loaded.evaluate(x, y, verbose=0, return_dict=True)["oscillating"])


def test_predictions_know_of_frozen_weights():
  qmodel, x, y = quantized()
  qmodel.compile(keras.optimizers.SGD(0.3, momentum=0.5), "mse")
  qmodel.predict(x, verbose=0)  # traced before anything is frozen
  logs = qmodel.fit(x, y, batch_size=4, epochs=6, verbose=0, callbacks=[freezing()]).history
  for layer in wrappers(qmodel):
    layer.layer.kernel.assign(layer.layer.kernel + 0.5)  # frozen integers stay whatever the floats do
  assert logs["frozen"][-1] > 0
  np.testing.assert_allclose(qmodel.predict(x, verbose=0), qmodel(x).numpy(), atol=1e-6)
