"""Callbacks that switch parts of a model: when they act, and what they leave alone."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.qmodel.quantize_activation import QuantizeActivation
from tests import models


def quantized(*, quantizer="lsq", batch_norm="fold", calibrate=True):
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model, images=16)
  spec = kq.TensorSpec(bits=4, symmetric=True, per_channel=True, quantizer=quantizer)
  config = kq.QuantConfig(rules=(kq.Rule(weights=spec, activations=kq.TensorSpec(quantizer=quantizer)),))
  qmodel = kq.insert_quantizers(model, config, batch_norm=batch_norm)
  return kq.calibrate(qmodel, x) if calibrate else qmodel, x, np.eye(4, dtype=np.float32)[np.arange(16) % 4]


def fit(qmodel, x, y, callback, look, epochs=3, **options):
  """Calls look() before each batch; returns what it gave, one entry a step (4 an epoch)."""
  seen = []
  spy = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(look()))
  qmodel.compile(keras.optimizers.Adam(0.01, jit_compile=False), "mse")
  qmodel.fit(x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=[callback, spy], **options)
  return seen


def switches(qmodel):
  return [bool(layer.quantizing.numpy()) for layer in qmodel.layers
          if isinstance(layer, QuantizeActivation) and layer.fixed is None]


def ranges(qmodel):
  return np.concatenate([variable.numpy().reshape(-1) for layer in qmodel.layers
                         if isinstance(layer, QuantizeActivation)
                         for variable in layer.range_variables.values()])


@pytest.mark.parametrize("when, first", [({"steps": 5}, 5), ({"epochs": 1}, 4), ({"steps": 0}, 0)])
def test_activations_are_float_until_it_is_time(when, first):
  qmodel, x, y = quantized()
  seen = fit(qmodel, x, y, kq.DelayActivationQuantization(**when), lambda: switches(qmodel))
  assert len(seen) == 12 and all(len(set(row)) == 1 for row in seen)
  assert [row[0] for row in seen] == [step >= first for step in range(12)]


def test_a_training_that_ends_early_leaves_every_quantizer_on():
  qmodel, x, y = quantized()
  seen = fit(qmodel, x, y, kq.DelayActivationQuantization(epochs=9), lambda: switches(qmodel), epochs=1)
  assert not any(any(row) for row in seen) and all(switches(qmodel))


def test_a_resumed_training_does_not_wait_again():
  qmodel, x, y = quantized()
  seen = fit(qmodel, x, y, kq.DelayActivationQuantization(steps=5), lambda: switches(qmodel), initial_epoch=2)
  assert len(seen) == 4 and all(all(row) for row in seen)


def test_delaying_needs_ranges():
  qmodel, x, y = quantized(calibrate=False)
  with pytest.raises(ValueError, match=r"has no range yet; run kq\.calibrate"):
    fit(qmodel, x, y, kq.DelayActivationQuantization(epochs=1), lambda: None)


@pytest.mark.parametrize("when, last", [({"steps": 6}, 6), ({"epochs": 2}, 8)])
def test_learned_ranges_stay_bit_by_bit(when, last):
  qmodel, x, y = quantized()
  weights = lambda: np.concatenate([v.numpy() for layer in qmodel.layers if hasattr(layer, "layer")
                                    for v in layer.range_variables()])
  seen = fit(qmodel, x, y, kq.FreezeRanges(**when), lambda: (ranges(qmodel), weights()))
  seen.append((ranges(qmodel), weights()))
  moved = [(a != b).any() for (a, _), (b, _) in zip(seen, seen[1:])]
  assert moved == [True] * last + [False] * (12 - last)
  assert all((a != b).any() for (_, a), (_, b) in zip(seen, seen[1:]))  # scales of weights learn on


def test_ranges_of_weights_stay_too_where_asked():
  qmodel, x, y = quantized()
  weights = lambda: np.concatenate([v.numpy() for layer in qmodel.layers if hasattr(layer, "layer")
                                    for v in layer.range_variables()])
  seen = fit(qmodel, x, y, kq.FreezeRanges(steps=0, weights=True), weights)
  np.testing.assert_array_equal(seen[0], weights())


def test_statistics_of_folded_batch_norms_stay():
  qmodel, x, y = quantized(batch_norm="train")
  moving = lambda: np.concatenate([v.numpy() for v in qmodel.weights if "moving" in v.name])
  seen = fit(qmodel, x, y, kq.FreezeBatchNorm(steps=6), moving)
  seen.append(moving())
  assert [(a != b).any() for a, b in zip(seen, seen[1:])] == [True] * 6 + [False] * 6


def test_mistakes():
  for options in ({}, {"steps": 1, "epochs": 1}):
    with pytest.raises(ValueError, match="either steps= or epochs="):
      kq.FreezeRanges(**options)
  qmodel, x, y = quantized()
  with pytest.raises(ValueError, match='no layer folds its batch norm.*batch_norm="train"'):
    fit(qmodel, x, y, kq.FreezeBatchNorm(epochs=0), lambda: None)
