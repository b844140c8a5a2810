"""python -m kquant.cli.benchmark: what it measures and how it says it."""

import json
import subprocess
import sys

import numpy as np
import pytest

import kquant as kq
from kquant.cli import benchmark
from kquant.graph.model_files import load_model
from tflite_export.file import writer
from tflite_export.operators.record import Operator
from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import IntOp, IntProgram, IntTensor


@pytest.fixture
def measured(invoke, tmp_path):
  """Returns a function that measures files: -> (summary, stdout)."""

  def call(*paths, runs=3):
    code, out, err = invoke(f"--tflite={','.join(map(str, paths))}", f"--runs={runs}",
                            f"--summary={tmp_path / 's.json'}", main=benchmark.main)
    assert code == 0 and not err, err
    return json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail), out

  return call


def test_one_file(measured, finalised):
  found, out = measured(finalised.tflite)
  (file,) = found["files"]
  assert set(found) == {"threads", "runs", "files"} and found["runs"] == 3
  assert file["bytes"] == finalised.tflite.stat().st_size
  assert [row["kind"] for row in file["operators"]] == ["CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
  assert [row["delegated"] for row in file["operators"]] == [True, True, True, False]
  assert file["delegated"] == 3 and "4, of which 3 run in the delegate" in out
  assert file["operators_milliseconds"] == sum(row["milliseconds"] for row in file["operators"]) > 0
  assert file["milliseconds_10_90"][0] <= file["milliseconds"] <= file["milliseconds_10_90"][1]
  # The image of 12 x 12 x 3 and the convolution's 12 x 12 x 8 are alive at once.
  assert file["activation_memory"]["peak"] == 12 * 12 * (3 + 8) and "1,584 bytes at most" in out


def test_two_files_and_their_ratio(measured, finalised, tmp_path):
  size = (1, 256, 256, 16)
  tensors = {name: IntTensor(name, size, "int8", 0.1, 0) for name in "xyz"}
  slow = IntProgram(tensors, [IntOp("TANH", ["x"], ["y"]), IntOp("LOGISTIC", ["y"], ["z"])], ["x"], ["z"])
  tensors["y"].scale, tensors["z"].scale = np.float32([1 / 128]), np.float32([1 / 256])
  tensors["z"].zero_point = np.int64([-128])
  (tmp_path / "slow.tflite").write_bytes(writer.to_bytes(slow))
  found, out = measured(finalised.tflite, tmp_path / "slow.tflite", runs=5)
  assert found["ratio"] == found["ratio_per_image"] > 1 and "an image" not in out
  assert f"takes {found['ratio']:.2f} times as long as {finalised.tflite}" in out


def test_files_of_other_batches_are_compared_by_the_image(measured, finalised, tmp_path):
  parts = (load_model(finalised.model), kq.Encodings.load(finalised.encodings))
  kq.export(parts, tmp_path / "four.tflite", batch=4)
  found, out = measured(finalised.tflite, tmp_path / "four.tflite")
  one, four = found["files"]
  assert (one["images"], four["images"]) == (1, 4) and one["milliseconds_per_image"] == one["milliseconds"]
  assert four["milliseconds_per_image"] == four["milliseconds"] / 4
  assert found["ratio_per_image"] == found["ratio"] / 4
  assert f", each of 4 images: {four['milliseconds_per_image']:.3f} ms an image" in out
  assert f"an image takes {found['ratio_per_image']:.2f} times as long: a run is of 4 and of 1." in out


def test_an_operator_of_another_writer_is_counted_though_not_timed(measured, tmp_path, monkeypatch):
  tensors = {name: IntTensor(name, (1, 4), "float32") for name in "xyz"}
  ops = [IntOp("TANH", ["x"], ["y"]), IntOp("CEIL", ["y"], ["z"])]
  with monkeypatch.context() as patch:
    patch.setitem(OPERATORS, "CEIL", Operator("CEIL"))
    (tmp_path / "m.tflite").write_bytes(writer.to_bytes(IntProgram(tensors, ops, ["x"], ["z"])))
  found, out = measured(tmp_path / "m.tflite")
  tanh, ceil = found["files"][0]["operators"]
  assert tanh["milliseconds"] > 0 and ceil["milliseconds"] is None and "1 could not be" in out


def test_mistakes_cost_one_line(refused, finalised, files):
  refused(words=["--tflite is missing"], main=benchmark.main)
  refused("--tflite=a,b,c", words=["one file or two, got 3"], main=benchmark.main)
  refused("--tflite=none.tflite", words=["--tflite=none.tflite: there is no such file"], main=benchmark.main)
  for paths in (f"{finalised.model}", f"{finalised.tflite},{finalised.model}"):
    words = [f"--tflite={finalised.model}: expected a .tflite file", "cannot load"]
    refused(f"--tflite={paths}", words=words, main=benchmark.main)
  refused(f"--tflite={finalised.tflite}", "--runs=0", words=["runs"], main=benchmark.main)


def test_as_a_process(finalised):
  done = subprocess.run([sys.executable, "-m", "kquant.cli.benchmark", f"--tflite={finalised.tflite}"],
                        text=True, capture_output=True)
  assert (done.returncode, done.stderr) == (0, "") and "slowest 4" in done.stdout
