"""What acts in training (noise, regularizers, constraints, frozen layers) goes on in a quantized model."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from tests import models

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(16, 6, 4)).astype(np.float32)


def names(model, *kinds):
  return [layer.name for layer in model.layers if type(layer).__name__ in kinds]


def noisy():
  x = keras.Input((8, 8, 4))
  y = layers.RandomFlip(name="flip")(x)
  y = layers.RandomZoom(0.1, name="zoom")(y)
  y = layers.BatchNormalization()(layers.Conv2D(8, 3, name="conv")(y))
  y = layers.Dropout(0.3, name="inside")(y)
  y = layers.ReLU()(y)
  first = layers.SpatialDropout2D(0.2, name="spatial")(y)
  y = layers.Add()([layers.GaussianNoise(0.1, name="noise")(first), y])
  y = layers.GlobalAveragePooling2D()(y)
  last = layers.Dropout(0.5, name="last")(y)
  return keras.Model(x, [layers.Dense(3, name="head")(last), layers.Dropout(0.1, name="end")(y)])


NOISE = ("RandomFlip", "RandomZoom", "Dropout", "SpatialDropout2D", "GaussianNoise")


@pytest.mark.parametrize("mode", ["fold", "train", "absorb"])
def test_noise_stays_in_training_and_is_gone_in_the_file(mode):
  model = noisy()
  qmodel = kq.calibrate(kq.insert_quantizers(model, batch_norm=mode), IMAGES)
  assert sorted(names(qmodel, *NOISE)) == sorted(names(model, *NOISE))
  final, _ = kq.finalize(qmodel)
  assert not names(final, *NOISE)
  assert [layer.name for layer in final.layers] == [
      layer.name for layer in kq.quantize(model, IMAGES, effort=None).model.layers]
  for simulated, integer in zip(qmodel(IMAGES, training=False), final(IMAGES)):
    np.testing.assert_allclose(simulated, integer, atol=0.05)
  quiet, loud = qmodel(IMAGES, training=False), qmodel(IMAGES, training=True)
  assert all(np.abs(a - b).max() > 0.01 for a, b in zip(quiet, loud))


def test_noise_stands_where_it_stood():
  qmodel = kq.insert_quantizers(noisy())
  graph = kq.graph.graph.Graph.from_model(qmodel)
  noise = [node for node in graph.nodes if node.facts.training_only]
  before = {node.layer.name: node.inputs[0].node.layer.name for node in noise}
  assert before["flip"] == graph.input_refs[0].node.layer.name and before["zoom"] == "flip"
  assert before["inside"] == "conv"  # the ReLU behind it is still fused in the file
  assert before["spatial"] == "re_lu/quantize" and before["noise"] == "spatial"
  (add,) = graph.find("Add")
  assert [ref.node.layer.name for ref in add.inputs] == ["noise", "re_lu/quantize"]
  assert graph.output_refs[1].node.layer.name == "end"


def test_a_chain_and_two_readers_share_one_noise():
  x = keras.Input((8, 8, 4))
  y = layers.Dropout(0.4, name="b")(layers.Dropout(0.3, name="a")(layers.ReLU()(layers.Conv2D(4, 1)(x))))
  model = keras.Model(x, layers.Subtract()([y, layers.Multiply()([y, y])]))
  qmodel = kq.calibrate(kq.insert_quantizers(model), IMAGES)
  graph = kq.graph.graph.Graph.from_model(qmodel)
  assert [node.layer.name for node in graph.nodes if node.facts.training_only] == ["a", "b"]


def test_a_model_with_noise_saves_and_goes_on(tmp_path):
  qmodel = kq.calibrate(kq.insert_quantizers(noisy(), batch_norm="train"), IMAGES)
  for name in ("q.keras", "q.h5", "saved"):
    qmodel.save(tmp_path / name)
    again = kq.load_model(tmp_path / name)
    assert sorted(names(again, *NOISE)) == sorted(names(qmodel, *NOISE))
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0)[0], qmodel.predict(IMAGES, verbose=0)[0])


def test_dropout_of_attention_stays():
  x = keras.Input((6, 4))
  qmodel = kq.insert_quantizers(keras.Model(x, layers.MultiHeadAttention(2, 4, dropout=0.4)(x, x)))
  (dropout,) = names(qmodel, "Dropout")
  assert qmodel.get_layer(dropout).rate == 0.4


def test_fine_tuning_after_training_has_no_noise():
  model = noisy()
  qmodel = kq.calibrate(kq.insert_quantizers(model), IMAGES)
  tuned = kq.finetune(qmodel, model, IMAGES, method="bft", settings=kq.FinetuneSettings(epochs=2))
  assert np.isfinite(tuned.losses).all()


REGULARIZED = {
    "SeparableConv2D": (IMAGES, lambda: layers.SeparableConv2D(
        5, 3, depthwise_regularizer="l2", pointwise_regularizer="l1", bias_regularizer="l2")),
    "SeparableConv1D": (ROWS, lambda: layers.SeparableConv1D(
        5, 3, depthwise_regularizer="l2", pointwise_regularizer="l1", bias_regularizer="l2")),
    "DepthwiseConv1D": (ROWS, lambda: layers.DepthwiseConv1D(3, depthwise_regularizer="l1_l2")),
    "Conv1DTranspose": (ROWS, lambda: layers.Conv1DTranspose(5, 3, kernel_regularizer="l2")),
    "EinsumDense": (ROWS, lambda: layers.EinsumDense(
        "abc,cde->abde", (None, 2, 3), bias_axes="de", kernel_regularizer="l2", bias_regularizer="l1")),
    "activity of a Conv2D": (IMAGES, lambda: layers.Conv2D(
        5, 3, activation="relu", activity_regularizer="l2")),
    "activity of a SeparableConv1D": (ROWS, lambda: layers.SeparableConv1D(
        5, 3, activation="relu", activity_regularizer="l1")),
    "ActivityRegularization": (IMAGES, lambda: layers.ActivityRegularization(0.1, 0.2)),
}


@pytest.mark.parametrize("case", REGULARIZED)
def test_regularizers_add_the_same(case):
  images, make = REGULARIZED[case]
  x = keras.Input(images.shape[1:])
  model = keras.Model(x, make()(x))
  rewritten = kq.rewrite(model, [kq.standardize(keep_training=True)])
  for network in (model, rewritten):
    network(images)
  assert sum(model.losses) > 0
  np.testing.assert_allclose(sum(rewritten.losses), sum(model.losses), rtol=1e-5)
  qmodel = kq.calibrate(kq.insert_quantizers(model, batch_norm="train"), images)
  qmodel(images)
  np.testing.assert_allclose(sum(qmodel.losses), sum(model.losses), rtol=0.05)


@pytest.mark.parametrize("kind", ["l1", "l2", keras.regularizers.L1L2(0.3, 0.2)])
def test_the_regularizer_of_a_scaled_query_adds_the_same(kind):
  x = keras.Input((6, 4))
  attention = layers.MultiHeadAttention(2, 4, kernel_regularizer=kind, bias_regularizer=kind)
  model = keras.Model(x, attention(x, x))
  for variable in model.weights:
    variable.assign(tf.random.stateless_normal(variable.shape, (1, 2)))
  rewritten = kq.rewrite(model, [kq.standardize])
  np.testing.assert_allclose(sum(rewritten.losses), sum(model.losses), rtol=1e-5)


@pytest.mark.parametrize("mode", ["train", "absorb"])
def test_gamma_and_beta_stay_regularized_where_they_stay(mode):
  x = keras.Input((8, 8, 4))
  y = layers.BatchNormalization(gamma_regularizer="l2", beta_regularizer="l1", gamma_constraint="non_neg")(
      layers.Conv2D(5, 3, use_bias=False)(x))
  model = keras.Model(x, y)
  qmodel = kq.insert_quantizers(model, batch_norm=mode)
  np.testing.assert_allclose(sum(qmodel.losses), sum(model.losses), rtol=1e-6)
  assert [w.constraint is not None for w in qmodel.trainable_weights if "gamma" in w.name] == [True]


def test_constraints_follow_the_axes_of_a_kernel():
  x = keras.Input((6, 4))
  y = layers.SeparableConv1D(5, 3, depthwise_constraint=keras.constraints.MaxNorm(0.5, axis=0),
                             pointwise_constraint="non_neg", name="sep")(x)
  y = layers.Conv1DTranspose(3, 2, kernel_constraint=keras.constraints.UnitNorm(axis=[0, 2]), name="up")(y)
  qmodel = kq.calibrate(kq.insert_quantizers(keras.Model(x, y)), ROWS)
  qmodel.compile(keras.optimizers.SGD(5.0), "mse")
  qmodel.fit(ROWS, np.ones((16, 5, 3)), epochs=2, verbose=0)
  weights = {w.name.split(":")[0]: w.numpy() for w in qmodel.trainable_weights}
  depthwise, pointwise, up = (next(w for name, w in weights.items() if name.endswith(end)) for end in (
      "depthwise_kernel", "sep/image/kernel", "up/image/kernel"))
  assert np.linalg.norm(depthwise, axis=1).max() <= 0.5001 and pointwise.min() >= 0
  np.testing.assert_allclose(np.linalg.norm(up, axis=(1, 3)), 1, rtol=1e-4)


def test_a_constraint_without_a_form_is_named(caplog):
  x = keras.Input((6, 4))
  constraint = keras.constraints.MaxNorm(1, axis=2)
  attention = layers.MultiHeadAttention(2, 4, kernel_constraint=constraint, name="att")
  with caplog.at_level("WARNING"):
    kq.insert_quantizers(keras.Model(x, attention(x, x)))
  text = "'att' skipped: its constraint MaxNorm has no form"
  assert sum(text in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("mode", ["fold", "train", "absorb"])
def test_a_frozen_backbone_stays_frozen(mode):
  backbone = keras.Sequential([
      keras.Input((8, 8, 4)), layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU(),
      layers.SeparableConv2D(8, 3), layers.BatchNormalization(), layers.PReLU(shared_axes=(1, 2)),
      layers.LayerNormalization()], name="backbone")
  backbone.trainable = False
  x = keras.Input((8, 8, 4))
  model = keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(backbone(x))))
  qmodel = kq.calibrate(kq.insert_quantizers(model, batch_norm=mode), IMAGES)
  assert [w.name for w in qmodel.trainable_weights] == ["head/kernel:0", "head/bias:0"]
  before = [weight.numpy() for weight in qmodel.weights]
  qmodel.compile("adam", "mse")
  qmodel.fit(IMAGES, np.ones((16, 2)), verbose=0)
  changed = [w.name for w, old in zip(qmodel.weights, before) if not np.array_equal(w.numpy(), old)]
  assert {"head/kernel:0", "head/bias:0"} <= set(changed)
  assert not [name for name in changed if not name.startswith("head/")]  # nor a moving mean


@pytest.mark.parametrize("mode", ["train", "absorb"])
def test_a_frozen_batch_norm_of_a_layer_that_learns_infers(mode):
  model = models.ZOO["conv_bn_relu"]()
  images = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype(np.float32)
  for layer in model.layers:
    layer.trainable = not isinstance(layer, layers.BatchNormalization)
  qmodel = kq.calibrate(kq.insert_quantizers(model, batch_norm=mode), images)
  learning = {w.name.split("/")[-1] for w in qmodel.trainable_weights}
  assert "kernel:0" in learning and not {"gamma:0", "beta:0"} & learning
  moving = [w for w in qmodel.weights if "moving" in w.name]
  before = [w.numpy() for w in moving]
  qmodel.compile("sgd", "mse")
  qmodel.fit(images, np.ones((16, *qmodel.output_shape[1:])), verbose=0)
  assert moving and all(np.array_equal(w.numpy(), old) for w, old in zip(moving, before))


def lossy():
  x = keras.Input((8, 8, 4))
  y = layers.BatchNormalization()(layers.Conv2D(6, 3, name="conv")(x))
  z = layers.Dense(5, name="z")(layers.Flatten()(layers.ReLU()(y)))
  inner = keras.Model(x, z, name="encoder")
  inner.add_loss(0.1 * tf.reduce_mean(tf.abs(z)))
  image = keras.Input((8, 8, 4), name="image")
  code = inner(image)
  model = keras.Model(image, layers.Dense(3, name="out")(code))
  spare = layers.Dense(2, name="spare")(code)  # of the loss alone
  model.add_loss(tf.reduce_mean(tf.square(spare)))
  model.add_metric(tf.reduce_mean(code), name="code", aggregation="mean")
  return model


@pytest.mark.parametrize("mode", ["fold", "train", "absorb"])
def test_losses_and_metrics_that_were_added_stay(mode, tmp_path):
  model, y = lossy(), np.ones((16, 3))
  model.compile("sgd", "mse")
  wanted = model.evaluate(IMAGES, y, verbose=0, return_dict=True)
  qmodel = kq.calibrate(kq.insert_quantizers(model, batch_norm=mode), IMAGES)
  assert qmodel.output_names == model.output_names
  assert len(qmodel.losses) == 2
  qmodel.compile("sgd", "mse")
  got = qmodel.evaluate(IMAGES, y, verbose=0, return_dict=True)
  assert got.keys() == wanted.keys() == {"loss", "code"}
  np.testing.assert_allclose([got[key] for key in got], [wanted[key] for key in got], rtol=0.1, atol=0.02)
  before = qmodel.get_layer("spare").get_weights()[0]
  qmodel.fit(IMAGES, y, verbose=0)
  assert np.abs(qmodel.get_layer("spare").get_weights()[0] - before).max() > 0
  qmodel.save(tmp_path / "q.keras")
  assert len(kq.load_model(tmp_path / "q.keras").losses) == 2
  final, _ = kq.finalize(qmodel)
  assert "spare" not in [layer.name for layer in final.layers] and not final.losses


def test_losses_that_were_added_are_no_part_of_a_file(tmp_path):
  result = kq.quantize(lossy(), IMAGES, effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=IMAGES[:2])
  assert written.program.operator_counts()["FULLY_CONNECTED"] == 2 and not result.model.losses


def test_rewriting_keeps_added_losses():
  rewritten = kq.rewrite(lossy(), [kq.standardize, kq.fold_batch_norm])
  assert len(rewritten.losses) == 2 and len(kq.fold_batch_norm(lossy()).losses) == 2
