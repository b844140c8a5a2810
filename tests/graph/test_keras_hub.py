"""Image classifiers of Keras Hub, small and of random weights, become tf_keras models and integer files."""

import numpy as np
import pytest

import kquant as kq

pytest.importorskip("keras", minversion="3.0")
models = pytest.importorskip("keras_hub", reason="keras_hub is not installed: pip install .[hub]").models
SHAPE = (32, 32, 3)


def resnet():
  backbone = models.ResNetBackbone(
      input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64, 64],
      stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block", image_shape=SHAPE)
  return models.ResNetImageClassifier(backbone=backbone, num_classes=5, preprocessor=None)


def vit():
  backbone = models.ViTBackbone(image_shape=SHAPE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16,
                                mlp_dim=32)
  return models.ViTImageClassifier(backbone=backbone, num_classes=5, preprocessor=None)


@pytest.mark.parametrize("build", [resnet, vit])
def test_an_image_classifier_becomes_an_integer_file(build, tmp_path):
  model, images = build(), np.random.default_rng(0).random((16, *SHAPE), np.float32)
  wanted = np.asarray(model(images))
  made = kq.from_keras3(model)
  assert np.abs(made.predict(images, verbose=0) - wanted).max() <= 1e-5 * np.abs(wanted).max()
  written = kq.export(kq.quantize(made, images, effort=None), tmp_path / "m.tflite", verify=images[:2])
  assert written.verification.ok and not written.verification.float_operators
