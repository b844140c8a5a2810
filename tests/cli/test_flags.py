"""Flags, the error contract, and what is checked before any work is done."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from kquant.cli import (
  file_flags,
  models,
  ptq,  # noqa: F401  defines the flags
)
from kquant.cli import flags as shared
from tflite_export.proof.errors import VerificationError

FLAGS = flags.FLAGS


@pytest.fixture(autouse=True)
def _parsed():
  """The flags can be read, and are as they were after each test."""
  with flagsaver.flagsaver():
    FLAGS.mark_as_parsed()
    yield


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, shape", [
    (None, None), ("224,224,3", (224, 224, 3)), (" 8,9 ,1", (8, 9, 1)), ("16", (16,)),
    ("a:8,8,3;b:5", {"a": (8, 8, 3), "b": (5,)}), ("in:1:49,40", {"in:1": (49, 40)})])
def test_input_shape(given, shape):
  with flagsaver.flagsaver(input_shape=given):
    assert models.input_shape() == shape


@pytest.mark.parametrize("given", ["0,4,3", "-1,4,3", "8x8x3", "4.0,4,3", "", "²,4,3", "a:8;4", "a:8;a:4",
                                   "a:"])
def test_input_shape_of_something_else(given):
  with flagsaver.flagsaver(input_shape=given), pytest.raises(ValueError, match="224,224,3, or for.*got"):
    models.input_shape()


def test_presets():
  with flagsaver.flagsaver(preset="w4a8"):
    assert shared.preset().rules[0].weights.bits == 4


@pytest.mark.parametrize("name, words", [
    ("w4a4", "activations of 8 or 16 bits.*int16x8, or w<bits>a8 with 2 to 8 bits of weights"),
    ("w9a8", "Unknown preset"), ("w3a16", "2 to 8 of activations.*Rule"), ("", "Unknown preset")])
def test_a_preset_without_a_file_is_refused(name, words):
  with flagsaver.flagsaver(preset=name), pytest.raises(ValueError, match=words):
    shared.preset()


@pytest.mark.parametrize("args, words", [
    (["--nofoo"], "Unknown command line flag 'nofoo'"),
    (["--noseed"], "Did you mean: node_data, seed"),
    (["--model"], "Missing value for flag --model"),
    (["--model="], "--model=: expected a path"),
    (["--output="], "--output=: expected a path"),
    (["--save_qmodel=q.h5"], "ends in .keras"),
    (["--encodings=e.npz"], "ends in .json"),
    (["--io=int4"], "<int8|uint8|float32>"),
    (["--preprocess=imagenet"], "<none|unit|tf|torch|caffe>"),
    (["--preprocess=mean:1,std:0"], "deviations above 0"),
    (["--calibration_order=last"], "<random|first>"),
    (["--calibration_samples=0"], "positive"),
    (["--calibration_samples=many"], "many"),
    (["--seed=-1"], "--seed=-1"),
    (["model.h5"], "Unexpected argument 'model.h5'"),
    (["--", "--model=m.h5"], "Unexpected argument '--model=m.h5'"),
    (["--flagfile=no/such/file"], "flagfile")])
def test_a_mistake_in_the_flags_costs_one_line(refused, args, words):
  refused(*args, words=[words])


# --- files to write --------------------------------------------------------------------------------


def problem(**paths) -> str:
  """What check_outputs says of flags that name files to write."""
  with flagsaver.flagsaver(**{name: str(path) for name, path in paths.items()}):
    try:
      file_flags.check_outputs("output", "summary", "encodings", "save_qmodel")
    except ValueError as error:
      return str(error)
  return ""


def test_places_that_can_be_written(tmp_path, monkeypatch):
  (tmp_path / "old.tflite").write_text("")
  assert not problem(output=tmp_path / "old.tflite", summary=tmp_path / "s.json",
                     encodings=tmp_path / "e.json", save_qmodel=tmp_path / "q.keras")
  monkeypatch.chdir(tmp_path)
  assert not problem(output="m.tflite")
  assert os.listdir(tmp_path) == ["old.tflite"]


@pytest.mark.parametrize("script, needed", [("analyze", "--output"), ("allocate", "--output"),
                                            ("qat", "--train")])
def test_a_missing_flag_is_told_without_tensorflow(script, needed, tmp_path):
  (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow is imported')")
  done = subprocess.run([sys.executable, "-m", f"kquant.cli.{script}"], capture_output=True, text=True,
                        env={**os.environ, "PYTHONPATH": str(tmp_path)})
  assert done.returncode == 2 and done.stderr.startswith("error: --model is missing; a run needs --model")
  assert needed in done.stderr


@pytest.mark.parametrize("flag", ["output", "summary", "encodings", "save_qmodel"])
def test_a_missing_folder_is_named(tmp_path, flag):
  path = tmp_path / "no" / {"encodings": "f.json", "save_qmodel": "f.keras"}.get(flag, "f")
  found = problem(**{flag: path})
  assert f"--{flag}={path}" in found and f"no folder {path.parent}" in found and "make it first" in found


def test_folders_links_and_devices_are_not_replaced(tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "file").write_text("")
  (tmp_path / "link").symlink_to(tmp_path / "file")
  for path in (tmp_path / "folder", tmp_path / "link", pathlib.Path(os.devnull)):
    assert "is a folder, link or device" in problem(summary=path)


def test_a_folder_without_permission(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "access", lambda path, mode: pathlib.Path(path) != tmp_path)
  assert "no permission" in problem(output=tmp_path / "m.tflite")


def test_no_file_replaces_another(tmp_path):
  given = tmp_path / "given"
  given.write_text("")
  for flag in ("model", "calibration", "eval"):
    found = problem(**{flag: given, "output": tmp_path / "." / "given"})
    assert "would replace" in found and f"--{flag} names" in found
  assert "which --output names" in problem(output=given, summary=given)
  # The integers of the encodings lie beside them.
  assert "which --calibration names" in problem(calibration=tmp_path / "x.npz", encodings=tmp_path / "x.json")


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "s.json"
  shared.write_json(str(path), {"a": [1, None]})
  assert json.loads(path.read_text()) == {"a": [1, None]}
  with pytest.raises(TypeError):
    shared.write_json(str(path), {"a": object()})
  assert json.loads(path.read_text()) == {"a": [1, None]} and os.listdir(tmp_path) == ["s.json"]


# --- exit codes ------------------------------------------------------------------------------------


def raising(error):
  def main():
    raise error
  return main


@pytest.mark.parametrize("error, code, line", [
    (ValueError("bad value"), 2, "error: bad value\n"),
    (TypeError("over\n  two lines"), 2, "error: over two lines\n"),
    (FileNotFoundError(2, "No such file", "m.h5"), 2, "error: [Errno 2] No such file: 'm.h5'\n"),
    (MemoryError(), 2, "error: MemoryError\n"),
    (VerificationError("conv/kernel:\nthe file differs"), 1,
     "error: Verification failed: conv/kernel: the file differs\n"),
    (KeyboardInterrupt(), 130, "error: interrupted\n")])
def test_exit_codes(invoke, error, code, line):
  assert invoke(main=raising(error)) == (code, "", line)


def test_success_is_exit_code_0(invoke):
  assert invoke(main=lambda: print("done")) == (0, "done\n", "")


def test_a_mistake_of_our_own_keeps_its_traceback(invoke):
  with pytest.raises(RuntimeError, match="ours"):
    invoke(main=raising(RuntimeError("ours")))


def test_verbosity_shows_the_traceback(invoke):
  with pytest.raises(ValueError, match="bad value"):
    invoke("--verbosity=1", main=raising(ValueError("bad value")))


@pytest.mark.parametrize("script, given", [
    ("ptq", ["--model=no.h5"]), ("ptq", ["--model={model}", "--eval=no.npz"]),
    ("analyze", ["--calibration=no"]), ("qat", ["--train=no"]), ("allocate", ["--model=no.h5"]),
    ("export", ["--encodings=no.json"]),
    ("verify", ["--tflite=no.tflite"]), ("family", ["--bundle=no.kqf"])])
def test_a_wrong_path_is_told_without_tensorflow(script, given, finalised):
  code = (f"import runpy, sys; sys.modules['tensorflow'] = None\n"
          f"sys.argv = ['x', *{[flag.format(model=finalised.model) for flag in given]}]\n"
          f"runpy.run_module('kquant.cli.{script}', run_name='__main__')")
  done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
  flag, path = given[-1].split("=")
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr == f"error: {flag}={path}: there is no such file or folder; check the path.\n"
