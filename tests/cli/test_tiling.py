"""--tile_squeeze_excite of ptq and qat."""

import json

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.cli import qat
from kquant.graph.model_files import load_model


@pytest.fixture(scope="module")
def network(tmp_path_factory):
  """The file of a classifier with one squeeze-and-excite block on 12 rows."""
  keras.utils.set_random_seed(0)
  image = keras.Input((12, 12, 3))
  x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
  gate = layers.Dense(8, "sigmoid")(layers.Dense(4, "swish")(layers.GlobalAveragePooling2D(name="mean")(x)))
  x = layers.Multiply()([x, layers.Reshape((1, 1, 8))(gate)])
  x = layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(x))
  path = tmp_path_factory.mktemp("tiles") / "se.h5"
  keras.Model(image, x).save(path)
  return path


def run(invoke, folder, *flags, **options):
  """Returns (summary, stdout) of a run that writes a file."""
  written = [f"--output={folder / 'm.tflite'}", f"--summary={folder / 's.json'}"]
  code, out, err = invoke(*flags, *written, **options)
  assert code == 0, err
  return json.loads((folder / "s.json").read_text()), out


def test_ptq_in_tiles_of_rows(network, invoke, files, tmp_path):
  model = tmp_path / "final.keras"
  summary, out = run(invoke, tmp_path, f"--model={network}", f"--calibration={files.xy}", "--effort=none",
                     f"--save_model={model}", "--tile_squeeze_excite=5")
  assert summary["tiles"] == {"rows": 5, "blocks": ["gates of 'mean' for tiles of 5 x 12"]}
  assert summary["edits"][-1]["pass"] == "tile_squeeze_excite" and "tile" in summary["seconds"]
  assert summary["operators"]["RESIZE_NEAREST_NEIGHBOR"] == 1 and not summary["float_operators"]
  tiled = kq.tile_squeeze_excite(load_model(network), rows=5)
  difference = np.abs(load_model(model)(files.x) - tiled(files.x)).max()
  assert difference < 0.02
  assert "tile" in out


def test_ptq_chooses_tiles(network, invoke, files, tmp_path):
  summary, out = run(invoke, tmp_path, f"--model={network}", f"--calibration={files.xy}", "--effort=none",
                     "--tile_squeeze_excite=auto")
  tiles = summary["tiles"]
  assert tiles["blocks"][0]["name"] == "mean" and tiles["change"] <= 0.02
  assert tiles["buffer"] < tiles["untiled"]
  assert "held-back images" in out


def test_qat_with_tiles(network, invoke, files, tmp_path):
  summary, _ = run(invoke, tmp_path, f"--model={network}", f"--train={files.xy}", "--epochs=1", "--distill",
                   "--batch_size=16", f"--eval={files.xy}", "--tile_squeeze_excite=5", main=qat.main)
  assert summary["tiles"]["rows"] == 5 and summary["verify"]["max_lsb"] <= 1
  assert summary["eval"]["agreement"] > 0.8


def test_mistakes(network, refused, files, tmp_path):
  data = [f"--calibration={files.xy}", f"--output={tmp_path / 'm.tflite'}"]
  for value in ("0", "-3", "wide", ""):
    refused(f"--model={network}", *data, f"--tile_squeeze_excite={value}",
            words=["--tile_squeeze_excite", "expected a positive number of rows or auto"])
  refused(f"--model={network}", *data, "--tile_squeeze_excite=12",
          words=["no block was tiled (mean: one tile holds its image of 12 x 12)", "leave the flag out"])
  for value in ("5", "auto"):
    refused(f"--model={files.h5}", *data, f"--tile_squeeze_excite={value}",
            words=["has no squeeze-and-excite"])
  refused("--tile_squeeze_excite=5", words=["--tile_squeeze_excite was given without --model"])
