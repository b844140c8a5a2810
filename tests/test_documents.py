"""The README's snippets and the examples run; its links lead somewhere."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_readme_snippet_runs(number, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {})
  assert SNIPPETS[number].count("kq.") >= 1


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_runs(path, tmp_path):
  done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True,
                        env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert done.returncode == 0, done.stderr[-2000:]
  assert "integer 0.9" in done.stdout


def test_links_lead_somewhere():
  for document in ("README.md", "CONTRIBUTING.md"):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
      assert target.startswith("http") or (ROOT / target).exists(), target
