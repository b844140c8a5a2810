"""Global dtype policies of the user change neither the integers nor the policies."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)


def network():
  keras.utils.set_random_seed(0)
  x = keras.Input((8, 8, 3), name="image")
  y = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, use_bias=False, name="conv")(x))
  y = layers.SeparableConv2D(8, 3, name="separable")(layers.ReLU(6.0)(y))
  y = layers.GlobalAveragePooling2D()(layers.Activation("swish")(y))
  return keras.Model(x, layers.Dense(4, activation="softmax", name="head")(y))


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16", "float16", "float64"])
def set_policy(request):
  """Sets a policy, or a floatx, of the process."""
  def set_it():
    if request.param.startswith("mixed"):
      keras.mixed_precision.set_global_policy(request.param)
    else:
      keras.backend.set_floatx(request.param)
    return keras.mixed_precision.global_policy().name, keras.backend.floatx()

  yield set_it
  keras.mixed_precision.set_global_policy("float32")
  keras.backend.set_floatx("float32")


def test_integers_are_those_of_float32(set_policy, tmp_path):
  model = network()
  wanted = kq.quantize(model, IMAGES, effort=None).encodings
  policy = set_policy()
  result = kq.quantize(model, IMAGES, effort=None)
  assert result.encodings == wanted
  assert kq.export(result, tmp_path / "m.tflite", verify=IMAGES[:2]).verification.ok
  assert (keras.mixed_precision.global_policy().name, keras.backend.floatx()) == policy


def test_a_model_of_that_policy_is_taken(set_policy):
  model = network()
  wanted = kq.quantize(model, IMAGES, effort=None).encodings
  policy, _ = set_policy()
  other = network()
  other.set_weights(model.get_weights())
  integers = kq.quantize(other, IMAGES.astype(np.float64), effort=None).encodings.integers
  for name in ("conv/kernel", "separable/kernel", "head/kernel"):
    off = np.abs(integers[name].astype(int) - wanted.integers[name].astype(int)).max()
    assert off <= (1 if policy == "float16" else 0)  # weights of 16 bits


def test_distillation_is_in_float32(set_policy):
  model, policy = network(), set_policy()
  distilled = kq.DistillationModel(kq.calibrate(kq.insert_quantizers(model), IMAGES), model)
  distilled.compile("sgd")
  assert np.isfinite(distilled.fit(IMAGES, verbose=0).history["loss"]).all()
  assert (keras.mixed_precision.global_policy().name, keras.backend.floatx()) == policy


@pytest.mark.parametrize("mode", ["fold", "train", "absorb"])
def test_training_is_in_float32(set_policy, mode, tmp_path):
  model, (policy, floatx) = network(), set_policy()
  qmodel = kq.calibrate(kq.insert_quantizers(model, batch_norm=mode), IMAGES)
  assert {layer.compute_dtype for layer in qmodel.layers} == {"float32"}
  qmodel.compile("sgd", "sparse_categorical_crossentropy")
  history = qmodel.fit(IMAGES, np.zeros(16), verbose=0)
  assert np.isfinite(history.history["loss"]).all()
  qmodel.save(tmp_path / "q.keras")
  again = kq.load_model(tmp_path / "q.keras")
  assert {layer.compute_dtype for layer in again.layers} == {"float32"}
  assert kq.finalize(again)[1].grids
  assert (keras.mixed_precision.global_policy().name, keras.backend.floatx()) == (policy, floatx)
