"""Shared by the tests of the command line: a way to call it, and small files to call it on."""

import sys
import types

import numpy as np
import pytest
import tf_keras as keras
from absl.testing import flagsaver
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.cli import flags as shared
from kquant.cli import ptq
from kquant.graph.model_files import load_model
from tests import models

CLASSES = 4


@pytest.fixture
def invoke(capfd, monkeypatch):
  """Returns a function that runs a script as the shell would: -> (exit code, stdout, stderr)."""

  def call(*args: str, main=ptq.main) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ptq.py", *map(str, args)])
    capfd.readouterr()
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as left:
      shared.run(main)
    return left.value.code or 0, *capfd.readouterr()

  return call


@pytest.fixture
def refused(invoke):
  """Returns a function that expects a mistake: exit code 2 and one line, which holds the words."""

  def call(*args: str, words: tuple[str, ...] | list[str], main=ptq.main) -> None:
    code, out, err = invoke(*args, main=main)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (code, err)
    assert "Traceback" not in err and not out, (out, err)
    for word in words:
      assert word in err, err

  return call


@pytest.fixture(scope="session")
def files(tmp_path_factory):
  """A classifier in three formats, others in one, and arrays; attributes x, y hold the arrays.

  The model's classes depend on the input, so that the seeded labels `y` = float classes, every fourth
  one moved by one, give a float top-1 of exactly 3/4.
  """
  folder = tmp_path_factory.mktemp("files")
  keras.utils.set_random_seed(0)
  rng = np.random.default_rng(0)
  model = classifier()
  model.save(folder / "m.h5")
  model.save(folder / "m.keras")
  model.save(folder / "m", save_format="tf")
  classifier((None, None, 3)).save(folder / "open.h5")
  models.build("two_inputs").save(folder / "two.h5")
  image = keras.Input((12, 12, 3), name="image")
  keras.Model(image, layers.Conv2D(2, 3, name="map")(image)).save(folder / "maps.h5")
  odd = layers.GRU(2, recurrent_activation="softsign", name="odd")(layers.Reshape((12, 36))(image))
  keras.Model(image, odd).save(folder / "odd.h5")
  x = rng.uniform(-1, 1, (48, 12, 12, 3)).astype(np.float32)
  y = model.predict(x, verbose=0).argmax(-1)
  y[::4] = (y[::4] + 1) % CLASSES
  np.savez(folder / "xy.npz", x=x, y=y)
  np.savez(folder / "x.npz", x=x)
  return types.SimpleNamespace(folder=folder, x=x, y=y, h5=folder / "m.h5", xy=folder / "xy.npz")


@pytest.fixture(scope="session")
def finalised(files, tmp_path_factory):
  """Paths of a file and what it was made of: model, encodings, tflite; xy are the data."""
  folder = tmp_path_factory.mktemp("finalised")
  result = kq.quantize(load_model(files.h5), files.x, effort=None)
  result.model.save(folder / "final.keras")
  result.encodings.save(folder / "e.json")
  tflite_export.export(result, folder / "m.tflite")
  return types.SimpleNamespace(model=folder / "final.keras", encodings=folder / "e.json",
                               tflite=folder / "m.tflite", xy=files.xy)


def classifier(shape=(12, 12, 3)) -> keras.Model:
  """Returns a small convolutional classifier whose classes are about equally frequent."""
  x = image = keras.Input(shape, name="image")
  x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(x)
  x = layers.GlobalAveragePooling2D(name="pool")(x)
  logits = layers.Dense(CLASSES, activation="softmax", name="classes",
                        kernel_initializer=keras.initializers.RandomNormal(stddev=3.0))
  return keras.Model(image, logits(x), name="classifier")
