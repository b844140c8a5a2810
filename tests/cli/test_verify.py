"""python -m kquant.cli.verify: a changed byte costs exit code 1 and a last line that names it."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import kquant as kq
import tflite_export
from kquant.cli import verify
from kquant.graph.model_files import load_model
from tflite_export.file.reader import from_bytes


@pytest.fixture
def checked(invoke, finalised):
  """Returns a function that verifies a file: -> (exit code, stdout, stderr)."""

  def call(path, *args, with_model=False):
    model = [f"--model={finalised.model}"] if with_model else []
    return invoke(f"--tflite={path}", f"--encodings={finalised.encodings}", *model, *args, main=verify.main)

  return call


def changed(finalised, folder: pathlib.Path, values: np.ndarray) -> pathlib.Path:
  """Writes the file with one bit of the constant or scale `values` flipped."""
  data = bytearray(finalised.tflite.read_bytes())
  data[bytes(data).index(values.tobytes())] ^= 1
  (folder / "changed.tflite").write_bytes(data)
  return folder / "changed.tflite"


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("data", [False, True])
def test_an_honest_file(checked, finalised, with_model, data, tmp_path):
  args = [f"--data={finalised.xy}", f"--certificate={tmp_path / 'c.json'}"] if data else []
  code, out, err = checked(finalised.tflite, *args, with_model=with_model)
  assert (code, err) == (0, "") and out.splitlines()[-1] == f"verified: {finalised.tflite}"
  assert "0 differ" in out and ("not compared; give --model" in out) == (not with_model)
  assert (f"4 inputs of {finalised.xy}" if data else "2 random inputs") in out
  assert not data or json.loads((tmp_path / "c.json").read_text())["inputs"] == {"real": 4, "random": 2}


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("what, field, words", [
    ("conv/kernel", "data", "conv/kernel: the file's integers differ"),
    ("classes/kernel", "data", "classes/kernel: the file's integers differ"),
    ("conv/bias", "data", "conv/bias: the file's integers differ"),
    ("conv/kernel", "scale", "conv/kernel: the file's scale or zero point differs"),
    ("conv/bias", "scale", "conv/bias: the file's scale or zero point differs"),
    ("pool", "scale", "pool: the file's scale or zero point differs")])
def test_one_flipped_bit_is_caught(checked, finalised, tmp_path, what, field, words, with_model):
  tensor = from_bytes(finalised.tflite.read_bytes()).tensors[what]
  path = changed(finalised, tmp_path, getattr(tensor, field))
  code, out, err = checked(path, f"--certificate={tmp_path / 'c.json'}", with_model=with_model)
  assert code == 1 and words in out
  assert err.splitlines()[-1].startswith(f"error: Verification failed: {path}: {words}")
  assert not (tmp_path / "c.json").exists()


def test_an_operator_is_compared_with_the_model(checked, finalised, tmp_path):
  program = from_bytes(finalised.tflite.read_bytes())
  program.ops[0].options["fused_activation_function"] = "RELU6"
  (tmp_path / "m.tflite").write_bytes(tflite_export.file.writer.to_bytes(program))
  code, _, err = checked(tmp_path / "m.tflite", with_model=True)
  assert code == 1 and "option fused_activation_function is 'RELU6'" in err


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_other_borders_and_metadata(checked, finalised, tmp_path, io):
  parts = (load_model(finalised.model), kq.Encodings.load(finalised.encodings))
  tflite_export.export(parts, tmp_path / "m.tflite", io=io, preprocess="tf")
  for preprocess, code in (("none", 0), ("tf", 0), ("unit", 1)):
    found, _, err = checked(tmp_path / "m.tflite", f"--preprocess={preprocess}", with_model=True)
    assert found == code and (not code or "metadata" in err), err
  assert checked(finalised.tflite, "--preprocess=tf", with_model=True)[0] == 0  # it has none


@pytest.mark.parametrize("batch", [3, "dynamic"])
def test_other_batches(checked, finalised, tmp_path, batch):
  parts = (load_model(finalised.model), kq.Encodings.load(finalised.encodings))
  tflite_export.export(parts, tmp_path / "m.tflite", io="float32", batch=batch)
  code, _, err = checked(tmp_path / "m.tflite", with_model=True)
  assert code == 0, err


@pytest.mark.parametrize("contents", [b"", b"no model", None])
def test_no_whole_file_is_a_mismatch(checked, finalised, tmp_path, contents):
  whole = finalised.tflite.read_bytes()
  (tmp_path / "m.tflite").write_bytes(whole[:len(whole) // 2] if contents is None else contents)
  code, _, err = checked(tmp_path / "m.tflite")
  assert code == 1 and err.startswith("error: Verification failed: ") and err.count("\n") == 1


def test_encodings_of_another_model(invoke, finalised, tmp_path):
  kq.Encodings({"x": kq.Encoding(1.0, 0)}).save(tmp_path / "e.json")
  code, _, err = invoke(f"--tflite={finalised.tflite}", f"--encodings={tmp_path / 'e.json'}",
                        main=verify.main)
  assert code == 1 and "no grid for input 'image'" in err


def test_mistakes_cost_one_line(refused, finalised, files):
  refused(f"--tflite={finalised.tflite}", words=["--encodings is missing"], main=verify.main)
  refused("--tflite=none.tflite", f"--encodings={finalised.encodings}", words=["none.tflite"],
          main=verify.main)
  refused(f"--tflite={finalised.tflite}", f"--encodings={finalised.encodings}", f"--model={files.h5}",
          words=["no grid for tensor 'conv'", "not finalised"], main=verify.main)


def test_as_a_process(finalised):
  args = [f"--tflite={finalised.tflite}", f"--encodings={finalised.encodings}"]
  done = subprocess.run([sys.executable, "-m", "kquant.cli.verify", *args], text=True, capture_output=True)
  assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith(f"verified: {finalised.tflite}\n")
