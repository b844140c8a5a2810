"""Training under tf.distribute gives the weights of one device."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def start(kind, output, quantizer="lsq", **environment):
  command = [sys.executable, "-m", "tests.qmodel.distributed_training", kind, str(output), quantizer]
  return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE,
                          text=True)


def finish(*processes):
  for process in processes:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def weights(path):
  with np.load(path) as stored:
    return [stored[name] for name in stored.files]


def assert_close(mine, theirs):
  for a, b in zip(mine, theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  """The weights after training on one device."""
  path = tmp_path_factory.mktemp("one") / "w.npz"
  finish(start("one", path))
  return weights(path)


def finish_workers(folder, quantizer="lsq"):
  """Trains in two processes; returns the weights of each."""
  with socket.socket() as first, socket.socket() as second:
    ports = []
    for listener in (first, second):
      listener.bind(("localhost", 0))
      ports.append(listener.getsockname()[1])
  workers = [f"localhost:{port}" for port in ports]
  finish(*(start("workers", folder / f"{index}.npz", quantizer, TF_CONFIG=json.dumps(
      {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})) for index in (0, 1)))
  return [weights(folder / f"{index}.npz") for index in (0, 1)]


@pytest.mark.slow
def test_two_devices_train_to_the_weights_of_one(one_device, tmp_path):
  finish(start("mirrored", tmp_path / "w.npz"))
  assert_close(weights(tmp_path / "w.npz"), one_device)


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(one_device, tmp_path):
  for mine in finish_workers(tmp_path):
    assert_close(mine, one_device)


@pytest.mark.slow
def test_quantized_gradients_and_their_ranges_are_those_of_one_device(tmp_path):
  for kind in ("one", "mirrored"):
    finish(start(kind, tmp_path / f"{kind}.npz", "gradients"))
  expected = weights(tmp_path / "one.npz")
  assert_close(weights(tmp_path / "mirrored.npz"), expected)
  for mine in finish_workers(tmp_path, "gradients"):
    assert_close(mine, expected)


@pytest.mark.slow
def test_several_widths_train_on_two_devices_to_the_weights_of_one(tmp_path):
  for kind in ("one", "mirrored"):
    finish(start(kind, tmp_path / f"{kind}.npz", "any"))
  assert_close(weights(tmp_path / "mirrored.npz"), weights(tmp_path / "one.npz"))


@pytest.mark.slow
def test_moving_averages_train_on_two_devices(tmp_path):
  finish(start("mirrored", tmp_path / "w.npz", "moving_average"))
  assert all(np.isfinite(array).all() for array in weights(tmp_path / "w.npz"))
