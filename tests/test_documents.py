"""The documents' snippets and the examples run; their links lead somewhere, their flags exist."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from absl import flags

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = [pytest.param(snippet, id=f"{path.stem}-{number}") for path in DOCUMENTS
            for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  exec(compile(snippet, "snippet", "exec"), {})
  assert snippet.count("kq.") >= 1


C_SNIPPETS = [pytest.param(snippet, id=f"{path.stem}-{number}") for path in DOCUMENTS
              for number, snippet in enumerate(re.findall(r"```c\n(.*?)```", path.read_text(), re.S))]
C_API = """
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
typedef struct TfLiteInterpreter TfLiteInterpreter;
typedef struct TfLiteSignatureRunner TfLiteSignatureRunner;
typedef struct TfLiteTensor TfLiteTensor;
typedef enum { kTfLiteOk } TfLiteStatus;
TfLiteSignatureRunner* TfLiteInterpreterGetSignatureRunner(const TfLiteInterpreter*, const char*);
TfLiteStatus TfLiteSignatureRunnerAllocateTensors(TfLiteSignatureRunner*);
TfLiteStatus TfLiteSignatureRunnerInvoke(TfLiteSignatureRunner*);
TfLiteTensor* TfLiteSignatureRunnerGetInputTensor(TfLiteSignatureRunner*, const char*);
const TfLiteTensor* TfLiteSignatureRunnerGetOutputTensor(const TfLiteSignatureRunner*, const char*);
void* TfLiteTensorData(const TfLiteTensor*);
size_t TfLiteTensorByteSize(const TfLiteTensor*);
void fill_with_zero_point(TfLiteTensor*);
bool read_frame(void*);
void use(const void*);
void stream(TfLiteInterpreter* interpreter) {
"""
"""What the snippets call: declarations of LiteRT's C API, and functions that are the reader's own."""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed: C snippets are not compiled")
@pytest.mark.parametrize("snippet", C_SNIPPETS)
def test_c_snippet_compiles(snippet):
  done = subprocess.run(["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", "-"],
                        input=C_API + snippet + "}\n", capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name, arguments, line", [("01_quantize.py", (), 1), ("02_qat_fit.py", ("2",), -1)])
def test_example_runs(name, arguments, line, tmp_path):
  assert "integer 0.9" in run_example(tmp_path, name, *arguments).splitlines()[line]


@pytest.mark.slow
def test_example_of_any_precision_runs(tmp_path):
  output = run_example(tmp_path, "03_any_precision.py")
  found = re.findall(r"(\d) bits  integer (0\.\d+), .* certified", output)
  assert [bits for bits, _ in found] == ["8", "4", "2"] and min(float(top1) for _, top1 in found) > 0.95


def test_example_of_sequences_runs(tmp_path):
  found = dict(re.findall(r"(\w+) +(0\.\d+)", run_example(tmp_path, "04_sequences.py")))
  assert float(found["integer"]) > float(found["float"]) - 0.02 > 0.85 and float(found["agreement"]) > 0.97


def test_example_of_streaming_runs(tmp_path):
  found = dict(re.findall(r"(\w+) +([01]\.\d+)", output := run_example(tmp_path, "05_streaming.py")))
  assert float(found["stream"]) > 0.9 and float(found["agreement"]) > 0.97 and "exact True" in output


@pytest.mark.slow
def test_example_on_cifar10_runs(shared_data, tmp_path):
  output = run_example(tmp_path, "02b_qat_cifar10.py", shared_data / "models" / "resnet8_cifar10.h5",
                       shared_data / "cifar10.npz", "1")
  float_top1, integer_top1 = (float(found) for found in re.findall(r"(?:float  |integer) (0\.\d+)", output))
  assert integer_top1 > float_top1 - 0.05


def test_every_example_is_run():
  assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
      "01_quantize.py", "02_qat_fit.py", "02b_qat_cifar10.py", "03_any_precision.py", "04_sequences.py",
      "05_streaming.py"}


def run_example(folder, name, *arguments):
  """Returns what an example prints."""
  done = subprocess.run([sys.executable, ROOT / "examples" / name, *arguments], cwd=folder, text=True,
                        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
  for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
    assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
                         ids=lambda path: path.stem)
def test_flags_exist(path):
  from kquant.cli import allocate, analyze, benchmark, export, family, ptq, qat, verify  # noqa: F401
  text = "\n".join(line for line in path.read_text().splitlines() if "benchmarks/" not in line)
  for name in re.findall(r"--([a-z_]+)[=`]", text):
    assert name in ("help", "helpfull") or name in flags.FLAGS, name
