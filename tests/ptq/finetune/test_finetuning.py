"""finetune: what it brings, what it leaves alone, and that it goes on where it was stopped."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
import tflite_export
from kquant.cli.demo import digits
from kquant.core import metrics
from kquant.ptq.finetune.finetuning import FinetuneSettings as Settings
from kquant.ptq.finetune.finetuning import Finetuning
from kquant.search import pipeline, trials
from tests import models

ROOT = pathlib.Path(__file__).parents[3]


def calibrated(name="conv_bn_relu", preset="w3a8", images=48):
  model = models.build(name)
  inputs = models.sample_inputs(model, images)
  folded = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  qmodel = kq.calibrate(kq.insert_quantizers(folded, preset), inputs)
  return kq.correct_bias(qmodel, folded, inputs), folded, inputs


def weights(qmodel):
  return {v.name: v.numpy() for v in qmodel.weights}


@pytest.fixture(scope="module")
def trained():
  """A small network trained on digits, float, and images that it has not seen."""
  keras.utils.set_random_seed(0)
  (x, y), (test, _) = digits()
  model = keras.Sequential([
      keras.layers.Conv2D(12, 3, padding="same", activation="relu", input_shape=(8, 8, 1)),
      keras.layers.DepthwiseConv2D(3, strides=2, activation="relu"),
      keras.layers.Conv2D(24, 1, activation="relu"),
      keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])
  model.compile(keras.optimizers.Adam(5e-3, jit_compile=False),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True))
  model.fit(x, y, epochs=10, verbose=0)
  return kq.rewrite(model, [kq.standardize]), x[:160], test


@pytest.mark.parametrize("method, rate, gain", [("qft", 0.01, 0.5), ("bft", 0.03, 0.05)])
def test_it_brings_a_trained_network_closer_to_its_float_model(trained, tmp_path, method, rate, gain):
  folded, images, test = trained
  qmodel = kq.calibrate(kq.insert_quantizers(folded, "w3a8"), images)
  kq.correct_bias(qmodel, folded, images, method="iterative")
  reference = folded.predict(test, verbose=0)
  before = metrics.sqnr_db(qmodel.predict(test, verbose=0), reference)
  settings = Settings(epochs=12, learning_rate=rate)
  result = kq.finetune(qmodel, folded, images, method=method, settings=settings)
  assert result.qmodel is qmodel and len(result.losses) == 13
  assert result.losses[result.best_epoch] == min(result.losses) < result.losses[0]
  simulated = qmodel.predict(test, verbose=0)
  assert metrics.sqnr_db(simulated, reference) > before + gain
  written = tflite_export.export(kq.finalize(qmodel), tmp_path / "m.tflite", verify=test[:2], certify=True)
  assert written.certificate["exact"]


@pytest.mark.parametrize("name", ["mobile_block", "nested_shared", "two_inputs", "branches"])
def test_the_file_of_a_tuned_network_is_exact(name, tmp_path):
  qmodel, folded, inputs = calibrated(name, "w4a8", images=16)
  kq.finetune(qmodel, folded, inputs, settings=Settings(epochs=2, batch_size=4, held_back=0.5))
  written = tflite_export.export(kq.finalize(qmodel), tmp_path / "m.tflite", verify=[x[:2] for x in inputs],
                                 certify=True)
  assert written.certificate["exact"] and written.verification.max_lsb <= 1


def test_bias_tuning_leaves_every_kernel_and_grid_as_it_is():
  qmodel, folded, inputs = calibrated()
  before, old = weights(qmodel), kq.finalize(qmodel)[1]
  result = kq.finetune(qmodel, folded, inputs, method="bft", settings=Settings(epochs=6))
  assert result.best_epoch
  new = kq.finalize(qmodel)[1]
  assert new.grids == old.grids
  for name, value in weights(qmodel).items():
    assert np.array_equal(value, before[name]) != name.endswith("bias:0"), name


def test_images_to_judge_by_can_be_given():
  qmodel, folded, inputs = calibrated()
  trained, judged = inputs[0][:32], inputs[0][32:]
  model = kq.DistillationModel(qmodel, folded)
  model.compile("sgd")
  before = model.evaluate(judged, verbose=0)
  result = kq.finetune(qmodel, folded, trained, settings=Settings(epochs=1), validation=judged)
  np.testing.assert_allclose(result.losses[0], before, rtol=1e-5)


def test_a_run_until_the_best_epoch_gives_what_a_judged_run_keeps():
  (judged, folded, inputs), (plain, *_) = calibrated(), calibrated()
  trained, others = inputs[0][:32], inputs[0][32:]
  result = kq.finetune(judged, folded, trained, settings=Settings(epochs=4), validation=others)
  assert result.best_epoch > 0
  until = Settings(epochs=4, until=result.best_epoch)
  assert kq.finetune(plain, folded, trained, settings=until).losses == []
  for name, value in weights(judged).items():
    np.testing.assert_array_equal(weights(plain)[name], value)
  with pytest.raises(ValueError, match="until=5 of 4 epochs; expected one of them"):
    kq.finetune(plain, folded, trained, settings=Settings(epochs=4, until=5))


@pytest.mark.parametrize("preset, before, after, what_said, kept", [
    ("w4a8", 10.0, 10.3, "+0.30 dB", True), ("w4a8", 10.0, 10.1, "+0.10 dB", False),
    ("w4a4", 0.9, 0.6, "+0.30 nats", True), ("w4a4", 0.6, 0.9, "-0.30 nats", False)])
def test_quantize_judges_by_images_new_to_rounding_then_runs_on_all(preset, before, after, what_said, kept,
                                                                    monkeypatch):
  model = models.build("mobile_block")
  inputs, rounded, tuned = models.sample_inputs(model, images=40), [], []
  layer_turns = pipeline.layer_turns

  def turns(qmodel, images, **more):
    rounded.append(images[0])
    return layer_turns(qmodel, images, **more)

  def tuning(qmodel, teacher, images, **more):
    tuned.append((images[0], more.get("validation"), more["settings"].until))
    return Finetuning(qmodel, [1.0, 0.5], 1)

  monkeypatch.setattr(pipeline, "layer_turns", turns)
  monkeypatch.setattr(pipeline, "finetune", tuning)
  found = iter([np.full(10, before), after + np.linspace(-1.0, 1.0, 10)])  # the standard error is 0.21
  monkeypatch.setattr(trials, "image_sqnr_db", lambda *_: next(found))
  monkeypatch.setattr(trials, "image_divergence", lambda *_: next(found))
  recipe = kq.Recipe(rounding="closed_form", finetune="bft")
  result = kq.quantize(model, inputs, config=preset, recipe=recipe, effort=None)
  assert [len(x) for x in rounded] == [30, 40]
  trained, judging, until = tuned[0]
  assert trained is rounded[0] and len(judging[0]) == 10 and until is None
  assert not {x.tobytes() for x in trained} & {x.tobytes() for x in judging[0]}
  assert [(len(x), until) for x, _, until in tuned[1:]] == [(40, 1)] * kept
  (trial,) = result.report.trials
  assert (trial.kept, trial.images, trial.epochs) == (kept, 10, (1, 1)) and trial.seconds >= 0
  assert f"{what_said} +- 0.21 on 10 held-back images, best after 1 of 1 epochs" in str(trial)


def test_training_that_does_harm_is_taken_back():
  qmodel, folded, inputs = calibrated(preset="int8")
  before = weights(qmodel)
  result = kq.finetune(qmodel, folded, inputs, settings=Settings(epochs=2, learning_rate=30.0))
  assert result.best_epoch == 0 and min(result.losses[1:]) > result.losses[0]
  for name, value in weights(qmodel).items():
    np.testing.assert_array_equal(value, before[name])


def test_the_float_model_is_left_alone():
  qmodel, folded, inputs = calibrated()
  before = weights(folded)
  kq.finetune(qmodel, folded, inputs, settings=Settings(epochs=1))
  for name, value in weights(folded).items():
    np.testing.assert_array_equal(value, before[name])


class Stop(keras.callbacks.Callback):
  """Ends the process, as it were, in the middle of an epoch."""

  def __init__(self, epoch):
    super().__init__()
    self.epoch = self.at = epoch

  def on_epoch_begin(self, epoch, logs=None):
    self.at = epoch

  def on_train_batch_end(self, batch, logs=None):
    if self.at == self.epoch and batch == 1:
      raise KeyboardInterrupt


@pytest.mark.parametrize("killed", [0, 2])
def test_a_run_that_was_killed_ends_as_an_unbroken_one(tmp_path, killed):
  settings = Settings(epochs=4, batch_size=8, augment=True)
  checkpointed = dataclasses.replace(settings, checkpoint=tmp_path / "run")
  qmodel, folded, inputs = calibrated()
  start = qmodel.get_weights()
  unbroken = kq.finetune(qmodel, folded, inputs, settings=settings)
  expected = weights(qmodel)
  qmodel.set_weights(start)
  with pytest.raises(KeyboardInterrupt):
    kq.finetune(qmodel, folded, inputs, settings=checkpointed, callbacks=[Stop(killed)])
  for variable, value in zip(qmodel.weights, start):
    np.testing.assert_array_equal(variable, value)  # nothing is half done
  resumed = kq.finetune(qmodel, folded, inputs, settings=checkpointed)
  assert resumed.losses == unbroken.losses and resumed.best_epoch == unbroken.best_epoch
  for name, value in weights(qmodel).items():
    np.testing.assert_array_equal(value, expected[name])


def test_a_finished_run_is_read_from_its_checkpoint_and_no_other_is(tmp_path):
  qmodel, folded, inputs = calibrated()
  start = qmodel.get_weights()
  first = kq.finetune(qmodel, folded, inputs, settings=Settings(epochs=2, checkpoint=tmp_path))
  expected = weights(qmodel)
  qmodel.set_weights(start)
  steps = []
  counting = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))
  again = kq.finetune(qmodel, folded, inputs, settings=Settings(epochs=2, checkpoint=tmp_path),
                      callbacks=[counting])
  assert again.losses == first.losses and not steps
  for name, value in weights(qmodel).items():
    np.testing.assert_array_equal(value, expected[name])
  qmodel.set_weights(start)
  with pytest.raises(ValueError, match="with other settings.*another folder"):
    kq.finetune(qmodel, folded, inputs, settings=Settings(epochs=3, checkpoint=tmp_path))


def test_callbacks_see_epochs_and_may_stop():
  qmodel, folded, inputs = calibrated()
  seen = []

  class Watch(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
      seen.append(sorted(logs))
      self.model.stop_training = epoch == 1

  result = kq.finetune(qmodel, folded, inputs, settings=Settings(epochs=5), callbacks=[Watch()])
  assert seen == [["loss", "val_loss"]] * 2 and len(result.losses) == 3


def test_two_replicas_train_to_the_weights_of_one():
  command = [sys.executable, "-m", "tests.ptq.finetune.finetune_replicas"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  one, two = json.loads(done.stdout.splitlines()[-1])
  assert one.pop("replicas") == 1 and two.pop("replicas") == 2
  assert one.keys() == two.keys()
  for name, value in one.items():
    np.testing.assert_allclose(two[name], value, rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("arguments, message", [
    ({"method": "adaround"}, "method must be one of bft, qft, got 'adaround'"),
    ({"settings": Settings(learns=("weights", "momenta"))}, "learns must name some of weights, biases"),
    ({"settings": Settings(learns="weights")}, "learns must name some of"),
    ({"settings": Settings(held_back=0.0)}, "48 of which 0.0 are held back")])
def test_errors_say_what_was_expected(arguments, message):
  qmodel, folded, inputs = calibrated()
  with pytest.raises(ValueError, match=message):
    kq.finetune(qmodel, folded, inputs, **arguments)
