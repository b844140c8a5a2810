"""What no grid mends is named: the model, its values, its statistics, the images."""

import re

import numpy as np
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.doctor.findings import KnownNetwork
from kquant.doctor.weight_findings import outlier_weights
from tests.analysis.test_layer_errors import photos


def findings(model, judged=None, labels=None, calibration=None):
  """Returns {kind: finding} of a model on images."""
  judged = [photos(96) if judged is None else judged]
  known = KnownNetwork(model, judged if calibration is None else [calibration], judged,
                       None if labels is None else (judged, labels))
  return {finding.kind: finding for finding in [*known.broken(), *known.findings()]}


def normalized():
  """A classifier with batch norms that know its images; their labels are its answers."""
  keras.utils.set_random_seed(0)
  x = image = keras.Input((8, 8, 3), name="image")
  for index in range(2):
    x = layers.Conv2D(8, 3, padding="same", name=f"conv{index}")(x)
    x = layers.ReLU(name=f"relu{index}")(layers.BatchNormalization(name=f"bn{index}")(x))
  x = layers.Dense(4, name="classes", kernel_initializer=keras.initializers.RandomNormal(stddev=2.0))(
      layers.GlobalAveragePooling2D()(x))
  model = keras.Model(image, x)
  kq.reestimate_batch_norm(model, photos(96))
  model.get_layer("classes").bias.assign(-model.predict(photos(96), verbose=0).mean(0))
  return model


def test_a_sound_network_has_no_findings():
  assert findings(normalized()) == {}


def test_wrong_preprocessing_is_named():
  model = normalized()
  labels = model.predict(photos(96), verbose=0).argmax(-1)
  found = findings(model, 127.5 + 127.5 * photos(96), labels)
  assert "Preprocess" in found["preprocessing"].remedy and found["preprocessing"].where == "bn0"


def test_stale_statistics_are_named_with_what_new_ones_bring():
  model = normalized()
  labels = model.predict(photos(96), verbose=0).argmax(-1)
  norm = model.get_layer("bn1")
  norm.moving_mean.assign(norm.moving_mean + 3 * np.sqrt(norm.moving_variance))
  found = findings(model, labels=labels)["batch norm"]
  assert found.where == "bn1" and "1 of 2" in found.what
  before, after = map(float, re.search(r"top-1 (\S+) -> (\S+) on 96 images", found.remedy).groups())
  assert after > before and after > 0.9


def test_labels_tell_of_the_stale_statistics_of_a_trained_network(shared_data):
  with np.load(shared_data / "cifar10.npz") as stored:
    images, labels = stored["x_test"][:512].astype(np.float32), stored["y_test"].reshape(-1)[:512]
    calibration = stored["x_train"][:128].astype(np.float32)
  model = kq.load_model(shared_data / "models" / "resnet8_cifar10.h5")
  known = KnownNetwork(model, [calibration], [images[:64]], ([images], labels))
  (found,) = known.findings()
  before, after = map(float, re.search(r"top-1 (\S+) -> (\S+) on 512 images", found.remedy).groups())
  assert found.kind == "batch norm" and after > before + 0.02


def test_other_images_to_calibrate_on_are_named():
  assert "calibration" in findings(normalized(), calibration=0.1 * photos(96))
  assert "calibration" not in findings(normalized(), calibration=photos(96, seed=5))


def test_dead_channels_and_constant_tensors_are_named():
  model = normalized()
  norm = model.get_layer("bn0")
  norm.beta.assign([-99.0, -99.0, *[0.0] * 6])
  found = findings(model)["dead channels"]
  assert found.where == "conv0" and "2 of 8" in found.what
  norm.beta.assign([-99.0] * 8)
  assert "constant" in findings(model)


def test_a_model_that_answers_alike_is_named():
  model = normalized()
  model.get_layer("classes").bias.assign([999.0, 0.0, 0.0, 0.0])
  assert "answers" in findings(model) and "labels" not in findings(model)
  assert "labels" in findings(model, labels=np.ones(96, int))


def test_values_that_are_not_finite_are_named():
  model = normalized()
  model.get_layer("conv1").kernel.assign(np.full((3, 3, 8, 8), 3e38))
  diagnosis = kq.diagnose(model, photos(32))
  assert diagnosis.result is None and diagnosis.findings[0].kind == "values"
  assert diagnosis.findings[0].where == "conv1"
  model.get_layer("conv1").kernel.assign(np.full((3, 3, 8, 8), np.nan))
  diagnosis = kq.diagnose(model, photos(32))
  assert (diagnosis.findings[0].kind, diagnosis.findings[0].where) == ("weights", "conv1/kernel")


def test_a_mask_whose_first_steps_always_count_is_no_constant():
  image = keras.Input((6, 3), name="image")
  x = layers.LSTM(4, name="lstm")(layers.Masking()(image))
  series = np.random.default_rng(0).normal(size=(64, 6, 3)).astype(np.float32)
  series[:32, 4:] = 0
  assert "constant" not in findings(keras.Model(image, layers.Dense(3)(x)), series)


def test_a_single_outlier_among_weights_is_named():
  model = normalized()
  assert not outlier_weights(model)
  kernel, bias = (weights.numpy() for weights in model.get_layer("conv1").weights)
  kernel[2, 0, 5, 3] = 30 * np.abs(kernel).max()
  model.get_layer("conv1").kernel.assign(kernel)
  (found,) = outlier_weights(model)
  assert (found.kind, found.where) == ("outlier", "conv1/kernel")
  assert "(2, 0, 5, 3)" in found.what and " 30 times" in found.what and "more" not in found.what
  assert kq.diagnose(model, photos(32), effort="fast").findings[0].kind == "outlier"


def test_an_outlying_bias_is_named_and_few_weights_are_not():
  image = keras.Input((8, 8, 3))
  model = keras.Model(image, layers.Conv2D(4, 1, name="few")(layers.Conv2D(20, 3, name="many")(image)))
  bias = np.linspace(-1, 1, 20, dtype=np.float32)
  bias[7] = 100
  model.get_layer("many").bias.assign(bias)
  model.get_layer("few").bias.assign([0, 0, 1, 100])
  (found,) = outlier_weights(model)
  assert found.where == "many/bias" and "(7,)" in found.what and " 100 times" in found.what


def test_trained_networks_have_no_outlier(shared_data):
  for name in ("mobilenet_v1_0.25_224", "resnet8_cifar10", "fsrcnn_x2"):  # of the first the largest ratios
    path = shared_data / "models" / f"{name}.h5"
    model = kq.load_model(path)
    folded = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
    assert not outlier_weights(model) and not outlier_weights(folded), path.name
