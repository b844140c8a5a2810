"""kquant.cli.allocate, and the budgets of kquant.cli.ptq."""

import json
import re
import sys

import pytest

import kquant as kq
from kquant.cli import allocate
from kquant.graph.model_files import load_model


@pytest.fixture(scope="module")
def least(files):
  """Bytes that a file of 4 bits has, and some that are spare."""
  found = kq.allocate_bits(load_model(files.h5), files.x, budget=1.0, weights=(4, 8), activations=(8,))
  return min(point.bytes for point in found.uniform) + 32


def test_the_curve_alone(invoke, files, tmp_path):
  path, plot, page = tmp_path / "allocation.json", tmp_path / "curve.png", tmp_path / "page.html"
  code, out, err = invoke(f"--model={files.h5}", f"--calibration={files.xy}", "--budget_bytes=1e5",
                          "--activation_bits=8", f"--output={path}", f"--plot={plot}", f"--report={page}",
                          main=allocate.main)
  assert code == 0, err
  body = json.loads(path.read_text())
  assert body["bytes"] <= 1e5 == body["budget"]["bytes"] and {row["bits"] for row in body["rows"]} == {8}
  assert "predicted 1/QNSR" in out and plot.read_bytes()[1:4] == b"PNG"
  assert "What does the budget cost?" in page.read_text()


def test_ptq_writes_a_file_within_the_budget(invoke, files, least, tmp_path):
  output, summary, page = tmp_path / "m.tflite", tmp_path / "s.json", tmp_path / "page.html"
  code, out, err = invoke(f"--model={files.h5}", f"--calibration={files.xy}", f"--budget_bytes={least}",
                          "--weight_bits=4,8", "--activation_bits=8", f"--output={output}",
                          f"--summary={summary}", f"--report={page}")
  assert code == 0, err
  body = json.loads(summary.read_text())
  assert output.stat().st_size == body["bytes"] <= least
  assert 4 in {row["bits"] for row in body["allocation"]["rows"]} and "allocate" in body["seconds"]
  titles = re.findall("<h2>(.*?)</h2>", page.read_text())
  assert titles[2:5] == ["The file", "Noise over budgets", "Bits of each layer"]


def test_latencies_of_another_device(invoke, refused, files, tmp_path):
  """A table says what all operators take, so that a budget below it cannot be met."""
  exported = tmp_path / "m.tflite"
  kq.export(kq.quantize(load_model(files.h5), files.x, effort=None), exported)
  table = kq.LatencyTable(dict.fromkeys(kq.measure_latency(exported, runs=1).milliseconds, 7.0))
  table.save(tmp_path / "phone.json")
  given = [f"--model={files.h5}", f"--calibration={files.xy}", f"--output={tmp_path / 'a.json'}",
           f"--latencies={tmp_path / 'phone.json'}", "--weight_bits=8", "--activation_bits=8"]
  code, out, err = invoke(*given, "--budget_latency_ms=1000", main=allocate.main)
  assert code == 0 and f"{7 * len(table.milliseconds)} ms of 1,000 ms" in out, err
  refused(*given, "--budget_latency_ms=6", main=allocate.main, words=["ms or more", "got 6 ms"])


def test_mistakes(refused, files, tmp_path):
  given = [f"--model={files.h5}", f"--calibration={files.xy}", f"--output={tmp_path / 'm.tflite'}"]
  refused(*given, "--weight_bits=4", words=["--weight_bits", "--budget_bytes"])
  refused(*given, "--budget_bytes=100", "--activation_bits=8", words=["or more, the least", "got 100"])
  refused(*given, "--budget_bytes=1e5", "--activation_bits=4", words=["activations must be some of 8, 16"])
  refused(*given, main=allocate.main, words=["--budget_bops or --budget_latency_ms is missing"])
  assert not list(tmp_path.iterdir())


def test_operators_at_the_border_count(refused, files, least, tmp_path):
  refused(f"--model={files.h5}", f"--calibration={files.xy}", f"--output={tmp_path / 'm.tflite'}",
          f"--budget_bytes={least}", "--activation_bits=8", "--io=float32", "--effort=none",
          words=["of them of --io"])
  assert not list(tmp_path.iterdir())


def test_processes_are_those_of_joblib(refused, files, tmp_path, monkeypatch):
  joblib = pytest.importorskip("joblib")
  found = []

  def counts(*_, **__):
    found.append(joblib.effective_n_jobs(None))
    raise ValueError("enough")

  monkeypatch.setattr("kquant.cli.commands.allocate.allocate_bits", counts)
  given = [f"--model={files.h5}", f"--calibration={files.xy}", f"--output={tmp_path / 'a.json'}",
           "--budget_bytes=1e5"]
  refused(*given, "--processes=2", main=allocate.main, words=["enough"])
  refused(*given, main=allocate.main, words=["enough"])
  assert found == [2, 1]
  monkeypatch.setitem(sys.modules, "joblib", None)
  refused(*given, "--processes=2", main=allocate.main, words=["--processes=2", "pip install joblib"])
