"""kquant.cli.allocate, and the budgets of kquant.cli.ptq."""

import json

import pytest

from kquant.cli import allocate


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return tmp_path_factory.mktemp("allocation") / "allocation.json"


def test_the_curve_alone(invoke, files, path):
  plot = path.with_suffix(".png")
  code, out, err = invoke(f"--model={files.h5}", f"--calibration={files.xy}", "--budget_bytes=1e5",
                          "--activation_bits=8", f"--output={path}", f"--plot={plot}", main=allocate.main)
  assert code == 0, err
  body = json.loads(path.read_text())
  assert body["bytes"] <= 1e5 == body["budget"]["bytes"] and {row["bits"] for row in body["rows"]} == {8}
  assert "predicted SQNR" in out and plot.read_bytes()[1:4] == b"PNG"


def test_ptq_writes_a_file_within_the_budget(invoke, files, path, tmp_path):
  least = min(point["bytes"] for point in json.loads(path.read_text())["uniform"]) + 32
  output, summary = tmp_path / "m.tflite", tmp_path / "s.json"
  code, out, err = invoke(f"--model={files.h5}", f"--calibration={files.xy}", f"--budget_bytes={least}",
                          "--weight_bits=4,8", "--activation_bits=8", f"--output={output}",
                          f"--summary={summary}")
  assert code == 0, err
  body = json.loads(summary.read_text())
  assert output.stat().st_size == body["bytes"] <= least
  assert 4 in {row["bits"] for row in body["allocation"]["rows"]} and "allocate" in body["seconds"]


def test_mistakes(refused, files, tmp_path):
  given = [f"--model={files.h5}", f"--calibration={files.xy}", f"--output={tmp_path / 'm.tflite'}"]
  refused(*given, "--weight_bits=4", words=["--weight_bits", "--budget_bytes"])
  refused(*given, "--budget_bytes=100", "--activation_bits=8", words=["or more, the least", "got 100"])
  refused(*given, "--budget_bytes=1e5", "--activation_bits=4", words=["activations must be some of 8, 16"])
  refused(*given, main=allocate.main, words=["--budget_bytes or --budget_bops is missing"])
  assert not list(tmp_path.iterdir())


def test_operators_at_the_border_count(refused, files, path, tmp_path):
  least = min(point["bytes"] for point in json.loads(path.read_text())["uniform"]) + 32
  refused(f"--model={files.h5}", f"--calibration={files.xy}", f"--output={tmp_path / 'm.tflite'}",
          f"--budget_bytes={least}", "--activation_bits=8", "--io=float32", "--effort=none",
          words=["of them of --io"])
  assert not list(tmp_path.iterdir())
