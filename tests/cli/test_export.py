"""python -m kquant.cli.export: from the finalised model and the encodings to a verified file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.cli import export, verify
from tflite_export.file.c_array import to_c_source
from tflite_export.file.reader import from_bytes
from tflite_export.proof.runtime import Runtime


@pytest.fixture
def run(invoke, finalised, tmp_path):
  """Returns a function that exports the finalised model: -> stdout; the run must be silent."""

  def call(*args):
    code, out, err = invoke(f"--model={finalised.model}", f"--encodings={finalised.encodings}",
                            f"--output={tmp_path / 'm.tflite'}", *args, main=export.main)
    assert code == 0 and not err, err
    return out

  return call


def test_indices_need_data(tmp_path, invoke, refused):
  x = tokens = keras.Input((6,), dtype="int32", name="tokens")
  x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 4)(x))
  model = keras.Model(tokens, keras.layers.Dense(2)(x))
  data = np.random.default_rng(0).integers(0, 10, (32, 6))
  model.save(tmp_path / "m.keras")
  np.savez(tmp_path / "x.npz", tokens=data)
  code, _, err = invoke(f"--model={tmp_path / 'm.keras'}", f"--calibration={tmp_path / 'x.npz'}",
                        f"--output={tmp_path / 'm.tflite'}", f"--encodings={tmp_path / 'e.json'}",
                        f"--save_model={tmp_path / 'final.keras'}")
  assert code == 0, err
  flags = [f"--model={tmp_path / 'final.keras'}", f"--encodings={tmp_path / 'e.json'}",
           f"--output={tmp_path / 'again.tflite'}"]
  refused(*flags, words=["--data is missing", "tokens"], main=export.main)
  code, _, err = invoke(*flags, f"--data={tmp_path / 'x.npz'}", main=export.main)
  assert code == 0, err
  assert (tmp_path / "again.tflite").read_bytes() == (tmp_path / "m.tflite").read_bytes()
  code, out, err = invoke(f"--tflite={tmp_path / 'm.tflite'}", f"--encodings={tmp_path / 'e.json'}",
                          f"--data={tmp_path / 'x.npz'}", main=verify.main)
  assert code == 0, err


def test_the_file_is_that_of_the_library(run, finalised, tmp_path):
  out = run()
  assert (tmp_path / "m.tflite").read_bytes() == finalised.tflite.read_bytes()
  assert os.listdir(tmp_path) == ["m.tflite"]
  assert "verified" in out and "2 random inputs" in out and str(tmp_path / "m.tflite") in out


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_border_data_and_metadata(run, finalised, tmp_path, io):
  out = run(f"--io={io}", f"--data={finalised.xy}", "--data_samples=3", "--preprocess=tf")
  assert f"3 inputs of {finalised.xy}" in out
  assert Runtime(tmp_path / "m.tflite").inputs[0]["dtype"] == np.dtype(io)
  assert "TFLITE_METADATA" in from_bytes((tmp_path / "m.tflite").read_bytes()).metadata


def test_certificate_and_array(run, tmp_path):
  out = run(f"--certificate={tmp_path / 'c.json'}", f"--c_array={tmp_path / 'tiny.cc'}")
  assert json.loads((tmp_path / "c.json").read_text())["exact"] and "0 differ" in out
  assert (tmp_path / "tiny.cc").read_text() == to_c_source((tmp_path / "m.tflite").read_bytes(), "tiny")


def test_encodings_of_another_run_are_no_file(invoke, finalised, tmp_path):
  encodings = kq.Encodings.load(finalised.encodings)
  encodings.integers["conv/kernel"] = -encodings.integers["conv/kernel"]
  encodings.save(tmp_path / "e.json")
  code, out, err = invoke(f"--model={finalised.model}", f"--encodings={tmp_path / 'e.json'}",
                          f"--output={tmp_path / 'm.tflite'}", main=export.main)
  assert code == 1 and err.startswith("error: Verification failed: ") and err.count("\n") == 1
  assert "LSB from the Keras layer" in err and not (tmp_path / "m.tflite").exists()


def test_mistakes_cost_one_line(refused, finalised, files, tmp_path):
  model, encodings = f"--model={finalised.model}", f"--encodings={finalised.encodings}"
  output = f"--output={tmp_path / 'm.tflite'}"
  for args, words in [
      ([model, output], ["--encodings is missing", "--model, --encodings and --output"]),
      ([model, encodings, f"--output={finalised.encodings.with_suffix('.npz')}"], ["would replace"]),
      ([f"--model={files.folder / 'two.h5'}", encodings, output], ["no grid", "'vector'"]),
      ([f"--model={files.h5}", encodings, output], ["no grid for tensor 'conv'", "--save_model"]),
      ([f"--model={files.folder / 'maps.h5'}", encodings, output], ["no grid for tensor 'map'"]),
      ([model, f"--encodings={tmp_path / 'none.json'}", output], ["none.json"]),
      ([model, encodings, output, f"--data={tmp_path / 'none.npz'}"], ["no file or folder"])]:
    refused(*args, words=words, main=export.main)
  assert not os.listdir(tmp_path)


def test_as_a_process(finalised, tmp_path):
  args = [f"--model={finalised.model}", f"--encodings={finalised.encodings}",
          f"--output={tmp_path / 'm.tflite'}"]
  done = subprocess.run([sys.executable, "-m", "kquant.cli.export", *args], text=True, capture_output=True)
  assert (done.returncode, done.stderr) == (0, "")
  done = subprocess.run([sys.executable, "-m", "kquant.cli.export", "--help"], text=True, capture_output=True)
  for flag in ("model", "encodings", "output", "io", "c_array", "preprocess", "data", "data_samples",
               "certificate", "seed"):
    assert f"  --{flag}: " in done.stdout, flag


@pytest.mark.parametrize("batch, signature", [("3", None), ("dynamic", -1)])
def test_batch(run, tmp_path, batch, signature):
  run(f"--batch={batch}")
  program = from_bytes((tmp_path / "m.tflite").read_bytes())
  tensor = program.tensors[program.inputs[0]]
  assert tensor.open_batch == (signature == -1) and (tensor.open_batch or tensor.shape[0] == 3)


def test_batch_must_be_a_number(refused):
  refused("--batch=0", words=["expected a positive number or dynamic"], main=export.main)
