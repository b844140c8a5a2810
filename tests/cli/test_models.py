"""--model, --weights, --build, --import and --trust_model: which model a run takes, whose code it runs."""

import os
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl import logging
from tf_keras import layers

from kquant.cli import native_messages, qat
from kquant.graph.model_files import load_model

BUILD = """
import tf_keras as keras
import my_sizes

def build():
  return keras.Sequential([keras.layers.Dense(my_sizes.UNITS, input_shape=(5,), activation="relu"),
                           keras.layers.Dense(3)], name="mine")

def fails():
  raise RuntimeError("no such\\nthing")

def text():
  return "model"
"""
OWN = """
import sys
import tf_keras as keras

@keras.utils.register_keras_serializable("own_of_test_models")
class Twice(keras.layers.Layer):
  def call(self, x):
    return x

open(sys.modules[__name__].__file__ + ".was_run", "w").close()
"""
X = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)


def network():
  return keras.Sequential([layers.Dense(4, "relu", input_shape=(5,)), layers.Dense(3)], name="mine")


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with files of a user's own, the weights of a model and data."""
  monkeypatch.setattr(sys, "path", list(sys.path))
  before = set(sys.modules)
  (tmp_path / "my_network.py").write_text(BUILD)
  (tmp_path / "my_sizes.py").write_text("UNITS = 4\n")
  (tmp_path / "my_layers.py").write_text(OWN)
  keras.utils.set_random_seed(0)
  model = network()
  model.save(tmp_path / "whole.keras")
  model.save_weights(tmp_path / "w.h5")
  (tmp_path / "m.json").write_text(model.to_json())
  np.savez(tmp_path / "x.npz", x=X, y=np.arange(32) % 3)
  yield tmp_path
  for name in set(sys.modules) - before:
    if name.startswith("my_"):
      del sys.modules[name]
  keras.utils.get_custom_objects().pop("own_of_test_models>Twice", None)


@pytest.fixture
def run(invoke, folder):
  """Returns a function that quantizes and returns the finalised model."""

  def call(*args):
    code, _, err = invoke(f"--calibration={folder / 'x.npz'}", f"--output={folder / 'm.tflite'}",
                          f"--save_model={folder / 'final.keras'}", *args)
    assert code == 0 and not err, err
    return load_model(folder / "final.keras")

  return call


@pytest.fixture
def refused_run(refused, folder):
  """Returns a function for a run that ends in one line."""
  return lambda *args, words: refused(f"--calibration={folder / 'x.npz'}", f"--output={folder / 'm.tflite'}",
                                      *args, words=words)


def is_the_network(final, folder):
  np.testing.assert_allclose(final(X), keras.models.load_model(folder / "whole.keras")(X), atol=0.2)


def test_a_config_with_weights(run, folder):
  is_the_network(run(f"--model={folder / 'm.json'}", f"--weights={folder / 'w.h5'}"), folder)


@pytest.mark.parametrize("flag", ["model", "weights"])
def test_a_function_that_builds_the_model(run, folder, flag):
  is_the_network(run(f"--build={folder / 'my_network.py'}:build", f"--{flag}={folder / 'w.h5'}"), folder)


@pytest.mark.parametrize("build, words", [
    ("my_network.py:none", "there is no function 'none'"), ("my_network.py", "expected FILE.py:FUNCTION"),
    ("nothing.py:build", "there is no file"),
    ("my_network.py:fails", "failed: RuntimeError: no such (line 10 of "),
    ("my_network.py:text", "expected the function to return a Keras model, got str")])
def test_a_build_that_is_no_model_is_one_line(refused_run, folder, build, words):
  refused_run(f"--build={folder / build}", f"--model={folder / 'w.h5'}", words=["--build", words])


def test_a_build_needs_one_file_of_weights(refused_run, folder):
  build, weights = f"--build={folder / 'my_network.py'}:build", folder / "w.h5"
  refused_run(build, f"--model={weights}", f"--weights={weights}", words=["leave one of the last two out"])
  refused_run(build, words=["--build was given without weights", "--model or --weights"])


def test_a_file_of_ones_own_is_run_where_it_is_named_only(folder, run, refused_run):
  space = {"__name__": "my_layers"}
  sys.modules["my_layers"] = types.SimpleNamespace(__file__=str(folder / "elsewhere"))
  exec(OWN, space)
  image = keras.Input((5,))
  keras.Model(image, layers.Dense(3)(space["Twice"]()(image))).save(folder / "own.h5")
  keras.utils.get_custom_objects().pop("own_of_test_models>Twice")
  del sys.modules["my_layers"]
  refused_run(f"--model={folder / 'own.h5'}", words=["Twice", "--import=FILE"])
  assert not (folder / "my_layers.py.was_run").exists()
  run(f"--model={folder / 'own.h5'}", f"--import={folder / 'my_layers.py'}")
  assert (folder / "my_layers.py.was_run").exists()


def test_a_file_that_fails_is_one_line(refused_run, folder):
  model = f"--model={folder / 'whole.keras'}"
  (folder / "my_broken.py").write_text("x = 1\nx = (\n")
  refused_run(model, f"--import={folder / 'my_broken.py'}", words=["--import=", "failed: SyntaxError"])
  (folder / "json.py").write_text("x = 1\n")
  refused_run(model, f"--import={folder / 'json.py'}", words=["name of another module"])


def test_a_lambda_needs_trust(run, folder, refused_run):
  image = keras.Input((5,))
  model = keras.Model(image, layers.Dense(3)(layers.Lambda(lambda x: x * 2.0 + 1.0)(image)))
  model.save(folder / "m.h5")
  refused_run(f"--model={folder / 'm.h5'}", words=["Lambda", "--trust_model"])
  final = run(f"--model={folder / 'm.h5'}", "--trust_model")
  np.testing.assert_allclose(final(X), model(X), atol=0.2)


def test_open_shapes_are_asked_for_in_the_rank_of_the_model(refused_run, folder):
  rows, more = keras.Input((None, 5), name="rows"), keras.Input((None, None, 2), name="more")
  keras.Model(rows, layers.ReLU()(rows)).save(folder / "one.h5")
  refused_run(f"--model={folder / 'one.h5'}", words=["'rows' has the open shape (None, 5)",
                                                     "--input_shape=T,5 with your sizes"])
  keras.Model([rows, more], [layers.ReLU()(rows), layers.ReLU()(more)]).save(folder / "two.h5")
  refused_run(f"--model={folder / 'two.h5'}", words=["--input_shape=rows:T,5;more:H,W,2 with your sizes"])


def test_training_takes_them_too(invoke, folder):
  code, _, err = invoke(f"--build={folder / 'my_network.py'}:build", f"--weights={folder / 'w.h5'}",
                        f"--train={folder / 'x.npz'}", f"--output={folder / 'm.tflite'}", "--epochs=1",
                        main=qat.main)
  assert code == 0, err


@pytest.fixture(scope="module")
def two_functions(tmp_path_factory):
  """A SavedModel of another maker with two functions of five features."""
  folder = tmp_path_factory.mktemp("functions")
  kernel = tf.Variable(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
  module = tf.Module()
  module.kernel = kernel
  spec = [tf.TensorSpec((1, 5), name="x")]
  module.first = tf.function(lambda x: {"first": tf.matmul(x, kernel)}, input_signature=spec)
  module.second = tf.function(lambda x: {"second": tf.matmul(x, kernel) + 1.0}, input_signature=spec)
  tf.saved_model.save(module, folder / "two", signatures={"a": module.first, "b": module.second})
  return folder / "two"


def test_a_function_of_a_saved_model_is_named(run, refused_run, two_functions):
  refused_run(f"--model={two_functions}", words=["signatures a, b", "--signature=a"])
  assert run(f"--model={two_functions}", "--signature=b").output_names == ["second"]


def test_our_warnings_are_shown_where_native_ones_are_not(capfd):
  with native_messages.without_native_messages():
    os.write(2, b"native\n")
    logging.warning("ours")
  written = capfd.readouterr().err
  assert "ours" in written and "native" not in written
