"""ReestimateBatchNorm: averages of batches by hand, nothing else changed, closer to the data than before."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.graph.keras_calls import call_with
from kquant.qat.bn_reestimate import reestimate_batch_norm
from tests import models


def quantized(batch_norm, name="conv_bn_relu"):
  model = models.build(name)
  (x,) = models.sample_inputs(model, images=24)
  return kq.calibrate(kq.insert_quantizers(model, "w4a8", batch_norm=batch_norm), x), x


def norm_of(qmodel, batch_norm):
  return qmodel.get_layer("bn") if batch_norm == "absorb" else qmodel.get_layer("conv").batch_norm


def values(qmodel):
  return {v.name: v.numpy() for v in qmodel.weights}


def conv_outputs(qmodel, x, batch_norm):
  layer = qmodel.get_layer("conv")
  weights = layer.simulated_weights() if batch_norm == "absorb" else {"kernel": layer.layer.kernel}
  return call_with(layer.layer, qmodel.get_layer("image/quantize")(x), weights).numpy()


@pytest.mark.parametrize("batch_norm", ["absorb", "train"])
def test_statistics_are_the_averages_over_the_batches(batch_norm):
  qmodel, x = quantized(batch_norm)
  before = values(qmodel)
  reestimate_batch_norm(qmodel, x, batches=2, batch_size=8)
  parts = [conv_outputs(qmodel, part, batch_norm) for part in (x[:8], x[8:16])]
  count = parts[0][..., 0].size
  unbiased = count / (count - 1) if batch_norm == "absorb" else 1.0  # Keras' fused batch norm
  norm = norm_of(qmodel, batch_norm)
  np.testing.assert_allclose(norm.moving_mean, np.mean([p.mean((0, 1, 2)) for p in parts], 0), atol=1e-5)
  np.testing.assert_allclose(norm.moving_variance, np.mean([p.var((0, 1, 2)) for p in parts], 0) * unbiased,
                             rtol=1e-4)
  assert norm.momentum == 0.99
  changed = {name for name, value in values(qmodel).items() if (value != before[name]).any()}
  assert {name.split("/")[-1] for name in changed} == {"moving_mean:0", "moving_variance:0"}


def test_the_divergence_from_the_statistics_of_the_data_falls():
  """KL of normal distributions, summed over the channels of every layer."""
  qmodel, x = quantized("absorb", "mobile_block")
  norms = [layer for layer in qmodel.layers if isinstance(layer, keras.layers.BatchNormalization)]

  def divergence():
    found = 0.0
    for norm in norms:
      y = keras.Model(qmodel.inputs, norm.input)(x).numpy()
      m, v = y.mean((0, 1, 2)), y.var((0, 1, 2)) + 1e-9
      mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy() + 1e-9
      found += 0.5 * (np.log(variance / v) + (v + (m - mean)**2) / variance - 1).sum()
    return found

  before = divergence()
  for _ in range(2):  # deeper layers see what the earlier ones then put out
    reestimate_batch_norm(qmodel, x, batches=3, batch_size=8)
  assert divergence() < 0.05 * before


def test_it_runs_before_each_evaluation_and_at_the_end():
  qmodel, x = quantized("absorb")
  y = np.zeros((24, 5), np.float32)
  seen = []

  class Spy(keras.callbacks.Callback):
    def on_test_begin(self, logs=None):
      seen.append(norm_of(qmodel, "absorb").moving_mean.numpy())

  qmodel.compile(keras.optimizers.SGD(0.1), "mse")
  qmodel.fit(x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x, y),
             callbacks=[kq.ReestimateBatchNorm(x, batches=3, batch_size=8), Spy()])
  end = norm_of(qmodel, "absorb").moving_mean.numpy()
  np.testing.assert_allclose(seen[-1], end, atol=1e-6)  # no step between the last evaluation and the end
  assert (seen[0] != seen[1]).any()


def test_mistakes():
  qmodel, x = quantized("fold")
  with pytest.raises(ValueError, match="has no batch norm whose statistics learn"):
    reestimate_batch_norm(qmodel, x)
  qmodel, x = quantized("train")
  qmodel.get_layer("conv").freeze_statistics()
  with pytest.raises(ValueError, match="has no batch norm whose statistics learn"):
    reestimate_batch_norm(qmodel, x)
