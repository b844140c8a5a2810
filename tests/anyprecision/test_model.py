"""AnyPrecisionModel: what widths share, the gradient by hand, plain Keras, widths that were not trained."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from kquant.anyprecision.building import nearest_width
from kquant.core import nested_codes
from kquant.qmodel.distill import kl_divergence
from kquant.qmodel.quantize_weights import QuantizeWeights
from tests.anyprecision.networks import any_network, data, network


def kernels_of(bits, anymodel):
  """Returns {layer: integers} of the file of a width."""
  _, encodings = kq.finalize(anymodel.at(bits))
  return {key.split("/")[0]: values for key, values in encodings.integers.items() if key.endswith("/kernel")}


@pytest.fixture(scope="module")
def trained():
  keras.utils.set_random_seed(0)
  return any_network((1, 2, 4, 8, 32), steps=True)


# --- what is shared --------------------------------------------------------------------------------


def test_widths_share_kernels_and_differ_in_batch_norms(trained):
  float_model, two = trained.at(32), trained.at(2)
  for name in ("first", "middle", "depthwise", "last"):
    assert two.get_layer(name).layer is float_model.get_layer(name)
  for name in ("first_bn", "middle_bn", "depthwise_bn"):
    norms = [model.get_layer(name) for model in trained.width_models]
    assert len({id(norm.gamma) for norm in norms}) == 5
    assert not np.array_equal(norms[0].moving_mean, norms[-1].moving_mean)
  names = [variable.name for variable in trained.trainable_variables]
  assert sum("kernel" in name for name in names) == 4


def test_first_and_last_layers_have_eight_bits_at_every_width(trained):
  two, eight = kernels_of(2, trained), kernels_of(8, trained)
  for name in ("first", "last"):
    assert np.abs(two[name].astype(int)).max() == 119
    np.testing.assert_array_equal(np.abs(two[name].astype(int)), np.abs(eight[name].astype(int)))
  assert set(np.unique(two["middle"])) <= {-3, -1, 1, 3}


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_codes_of_the_eight_bit_file_shifted_right_are_those_of_the_narrower_one(trained, bits):
  narrow, eight = kernels_of(bits, trained), kernels_of(8, trained)
  for name in ("middle", "depthwise"):
    signs = [np.sign(trained.at(width).get_layer(f"{name}_bn").gamma.numpy()) for width in (bits, 8)]
    shape = (2, 2, 6, 1) if name == "depthwise" else (1, 1, 1, 6)
    signs = [np.resize(sign, shape[2:] if name == "depthwise" else shape[3:]).reshape(
        (1, 1, *shape[2:])) for sign in signs]
    codes = nested_codes.codes_of(eight[name] * signs[1])
    np.testing.assert_array_equal(nested_codes.codes_of(narrow[name] * signs[0], bits),
                                  nested_codes.narrower(codes, bits))


def test_other_widths_change_nothing_of_a_width():
  x, _ = data(4)
  few, many = (kq.AnyPrecisionModel(model, widths).calibrate(x) for model, widths in (
      (network(), (2,)), (network(), (1, 2, 8))) if keras.utils.set_random_seed(0) is None)
  few.at(2).set_weights(many.at(2).get_weights())
  np.testing.assert_array_equal(few.at(2).predict(x, verbose=0), many.at(2).predict(x, verbose=0))


def test_eight_bits_names_other_layers():
  anymodel = any_network((2,), eight_bits="^middle$")
  assert np.abs(kernels_of(2, anymodel)["middle"].astype(int)).max() == 119
  assert set(np.unique(kernels_of(2, anymodel)["first"])) <= {-3, -1, 1, 3}


# --- the step --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("distill", "to_learn"), [("kl", "widest"), (None, "widest"), ("kl", "all")])
def test_a_step_takes_the_sum_of_the_gradients_of_all_widths(distill, to_learn):
  anymodel, (x, y) = any_network((2, 8), distill=distill, labels=to_learn), data(16)
  anymodel.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
  eight, two = (keras.Model(model.input, [model.output, model.get_layer("last").output])
                for model in (anymodel.at(8), anymodel.at(2)))
  kernel = anymodel.at(8).get_layer("middle").layer.kernel
  norms = [(variable, variable.numpy()) for variable in anymodel.weights]
  with tf.GradientTape() as tape:
    labels = keras.losses.SparseCategoricalCrossentropy()
    (probabilities, _), (narrow, _) = eight(x, training=True), two(x, training=True)
    loss = labels(y, probabilities)
    if distill is None or to_learn == "all":
      loss += labels(y, narrow)
    if distill is not None:
      loss += tf.reduce_mean(kl_divergence(tf.stop_gradient(tf.math.log(probabilities)), tf.math.log(narrow)))
  expected = kernel.numpy() - tape.gradient(loss, kernel).numpy()
  for variable, value in norms:
    variable.assign(value)
  logs = anymodel.train_on_batch(x, y, return_dict=True)
  np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-3, atol=1e-4)
  assert logs["loss"] == pytest.approx(float(loss), rel=1e-3)
  assert logs["loss"] == pytest.approx(logs["loss_2"] + logs["loss_8"], rel=1e-5)


def test_training_learns_and_evaluates_as_plain_keras(trained):
  x, y = data()
  table = trained.evaluate_widths(x, y)
  assert list(table) == [32, 8, 4, 2, 1]
  assert table[8] == trained.at(8).evaluate(x, y, verbose=0, return_dict=True)
  assert table[32]["accuracy"] > 0.6
  logs = trained.evaluate(x, y, verbose=0, return_dict=True)
  assert logs["accuracy"] == pytest.approx(table[32]["accuracy"])
  assert str(table).splitlines()[0].split() == ["bits", "loss", "accuracy"]
  np.testing.assert_allclose(trained.predict(x, verbose=0), trained.at(32).predict(x, verbose=0), atol=1e-6)


# --- files -----------------------------------------------------------------------------------------


def test_a_saved_model_trains_on_as_the_one_that_was_saved(tmp_path):
  x, y = data()
  anymodel = any_network(steps=True)
  anymodel.add_width(3, x)
  anymodel.save(tmp_path / "any.keras")
  loaded = keras.models.load_model(tmp_path / "any.keras")
  assert loaded.widths == (8, 4, 3, 2)
  states = [[weights for width in model.width_models for weights in width.get_weights()]
            for model in (anymodel, loaded)]  # without the mean losses of an epoch, which no file holds
  for a, b in zip(*states, strict=True):
    np.testing.assert_array_equal(a, b)
  assert loaded.at(2).get_layer("middle").layer is loaded.at(8).get_layer("middle").layer
  for model in (anymodel, loaded):
    model.fit(x, y, batch_size=16, epochs=1, verbose=0, shuffle=False)
  for a, b in zip(anymodel.weights, loaded.weights, strict=True):
    np.testing.assert_array_equal(a, b)
  assert kq.finalize(loaded.at(3))[1] == kq.finalize(anymodel.at(3))[1]


def test_a_training_that_is_killed_ends_as_the_unbroken_one(tmp_path):
  class Killed(Exception):
    pass

  def kill(epoch, logs):
    if epoch == 1:
      raise Killed

  def training(folder, *others):
    keras.utils.set_random_seed(0)
    anymodel, (x, y) = any_network((2, 8)), data()
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    anymodel.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False, callbacks=[backup, *others])
    return anymodel

  whole = training(str(tmp_path / "whole"))
  with pytest.raises(Killed):
    training(str(tmp_path / "killed"), keras.callbacks.LambdaCallback(on_epoch_begin=kill))
  for a, b in zip(whole.weights, training(str(tmp_path / "killed")).weights, strict=True):
    np.testing.assert_array_equal(a, b)


# --- widths that were not trained ------------------------------------------------------------------


def test_an_added_width_has_the_kernels_and_statistics_of_its_own():
  x, y = data()
  anymodel = any_network((2, 8), steps=True)
  before = [(variable, variable.numpy()) for variable in anymodel.weights]
  anymodel.add_width(4, x, batches=1, batch_size=48)
  for variable, value in before:
    np.testing.assert_array_equal(variable, value)
  four, eight = anymodel.at(4), anymodel.at(8)
  assert four.get_layer("middle").layer is eight.get_layer("middle").layer
  np.testing.assert_array_equal(four.get_layer("middle_bn").gamma, eight.get_layer("middle_bn").gamma)
  assert set(np.unique(kernels_of(4, anymodel)["middle"])) <= set(range(-7, 8))
  mean = tf.reduce_mean(keras.Model(four.input, four.get_layer("middle").output)(x), [0, 1, 2])
  np.testing.assert_allclose(four.get_layer("middle_bn").moving_mean, mean, atol=0.15)
  assert list(anymodel.evaluate_widths(x, y)) == [8, 4, 2]
  assert "loss_4" in anymodel.fit(x, y, verbose=0).history


@pytest.mark.parametrize(("bits", "nearest"), [(7, 8), (6, 8), (5, 8), (3, 4)])
def test_an_added_width_takes_the_batch_norms_of_the_nearest_one(bits, nearest):
  assert nearest_width((8, 4, 2, 1), bits) == nearest
  assert nearest_width((2, 1), 5) == 2


def test_the_callback_estimates_the_batch_norms_of_every_width():
  x, y = data()
  anymodel = any_network((2, 8))
  anymodel.evaluate(x, y, verbose=0, callbacks=[kq.ReestimateBatchNorm(x)])
  for model in anymodel.width_models:
    assert model.get_layer("middle_bn").moving_mean.numpy().all()


# --- the paper's mode ------------------------------------------------------------------------------


def test_paper_mode_has_the_authors_quantizers():
  x, y = data()
  anymodel = any_network((1, 4, 32), mode="paper", steps=True)
  relu = keras.Model(anymodel.at(4).input, anymodel.at(4).get_layer("first_relu/quantize").output)
  sixteenths = 15 * relu.predict(x, verbose=0)
  np.testing.assert_allclose(sixteenths, np.rint(sixteenths), atol=1e-4)
  assert sixteenths.min() == 0 and 4 < len(np.unique(np.rint(sixteenths))) <= 16
  one = keras.Model(anymodel.at(1).input, anymodel.at(1).get_layer("first_relu/quantize").output)
  assert set(np.unique(one.predict(x, verbose=0))) == {0.0, 1.0}
  weights = anymodel.at(4).get_layer("middle").simulated_weights()["kernel"].numpy()
  assert len(np.unique(weights)) <= 16
  kernel = anymodel.at(32).get_layer("middle").simulated_weights()["kernel"].numpy()
  assert np.abs(kernel).max() == pytest.approx(np.abs(anymodel.at(4).get_layer("middle").layer.kernel).mean(),
                                               rel=0.2)
  assert set(anymodel.evaluate_widths(x, y)) == {1, 4, 32}


def test_eight_bits_names_the_same_layers_at_the_float_width_of_paper_mode():
  """They are found by the user's layer: "ep$" is not in the name of the part "sep/depthwise"."""
  parts = [keras.layers.Conv2D(2, 1, name="first", input_shape=(4, 4, 2)),
           keras.layers.SeparableConv2D(2, 3, name="sep"), keras.layers.Conv2D(2, 1, name="last")]
  anymodel = kq.AnyPrecisionModel(keras.Sequential(parts), (4, 32), mode="paper", eight_bits="ep$")
  bits = [{layer.name: next(iter(layer.quantize_config.weights.values())).bits for layer in model.layers
           if isinstance(layer, QuantizeWeights)} for model in anymodel.width_models]
  assert bits == [{"first": 32, "last": 32}, {"first": 4, "sep/depthwise": 8, "sep": 8, "last": 4}]


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    ({"widths": (32,)}, "widths of 1 to 8 bits, and 32"), ({"widths": (4, 16)}, r"got \(4, 16\)"),
    ({"mode": "floor"}, "nested, paper"), ({"distill": "mse"}, "kl, or None, got 'mse'"),
    ({"labels": "none"}, "labels must be one of widest, all, got 'none'")])
def test_wrong_arguments(options, words):
  with pytest.raises(ValueError, match=words):
    kq.AnyPrecisionModel(network(), **options)


def test_wrong_widths():
  anymodel = any_network((2, 8))
  with pytest.raises(ValueError, match=r"no width of 4 bits, only 8, 2; add it with add_width\(4"):
    anymodel.at(4)
  with pytest.raises(ValueError, match="a new width of 1 to 8 bits, got 2"):
    anymodel.add_width(2, data()[0])


def test_a_model_without_a_kernel():
  with pytest.raises(ValueError, match="no convolution and no dense layer"):
    kq.AnyPrecisionModel(keras.Sequential([keras.layers.ReLU(input_shape=(3,))]))
