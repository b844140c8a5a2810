"""Cross-layer factors: which channels share one, what they do by hand, and that the float network stays."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.ptq.finetune import tuned_layers
from kquant.ptq.finetune.cross_layer import CrossLayerFactors, tied_channels
from kquant.ptq.finetune.qft import student_of
from kquant.ptq.finetune.tuned_layers import TunedLinear
from tests import models

FACTORS = ("cross_layer_factors",)


def residual(cap=None):
  image = keras.Input((6, 6, 2), name="image")
  x = skip = layers.ReLU(cap)(layers.Conv2D(3, 1, name="first")(image))
  x = layers.Conv2D(4, 1, name="expand", activation="relu")(x)
  x = layers.ReLU()(layers.Add()([layers.Conv2D(3, 1, name="project")(x), skip]))
  x = layers.Dense(2, name="last")(layers.GlobalAveragePooling2D()(x))
  return kq.rewrite(keras.Model(image, x), [kq.standardize])


def test_the_members_of_a_sum_and_their_readers_share_factors():
  channels = tied_channels(residual())
  assert channels.count == 7
  shared = channels.behind["first"]
  assert shared.all() and not channels.before["first"].any() and not channels.behind["last"].any()
  for ids in (channels.before["expand"], channels.behind["project"], channels.before["last"]):
    np.testing.assert_array_equal(ids, shared)
  np.testing.assert_array_equal(channels.behind["expand"], channels.before["project"])
  assert sorted([*shared, *channels.behind["expand"]]) == list(range(1, 8))


def test_channels_under_a_cap_have_no_factor():
  channels = tied_channels(residual(cap=6.0))
  assert channels.count == 4
  assert not channels.behind["first"].any() and not channels.behind["project"].any()


def factors_of(values):
  factors = CrossLayerFactors(len(values), levels=7)
  factors.factor_steps.assign(7 * np.log(np.float32(values)))
  return factors


def tuned_dense(axis):
  layer = TunedLinear(layers.Dense(2, name="dense"), bits=4, axis=axis)
  layer.build((None, 2))
  layer.kernel_steps.assign([[2.6, 3.2], [-4.2, 0.4]])
  layer.kernel_scale.assign([0.5] if axis is None else [0.5, 0.25])
  layer.layer.bias.assign([1.0, -1.0])
  layer.scale_channels(factors_of([2.0, 3.0]), before=np.array([1, 0]), behind=np.array([0, 2]))
  return layer


def test_a_kernel_with_a_scale_a_channel_by_hand():
  layer = tuned_dense(axis=(1,))
  np.testing.assert_array_equal(layer.integers(), [[1, 2], [-4, 0]])  # round([[1.3, 1.6], [-4.2, 0.4]])
  np.testing.assert_allclose(layer.scale(), [0.5, 0.75])
  np.testing.assert_allclose(layer.bias(), [1.0, -3.0])
  np.testing.assert_allclose(layer(np.float32([[2.0, 1.0]])), [[2 * 0.5 - 4 * 0.5 + 1, 2 * 1.5 - 3]])


def test_a_kernel_with_one_scale_by_hand():
  layer = tuned_dense(axis=None)
  np.testing.assert_array_equal(layer.integers(), [[1, 5], [-4, 1]])  # round([[1.3, 4.8], [-4.2, 1.2]])
  np.testing.assert_allclose(layer.scale(), [0.5])
  np.testing.assert_allclose(layer.bias(), [1.0, -3.0])


def test_a_depthwise_kernel_keeps_its_integers():
  layer = TunedLinear(layers.DepthwiseConv2D(1, depth_multiplier=2, name="depthwise"),
                      attribute="depthwise_kernel", bits=4, axis=(2, 3))
  layer.build((None, 4, 4, 2))
  layer.kernel_steps.assign(np.float32([3.2, -1, 5, 2]).reshape(1, 1, 2, 2))
  layer.scale_channels(factors_of([2.0, 3.0]), before=np.array([1, 0]), behind=np.array([2, 0, 0, 2]))
  np.testing.assert_array_equal(np.ravel(layer.integers()), [3, -1, 5, 2])
  np.testing.assert_allclose(layer.scale(), [1.5, 0.5, 1.0, 3.0])


def called_twice():
  image = keras.Input((6, 6, 2), name="image")
  shared = layers.Conv2D(3, 3, padding="same", activation="relu", name="shared")
  x = shared(shared(layers.Conv2D(3, 1, activation="relu", name="stem")(image)))
  return keras.Model(image, layers.Dense(2, name="out")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("preset", ["int8", "int8_per_tensor"])
@pytest.mark.parametrize("name", ["convolutions", "sequence", "two_inputs", "conv_bn_relu", "called_twice"])
def test_without_grids_the_network_computes_the_same(name, preset, monkeypatch):
  monkeypatch.setattr(tuned_layers, "round_steps", lambda steps, qmax: steps)
  monkeypatch.setattr(tuned_layers, "fake_quantize_range", lambda x, *_, **__: x)
  model = called_twice() if name == "called_twice" else models.build(name)
  inputs = models.sample_inputs(model, 4)
  folded = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  student = student_of(kq.calibrate(kq.insert_quantizers(folded, preset), inputs), folded, FACTORS)
  (steps,) = student.trainable_variables
  linear = [layer for layer in student.layers if isinstance(layer, TunedLinear)]
  packed = tf.nest.pack_sequence_as(student.input, inputs)
  before, kernels = tf.nest.flatten(student(packed)), [layer.integers().numpy() for layer in linear]
  steps.assign(127 * np.random.default_rng(0).normal(0, 0.7, steps.shape))
  for mine, theirs in zip(tf.nest.flatten(student(packed)), before, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
  assert not all(np.allclose(layer.integers(), kernel) for layer, kernel in zip(linear, kernels))


def test_the_slope_of_a_factor_by_hand():
  """Per tensor z = s_2 round(v_2 / m) s_1 round(v_1 m) x: straight through, a rounding has slope 1."""
  image = keras.Input((1,), name="x")
  model = keras.Model(image, layers.Dense(1, name="b")(layers.ReLU()(layers.Dense(1, name="a")(image))))
  folded = kq.rewrite(model, [kq.standardize])
  for layer, weight in (("a", 1.0), ("b", 0.55)):
    folded.get_layer(layer).set_weights([np.float32([[weight]]), np.zeros(1, np.float32)])
  qmodel = kq.calibrate(kq.insert_quantizers(folded, "int8_per_tensor"), [np.float32([[1.0], [0.5]])])
  student = student_of(qmodel, folded, FACTORS)
  first, second, (steps,) = student.get_layer("a"), student.get_layer("b"), student.trainable_variables
  second.kernel_steps.assign([[100.4]])
  x = tf.constant([[0.5]])
  with tf.GradientTape() as tape:
    z = second(first(x))
  slope = tape.gradient(z, steps).numpy()
  s1, s2 = float(first.scale()[0]), float(second.scale()[0])
  v1 = float(first.kernel_steps.numpy().item())
  expected = s1 * v1 * 0.5 * s2 * 100 - s2 * 100.4 * s1 * round(v1) * 0.5
  np.testing.assert_allclose(slope, [expected / 127], rtol=1e-4)


def test_fine_tuning_learns_factors():
  model = models.build("convolutions")
  inputs = models.sample_inputs(model, 32)
  folded = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  qmodel = kq.calibrate(kq.insert_quantizers(folded, "w4a8"), inputs)
  before = {v.name: v.numpy() for v in qmodel.weights}
  result = kq.finetune(qmodel, folded, inputs, settings=kq.FinetuneSettings(learns=FACTORS, epochs=4))
  assert result.best_epoch
  changed = {v.name.split("/")[-1] for v in qmodel.weights if not np.array_equal(v, before[v.name])}
  assert {"kernel:0", "bias:0", "kernel_max:0"} <= changed and not {"min:0", "max:0"} & changed


def test_batch_norms_of_the_float_model_need_not_be_folded():
  model = models.build("conv_bn_relu")
  assert tied_channels(model).count == tied_channels(kq.rewrite(model, [kq.fold_batch_norm])).count == 8


@pytest.mark.parametrize("name, width", [("other", 3), ("first", 4)])
def test_the_float_model_of_another_network_is_refused(name, width):
  image = keras.Input((6, 6, 2), name="image")
  other = keras.Model(image, layers.Conv2D(width, 1, name=name)(image))
  model = keras.Model(image, layers.Conv2D(3, 1, name="first")(image))
  qmodel = kq.calibrate(kq.insert_quantizers(model), models.sample_inputs(model, 4))
  with pytest.raises(ValueError, match="layer 'first' is not the same in float_model and in"):
    student_of(qmodel, other, FACTORS)


def test_a_network_without_factors_has_nothing_to_learn():
  model = models.build("mobile_block")
  inputs = models.sample_inputs(model, 8)
  qmodel = kq.calibrate(kq.insert_quantizers(model), inputs)
  with pytest.raises(ValueError, match="nothing to learn by learns=cross_layer_factors; channels under"):
    kq.finetune(qmodel, model, inputs, settings=kq.FinetuneSettings(learns=FACTORS))
