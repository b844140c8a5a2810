"""python -m kquant.cli.family: the files of a bundle, as they were verified."""

import functools
import json
import subprocess
import sys

import pytest
import tf_keras as keras

import kquant as kq
from kquant.cli import family
from tests.anyprecision.networks import any_network, data
from tflite_export.proof import certificate as proof


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  keras.utils.set_random_seed(0)
  return kq.export_family(any_network((2, 8)), tmp_path_factory.mktemp("family"), verify=data()[0][:2])


def test_one_width_is_the_file_that_was_verified_and_certified_again(written, invoke, tmp_path):
  code, out, err = invoke(f"--bundle={written.bundle}", "--bits=2", f"--output={tmp_path / 'm.tflite'}",
                          f"--certificate={tmp_path / 'm.json'}", main=family.main)
  assert code == 0 and not err, err
  assert (tmp_path / "m.tflite").read_bytes() == written.files[2].path.read_bytes()
  assert json.loads((tmp_path / "m.json").read_text())["exact"] and "certified" in out


def test_what_is_not_simulated_is_not_called_certified(written, invoke, tmp_path, monkeypatch):
  monkeypatch.setattr(proof, "not_simulated", lambda program, mode="": ["CONV_2D of layer 'first': strange"])
  code, out, err = invoke(f"--bundle={written.bundle}", "--bits=2", f"--output={tmp_path / 'm.tflite'}",
                          f"--certificate={tmp_path / 'm.json'}", main=family.main)
  assert code == 0 and not json.loads((tmp_path / "m.json").read_text())["exact"], err
  assert "not simulated: CONV_2D of layer 'first': strange" in out and "certified" not in out


def test_all_widths_at_once_without_tensorflow(written, tmp_path):
  command = [sys.executable, "-X", "importtime", "-m", "kquant.cli.family", f"--bundle={written.bundle}",
             f"--output={tmp_path}/m{{bits}}.tflite"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-500:]
  for bits in (2, 8):
    assert (tmp_path / f"m{bits}.tflite").read_bytes() == written.files[bits].path.read_bytes()
  assert "kquant.core" in done.stderr and "tensorflow" not in done.stderr
  assert "equal to the file that was verified" in done.stdout


def test_mistakes(written, refused, tmp_path):
  refused = functools.partial(refused, main=family.main)
  bundle, output = f"--bundle={written.bundle}", f"--output={tmp_path / 'm.tflite'}"
  refused(bundle, words=["--output is missing"])
  refused(bundle, output, words=["2 widths need as many names", "m{bits}.tflite"])
  refused(bundle, output, "--bits=4", words=["--bits=4", "the widths 8,2"])
  refused(bundle, output, "--bits=two", words=["--bits=two"])
  refused("--bundle=none.kqf", output, "--bits=2", words=["none.kqf"])
  damaged = tmp_path / "damaged.kqf"
  damaged.write_bytes(written.bundle.read_bytes()[:-200])
  refused(f"--bundle={damaged}", output, "--bits=2", words=["damaged.kqf", "cut off"])
  assert not (tmp_path / "m.tflite").exists()
