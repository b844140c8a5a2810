"""Files and new widths of an AnyPrecisionModel under a strategy with two replicas."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_model_of_two_replicas_is_saved_loaded_and_widened(tmp_path):
  done = subprocess.run([sys.executable, "-m", "tests.anyprecision.strategy_files", str(tmp_path)], cwd=ROOT,
                        capture_output=True, text=True, timeout=400)
  assert done.returncode == 0, done.stderr[-3000:]
