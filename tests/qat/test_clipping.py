"""ReportClipping, and ranges that follow what is trained."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from tests import models

layers = keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(512, 8)).astype(np.float32)
Y = (2 * np.tanh(X @ RANDOM.normal(size=(8, 1)))).astype(np.float32)


def regression(epochs):
  keras.utils.set_random_seed(0)
  model = keras.Sequential([keras.Input((8,)), layers.Dense(32, activation="relu"), layers.Dense(1)])
  model.compile(keras.optimizers.Adam(1e-2), "mae")
  if epochs:
    model.fit(X, Y, epochs=epochs, verbose=0)
  return model


def trained(model, quantizer, scale, *, calibrate=True, callbacks=()):
  keras.utils.set_random_seed(1)
  config = kq.QuantConfig.preset("int8").with_quantizers(weights=quantizer, activations=quantizer)
  qmodel = kq.insert_quantizers(model, config)
  if calibrate:
    kq.calibrate(qmodel, X[:128])
  qmodel.compile(keras.optimizers.Adam(1e-2), "mae")
  history = qmodel.fit(X, scale * Y, epochs=10, verbose=0, callbacks=callbacks)
  return qmodel.evaluate(X, scale * Y, verbose=0), history.history


def test_the_default_follows_labels_that_outgrow_the_calibrated_range():
  model = regression(epochs=20)
  still, followed = (trained(model, quantizer, 2.0)[0] for quantizer in ("minmax", None))
  assert followed < still / 2


def test_the_default_trains_a_network_that_knew_nothing():
  assert trained(regression(epochs=0), None, 1.0)[0] < 0.35 * np.abs(Y).mean()


@pytest.mark.parametrize("quantizer", [None, "minmax", "lsq", "lsq_plus", "pact"])
def test_a_model_that_was_not_calibrated_starts_from_its_first_batch(quantizer):
  x = keras.Input((8, 8, 3))
  model = keras.Model(x, layers.Dense(2)(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(x))))
  config = kq.QuantConfig.preset("int8").with_quantizers(activations=quantizer)
  qmodel = kq.insert_quantizers(model, config)
  images = RANDOM.normal(size=(16, 8, 8, 3)).astype(np.float32)
  qmodel.compile(keras.optimizers.SGD(0.0), "mse")
  qmodel.fit(images, np.zeros((16, 2)), batch_size=16, verbose=0)
  other = kq.calibrate(kq.insert_quantizers(model, config), images)
  grids, wanted = (kq.finalize(network)[1].grids for network in (qmodel, other))
  assert grids.keys() == wanted.keys()
  for name, grid in grids.items():  # sums of both traces may differ in the last bit
    np.testing.assert_allclose(grid.scale, wanted[name].scale, rtol=2e-2)
    np.testing.assert_allclose(grid.zero_point, wanted[name].zero_point, atol=3)


def test_a_model_that_was_not_calibrated_says_so(caplog):
  qmodel = kq.insert_quantizers(models.ZOO["conv_bn_relu"]())
  images = RANDOM.normal(size=(4, *qmodel.input_shape[1:])).astype(np.float32)
  qmodel.compile("sgd", "mse")
  from absl import logging
  logging._log_counter_per_token.clear()  # it is logged once a process
  with caplog.at_level("WARNING"):
    qmodel.fit(images, np.zeros((4, *qmodel.output_shape[1:])), epochs=2, verbose=0)
  assert sum("was not calibrated" in record.getMessage() for record in caplog.records) == 1


def test_clipping_is_logged_and_warned_of_once(caplog):
  model = regression(epochs=20)
  callback = kq.ReportClipping(X[:128])
  with caplog.at_level("WARNING"):
    _, history = trained(model, "minmax", 2.0, callbacks=[callback])
  assert history["clipped"][-1] > 0.05
  assert sum("have no gradient" in record.getMessage() for record in caplog.records) == 1


def test_following_ranges_clip_nothing():
  _, history = trained(regression(epochs=20), None, 2.0, callbacks=[kq.ReportClipping(X[:128])])
  assert history["clipped"][-1] < 0.01


def test_clipping_by_hand():
  x = keras.Input((1,))
  qmodel = kq.insert_quantizers(keras.Model(x, layers.Dense(1, kernel_initializer="ones")(x)))
  kq.calibrate(qmodel, np.array([[-1.0], [1.0]], np.float32))
  qmodel.layers[1].set_range(-4.0, 4.0)  # of the input
  callback = kq.ReportClipping(np.array([[0.5], [0.9], [1.5], [-3.0]], np.float32))
  callback.set_model(qmodel)
  callback.on_train_begin()
  logs = {}
  callback.on_epoch_end(0, logs)
  assert logs == {"clipped": 0.5}


def test_a_float_model_is_refused():
  with pytest.raises(ValueError, match="has no QuantizeActivation layers"):
    regression(0).fit(X, Y, verbose=0, callbacks=[kq.ReportClipping(X[:16])])
