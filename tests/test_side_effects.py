"""No call changes the process of the user: logging, warnings, descriptors, random state, flags."""

import logging
import os
import random
import signal
import threading
import warnings

import absl.logging
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
import tflite_export
from tests import models

STEPS = {
    "quantize": lambda user: kq.quantize(user["model"], user["images"], effort="balanced"),
    "describe": lambda user: (kq.describe(user["result"].qmodel), str(user["result"])),
    "export": lambda user: kq.export(user["result"], user["folder"] / "m.tflite", verify=user["images"][:2],
                                     certify=True),
    "verify": lambda user: tflite_export.verify(user["folder"] / "m.tflite", user["result"].model,
                                                user["result"].encodings, images=user["images"][:2]),
    "rewrite": lambda user: kq.rewrite(user["model"], [kq.standardize, kq.fold_batch_norm]),
    "insert_quantizers": lambda user: kq.insert_quantizers(user["model"], batch_norm="absorb"),
    "calibrate": lambda user: kq.calibrate(user["qmodel"], user["images"]),
    "round_weights": lambda user: kq.round_weights(user["result"].qmodel, user["folded"], user["images"]),
    "finetune": lambda user: kq.finetune(user["result"].qmodel, user["folded"], user["images"],
                                         settings=kq.FinetuneSettings(epochs=2)),
    "finalize": lambda user: kq.finalize(user["qmodel"]),
    "save and load": lambda user: (user["qmodel"].save(user["folder"] / "q.keras"),
                                   kq.load_model(user["folder"] / "q.keras")),
}


@pytest.fixture(scope="module")
def user(tmp_path_factory):
  model = models.build("mobile_block")
  (images,), folder = models.sample_inputs(model, images=16), tmp_path_factory.mktemp("side_effects")
  result = kq.quantize(model, images, effort=None)
  kq.export(result, folder / "m.tflite")
  return {"model": model, "images": images, "folder": folder, "result": result,
          "folded": kq.rewrite(model, [kq.standardize, kq.fold_batch_norm]),
          "qmodel": kq.calibrate(kq.insert_quantizers(model), images)}


def state():
  """What a call must leave as it is."""
  loggers = {name: (log.level, log.disabled, log.propagate, len(log.handlers), len(log.filters))
             for name, log in logging.Logger.manager.loggerDict.items() if isinstance(log, logging.Logger)}
  return {
      "loggers": loggers, "root": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
      "absl": absl.logging.get_verbosity(), "warnings": list(warnings.filters),
      "descriptors": {number: os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)},
      "environment": dict(os.environ), "folder": os.getcwd(), "umask": _umask(),
      "random": random.getstate(), "numpy": [part.tolist() if hasattr(part, "tolist") else part
                                             for part in np.random.get_state()],
      "errors": np.geterr(), "printing": np.get_printoptions(),
      "eager": tf.config.functions_run_eagerly(), "jit": tf.config.optimizer.get_jit(),
      "threads": (tf.config.threading.get_intra_op_parallelism_threads(),
                  tf.config.threading.get_inter_op_parallelism_threads()),
      "policy": keras.mixed_precision.global_policy().name, "floatx": keras.backend.floatx(),
      "epsilon": keras.backend.epsilon(), "data_format": keras.backend.image_data_format(),
      "phase": keras.backend.learning_phase(), "interrupt": signal.getsignal(signal.SIGINT),
      "main": [thread.name for thread in threading.enumerate() if thread is threading.main_thread()]}


def _umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask


@pytest.mark.parametrize("step", STEPS)
def test_a_call_leaves_the_process_as_it_is(step, user):
  random.seed(1)
  np.random.seed(2)
  tf.random.set_seed(3)
  drawn = tf.random.uniform(())
  tf.random.set_seed(3)
  before, weights = state(), [value.copy() for value in user["model"].get_weights()]
  STEPS[step](user)
  after = state()
  new = after["loggers"].keys() - before["loggers"].keys()
  after["loggers"] = {name: value for name, value in after["loggers"].items() if name not in new}
  assert {key: value for key, value in after.items() if value != before[key]} == {}
  assert float(tf.random.uniform(())) == float(drawn)
  for mine, theirs in zip(weights, user["model"].get_weights()):
    np.testing.assert_array_equal(mine, theirs)


def test_files_are_closed(user):
  count = len(os.listdir("/proc/self/fd"))
  for _ in range(3):
    kq.export(user["result"], user["folder"] / "again.tflite", verify=user["images"][:1])
  assert len(os.listdir("/proc/self/fd")) <= count + 1
