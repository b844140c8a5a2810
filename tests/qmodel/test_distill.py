"""The losses by hand; what is compared; training a live quantized model under plain fit."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.graph.graph import Graph
from kquant.qmodel.distill import DistillationModel, find_features, kl_divergence, relative_l2
from kquant.rewrites.standardize.standardize import standardize
from tests import models


def test_relative_l2_by_hand():
  target = tf.constant([[3.0, 4.0], [1.0, 0.0]])
  prediction = tf.constant([[3.0, 4.5], [0.0, 2.0]])
  np.testing.assert_allclose(relative_l2(target, prediction), [0.25 / 25, 5.0])


def test_relative_l2_of_a_zero_target_is_finite():
  assert np.isfinite(relative_l2(tf.zeros((1, 3)), tf.ones((1, 3)))).all()


def test_kl_by_hand_and_over_positions():
  scores = tf.math.log([[0.5, 0.5], [0.25, 0.75]])
  divergence = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
  np.testing.assert_allclose(kl_divergence(scores[:1], scores[1:]), [divergence], rtol=1e-5)
  two = tf.stack([scores[:1], scores[:1]], 1), tf.stack([scores[1:], scores[:1]], 1)  # [1, 2, classes]
  np.testing.assert_allclose(kl_divergence(*two), [divergence / 2], rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_zero_for_equal_and_positive_for_other_tensors(seed):
  first, second = tf.unstack(tf.constant(np.random.default_rng(seed).normal(size=(2, 4, 7)), tf.float32))
  for loss in (relative_l2, kl_divergence):
    np.testing.assert_allclose(loss(first, first), 0, atol=1e-6)
    assert (loss(first, second).numpy() > 0).all()
  np.testing.assert_allclose(kl_divergence(first, second + 5), kl_divergence(first, second), atol=1e-5)


@pytest.mark.parametrize("name, features", [
    ("conv_bn_relu", "relu"), ("mobile_block", "add"), ("lone_batch_norm", "re_lu_1"), ("branches", None)])
def test_features_are_found_behind_the_pooling(name, features):
  graph = Graph.from_model(models.build(name))
  standardize(graph)
  found = find_features(graph)
  assert (found and found.key) == features


def test_a_network_of_one_layer_has_no_features():
  assert find_features(Graph.from_model(keras.Sequential([layers.Dense(2, input_shape=(3,))]))) is None


def student_and_teacher(name="conv_bn_relu", preset="w3a8", images=32):
  model = models.build(name)
  inputs = models.sample_inputs(model, images)
  folded = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  return kq.calibrate(kq.insert_quantizers(folded, preset), inputs), model, folded, inputs


def test_the_teacher_may_have_its_batch_norms():
  qmodel, model, folded, (x,) = student_and_teacher()
  losses = [DistillationModel(qmodel, teacher).distillation_loss(x, training=False)[0]
            for teacher in (model, folded)]
  np.testing.assert_allclose(*losses, rtol=1e-3)


def test_the_loss_is_that_of_features_and_outputs_before_the_softmax():
  qmodel, _, folded, (x,) = student_and_teacher("mobile_block")
  quantized, exact = (
      keras.Model(model.input, [tensor for name in names for tensor in [model.get_layer(name).output]])(x)
      for model, names in ((qmodel, ("add/quantize", "logits/quantize")), (folded, ("add", "logits"))))
  expected = [relative_l2(b, a) for a, b in zip(quantized, exact)]
  model = DistillationModel(qmodel, folded, feature_weight=2.0, output_weight=0.5)
  np.testing.assert_allclose(model.distillation_loss(x, training=False)[0],
                             2 * expected[0] + 0.5 * expected[1], rtol=1e-4)
  divergence = DistillationModel(qmodel, folded, features=None, output_loss="kl")
  np.testing.assert_allclose(divergence.distillation_loss(x, training=False)[0],
                             kl_divergence(exact[1], quantized[1]), rtol=1e-3, atol=1e-6)


def test_fit_trains_the_student_itself_and_leaves_the_teacher():
  qmodel, _, folded, (x,) = student_and_teacher(preset="int8")
  qmodel.get_layer("dense").layer.bias.assign_add([0.1] * 5)
  model = DistillationModel(qmodel, folded)
  before = model.teacher.get_weights()
  model.compile(keras.optimizers.Adam(0.01))
  history = model.fit(x, epochs=8, batch_size=8, verbose=0).history["loss"]
  assert history[-1] < 0.3 * history[0]
  assert {v.ref() for v in model.trainable_variables} == {v.ref() for v in qmodel.trainable_variables}
  for first, second in zip(before, model.teacher.get_weights()):
    np.testing.assert_array_equal(first, second)
  np.testing.assert_array_equal(model.predict(x, verbose=0), qmodel.predict(x, verbose=0))
  kq.finalize(qmodel)


def test_labels_add_their_loss_and_metrics():
  qmodel, _, folded, (x,) = student_and_teacher()
  labels = np.arange(32) % 5
  plain, both = (DistillationModel(qmodel, folded) for _ in range(2))
  plain.compile()
  cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  both.compile(loss=cross_entropy, metrics=["accuracy"])
  logs = both.evaluate(x, labels, batch_size=32, verbose=0, return_dict=True)
  expected = plain.evaluate(x, batch_size=32, verbose=0) + cross_entropy(labels, qmodel(x)).numpy()
  np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
  assert logs["accuracy"] == np.mean(qmodel.predict(x, verbose=0).argmax(-1) == labels)


def test_several_inputs_and_outputs():
  qmodel, _, folded, inputs = student_and_teacher("two_inputs")
  model = DistillationModel(qmodel, folded)
  model.compile("adam")
  dataset = tf.data.Dataset.from_tensor_slices((dict(zip(qmodel.input_names, inputs)),)).batch(8)
  assert np.isfinite(model.fit(dataset, verbose=0).history["loss"]).all()


def test_inputs_by_name_reach_the_inputs_of_that_name():
  images, numbers = keras.Input((2,), name="z"), keras.Input((3,), name="a")
  joined = keras.layers.Concatenate()([images, numbers])
  model = keras.Model([images, numbers], keras.layers.Dense(2, name="dense")(joined))
  rng = np.random.default_rng(0)
  inputs = [rng.normal(size=(8, n)).astype(np.float32) for n in (2, 3)]
  trainer = DistillationModel(kq.calibrate(kq.insert_quantizers(model), inputs), model)
  by_name, in_order = (trainer.distillation_loss(given, training=False)[0]
                       for given in (dict(zip(("z", "a"), inputs)), inputs))
  np.testing.assert_array_equal(by_name, in_order)


def test_weights_go_through_a_checkpoint(tmp_path):
  qmodel, _, folded, (x,) = student_and_teacher()
  model = DistillationModel(qmodel, folded)
  model.compile("adam")
  saved = keras.callbacks.ModelCheckpoint(tmp_path / "weights", save_weights_only=True)
  model.fit(x, verbose=0, callbacks=[saved])
  kernel = qmodel.get_layer("conv").layer.kernel
  trained = kernel.numpy()
  kernel.assign(0 * trained)
  model.load_weights(tmp_path / "weights")
  np.testing.assert_array_equal(kernel, trained)


def test_errors_say_what_to_do():
  qmodel, _, folded, _ = student_and_teacher()
  with pytest.raises(ValueError, match="one of relative_l2, kl, got 'mse'"):
    DistillationModel(qmodel, folded, output_loss="mse")
  with pytest.raises(ValueError, match="no tensor 'nowhere'; name a layer"):
    DistillationModel(qmodel, folded, features="nowhere")
  two = keras.Model(folded.input, [folded.output, folded.output])
  with pytest.raises(ValueError, match="student has 1 outputs, the teacher 2"):
    DistillationModel(qmodel, two)
