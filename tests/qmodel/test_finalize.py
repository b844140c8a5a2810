"""finalize: the integers, the grids, the plain model; limits of the target; the artefact on disk."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.target import LITERT
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.qmodel.finalize import finalize_graph
from tests import models

FOLD = [kq.standardize, kq.fold_batch_norm]


def calibrated(model, data, config="int8"):
  qmodel = kq.insert_quantizers(kq.rewrite(model, FOLD), config)
  return kq.calibrate(qmodel, data)


def finalized(model, data, config="int8"):
  """Returns (final model, encodings, edits)."""
  final, graph, encodings = finalize_graph(calibrated(model, data, config))
  return final, encodings, graph.edits


def output(model, inputs):
  fed = dict(zip(model.input_names, inputs)) if inputs[1:] else inputs[0]
  return [tensor.numpy() for tensor in tf.nest.flatten(model(fed, training=False))]


def linear_calls(model):
  return [node for node in Graph.from_model(model).nodes if node.facts.role == "linear"]


@pytest.fixture(scope="module", params=models.ZOO)
def case(request):
  """(float model, inputs, final model, encodings) of every model of the zoo."""
  model = models.build(request.param)
  inputs = models.sample_inputs(model, images=16)
  final, encodings, edits = finalized(model, inputs if inputs[1:] else inputs[0])
  assert not edits  # no healthy model has a scale raised
  return model, inputs, final, encodings


# --- on every model of the zoo ---------------------------------------------------------------------


def test_final_model_has_layers_of_keras_only(case):
  _, _, final, _ = case
  for layer in final.layers:
    assert type(layer).__module__.split(".")[0] in ("tf_keras", "keras"), layer.name
  assert all(node.facts.role != "opaque" for node in Graph.from_model(final).nodes)


def test_kernels_of_the_final_model_are_their_integers_bit_for_bit(case):
  _, _, final, encodings = case
  for node in linear_calls(final):
    kernel = node.layer.params[node.facts.kernel.name]
    grid, integers = encodings[f"{node.layer.name}/kernel"], encodings.integers[f"{node.layer.name}/kernel"]
    assert integers.dtype == np.int8 and integers.shape == kernel.shape
    assert grid.narrow and grid.axis == node.facts.kernel.out_axes and not grid.zero_point.any()
    assert np.abs(integers.astype(int)).max() == 127
    np.testing.assert_array_equal(grid.dequantize(integers), kernel)
    np.testing.assert_array_equal(grid.quantize(kernel), integers)


def test_bias_grids_are_the_float32_products_and_biases_their_integers(case):
  _, _, final, encodings = case
  for node in linear_calls(final):
    grid, integers = encodings[f"{node.name}/bias"], encodings.integers[f"{node.name}/bias"]
    s_x, s_w = encodings[node.inputs[0].key].scale, encodings[f"{node.layer.name}/kernel"].scale
    assert s_x.shape == (1,) and s_x.dtype == s_w.dtype == np.float32
    np.testing.assert_array_equal(grid.scale, s_x * s_w)
    assert (grid.bits, grid.axis, integers.dtype) == (32, (0,), np.int32)
    assert not grid.zero_point.any() and np.abs(integers.astype(np.int64)).max() < 2 ** 30
    if node.name == node.layer.name:  # the model can hold the bias of the first call only
      np.testing.assert_array_equal(grid.dequantize(integers), node.layer.params["bias"])


def test_every_tensor_but_those_inside_a_fused_operator_has_a_grid(case):
  _, _, final, encodings = case
  graph = Graph.from_model(final)
  keys = set()
  for node in graph.nodes:
    fused = node.facts.absorbs_relu and [reader.kind for reader in graph.readers(Ref(node))] == ["ReLU"]
    assert (node.name in encodings) != fused or Ref(node) in graph.output_refs, node.name
    keys.update(Ref(node, index).key for index in range(len(node.shapes)))
  assert set(encodings.grids) - set(encodings.integers) <= keys
  assert {key.rsplit("/", 1)[-1] for key in encodings.integers} <= {
      "kernel", "bias", "constant", "alpha", "table"}


def test_moved_tensors_have_the_grid_of_what_they_move(case):
  _, _, final, encodings = case
  for node in Graph.from_model(final).nodes:
    if node.facts.role in ("move", "average"):
      for ref in node.inputs:
        assert encodings[ref.key] == encodings[node.name], node.name
    elif node.facts.fixed_grid:
      assert encodings[node.name] == LITERT.fixed[node.facts.fixed_grid]


def test_final_model_computes_nearly_what_the_float_model_does(case):
  model, inputs, final, _ = case
  for mine, theirs in zip(output(final, inputs), output(model, inputs), strict=True):
    assert np.square(mine - theirs).mean() < 1e-3 * np.square(theirs).mean()


def test_finalizing_twice_gives_the_same_and_leaves_the_quantized_model_alone():
  model = models.build("mobile_block")
  qmodel = calibrated(model, *models.sample_inputs(model))
  before = qmodel.get_weights()
  (first, encodings), (second, again) = kq.finalize(qmodel), kq.finalize(qmodel)
  assert encodings == again
  for mine, theirs in zip(first.get_weights(), second.get_weights()):
    np.testing.assert_array_equal(mine, theirs)
  for mine, theirs in zip(before, qmodel.get_weights()):
    np.testing.assert_array_equal(mine, theirs)


# --- worked by hand --------------------------------------------------------------------------------


def dense(kernel, bias, name="dense", **options):
  kernel, bias = np.asarray(kernel, np.float32), np.asarray(bias, np.float32)
  layer = layers.Dense(kernel.shape[1], name=name, **options)
  layer.build(kernel.shape[:1])
  layer.set_weights([kernel, bias])
  return layer


def vector(size, name="x"):
  return keras.Input((size,), name=name)


def test_integers_by_hand():
  x = vector(2)
  model = keras.Model(x, dense([[127, -0.5], [-63.6, 0.25]], [3.0, -1.0])(x))
  final, encodings, edits = finalized(model, np.float32([[0.0, 255.0], [255.0, 1.0]]))
  assert encodings["x"] == kq.Encoding([1.0], [-128])
  assert encodings["dense/kernel"].scale.tolist() == [1.0, np.float32(0.5 / 127)]
  # 0.25 / (0.5 / 127) = 63.5, a tie in the reals; the float32 scale lies above it or below it.
  quotient = 0.25 / float(np.float32(0.5 / 127))
  assert encodings.integers["dense/kernel"].tolist() == [[127, -127], [-64, int(np.rint(quotient))]]
  assert encodings.integers["dense/bias"].tolist() == [3, -254]
  assert final.get_layer("dense").kernel.numpy()[:, 0].tolist() == [127.0, -64.0]
  assert not edits


@pytest.mark.parametrize("seed", range(3))
def test_bias_integers_are_the_rounded_quotient_by_the_float32_product(seed):
  rng = np.random.default_rng(seed)
  x = vector(7)
  bias = (rng.normal(size=5) * 10.0 ** rng.integers(-4, 5, 5)).astype(np.float32)
  model = keras.Model(x, dense(rng.normal(size=(7, 5)), bias)(x))
  _, encodings, _ = finalized(model, rng.normal(size=(20, 7)).astype(np.float32))
  scale = np.float32(encodings["x"].scale[0]) * encodings["dense/kernel"].scale
  assert scale.dtype == np.float32
  np.testing.assert_array_equal(encodings.integers["dense/bias"],
                                np.rint(bias.astype(np.float64) / scale.astype(np.float64)))


def test_shared_layer_has_one_kernel_and_a_bias_for_each_call():
  x = vector(3)
  rng = np.random.default_rng(0)
  shared = dense(rng.normal(size=(3, 3)), [1.0, -2.0, 0.5], name="shared")
  final, encodings, _ = finalized(keras.Model(x, shared(shared(x))), rng.normal(size=(9, 3)) * 4)
  assert sorted(encodings.grids) == [
      "shared", "shared/bias", "shared/kernel", "shared@1", "shared@1/bias", "x"]
  s_w = encodings["shared/kernel"].scale
  for call, source in (("shared", "x"), ("shared@1", "shared")):
    expected = np.rint(np.float64([1.0, -2.0, 0.5]) / (encodings[source].scale * s_w).astype(np.float64))
    np.testing.assert_array_equal(encodings.integers[f"{call}/bias"], expected)
  assert not np.array_equal(encodings.integers["shared/bias"], encodings.integers["shared@1/bias"])
  assert len([layer for layer in final.layers if layer.weights]) == 1


def test_bias_without_a_use_is_zero_integers():
  x = vector(2)
  _, encodings, _ = finalized(keras.Model(x, layers.Dense(3, use_bias=False, name="dense")(x)),
                              np.float32([[1, 2], [-1, 0]]))
  assert encodings.integers["dense/bias"].tolist() == [0, 0, 0]


def test_constant_operand_lies_on_a_grid_of_its_own():
  image = keras.Input((3, 4), name="image")
  constant = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
  final, encodings, _ = finalized(keras.Model(image, image + constant), np.ones((2, 3, 4), np.float32))
  ((key, integers),) = encodings.integers.items()
  node = next(node for node in Graph.from_model(final).nodes if f"{node.name}/constant" == key)
  (stored,) = (value for value in node.args if not isinstance(value, Ref))
  np.testing.assert_array_equal(np.asarray(stored, np.float32), encodings[key].dequantize(integers))
  assert np.abs(stored - constant).max() <= encodings[key].scale[0] / 2 * 1.01


# --- limits of the target --------------------------------------------------------------------------


def test_channel_whose_bias_would_overflow_gets_a_larger_scale_and_is_reported():
  x = vector(2)
  kernel = np.float32([[0.5, 1e-9, 0.0], [-0.25, -1e-9, 0.0]])
  _, encodings, edits = finalized(keras.Model(x, dense(kernel, [0.1, 50.0, -70.0])(x)),
                                  np.float32([[1, 0], [0, 1]]))
  bias = encodings.integers["dense/bias"].astype(np.int64)
  assert (np.abs(bias) < 2 ** 30).all() and (np.abs(bias[1:]) > 0.99 * 2 ** 30).all()
  scale = encodings["dense/kernel"].scale
  assert scale[0] == np.float32(np.float64(0.5) / 127)
  s_b = encodings["dense/bias"].scale.astype(np.float64)
  np.testing.assert_allclose(bias * s_b, [0.1, 50.0, -70.0], rtol=1e-4)
  np.testing.assert_array_equal(encodings.integers["dense/kernel"][:, 1:], 0)
  assert [(edit.layer, edit.what.split(" raised")[0]) for edit in edits] == [
      ("dense", "weight scale of channel 1"), ("dense", "weight scale of channel 2")]


def test_raised_scales_are_logged_in_a_line_a_layer(caplog):
  x = vector(2)
  kernel = np.float32([[0.5, 1e-9, 0.0], [-0.25, -1e-9, 0.0]])
  data = np.float32([[1, 0], [0, 1]])
  kq.finalize(calibrated(keras.Model(x, dense(kernel, [0.1, 50.0, -70.0])(x)), data))
  (message,) = caplog.messages
  assert message.startswith("finalize: layer 'dense': weight scale of channel 1 raised: its bias")
  assert message.endswith("(and 1 more like it).")
  caplog.clear()
  kq.finalize(calibrated(keras.Model(x, dense(np.float32([[0.5], [0.2]]), [0.1])(x)), data))
  assert not caplog.messages


def test_overflowing_bias_raises_the_only_scale_of_a_kernel_per_tensor():
  x = vector(1)
  _, encodings, edits = finalized(keras.Model(x, dense([[1e-8, 2e-8]], [90.0, 1.0])(x)),
                                  np.float32([[1.0]]), "int8_per_tensor")
  assert encodings["dense/kernel"].scale.shape == encodings["dense/bias"].scale.shape == (1,)
  assert 0.99 * 2 ** 30 < encodings.integers["dense/bias"][0] < 2 ** 30
  assert len(edits) == 1


def test_overflow_in_the_second_call_of_a_shared_layer_counts_too():
  x = vector(2)
  shared = dense(np.float32([[1e-7, 0], [0, 1e-7]]), [40.0, 0.001], name="shared")
  _, encodings, edits = finalized(keras.Model(x, shared(shared(x) * np.zeros((1, 2), np.float32))),
                                  np.float32([[100, -100]]))
  for call in ("shared", "shared@1"):
    assert np.abs(encodings.integers[f"{call}/bias"].astype(np.int64)).max() < 2 ** 30
  assert edits and edits[0].layer == "shared"


@pytest.mark.parametrize("low", [0.0, -1.0])  # zero point -128: inputs up to 255 away from it
def test_accumulator_bound_holds_for_an_extreme_kernel(low):
  taps = 90_000  # 127 * 255 * 90,000 > 2^31
  x = vector(taps)
  kernel = np.stack([np.full(taps, 0.01), np.linspace(-0.01, 0.01, taps)], axis=1)
  inputs = np.linspace(low, 1.0, taps, dtype=np.float32)[None]
  _, encodings, edits = finalized(keras.Model(x, dense(kernel, [1.0, 2.0])(x)), inputs)
  q_w = np.abs(encodings.integers["dense/kernel"].astype(np.int64)).sum(axis=0)
  q_b = np.abs(encodings.integers["dense/bias"].astype(np.int64))
  zero_point = int(encodings["x"].zero_point[0])
  bound = q_b + max(127 - zero_point, zero_point + 128) * q_w
  assert (bound < 2 ** 31).all()
  raised = {edit.what.split(" raised")[0] for edit in edits}
  assert raised == ({"weight scale of channel 0"} if low == 0.0 else set())
  if low == 0.0:
    assert bound[0] > 0.9 * 2 ** 31  # no further than needed
    assert encodings["dense/kernel"].scale[0] > np.float32(0.01 / 127)


def largest_multipliers(final, encodings):
  """Returns {call: max over channels of s_x * s_w / s_y}."""
  graph, found = Graph.from_model(final), {}
  for node in graph.nodes:
    if node.facts.role == "linear":
      result = node.name if node.name in encodings else graph.readers(Ref(node))[0].name
      ratio = (encodings[node.inputs[0].key].scale.astype(np.float64)
               * encodings[f"{node.layer.name}/kernel"].scale / encodings[result].scale)
      found[node.name] = float(ratio.max())
  return found


def constant(name, size, factor=1.0, units=2, **options):
  """A dense layer whose output is 0 wherever its inputs are equal."""
  kernel = np.zeros((size, units))
  kernel[:2] = [[factor], [-factor]]
  return dense(kernel, np.zeros(units), name=name, **options)


def test_output_scale_of_a_constant_tensor_is_raised_until_the_runtime_loads_it(tmp_path):
  x = vector(2)
  model = keras.Model(x, constant("flat", 2)(x))
  data = np.float32([[1, 1], [0.5, 0.5]])
  final, encodings, edits = finalized(model, data)
  assert largest_multipliers(final, encodings)["flat"] == pytest.approx(128)
  assert [edit.layer for edit in edits] == ["flat"] and "output scale raised" in edits[0].what
  export(final, encodings, tmp_path / "m.tflite", verify=data)


@pytest.mark.parametrize("join", [layers.Subtract, layers.Multiply])
def test_output_scale_of_a_constant_sum_or_product_is_raised(join, tmp_path):
  """Found by the model fuzz: the file of x - x was refused, its error named no remedy that a user has."""
  x = vector(2)
  model = keras.Model(x, join(name="flat")([x, x if join is layers.Subtract else constant("zero", 2)(x)]))
  data = np.float32([[100, 100], [50, 50]])
  final, encodings, edits = finalized(model, data)
  assert [edit.layer for edit in edits if "output scale raised" in edit.what][-1] == "flat"
  written = export(final, encodings, tmp_path / "m.tflite", verify=data, certify=True)
  assert written.certificate["exact"]


def test_output_scale_of_a_constant_concatenation_is_raised_for_all_its_tensors(tmp_path):
  x = vector(2)
  both = layers.Concatenate(name="both")([constant("a", 2, 0.1)(x), constant("b", 2, activation="relu")(x)])
  model = keras.Model(x, layers.Dense(2, name="out")(layers.Reshape((4,), name="same")(both)))
  data = np.float32([[1, 1], [0.5, 0.5]])
  final, encodings, edits = finalized(model, data)
  ratios = largest_multipliers(final, encodings)
  assert ratios["a"] < ratios["b"] == pytest.approx(128) and ratios["out"] < 256
  assert encodings["a"] == encodings["b/relu"] == encodings["both"] == encodings["same"]
  assert [edit.layer for edit in edits if "output scale" in edit.what] == ["a", "b"]
  export(final, encodings, tmp_path / "m.tflite", verify=data)


def test_scales_are_raised_along_a_whole_chain_of_constant_tensors(tmp_path):
  x = y = vector(2)
  for index in range(5):
    y = constant(f"flat{index}", 2, 1000.0)(y)
  data = np.float32([[1, 1], [0.5, 0.5]])
  final, encodings, _ = finalized(keras.Model(x, y), data)
  ratios = largest_multipliers(final, encodings)
  assert max(ratios.values()) < 256, ratios
  export(final, encodings, tmp_path / "m.tflite", verify=data)


@pytest.mark.parametrize("shared", [False, True])
def test_a_grid_that_is_raised_beyond_the_cap_of_its_relu_is_cut_off_at_the_cap(shared, tmp_path):
  """Seen on MobileNetV3 on images that were not preprocessed: the file was refused at its very end."""
  x, cap = vector(2), layers.ReLU(1.0, name="cap")
  y = cap(dense(np.diag([100.0, -50.0]), np.float32([0.3, 0.2]), name="large")(x))
  y = [y, cap(dense(np.diag([0.1, 0.1]), np.zeros(2), name="small")(x))] if shared else y
  model = keras.Model(x, y)
  data = np.float32([[255, 0], [0, -255], [-0.001, 0.001], [3, -3]])
  final, encodings, edits = finalized(model, data)
  assert [edit.layer for edit in edits if "beyond its cap" in edit.what] == ["cap"]
  (_,), (high,) = encodings["cap"].range
  assert high > 1.2 and largest_multipliers(final, encodings)["large"] == pytest.approx(128)
  written = export(final, encodings, tmp_path / "m.tflite", verify=data, certify=True)
  assert written.certificate["exact"]
  for found, expected in zip(output(final, [data]), output(model, [data])):
    assert found.max() == pytest.approx(min(expected.max(), 1), abs=high / 510)
    np.testing.assert_array_equal(found[expected == expected.max()], found.max())


# --- errors ----------------------------------------------------------------------------------------


def test_uncalibrated_tensor_is_an_error_that_names_it_and_the_remedy():
  qmodel = kq.insert_quantizers(kq.rewrite(models.build("conv_bn_relu"), FOLD))
  with pytest.raises(ValueError, match=r"'image/quantize' has no range yet; run kq.calibrate"):
    kq.finalize(qmodel)


@pytest.mark.parametrize("name", ["conv_bn_relu", "mobile_block"])
def test_float_model_is_refused_by_name(name):
  model = kq.rewrite(models.build(name), FOLD)
  with pytest.raises(ValueError, match=rf"'{name}' has no quantizers; .*insert_quantizers"):
    kq.finalize(model)


def test_weight_that_is_not_finite_is_an_error_that_names_it():
  model = models.build("conv_bn_relu")
  qmodel = calibrated(model, *models.sample_inputs(model))
  kernel = qmodel.get_layer("conv").layer.kernel
  kernel.assign(tf.fill(kernel.shape, np.nan))
  with pytest.raises(ValueError, match=r"conv/kernel.*NaN"):
    kq.finalize(qmodel)


# --- the artefact ----------------------------------------------------------------------------------


def export(model, encodings, path, **options):
  return tflite_export.export(types.SimpleNamespace(model=model, encodings=encodings), path, **options)


def test_encodings_and_model_from_disk_give_the_same_file(case, tmp_path):
  _, inputs, final, encodings = case
  export(final, encodings, tmp_path / "first.tflite")
  expected = (tmp_path / "first.tflite").read_bytes()

  encodings.save(tmp_path / "encodings.json")
  loaded = kq.Encodings.load(tmp_path / "encodings.json")
  assert loaded == encodings and not loaded.diff(encodings)
  export(final, loaded, tmp_path / "second.tflite")
  assert (tmp_path / "second.tflite").read_bytes() == expected

  # Keras stores no "..." of a slice as .keras, in no model.
  file = tmp_path / ("final.h5" if final.name == "rearranged" else "final.keras")
  final.save(file)
  export(keras.models.load_model(file), loaded, tmp_path / "third.tflite", verify=[x[:2] for x in inputs])
  assert (tmp_path / "third.tflite").read_bytes() == expected


@pytest.mark.parametrize("file", ["q.keras", "q.h5"])
def test_quantized_model_from_disk_finalizes_to_the_same(file, tmp_path):
  model = models.build("operators")  # its constants become keywords of the operator on disk
  qmodel = calibrated(model, *models.sample_inputs(model, images=6))
  qmodel.save(tmp_path / file)
  loaded = keras.models.load_model(tmp_path / file)
  assert not kq.finalize(loaded)[1].diff(kq.finalize(qmodel)[1])


def test_narrow_activations_are_refused_at_export_with_a_remedy(tmp_path):
  model = models.build("conv_bn_relu")
  final, encodings, _ = finalized(model, *models.sample_inputs(model), "w4a4")
  assert encodings["image"].bits == 4
  with pytest.raises(ValueError, match=r"'image'.*4.bit"):
    export(final, encodings, tmp_path / "m.tflite")


@pytest.mark.parametrize("layer, limit", [
    (layers.Conv2D(2, 1, name="l"), 2**30), (layers.Dense(2, name="l"), 2**26)])
def test_the_tighter_bound_of_packed_kernels_is_for_dense_layers_alone(layer, limit):
  x = keras.Input((4, 4, 3))
  model = keras.Model(x, layer(x))
  kernel, bias = layer.get_weights()
  layer.set_weights([kernel * [1, 1e-12], np.float32([0, 1])])  # a channel of next to nothing but its bias
  data = np.random.default_rng(0).uniform(-1, 1, (8, 4, 4, 3)).astype(np.float32)
  result = kq.quantize(model, data, config="w4a8", effort=None)
  assert limit / 2 < result.encodings.integers["l/bias"].max() <= limit
