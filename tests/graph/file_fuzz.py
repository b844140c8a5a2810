"""Damaged model files: each is loaded or refused in one line; none ends the process or runs its code.

    python -m tests.graph.file_fuzz --cases=1000 --seed=0

Each case damages one of a few good files, at random: its bytes, or the values of its config, which are put
back into a sound archive. Blocks of cases run in a process of their own. Exits with 1 where one failed.
"""

import argparse
import collections
import contextlib
import copy
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from unittest import mock

import h5py

from kquant.graph.readers.tflite import running

BLOCK = 100
"""Cases of one process: TensorFlow's memory grows with every model."""
MARKER = "code_was_run"
_VALUES = [None, True, -1, 0, 1, 3, 7, 2**31, 2**62, 1e30, float("nan"), "", "relu", "Dense", "Lambda",
           "os.system", "io.write_file", "../../x", [], {}, [None], [[]], {"class_name": "Dense"},
           {"class_name": "Lambda"}, {"class_name": "__tuple__", "items": [1]},
           {"module": "os", "class_name": "system", "config": {}}]


def write_sources(folder: pathlib.Path) -> None:
  """Writes good files of every kind; one has a Lambda that leaves a mark when it runs."""
  import keras as keras3
  import tensorflow as tf
  import tf_keras as keras
  from tf_keras import layers
  image = keras.Input((6, 6, 2), name="image")
  x = layers.BatchNormalization()(layers.Conv2D(3, 3, activation="relu")(image))
  x = layers.Reshape((4, 12))(x * 2.0 + 1.0)
  model = keras.Model(image, layers.Dense(2)(layers.Bidirectional(layers.GRU(3))(x)))
  model.compile("adam", "mse")
  for name in ("a.h5", "a.keras", "a"):
    model.save(folder / name)
  mark = layers.Lambda(lambda x, path=str(folder / MARKER): [x * 1.0, open(path, "w").close()][0])
  for name in ("lambda.h5", "lambda.keras", "lambda"):
    keras.Model(image, layers.Flatten()(mark(image))).save(folder / name)
  (folder / MARKER).unlink()
  x = layers.Conv2D(3, 3, activation="relu", name="conv")(image)
  plain = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
  (folder / "a.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(plain).convert())
  module = tf.Module()
  module.weights, specs = plain.weights, [tf.TensorSpec((1, 6, 6, 2), name="image")]
  module.run = tf.function(lambda image: {"scores": plain(image)}, input_signature=specs)
  tf.saved_model.save(module, folder / "module", signatures=module.run)
  nested = keras3.Sequential([keras3.Input((4,)), keras3.layers.Dense(3), keras3.layers.ReLU()])
  keras3.Sequential([keras3.Input((4,)), nested, keras3.layers.Dense(2)]).save(folder / "three.keras")


def damage(source: pathlib.Path, target: pathlib.Path, rng: random.Random) -> None:
  """Writes a damaged copy of a file or folder."""
  if source.is_dir():
    shutil.copytree(source, target)
    parts = [path for path in target.rglob("*") if path.is_file()]
    victim = rng.choice([path for path in parts if path.stat().st_size])
    victim.write_bytes(_damaged_bytes(victim.read_bytes(), rng))
  elif source.suffix == ".tflite" or rng.random() < 0.5:
    target.write_bytes(_damaged_bytes(source.read_bytes(), rng))
  elif source.suffix == ".h5":
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
      file.attrs["model_config"] = _damaged_config(file.attrs["model_config"], rng)
  else:
    _damage_archive(source, target, rng)


def _damaged_bytes(data: bytes, rng: random.Random) -> bytes:
  """Bytes with a few of them changed, cut short, with a piece left out, doubled or zeroed."""
  data, at = bytearray(data), rng.randrange(len(data))
  length = rng.choice([1, 8, 100, 4000])
  how = rng.randrange(5)
  if how == 0:
    for _ in range(rng.choice([1, 3, 30])):
      data[rng.randrange(len(data))] = rng.randrange(256)
  elif how == 1:
    del data[at:]
  elif how == 2:
    del data[at:at + length]
  elif how == 3:
    data[at:at] = data[at:at + length]
  else:
    data[at:at + length] = bytes(len(data[at:at + length]))
  return bytes(data)


def _damage_archive(source: pathlib.Path, target: pathlib.Path, rng: random.Random) -> None:
  """A sound archive with a damaged part."""
  with zipfile.ZipFile(source) as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  name = rng.choice(["config.json"] * 4 + sorted(parts))
  if name.endswith(".json"):
    parts[name] = _damaged_config(parts[name], rng).encode()
  elif rng.random() < 0.5:
    parts[name] = _damaged_bytes(parts[name], rng)
  else:
    parts[name] = _without_a_group(parts[name], rng)
  with zipfile.ZipFile(target, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
    for name, data in parts.items():
      archive.writestr(name, data)


def _without_a_group(data: bytes, rng: random.Random) -> bytes:
  buffer = io.BytesIO(data)
  with h5py.File(buffer, "r+") as file:
    paths: list[str] = []
    file.visit(paths.append)
    del file[rng.choice(paths)]
  return buffer.getvalue()


def _damaged_config(text: str | bytes, rng: random.Random) -> str:
  """A config with a few values replaced, left out or exchanged."""
  config = json.loads(text)
  for _ in range(rng.choice([1, 1, 2, 5])):
    places = list(_places(config))
    if not places:
      break
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
      del holder[key]
    elif rng.random() < 0.3:
      other, name = rng.choice(places)
      holder[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
    else:
      holder[key] = copy.deepcopy(rng.choice(_VALUES))
  return json.dumps(config)


def _places(value):
  """(holder, key) of every value inside a value."""
  items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, part in list(items):
    yield value, key
    yield from _places(part)


def check(path: pathlib.Path) -> str:
  """Loads a file; returns "loaded" or what it is refused for. Raises for what no file may do."""
  from kquant.graph.model_files import load_model
  try:
    load_model(path)
  except (ValueError, FileNotFoundError) as error:
    text = str(error)
    assert "\n" not in text and (str(path) in text or type(error).__name__ == "UnsupportedLayerError" or
                                 "Model '" in text), f"no message of one line: {text!r}"
    return " ".join(text.replace(str(path), "").split()[:6])
  return "loaded"


def run_block(folder: pathlib.Path, first: int, cases: int) -> dict[str, int]:
  """Checks cases `first`, `first` + 1 ...; returns {what came of it: how often}."""
  import tf_keras as keras
  sources = sorted(path for path in folder.iterdir() if path.name != MARKER)
  found: collections.Counter[str] = collections.Counter()
  with (tempfile.TemporaryDirectory() as place, mock.patch("tempfile.tempdir", place),
        _watched(folder, pathlib.Path(place))):
    for case in range(first, first + cases):
      rng = random.Random(case)
      source = rng.choice(sources)
      target = pathlib.Path(place) / f"{case}{source.suffix}"
      damage(source, target, rng)
      print(f"case {case}: {source.name}", file=sys.stderr, flush=True)
      found[check(target)] += 1
      assert not (folder / MARKER).exists(), "the code of a Lambda was run"
      keras.backend.clear_session()
      shutil.rmtree(target) if target.is_dir() else target.unlink()
  return found


@contextlib.contextmanager
def _watched(*allowed: pathlib.Path):
  """Fails where the block starts a process, opens a connection, or writes outside of some folders.

  The one process that it may start runs .tflite files: a damaged one can end it.
  """
  places, active = [str(path) for path in allowed], True

  def watch(event, arguments):
    if not active:
      return
    if event == "subprocess.Popen" and arguments[1][1:2] == [running.__file__]:
      return
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
      raise AssertionError(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[0], str) and arguments[2] and arguments[2] & (
        os.O_WRONLY | os.O_RDWR) and not arguments[0].startswith((*places, "/dev/")):
      raise AssertionError(f"writes {arguments[0]}")

  sys.addaudithook(watch)
  try:
    yield
  finally:
    active = False


def main() -> None:
  """Runs the cases in blocks and prints what came of them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--cases", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--block", nargs=2, metavar=("FOLDER", "FIRST"), help="used by the script itself")
  options = parser.parse_args()
  if options.block:
    folder, first = options.block
    print(json.dumps(run_block(pathlib.Path(folder), int(first), options.cases)))
    return
  found: collections.Counter[str] = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    write_sources(pathlib.Path(folder))
    for start in range(0, options.cases, BLOCK):
      cases, first = min(BLOCK, options.cases - start), options.seed * 1_000_000 + start
      done = subprocess.run([sys.executable, "-m", "tests.graph.file_fuzz", f"--cases={cases}", "--block",
                             folder, str(first)], capture_output=True, text=True, timeout=3600)
      if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("case ")][-1:]
        sys.exit(f"failed at {last} with exit code {done.returncode}:\n{done.stderr[-3000:]}")
      found.update(json.loads(done.stdout.splitlines()[-1]))
  print(f"{options.cases} damaged files: {found.pop('loaded', 0)} loaded, the others refused in one line; no "
        "code was run")
  for reason, count in found.most_common(12):
    print(f"{count:6} {reason}")


if __name__ == "__main__":
  main()
