"""Real trained models and images: the integer file follows the float model."""

import numpy as np
import pytest

import kquant as kq
import tflite_export
from kquant.cli.evaluation import evaluate
from kquant.core import images
from kquant.graph.model_files import load_model
from tflite_export.lowering.lower import lower


class Arrays:
  """An evaluation source made of arrays."""

  def __init__(self, x, y):
    self.x, self.y = x, y

  def load(self, indices):
    return [self.x[indices]]

  def labels(self):
    return self.y


def imagenet(folder):
  labels = images.read_labels(folder)
  names = sorted(labels, key=labels.get)
  x = images.load_images(folder, images.ImageFormat(224, 224, preprocess="tf"), names=names)
  return x[:128], Arrays(x[128:], np.array([labels[name] for name in names[128:]]))


def cifar(path):
  with np.load(path) as stored:
    return (stored["x_train"][:256].astype(np.float32),
            Arrays(stored["x_test"][:1000].astype(np.float32), stored["y_test"][:1000].reshape(-1)))


@pytest.mark.slow
@pytest.mark.parametrize("name, preset, agreement, sqnr", [
    ("mobilenet_v2_1.0_224", "int8", 0.98, 19.0), ("mobilenet_v1_0.25_224", "int8", 0.88, 20.0),
    ("resnet8_cifar10", "int8", 0.945, 27.0), ("mobilenet_v1_0.25_224", "int8_per_tensor", 0.88, 19.0),
    ("resnet8_cifar10", "int8_per_tensor", 0.95, 29.0)])
def test_integer_file_agrees_with_the_trained_model(shared_data, tmp_path, name, preset, agreement, sqnr):
  model = load_model(shared_data / "models" / f"{name}.h5")
  is_cifar = "cifar" in name
  calibration, judged = cifar(shared_data / "cifar10.npz") if is_cifar else imagenet(shared_data / "imagenet")
  result = kq.quantize(model, calibration, config=preset, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=calibration[:2])
  assert written.verification.ok and (preset != "int8" or not result.report.skips)
  found = evaluate(model, lower(result.model, result.encodings), judged, np.arange(len(judged.x)))
  assert found["agreement"] >= agreement
  assert found["sqnr_db"] >= sqnr
  assert abs(found["quantized"]["top1"] - found["float"]["top1"]) <= 0.02
