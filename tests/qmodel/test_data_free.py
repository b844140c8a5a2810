"""Without images: ranges and bias corrections from batch norms, to a verified file."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant import InputRange
from kquant.core.recipe import EQUALIZATIONS
from kquant.qmodel.calibrate import observe
from tests import models

FOLD = [kq.standardize, kq.fold_batch_norm]


def trained(seed=0):
  """A small network whose batch norms have seen data, which is what they are asked for."""
  keras.utils.set_random_seed(seed)
  image = keras.Input((12, 12, 3), name="image")
  x = layers.ReLU(6.0, name="cap")(layers.BatchNormalization()(layers.Conv2D(8, 3, name="first")(image)))
  x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="second")(x))
  x = layers.BatchNormalization()(layers.Conv2D(8, 1, name="third")(layers.ReLU()(x)))
  x = layers.Dense(4, name="out")(layers.GlobalAveragePooling2D()(x))
  model = keras.Model(image, x)
  rng = np.random.default_rng(seed)
  for weight in model.weights:
    if weight.name.split("/")[-1].startswith(("gamma", "beta")):
      weight.assign(rng.uniform(0.5, 1.5, weight.shape))
  images = rng.uniform(-1, 1, (512, 12, 12, 3)).astype(np.float32)
  for layer in model.layers:
    if isinstance(layer, layers.BatchNormalization):
      layer.momentum = 0.0
      before = keras.Model(image, layer.input).predict(images, verbose=0)
      layer.moving_mean.assign(before.mean(axis=(0, 1, 2)))
      layer.moving_variance.assign(before.var(axis=(0, 1, 2)))
  return model, images


def test_ranges_are_six_deviations_within_hard_limits():
  model, images = trained()
  qmodel = kq.calibrate(kq.insert_quantizers(kq.rewrite(model, FOLD)), InputRange(-1, 1))
  beta, gamma = (model.layers[2].get_weights()[i].astype(float) for i in (1, 0))
  limits = {layer.name: [layer.range_variables[end].numpy()[0] for end in ("min", "max")]
            for layer in qmodel.layers if layer.name.endswith("/quantize")}
  assert limits["image/quantize"] == [-1.0, 1.0]
  np.testing.assert_allclose(limits["cap/quantize"], [0.0, min(6.0, (beta + 6 * gamma).max())], rtol=1e-3)
  measured = kq.calibrate(kq.insert_quantizers(kq.rewrite(model, FOLD)), images)
  for name, (low, high) in limits.items():
    seen = [measured.get_layer(name).range_variables[end].numpy()[0] for end in ("min", "max")]
    if name != "image/quantize":
      assert low <= seen[0] + 0.3 and high >= seen[1] - 0.3, name
      pooled = name.startswith(("global", "out"))  # an average counts as wide as what it averages
      assert high - low < (15 if pooled else 4) * (seen[1] - seen[0]), name


def test_means_of_inputs_are_near_those_of_data():
  model, images = trained()
  qmodel = kq.insert_quantizers(kq.rewrite(model, FOLD))
  known, measured = observe(qmodel, InputRange(-1, 1)).input_means, observe(qmodel, images).input_means
  assert known.keys() == measured.keys()
  for name, mean in measured.items():
    np.testing.assert_allclose(known[name], mean, atol=0.1, err_msg=name)


@pytest.mark.parametrize("known", [None, InputRange(-1, 1)])
def test_analytic_correction_removes_most_of_the_mean_error(known):
  model, images = trained()
  rewritten = kq.rewrite(model, FOLD)
  qmodel = kq.calibrate(kq.insert_quantizers(rewritten, "w3a8"), images)
  reference = model.predict(images, verbose=0)

  def error():
    return np.abs((kq.finalize(qmodel)[0].predict(images, verbose=0) - reference).mean(axis=0)).sum()

  before = error()
  kq.correct_bias(qmodel, rewritten, known, method="analytic")
  assert error() < 0.5 * before
  first = [weight.copy() for weight in qmodel.get_weights()]
  kq.correct_bias(qmodel, rewritten, known, method="analytic")
  for mine, theirs in zip(first, qmodel.get_weights()):
    np.testing.assert_array_equal(mine, theirs)


def test_nothing_is_corrected_where_nothing_is_known():
  model, _ = trained()
  rewritten = kq.rewrite(model, FOLD)
  qmodel = kq.insert_quantizers(rewritten)
  before = qmodel.get_layer("first").layer.bias.numpy()
  kq.correct_bias(qmodel, rewritten, method="analytic")
  np.testing.assert_array_equal(qmodel.get_layer("first").layer.bias.numpy(), before)
  assert (qmodel.get_layer("second").layer.bias.numpy() != rewritten.get_layer("second").bias.numpy()).any()


@pytest.mark.parametrize("options", [
    {}, {"config": "w4a8", "recipe": kq.Recipe(bias="analytic")}, {"recipe": kq.Recipe(equalize="pairwise")},
    {"config": "int16x8"}], ids=str)
def test_without_images_to_a_verified_file(options, tmp_path):
  model, images = trained()
  result = kq.quantize(model, InputRange(-1, 1), **options)
  tflite_export.export(result, str(tmp_path / "m.tflite"), verify=images[:2])
  expected = model.predict(images, verbose=0)
  error = result.model.predict(images, verbose=0) - expected
  assert (error**2).mean() < 0.1 * expected.var()


def test_images_and_analytic_correction_to_a_verified_file(tmp_path):
  model, images = trained()
  result = kq.quantize(model, images, recipe=kq.Recipe(bias="analytic"), effort=None)
  tflite_export.export(result, str(tmp_path / "m.tflite"), verify=images[:2])


@pytest.mark.parametrize("name", ["conv_bn_relu", "mobile_block", "sequence", "nested_shared",
                                  "lone_batch_norm"])
def test_the_zoo_needs_no_images(name, tmp_path):
  model = models.build(name)
  result = kq.quantize(model, InputRange(-1, 1), effort=None)
  tflite_export.export(result, str(tmp_path / "m.tflite"), verify=models.sample_inputs(model, images=2))


def test_what_needs_images_says_so():
  model, _ = trained()
  for options in ({"recipe": kq.Recipe(equalize="joint")}, {"recipe": kq.Recipe(bias="iterative")},
                  {"config": "int8_per_tensor"}):
    with pytest.raises(ValueError, match="need calibration images; with an InputRange choose"):
      kq.quantize(model, InputRange(-1, 1), **options)
  for method in set(EQUALIZATIONS) - {"joint"}:
    kq.quantize(model, InputRange(-1, 1), recipe=kq.Recipe(equalize=method), effort=None)
  x = keras.Input((3,))
  plain = keras.Model(x, layers.Dense(2)(x), name="plain")
  with pytest.raises(ValueError, match="'plain' remembers no batch norms"):
    kq.quantize(plain, InputRange(-1, 1), effort=None)
  with pytest.raises(ValueError, match="remembers no batch norms"):
    kq.correct_bias(kq.insert_quantizers(plain), plain, method="analytic")


@pytest.mark.parametrize("low, high", [(1, 1), (2, -2), (0, np.inf), (np.nan, 1)])
def test_an_input_range_is_checked(low, high):
  with pytest.raises(ValueError, match="expected finite low < high"):
    InputRange(low, high)
