"""A slice of the fuzz of damaged files; `make fuzz` runs a thousand."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.graph import file_fuzz

ROOT = pathlib.Path(__file__).parents[2]


def test_damaged_files_are_loaded_or_refused_in_one_line(tmp_path):
  file_fuzz.write_sources(tmp_path)
  command = [sys.executable, "-m", "tests.graph.file_fuzz", "--cases=30", "--block", tmp_path, "100"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT,
                        env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert sum(found.values()) == 30 and 0 < found["loaded"] < 20
  assert any("'mark'" in reason or "Lambda" in reason or "layer" in reason for reason in found)


def test_the_fuzz_notices_what_a_file_may_not_do(tmp_path):
  with file_fuzz._watched(tmp_path):
    (tmp_path / "inside").write_text("")
    with pytest.raises(AssertionError, match="writes"):
      (tmp_path.parent / "outside").write_text("")
    with pytest.raises(AssertionError, match="Popen"):
      subprocess.run(["true"])
  (tmp_path.parent / "outside").write_text("")
