"""Models of tf_keras.applications, random weights and batch norm statistics, become integer files."""

import numpy as np
import pytest
from tf_keras import applications

import kquant as kq
import tflite_export
from tests.models import randomized

SIZES = {"MobileNet": 64, "MobileNetV2": 64, "ResNet50": 64, "VGG16": 32, "DenseNet121": 64, "Xception": 96,
         "InceptionV3": 96}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_application_becomes_a_verified_integer_file(name, tmp_path):
  shape = (SIZES[name], SIZES[name], 3)
  model = randomized(getattr(applications, name)(weights=None, input_shape=shape, classes=100))
  images = np.random.default_rng(0).uniform(-1, 1, (8, *shape)).astype(np.float32)
  result = kq.quantize(model, images, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=images[:2])
  assert written.verification.ok
  assert not written.verification.float_operators
  assert not {"QUANTIZE", "DEQUANTIZE"} & set(written.program.operator_counts())
