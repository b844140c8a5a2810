"""The demo: its data, its network, and the whole run without flags."""

import json

import numpy as np

from kquant.cli import demo
from kquant.graph.graph import Graph


def test_digits_are_split_the_same_way_for_a_seed():
  (x, y), (x_test, y_test) = demo.digits(3)
  assert x.shape == (1437, 8, 8, 1) and x_test.shape == (demo.TEST_IMAGES, 8, 8, 1)
  assert x.dtype == np.float32 and x.min() == 0.0 and x.max() == 1.0
  assert set(y) == set(y_test) == set(range(10))
  again = demo.digits(3)
  np.testing.assert_array_equal(again[0][0], x)
  np.testing.assert_array_equal(again[1][1], y_test)
  assert (demo.digits(4)[1][1] != y_test).any()
  # No image is both trained on and held back, but for those that scikit-learn holds twice.
  seen = {image.tobytes() for image in x}
  assert sum(image.tobytes() in seen for image in x_test) <= 2


def test_the_network_holds_what_the_demo_says():
  kinds = {node.kind for node in Graph.from_model(demo.digits_network()).nodes}
  assert {"Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "Add", "Dense"} <= kinds


def test_without_flags_the_demo_runs(invoke, tmp_path):
  code, out, err = invoke(f"--summary={tmp_path / 's.json'}", f"--output={tmp_path / 'd.tflite'}")
  assert code == 0 and not err, err
  assert "Trained a" in out and "float top-1" in out and str(tmp_path / "d.tflite") in out
  found = json.loads((tmp_path / "s.json").read_text())
  assert found["calibration_images"] == 128 and found["eval"]["images"] == demo.TEST_IMAGES
  assert found["eval"]["float"]["top1"] > 0.95
  assert abs(found["eval"]["float"]["top1"] - found["eval"]["quantized"]["top1"]) < 0.02
  assert found["bytes"] == (tmp_path / "d.tflite").stat().st_size


def test_flags_of_a_model_are_no_demo(refused):
  for flag in ("--calibration=x.npz", "--eval=x.npz", "--input_shape=8,8,1", "--preprocess=tf",
               "--calibration_order=first"):
    refused(flag, words=[f"{flag.split('=')[0]} was given without --model"])
  refused("--summary=no/such/folder/s.json", words=["no folder"])
