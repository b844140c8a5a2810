"""QuantizedTraining: saturation, drift and SQNR by hand, in logs, rows and TensorBoard."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq

SPEC = kq.TensorSpec(quantizer="in_hindsight")


def network(gradients=SPEC, activations=SPEC):
  keras.utils.set_random_seed(0)
  model = keras.Sequential([keras.layers.Dense(2, input_shape=(2,), name="head")])
  config = kq.QuantConfig((kq.Rule(activations=activations, gradients=gradients),))
  qmodel = kq.insert_quantizers(model, config)
  kq.calibrate(qmodel, np.float32([[-1.0, 1.0]]))
  qmodel.compile(keras.optimizers.SGD(0.0), "mse")
  return qmodel


def fit(qmodel, x, watch, **options):
  y = np.zeros((len(x), 2), np.float32)
  return qmodel.fit(x, y, batch_size=2, shuffle=False, verbose=0, callbacks=[watch], **options).history


def test_saturation_and_drift_by_hand():
  watch, qmodel = kq.QuantizedTraining(every=1), network()
  fit(qmodel, np.float32([[-1, 1], [0.5, 3], [-5, 1], [2, 9]]), watch)
  first, second = (row for row in watch.rows if "input" in row.name)
  assert (first.step, first.saturated) == (1, 0.25)  # the 3, beyond -1 to 1
  assert first.drift == pytest.approx(0.2 / 2)  # to -1 to 1.2
  assert (second.step, second.saturated) == (2, 0.75)  # -5, 2 and 9
  assert second.drift == pytest.approx((0.4 + 0.78) / 2.2, rel=1e-5)  # 0.1 of -5 and 9
  assert {row.kind for row in watch.rows} == {"activation", "gradient"}


def test_dynamic_ranges_saturate_nothing():
  spec = kq.TensorSpec(quantizer="current_minmax")
  watch = kq.QuantizedTraining()
  fit(network(spec, spec), np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32), watch)
  assert [row.saturated for row in watch.rows] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bits, lowest, highest", [(8, 40, 70), (4, 15, 35)])
def test_sqnr_of_gradients_falls_with_their_bits(bits, lowest, highest):
  spec = kq.TensorSpec(bits=bits, quantizer="current_minmax", rounding="nearest")
  watch, x = kq.QuantizedTraining(sqnr=True), np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
  logs = fit(network(spec), x, watch, epochs=2)
  assert lowest < logs["gradient_sqnr"][1] < highest
  assert "sqnr" not in logs


def test_logs_are_means_of_the_epoch_whatever_rows_say():
  x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
  logs = [fit(network(), x, kq.QuantizedTraining(every=every), epochs=2) for every in (None, 3)]
  assert logs[0].keys() == logs[1].keys()
  for name in ("saturated", "drift"):
    assert logs[0][name] == pytest.approx(logs[1][name])


def test_each_quantizer_is_written_for_tensorboard(tmp_path):
  watch = kq.QuantizedTraining(log_dir=tmp_path)
  fit(network(), np.ones((4, 2), np.float32), watch)
  (file,) = tmp_path.iterdir()
  events = list(tf.compat.v1.train.summary_iterator(str(file)))
  tags = {value.tag for event in events for value in event.summary.value}
  assert {"gradient_saturated/head", "gradient_drift/head"} < tags and len(tags) == 6
  assert "head" in watch.table()


def test_a_watched_model_is_saved_and_trained_on(tmp_path):
  qmodel = network()
  fit(qmodel, np.ones((4, 2), np.float32), kq.QuantizedTraining())
  qmodel.save(tmp_path / "m.keras")
  again = keras.models.load_model(tmp_path / "m.keras")
  watch = kq.QuantizedTraining()
  fit(again, np.ones((4, 2), np.float32), watch)
  assert len(watch.rows) == 3 and again.get_layer("head").sums().steps == 4


def test_a_model_without_such_ranges_is_refused():
  with pytest.raises(ValueError, match="no range of the model follows"):
    fit(network(None, kq.TensorSpec(quantizer="lsq")), np.ones((4, 2), np.float32), kq.QuantizedTraining())
  with pytest.raises(ValueError, match="every must be 1 or more"):
    kq.QuantizedTraining(every=0)
