"""calibrate: the ranges it sets, independent of order and batch size, from any form of data."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant import QuantConfig, Rule, TensorSpec
from kquant.core import numerics
from kquant.graph.graph import Graph
from kquant.qmodel.calibrate import _Taps, observe
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.ranges.estimators import ESTIMATORS, make_estimator
from kquant.ranges.weights import WEIGHT_METHODS
from tests import models

RANGES = [name for name in (*ESTIMATORS, "lp:4") if name != "cross_entropy"]  # which takes logits alone
FOLD = [kq.standardize, kq.fold_batch_norm]


def inserted(name="conv_bn_relu", spec=None):
  config = QuantConfig() if spec is None else QuantConfig((Rule(activations=spec),))
  return kq.insert_quantizers(kq.rewrite(models.build(name), FOLD), config)


def encodings(qmodel):
  return {layer.name: layer.encoding() for layer in qmodel.layers if isinstance(layer, QuantizeActivation)}


def identity():
  """A model of two values that computes nothing: its input has the only grid."""
  x = keras.Input((2,), name="x")
  return kq.insert_quantizers(keras.Model(x, layers.Reshape((2, 1))(x)))


# --- worked by hand --------------------------------------------------------------------------------


def test_ranges_are_the_extrema_of_the_float_tensors():
  qmodel = identity()
  kq.calibrate(qmodel, np.float32([[1, -2], [3, 0], [2, 2]]))
  (layer,) = [layer for layer in qmodel.layers if isinstance(layer, QuantizeActivation)]
  assert {name: v.numpy().tolist() for name, v in layer.range_variables.items()} == {
      "min": [-2.0], "max": [3.0], "frozen": False}


def test_calibration_sees_the_float_network_not_the_quantized_one():
  model = kq.rewrite(models.build("conv_bn_relu"), FOLD)
  (x,) = models.sample_inputs(model, images=8)
  qmodel = kq.insert_quantizers(model, QuantConfig((Rule(activations=TensorSpec(bits=2)),)))
  kq.calibrate(qmodel, x)
  first = encodings(qmodel)
  assert np.abs(qmodel(x).numpy() - model(x).numpy()).max() > 1e-2
  kq.calibrate(qmodel, x)  # now with every quantizer on
  assert encodings(qmodel) == first
  logits = model(x, training=False).numpy()
  low, high, _ = qmodel.get_layer("dense/quantize").range_variables.values()
  np.testing.assert_allclose([low.numpy()[0], high.numpy()[0]], [logits.min(), logits.max()], rtol=1e-5)


def test_a_groups_range_covers_all_its_tensors():
  x = keras.Input((2,), name="x")
  big = layers.Dense(2, use_bias=False, kernel_initializer=keras.initializers.Constant(10.0), name="big")(x)
  small = layers.Dense(2, use_bias=False, kernel_initializer=keras.initializers.Constant(-1.0), name="small")
  qmodel = kq.insert_quantizers(keras.Model(x, layers.Concatenate()([big, small(x)])))
  kq.calibrate(qmodel, np.float32([[1.0, 0.5], [0.25, 0.0]]))
  low, high, _ = qmodel.get_layer("big/quantize").range_variables.values()
  assert (low.numpy()[0], high.numpy()[0]) == (-1.5, 15.0)


@pytest.mark.parametrize("name", RANGES)
def test_tensors_that_share_a_grid_are_searched_as_one(name):
  """Both sides of a concatenation and of the pool behind it: one estimator over the two tensors."""
  image = keras.Input((8, 8, 2), name="image")
  left, right = (layers.Conv2D(3, 1, name=side)(image) for side in ("left", "right"))
  x = layers.MaxPooling2D(2)(layers.Concatenate()([left, right]))
  model = models.randomized(keras.Model(image, layers.Flatten()(x)))
  qmodel = kq.insert_quantizers(model, QuantConfig((
      Rule(activations=TensorSpec(4, quantizer="minmax", range=name)),)))
  images = np.random.default_rng(0).laplace(size=(9, 8, 8, 2)).astype(np.float32)
  kq.calibrate(qmodel, images)
  both = keras.Model(image, [left, right]).predict(images, verbose=0)
  joint, alone = make_estimator(name), make_estimator(name)
  joint.update(np.concatenate(both, axis=-1))
  alone.update(both[0])
  state = qmodel.get_layer("left/quantize").range_variables
  limits = [state[end].numpy()[0] for end in ("min", "max")]
  np.testing.assert_allclose(limits, joint.range(bits=4, symmetric=False), rtol=1e-5)
  assert not np.allclose(limits, alone.range(bits=4, symmetric=False), rtol=1e-3)
  assert {layer.name for layer in qmodel.layers if isinstance(layer, QuantizeActivation)} == {
      "image/quantize", "left/quantize"}


def test_calibrate_returns_the_model_it_set_in_place_and_can_be_repeated_on_other_data():
  qmodel = identity()
  assert kq.calibrate(qmodel, np.float32([[1, -2]])) is qmodel
  kq.calibrate(qmodel, np.float32([[0.5, 0.25]]))
  (encoding,) = encodings(qmodel).values()
  assert encoding == kq.Encoding(*numerics.affine_grid(0.0, 0.5, 8))


# --- order and batch size --------------------------------------------------------------------------


def in_several_ways(qmodel, x):
  """Returns the encodings after calibration on x: as it is, backwards one by one, shuffled in fives."""
  order = np.random.default_rng(0).permutation(len(x))
  found = []
  for data, batch_size in ((x, 32), (x[::-1], 1), (x[order], 5)):
    kq.calibrate(qmodel, data, batch_size=batch_size)
    found.append(encodings(qmodel))
  return found


@pytest.mark.parametrize("name", ["branches", "convolutions", "sequence"])
def test_extrema_do_not_depend_on_order_or_batch_size_to_the_last_bit(name):
  qmodel = inserted(name)
  (x,) = models.sample_inputs(qmodel, images=33)  # the last batch of 32 holds one image
  first, *others = in_several_ways(qmodel, x)
  assert others == [first, first]


@pytest.mark.parametrize("name", RANGES)
def test_no_estimator_depends_on_order_or_batch_size_where_float32_is_exact(name):
  image = keras.Input((6, 6, 2), name="image")
  x = layers.Conv2D(3, 3, padding="same", activation="relu", name="conv")(image)
  x = layers.Concatenate()([layers.MaxPooling2D(2)(x), layers.AveragePooling2D(2)(x)])
  model = keras.Model(image, layers.Dense(2, name="dense")(layers.Flatten()(x)))
  rng = np.random.default_rng(0)
  for weight in model.weights:
    weight.assign(rng.integers(-8, 9, weight.shape))
  rules = (Rule("dense", activations=TensorSpec(range="cross_entropy")),
           Rule(activations=TensorSpec(range=name)))
  qmodel = kq.insert_quantizers(model, QuantConfig(rules))
  images = (rng.integers(-32, 33, (13, 6, 6, 2)) * 2.0 ** rng.integers(-5, 1, (13, 1, 1, 1)))
  first, *others = in_several_ways(qmodel, images.astype(np.float32))
  assert others == [first, first]


@pytest.mark.parametrize("name", RANGES)
def test_estimators_follow_order_and_batch_size_by_the_rounding_of_the_network_only(name):
  qmodel = inserted("branches", TensorSpec(range=name))
  (x,) = models.sample_inputs(qmodel, images=13)
  first, *others = in_several_ways(qmodel, x)
  for other in others:
    for key, encoding in first.items():
      np.testing.assert_allclose(encoding.scale, other[key].scale, rtol=1e-6)
      np.testing.assert_array_equal(encoding.zero_point, other[key].zero_point)


@pytest.mark.parametrize("name", ["convolutions", "sequence"])
def test_means_of_inputs_do_not_depend_on_order_or_batch_size_to_the_last_bit(name):
  qmodel = inserted(name)
  (x,) = models.sample_inputs(qmodel, images=9)  # in twos: one is left over
  x *= np.float32(2.0) ** np.arange(-20, 25, 5).reshape(-1, *[1] * (x.ndim - 1))
  x = x.astype(np.float32)
  first, second = observe(qmodel, x), observe(qmodel, x[::-1], batch_size=2)
  assert set(first.input_means) == {
      layer.name for layer in qmodel.layers if isinstance(layer, QuantizeWeights)}
  for layer, mean in first.input_means.items():
    assert mean.dtype == np.float64 and mean.ndim == 1
    np.testing.assert_array_equal(mean, second.input_means[layer])


def test_means_of_inputs_are_over_images_and_positions():
  qmodel = inserted()
  (x,) = models.sample_inputs(qmodel, images=5)
  means = observe(qmodel, x).input_means
  np.testing.assert_allclose(means["conv"], x.mean(axis=(0, 1, 2)), atol=1e-6)


def test_statistics_are_taken_without_changing_the_model():
  qmodel = inserted()
  (x,) = models.sample_inputs(qmodel, images=3)
  before = qmodel.get_weights()
  observe(qmodel, x)
  for mine, theirs in zip(before, qmodel.get_weights()):
    np.testing.assert_array_equal(mine, theirs)


# --- estimators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", RANGES)
def test_the_estimator_named_in_the_spec_sets_the_range(name, bits, symmetric):
  qmodel = inserted(spec=TensorSpec(bits=bits, symmetric=symmetric, quantizer="minmax", range=name))
  x = np.random.default_rng(0).laplace(size=(6, *models.IMAGE)).astype(np.float32)
  kq.calibrate(qmodel, x)
  estimator = make_estimator(name)
  estimator.update(x)
  low, high = estimator.range(bits=bits, symmetric=symmetric)
  layer = qmodel.get_layer("image/quantize")
  assert layer.range_variables["min"].numpy()[0] == np.float32(low)
  assert layer.range_variables["max"].numpy()[0] == np.float32(high)
  assert layer.encoding().bits == bits


@pytest.mark.parametrize("name", RANGES)
def test_each_estimator_ends_in_a_verified_file(name, tmp_path):
  model = models.build("mobile_block")
  (x,) = models.sample_inputs(model, images=16)
  weights = TensorSpec(bits=4, symmetric=True, per_channel=True,
                       range=name if name.split(":")[0] in WEIGHT_METHODS else "minmax")
  logits = Rule("^logits$", weights=weights, activations=TensorSpec(range="cross_entropy"))
  result = kq.quantize(model, x, config=QuantConfig((logits, Rule(weights=weights,
                                                                  activations=TensorSpec(range=name)))),
                                                                  effort=None)
  written = tflite_export.export(result, str(tmp_path / "m.tflite"), verify=x[:2])
  assert written.verification.max_lsb <= 1


def test_estimators_differ_on_data_with_outliers():
  x = np.random.default_rng(0).laplace(size=(8, *models.IMAGE)).astype(np.float32)
  ranges = set()
  for name in RANGES:
    qmodel = inserted(spec=TensorSpec(bits=4, range=name))
    kq.calibrate(qmodel, x)
    ranges.add(float(qmodel.get_layer("image/quantize").encoding().scale[0]))
  assert len(ranges) == len(RANGES)


# --- forms of data ---------------------------------------------------------------------------------


def test_arrays_generators_lists_dicts_and_datasets_give_the_same_ranges():
  qmodel = inserted("two_inputs")
  image, vector = models.sample_inputs(qmodel, images=7)
  pairs = list(zip(image, vector))
  forms = {
      "dict": {"image": image, "vector": vector},
      "dict in another order": {"vector": vector, "image": image},
      "list": [image, vector],
      "generator of batches": ((image[i:i + 3], vector[i:i + 3]) for i in range(0, 7, 3)),
      "generator of dicts": ({"image": a, "vector": b} for a, b in pairs),
      "callable": lambda: iter(pairs),
      "dataset": tf.data.Dataset.from_tensor_slices({"image": image, "vector": vector}).batch(2),
  }
  found = {}
  for name, data in forms.items():
    kq.calibrate(qmodel, data)
    found[name] = encodings(qmodel)
  for name, each in found.items():
    assert each == found["dict"], name


def test_labels_of_a_dataset_are_left_out():
  qmodel = inserted()
  (x,) = models.sample_inputs(qmodel, images=6)
  kq.calibrate(qmodel, x)
  expected = encodings(qmodel)
  kq.calibrate(qmodel, tf.data.Dataset.from_tensor_slices((x, np.full((6,), 1e6, np.float32))).batch(4))
  assert encodings(qmodel) == expected


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_value_that_is_not_finite_is_an_error_that_names_the_input_and_sample(bad):
  qmodel = inserted()
  (x,) = models.sample_inputs(qmodel, images=5)
  x[3, 1, 2, 0] = bad
  with pytest.raises(ValueError, match="calibration data, input 'image': expected finite .* sample 3"):
    kq.calibrate(qmodel, x)


def test_wrong_shape_is_an_error_that_names_both_shapes():
  qmodel = inserted()
  with pytest.raises(ValueError, match=r"'image'.*\(12, 12, 3\).*got \(8, 8, 3\)"):
    kq.calibrate(qmodel, np.zeros((4, 8, 8, 3), np.float32))


@pytest.mark.parametrize("empty", [np.zeros((0, 12, 12, 3), np.float32), [], iter(())],
                         ids=["array", "list", "iterator"])
def test_no_data_is_an_error(empty):
  with pytest.raises(ValueError, match="at least one sample, got none"):
    kq.calibrate(inserted(), empty)


def test_failed_calibration_leaves_the_ranges_as_they_were():
  qmodel = inserted()
  (x,) = models.sample_inputs(qmodel, images=4)
  kq.calibrate(qmodel, x)
  before = encodings(qmodel)
  bad = (batch for batch in (100 * x, np.full_like(x, np.nan)))
  with pytest.raises(ValueError):
    kq.calibrate(qmodel, bad)
  assert encodings(qmodel) == before


def test_overflow_inside_the_network_is_an_error():
  x = keras.Input((2,), name="x")
  y = layers.Dense(1, kernel_initializer=keras.initializers.Constant(1e30), name="huge")(x)
  qmodel = kq.insert_quantizers(keras.Model(x, y))
  with pytest.raises(ValueError, match="Layer 'huge': .* finite activations, got .* for image 0"):
    kq.calibrate(qmodel, np.full((3, 2), 1e20, np.float32))


def test_float_model_is_refused_by_name():
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model, images=2)
  with pytest.raises(ValueError, match=r"'conv_bn_relu' has no quantizers; .*insert_quantizers"):
    kq.calibrate(model, x)


def test_input_that_was_not_given_is_an_error():
  qmodel = inserted("two_inputs")
  image, _ = models.sample_inputs(qmodel, images=2)
  with pytest.raises(ValueError, match="vector"):
    kq.calibrate(qmodel, {"image": image})


def test_the_network_waits_until_a_tensor_has_been_looked_at():
  """Else all tensors of a large image wait in memory: 3.6 GB at 1024 pixels where the float model has 1.8."""
  qmodel = kq.insert_quantizers(models.build("conv_bn_relu"))
  taps = _Taps(qmodel, Graph.from_model(qmodel))
  step = taps.step({name: make_estimator("minmax") for name in taps.activations})
  last = [op for op in step.graph.get_operations() if op.type in ("Conv2D", "MatMul")][-1]
  before, stack = set(), [last]
  while stack:
    op = stack.pop()
    if op not in before:
      before.add(op)
      stack += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
  minima = [op for op in step.graph.get_operations() if op.type == "Min"]
  assert len(minima) > 2 and len(before.intersection(minima)) >= len(minima) - 2  # but those behind the last
