"""Batch norm folding: where it goes, where it must not go and why, and equal outputs everywhere."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.graph.graph import Graph
from kquant.rewrites.folding.affine import affine_of
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from tests import models

IMAGE = (6, 6, 4)


def stack(*parts, shape=IMAGE):
  """A model of one layer behind the other, with weights and statistics of every size."""
  x = image = keras.Input(shape, name="image")
  for part in parts:
    x = part(x)
  return filled(keras.Model(image, x))


def filled(model, seed=0):
  rng = np.random.default_rng(seed)
  for layer in model._flatten_layers():
    if isinstance(layer, layers.BatchNormalization):
      fill(layer, rng)
    elif layer.weights and hasattr(layer, "bias") and layer.bias is not None:
      layer.bias.assign(rng.normal(size=layer.bias.shape))
  return model


def fill(bn, rng, *, positive=False, tile=1):
  """Statistics and affine parameters of a batch norm; the same `tile` times along the axis."""
  for weight in bn.weights:
    (size,) = weight.shape
    values = rng.normal(size=size // tile)
    if "variance" in weight.name or positive and "gamma" in weight.name:
      values = np.abs(values) + 0.2
    weight.assign(np.tile(values, tile))


def bn(name="bn", **options):
  return layers.BatchNormalization(name=name, **options)


def folded(model, *, before=()):
  """Returns the graph behind fold_batch_norm, after checking that the outputs are equal."""
  graph = Graph.from_model(model)
  for entry in before:
    entry(graph)
  fold_batch_norm(graph)
  inputs = models.sample_inputs(model, images=4)
  inputs = inputs if len(inputs) > 1 else inputs[0]
  mine, theirs = graph.to_model()(inputs, training=False), model(inputs, training=False)
  for a, b in zip(*(y if isinstance(y, list) else [y] for y in (mine, theirs)), strict=True):
    assert np.isfinite(b).all()
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
  return graph


def kinds(graph):
  return [node.kind for node in graph.nodes[len(graph.input_refs):]]


def assert_folded(graph, *expected):
  assert kinds(graph) == list(expected)
  assert graph.skips == []
  assert [edit.pass_name for edit in graph.edits] == ["fold_batch_norm"] * len(graph.edits)


def assert_kept(graph, *words, name="bn", expected=()):
  """The batch norm is a 1x1 depthwise of its name, and the skip names the layer and the reason."""
  (skip,) = graph.skips
  assert (skip.layer, skip.pass_name) == (name, "fold_batch_norm")
  for word in words:
    assert word in skip.reason, skip.reason
  (node,) = [n for n in graph.nodes if n.layer.name == name]
  assert node.kind == "DepthwiseConv2D" and node.layer.params["depthwise_kernel"].shape[:2] == (1, 1)
  assert not graph.find("BatchNormalization")
  if expected:
    assert kinds(graph) == list(expected)


# --- worked by hand --------------------------------------------------------------------------------


def by_hand(*parts):
  """gamma 6, beta 1, mean 2, variance 8, epsilon 1: s = 6 / sqrt(9) = 2, t = 1 - 2 * 2 = -3."""
  norm = bn(epsilon=1.0)
  image = x = keras.Input((1,))
  for part in parts:
    x = (norm if part is None else part)(x)
  norm.set_weights([np.float32([v]) for v in (6, 1, 2, 8)])
  return keras.Model(image, x)


def test_scale_and_shift_by_hand():
  (node,) = Graph.from_model(by_hand(None)).find("BatchNormalization")
  scale, shift = affine_of(node.layer)
  assert (scale.tolist(), shift.tolist()) == ([2.0], [-3.0])
  assert scale.dtype == shift.dtype == np.float64


def test_backward_by_hand():
  model = by_hand(layers.Dense(1, name="dense"), None)
  model.get_layer("dense").set_weights([np.float32([[5]]), np.float32([10])])
  (node,) = folded(model).find("Dense")
  assert node.layer.params["kernel"].tolist() == [[10.0]]  # 2 * 5
  assert node.layer.params["bias"].tolist() == [17.0]  # 2 * 10 - 3


def test_forward_by_hand():
  model = by_hand(layers.ReLU(), None, layers.Dense(1, name="dense"))
  model.get_layer("dense").set_weights([np.float32([[5]]), np.float32([10])])
  (node,) = folded(model).find("Dense")
  assert node.layer.params["kernel"].tolist() == [[10.0]]  # 5 * 2
  assert node.layer.params["bias"].tolist() == [-5.0]  # 10 + 5 * -3


def test_alone_by_hand():
  (node,) = folded(by_hand(None)).find("DepthwiseConv2D")
  assert node.layer.params["depthwise_kernel"].reshape(-1).tolist() == [2.0]
  assert node.layer.params["bias"].tolist() == [-3.0]


# --- backward --------------------------------------------------------------------------------------

LINEAR = {
    "Conv1D": (lambda **o: layers.Conv1D(5, 3, **o), (8, 4)),
    "Conv1D causal": (lambda **o: layers.Conv1D(5, 3, padding="causal", dilation_rate=2, **o), (8, 4)),
    "Conv2D": (lambda **o: layers.Conv2D(5, 3, **o), IMAGE),
    "Conv2D same strided": (lambda **o: layers.Conv2D(5, 3, strides=2, padding="same", **o), IMAGE),
    "Conv2D dilated": (lambda **o: layers.Conv2D(5, 2, dilation_rate=2, **o), IMAGE),
    "Conv2D grouped": (lambda **o: layers.Conv2D(6, 3, groups=2, **o), IMAGE),
    "Conv2D of one channel": (lambda **o: layers.Conv2D(1, 3, **o), IMAGE),
    "DepthwiseConv2D": (lambda **o: layers.DepthwiseConv2D(3, **o), IMAGE),
    "DepthwiseConv2D times 2": (lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=2, **o), IMAGE),
    "Conv2DTranspose": (lambda **o: layers.Conv2DTranspose(5, 3, strides=2, padding="same", **o), IMAGE),
    "Dense": (lambda **o: layers.Dense(5, **o), (7,)),
    "Dense on images": (lambda **o: layers.Dense(5, **o), IMAGE)}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", LINEAR)
def test_backward_into_each_linear_layer(name, use_bias):
  make, shape = LINEAR[name]
  graph = folded(stack(make(use_bias=use_bias, name="linear"), bn(), layers.ReLU(), shape=shape))
  assert_folded(graph, name.split()[0], "ReLU")
  assert graph.nodes[1].name == "linear" and "bias" in graph.nodes[1].layer.params
  assert [(edit.layer, edit.what) for edit in graph.edits] == [("bn", "folded into 'linear'")]


def test_backward_into_a_separable_convolution_goes_to_its_pointwise():
  model = stack(layers.SeparableConv2D(6, 3, depth_multiplier=2, name="separable"), bn())
  graph = folded(model, before=[kq.standardize])
  assert kinds(graph) == ["DepthwiseConv2D", "Conv2D"] and graph.skips == []
  assert [node.name for node in graph.nodes[1:]] == ["separable/depthwise", "separable"]


PASSED = {
    "Flatten of one position": lambda: [layers.Conv2D(5, 6), layers.Flatten()],
    "Reshape that keeps channels": lambda: [layers.Conv2D(5, 3), layers.Reshape((16, 5))],
    "MaxPooling2D": lambda: [layers.Conv2D(5, 3), layers.MaxPooling2D(2)],
    "AveragePooling2D": lambda: [layers.Conv2D(5, 3), layers.AveragePooling2D(2)],
    "GlobalAveragePooling2D": lambda: [layers.Conv2D(5, 3), layers.GlobalAveragePooling2D()],
    "GlobalMaxPooling2D": lambda: [layers.Conv2D(5, 3), layers.GlobalMaxPooling2D(keepdims=True)],
    "Dropout": lambda: [layers.Conv2D(5, 3), layers.Dropout(0.5)],
    "SpatialDropout2D": lambda: [layers.Conv2D(5, 3), layers.SpatialDropout2D(0.5)],
    "UpSampling2D": lambda: [layers.Conv2D(5, 3), layers.UpSampling2D(2)],
    "bilinear UpSampling2D": lambda: [layers.Conv2D(5, 3), layers.UpSampling2D(2, interpolation="bilinear")],
    "several": lambda: [layers.Conv2D(5, 3, padding="same"), layers.MaxPooling2D(2), layers.Dropout(0.1),
                        layers.UpSampling2D(2), layers.GlobalAveragePooling2D(), layers.Reshape((1, 1, 5))]}


@pytest.mark.parametrize("name", PASSED)
def test_backward_through_layers_that_commute(name):
  parts, norm = PASSED[name](), bn()
  model = stack(*parts, norm)
  fill(norm, np.random.default_rng(1), positive=True)
  before = kinds(Graph.from_model(model))
  assert_folded(folded(model), *before[:-1])


def test_backward_through_an_average_takes_negative_scales():
  model = stack(layers.Conv2D(5, 3), layers.AveragePooling2D(2), layers.GlobalAveragePooling2D(), bn())
  assert (affine_of(Graph.from_model(model).find("BatchNormalization")[0].layer)[0] < 0).any()
  assert_folded(folded(model), "Conv2D", "AveragePooling2D", "GlobalAveragePooling2D")


def test_backward_through_flatten_where_all_positions_agree():
  norm = bn()
  model = stack(layers.Conv2D(3, 5), layers.Flatten(), norm)
  fill(norm, np.random.default_rng(0), tile=4)
  assert_folded(folded(model), "Conv2D", "Flatten")


def concatenated(*, axis=-1, positive=True, read_twice=False):
  image = keras.Input(IMAGE, name="image")
  norm = bn()
  left = layers.Conv2D(5, 3, padding="same", name="left")(image)
  right = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="right")(image)
  right = (layers.MaxPooling2D(1, name="pool") if axis == -1 else layers.Conv2D(5, 1))(right)
  x = norm(layers.Concatenate(axis=axis, name="both")([left, right]))
  model = filled(keras.Model(image, [x, layers.ReLU()(left)] if read_twice else x))
  fill(norm, np.random.default_rng(1), positive=positive)
  return model


def test_backward_through_a_concatenation_gives_each_part_its_channels():
  graph = folded(concatenated())
  assert_folded(graph, "Conv2D", "DepthwiseConv2D", "MaxPooling2D", "Concatenate")


def test_two_batch_norms_in_a_row_become_one_convolution():
  assert_folded(folded(stack(layers.Conv2D(5, 3), bn("first"), bn("second"))), "Conv2D")


def test_two_batch_norms_with_nothing_before_them_become_one_depthwise():
  graph = folded(stack(bn("first"), layers.Dropout(0.5), bn("second"), layers.ReLU()))
  assert kinds(graph) == ["Dropout", "DepthwiseConv2D", "ReLU"]


# --- forward ---------------------------------------------------------------------------------------

FORWARD = {
    "Conv2D valid": lambda: [layers.Conv2D(5, 3)],
    "Conv2D valid strided": lambda: [layers.Conv2D(5, 3, strides=2)],
    "Conv2D 1x1 same": lambda: [layers.Conv2D(5, 1, padding="same", strides=2, use_bias=False)],
    "Conv2D grouped": lambda: [layers.Conv2D(6, 3, groups=2)],
    "Conv2D grouped 4": lambda: [layers.Conv2D(8, 1, groups=4, use_bias=False)],
    "DepthwiseConv2D": lambda: [layers.DepthwiseConv2D(3)],
    "DepthwiseConv2D times 2": lambda: [layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)],
    "Dense": lambda: [layers.Dense(5)],
    "Dense with an activation": lambda: [layers.Dense(5, activation="relu")],
    "Dense behind Flatten": lambda: [layers.Flatten(), layers.Dense(5)],
    "Dense behind Dropout and Flatten": lambda: [layers.Dropout(0.5), layers.Flatten(), layers.Dense(5)],
    "Dense behind GlobalAveragePooling2D": lambda: [layers.GlobalAveragePooling2D(), layers.Dense(5)],
    "Conv2D behind AveragePooling2D": lambda: [layers.AveragePooling2D(2), layers.Conv2D(5, 2)],
    "Conv2D behind UpSampling2D": lambda: [layers.UpSampling2D(2), layers.Conv2D(5, 2)],
    "Conv1D behind Reshape": lambda: [layers.Reshape((36, 4)), layers.Conv1D(5, 3)],
    "Conv1D behind Reshape to rows": lambda: [layers.Reshape((6, 24)), layers.Conv1D(5, 3)]}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_into_each_linear_layer_that_does_not_pad(name):
  parts = FORWARD[name]()
  model = stack(layers.ReLU(), bn(), *parts)
  before = kinds(Graph.from_model(model))
  graph = folded(model)
  assert_folded(graph, *before[:1], *before[2:])
  assert [edit.layer for edit in graph.edits] == ["bn"]


@pytest.mark.parametrize("pool", [layers.MaxPooling2D, layers.GlobalMaxPooling2D])
def test_forward_through_a_maximum_with_positive_scales(pool):
  norm = bn()
  model = stack(layers.ReLU(), norm, pool(), layers.Dense(3))
  fill(norm, np.random.default_rng(0), positive=True)
  assert_folded(folded(model), "ReLU", pool.__name__, "Dense")


def test_a_batch_norm_on_the_input_goes_forward():
  assert_folded(folded(stack(bn(), layers.Conv2D(5, 3), layers.ReLU())), "Conv2D", "ReLU")


def test_between_two_linear_layers_it_goes_back():
  graph = folded(stack(layers.Conv2D(5, 3, name="first"), bn(), layers.Conv2D(5, 3, name="second")))
  assert_folded(graph, "Conv2D", "Conv2D")
  assert graph.edits[0].what == "folded into 'first'"


# --- not folded: the reason is recorded, the outputs are equal ---------------------------------------


def test_not_where_others_read_the_tensor_before_it():
  image = keras.Input(IMAGE)
  x = layers.Conv2D(5, 3, name="conv")(image)
  graph = folded(filled(keras.Model(image, layers.Add(name="add")([x, layers.ReLU()(bn()(x))]))))
  assert_kept(graph, "'conv' has other readers", "(ReLU) is not linear")


def test_not_where_the_tensor_before_it_is_an_output():
  image = keras.Input(IMAGE)
  x = layers.Conv2D(5, 3, name="conv")(image)
  assert_kept(folded(filled(keras.Model(image, [bn()(x), x]))), "'conv' has other readers", "'bn'")


def test_not_forward_where_its_own_tensor_is_read_twice_or_an_output():
  image = keras.Input(IMAGE)
  x = bn()(layers.ReLU()(image))
  y = layers.Conv2D(3, 1, name="conv")(x)
  for outputs in ([y, layers.ReLU()(x)], [y, x]):
    graph = folded(filled(keras.Model(image, outputs)))
    assert_kept(graph, "(ReLU) is not linear", "'bn' has several readers or is an output")


def test_not_into_a_layer_that_is_called_twice():
  image = keras.Input(IMAGE)
  shared = layers.Conv2D(4, 3, padding="same", name="shared")
  back = filled(keras.Model(image, layers.Add()([layers.ReLU()(bn()(shared(image))), shared(image)])))
  assert_kept(folded(back), "'shared' is shared")
  valid = layers.Conv2D(4, 3, name="shared")
  forth = filled(keras.Model(image, layers.Add()([valid(bn()(layers.ReLU()(image))), valid(image)])))
  assert_kept(folded(forth), "'shared' is shared")


@pytest.mark.parametrize("relu", [layers.ReLU, lambda: layers.LeakyReLU(0.3), lambda: layers.ReLU(6.0)])
def test_a_pure_positive_scale_goes_back_through_a_rectifier_and_moves_its_cap(relu):
  norm = bn(center=False)
  model = stack(layers.Conv2D(4, 3), relu(), norm)
  norm.set_weights([np.full(4, 3.0), np.zeros(4), np.full(4, 1.0)])
  graph = folded(model)
  assert_folded(graph, "Conv2D", type(relu()).__name__)
  cap = graph.nodes[-1].config.get("max_value")
  assert cap is None or cap == pytest.approx(18.0, rel=1e-2)


@pytest.mark.parametrize("gamma, mean, relu", [
    ([1, 2, 3, 4], [0, 0, 0, 1], layers.ReLU), ([1, -2, 3, 4], [0, 0, 0, 0], layers.ReLU),
    ([1, 0, 3, 4], [0, 0, 0, 0], layers.LeakyReLU),
    ([1, 2, 3, 4], [0, 0, 0, 0], lambda **o: layers.ReLU(6.0, **o)),
    ([2, 2, 2, 2], [0, 0, 0, 0], lambda **o: layers.ReLU(threshold=1.0, **o)),
    ([2, 2, 2, 2], [0, 0, 0, 0], lambda **o: layers.ReLU(1.0, negative_slope=0.5, **o))])
def test_no_other_affine_function_goes_back_through_a_rectifier(gamma, mean, relu):
  norm = bn(center=False)
  model = stack(layers.Conv2D(4, 3), relu(name="relu"), norm, layers.ReLU())
  norm.set_weights([np.float32(gamma), np.float32(mean), np.ones(4)])
  assert_kept(folded(model), "'relu' (")


def pure_scale(norm, gamma):
  """Leaves only the scale: no shift."""
  norm.beta.assign(0 * norm.beta)
  norm.moving_mean.assign(0 * norm.moving_mean)
  norm.gamma.assign(gamma)


def dense_block(norm):
  image = keras.Input(IMAGE, name="image")
  parts = [layers.ReLU(name=f"relu_{name}")(layers.Conv2D(3, 1, name=name)(image)) for name in "ab"]
  return filled(keras.Model(image, layers.ReLU()(norm(layers.Concatenate()(parts)))))


def test_a_scale_goes_back_through_rectifiers_that_are_concatenated():
  norm = bn()
  model = dense_block(norm)
  pure_scale(norm, [1.0, 2, 3, 4, 5, 6])
  assert_folded(folded(model), "Conv2D", "ReLU", "Conv2D", "ReLU", "Concatenate", "ReLU")


@pytest.mark.parametrize("channel, relu", [(0, "relu_a"), (5, "relu_b")])
def test_a_shift_of_one_part_alone_stops_at_its_rectifier(channel, relu):
  norm = bn()
  model = dense_block(norm)
  pure_scale(norm, [1.0, 2, 3, 4, 5, 6])
  norm.beta.assign(np.eye(6)[channel])
  assert_kept(folded(model), f"'{relu}' (ReLU) is not linear")


def product(norm, *, first=None, second=None):
  """conv * gate, each behind a layer of choice."""
  image = keras.Input(IMAGE, name="image")
  x = layers.Conv2D(4, 1, name="conv")(image)
  gate = layers.Dense(4, name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(image))
  x, gate = (part if layer is None else layer(part) for part, layer in ((x, first), (gate, second)))
  return filled(keras.Model(image, layers.ReLU()(norm(layers.Multiply(name="product")([x, gate])))))


@pytest.mark.parametrize("first, second, changed", [
    (None, None, "conv"), (None, layers.Activation("sigmoid"), "conv"),
    (layers.Activation("sigmoid"), None, "gate"), (layers.Activation("tanh"), layers.Softmax(), None)])
def test_a_pure_scale_goes_into_one_factor_of_a_product(first, second, changed):
  norm = bn()
  model = product(norm, first=first, second=second)
  pure_scale(norm, [1.0, -2, 3, 0])
  graph = folded(model)
  if changed is None:
    assert_kept(graph, "no factor of 'product' can be scaled")
    return
  assert graph.skips == [] and len(graph.edits) == 1
  for node in graph.find("Conv2D", "Dense"):
    same = np.array_equal(node.layer.params["kernel"], model.get_layer(node.name).kernel.numpy())
    assert same == (node.name != changed)


def test_a_shift_does_not_go_into_a_product():
  assert_kept(folded(product(bn())), "'product' (Multiply) is not linear")


def test_a_square_has_no_factor_of_its_own():
  image, norm = keras.Input(IMAGE), bn()
  x = layers.Conv2D(4, 1, name="conv")(image)
  model = filled(keras.Model(image, layers.ReLU()(norm(layers.Multiply(name="square")([x, x])))))
  pure_scale(norm, [1.0, 2, 3, 4])
  assert_kept(folded(model), "no factor of 'square' can be scaled")


@pytest.mark.parametrize("parts", [
    lambda: [layers.ReLU(), bn(), bn("outer"), layers.ReLU()],
    lambda: [layers.ReLU(), bn(), layers.AveragePooling2D(2), bn("outer"), layers.ReLU()]])
def test_a_batch_norm_goes_forward_into_the_next_one(parts):
  graph = folded(stack(*parts()))
  assert [edit.layer for edit in graph.edits] == ["bn"] and [skip.layer for skip in graph.skips] == ["outer"]
  assert kinds(graph).count("DepthwiseConv2D") == 1


def test_not_forward_into_a_batch_norm_of_another_axis():
  model = stack(layers.ReLU(), bn(), layers.BatchNormalization(axis=1, name="rows"), shape=(4, 4, 4))
  graph = folded(model)
  assert kinds(graph) == ["ReLU", "DepthwiseConv2D", "BatchNormalization"]
  assert [skip.layer for skip in graph.skips] == ["bn", "rows"] and "'rows'" in graph.skips[0].reason


def test_not_forward_into_a_batch_norm_that_is_called_twice():
  image, outer = keras.Input(IMAGE), bn("outer")
  x = outer(bn()(layers.ReLU()(image)))
  model = filled(keras.Model(image, layers.ReLU()(layers.Add()([x, outer(image)]))))
  graph = folded(model)
  assert "'outer' is shared" in graph.skips[0].reason


def test_a_cap_that_another_call_shares_is_not_moved():
  image, norm, relu = keras.Input(IMAGE), bn(center=False), layers.ReLU(1.0, name="relu")
  x = norm(relu(layers.Conv2D(4, 3, name="conv")(image)))
  y = relu(layers.Conv2D(4, 3)(image))
  model = filled(keras.Model(image, [layers.ReLU()(x), y]))
  norm.set_weights([np.full(4, 3.0), np.zeros(4), np.full(4, 1.0)])
  assert_kept(folded(model), "'relu' (ReLU) has one cap for all channels")


def test_a_shared_batch_norm_is_folded_into_each_of_its_producers():
  image, norm = keras.Input(IMAGE), bn()
  x = layers.Add()([norm(layers.Conv2D(5, 3, name=name)(image)) for name in "ab"])
  assert_folded(folded(filled(keras.Model(image, x))), "Conv2D", "Conv2D", "Add")


def test_a_shared_batch_norm_that_stays_is_a_depthwise_a_call():
  image, norm = keras.Input(IMAGE), bn()
  x = layers.Add()([layers.ReLU()(norm(layers.ReLU()(image))), layers.ReLU()(norm(image))])
  graph = folded(filled(keras.Model(image, x)))
  assert kinds(graph).count("DepthwiseConv2D") == 2 and len(graph.skips) == 2
  assert len({node.name for node in graph.nodes}) == len(graph.nodes)


def test_one_batch_norm_called_on_its_own_output():
  image, norm = keras.Input(IMAGE), bn()
  graph = folded(filled(keras.Model(image, layers.ReLU()(norm(norm(layers.Conv2D(4, 3)(image)))))))
  assert_folded(graph, "Conv2D", "ReLU")


def test_not_through_relu():
  model = stack(layers.Conv2D(5, 3), layers.ReLU(name="before"), bn(), layers.ReLU(name="behind"))
  assert_kept(folded(model), "before it: 'before' (ReLU) is not linear",
              "behind it: 'behind' (ReLU) is not linear", "1x1 depthwise")


@pytest.mark.parametrize("conv", [
    lambda: layers.Conv2D(5, 3, padding="same", name="padded"),
    lambda: layers.Conv2D(5, (1, 3), padding="same", name="padded"),
    lambda: layers.DepthwiseConv2D(3, padding="same", name="padded")])
def test_not_forward_into_a_convolution_that_pads(conv):
  assert_kept(folded(stack(layers.ReLU(), bn(), conv())), "'padded' pads")


def test_not_forward_into_a_causal_or_a_transposed_convolution():
  causal = layers.Conv1D(5, 3, padding="causal", name="padded")
  assert_kept(folded(stack(layers.ReLU(), bn(), causal, shape=(8, 4))), "'padded' pads")
  transposed = layers.Conv2DTranspose(5, 3, strides=2, name="up")
  assert_kept(folded(stack(layers.ReLU(), bn(), transposed)), "'up' is transposed")


@pytest.mark.parametrize("padding", [lambda: layers.ZeroPadding2D(1, name="pad"),
                                     lambda: layers.AveragePooling2D(2, padding="same", name="pad"),
                                     lambda: layers.MaxPooling2D(2, padding="same", name="pad")])
def test_not_through_padding_of_any_kind(padding):
  model = stack(layers.Conv2D(4, 3), padding(), bn(), layers.ReLU())
  assert_kept(folded(model), "'pad'")
  model = stack(layers.ReLU(), bn(), padding(), layers.Conv2D(5, 1))
  assert_kept(folded(model), "'pad'")


@pytest.mark.parametrize("make", [layers.MaxPooling2D, layers.GlobalMaxPooling2D])
def test_not_through_a_maximum_with_a_negative_scale(make):
  norm, pool = bn(), make(name="pool")
  model = stack(layers.Conv2D(5, 3), pool, norm, layers.ReLU())
  norm.gamma.assign([1.0, 1.0, -0.5, 1.0, 1.0])
  assert_kept(folded(model), "'pool' takes a maximum and a scale is not positive")
  norm = bn()
  model = stack(layers.ReLU(), norm, make(name="pool"), layers.Dense(3))
  norm.gamma.assign([1.0, -0.5, 1.0, 1.0])
  assert_kept(folded(model), "'pool' takes a maximum and a scale is not positive")


def test_not_through_a_maximum_with_a_scale_of_zero():
  norm = bn()
  model = stack(layers.Conv2D(5, 3), layers.MaxPooling2D(2, name="pool"), norm, layers.ReLU())
  norm.gamma.assign([1.0, 1.0, 0.0, 1.0, 1.0])
  assert_kept(folded(model), "'pool' takes a maximum")


def test_not_through_flatten_where_positions_differ():
  model = stack(layers.Conv2D(3, 5, name="conv"), layers.Flatten(name="flat"), bn(), layers.ReLU())
  assert_kept(folded(model), "its channels are not those of 'conv' behind 'flat'")


def test_not_through_flatten_where_only_the_shifts_differ_by_position():
  norm = bn(scale=False)
  model = stack(layers.Conv2D(3, 5, name="conv"), layers.Flatten(name="flat"), norm, layers.ReLU())
  norm.moving_variance.assign(np.ones(12))
  graph = folded(model)
  assert_kept(graph, "its channels are not those of 'conv' behind 'flat'")


def test_not_through_a_reshape_that_mixes_channels():
  model = stack(layers.Conv2D(6, 3, name="conv"), layers.Reshape((6, 16), name="mix"), bn(), layers.ReLU())
  assert_kept(folded(model), "its channels are not those of 'conv' behind 'mix'")


@pytest.mark.parametrize("target, whole", [
    ((9, 16), True), ((4, 36), True), ((48, 3), False), ((6, 6, 2, 2), False), ((24, 6), False)])
def test_forward_through_a_reshape_only_if_its_rows_hold_whole_groups_of_the_4_channels(target, whole):
  model = stack(layers.ReLU(), bn(), layers.Reshape(target, name="mix"), layers.Dense(5))
  graph = folded(model)
  if whole:
    assert_folded(graph, "ReLU", "Reshape", "Dense")
  else:
    assert_kept(graph, "the channels behind 'mix' are not those before it")


def test_not_through_a_concatenation_of_which_one_part_is_taken():
  assert_kept(folded(concatenated(read_twice=True)), "'left' has other readers")
  assert_kept(folded(concatenated(positive=False)), "'pool' takes a maximum")
  assert_kept(folded(concatenated(axis=1)), "'both' (Concatenate) is not linear")


def test_no_part_of_a_concatenation_is_changed_if_one_cannot_be():
  model = concatenated(read_twice=True)
  (node,) = [n for n in folded(model).nodes if n.name == "right"]
  np.testing.assert_array_equal(node.layer.params["depthwise_kernel"],
                                model.get_layer("right").depthwise_kernel.numpy())


def test_a_tensor_concatenated_with_itself_has_other_readers():
  image = keras.Input(IMAGE)
  x = layers.Conv2D(3, 3, name="conv")(image)
  model = filled(keras.Model(image, layers.ReLU()(bn()(layers.Concatenate()([x, x])))))
  assert_kept(folded(model), "'conv' has other readers")


def test_not_backward_into_a_layer_with_an_activation_of_its_own():
  # Without standardize the ReLU sits inside the convolution: relu(x) * s is not relu(x * s).
  model = stack(layers.Conv2D(5, 3, activation="relu", name="conv"), bn(), layers.ReLU())
  assert_kept(folded(model), "'conv'", "activation")


def test_not_backward_into_a_batch_norm_of_another_axis():
  model = stack(layers.BatchNormalization(axis=1, name="rows"), bn(), layers.ReLU(), shape=(4, 4, 4))
  graph = folded(model)
  assert [skip.layer for skip in graph.skips] == ["rows", "bn"]
  assert kinds(graph) == ["BatchNormalization", "DepthwiseConv2D", "ReLU"]


@pytest.mark.parametrize("axis", [1, 2])
def test_a_batch_norm_of_another_axis_is_left_alone_with_the_reason(axis):
  model = stack(layers.Conv2D(5, 3), layers.BatchNormalization(axis=axis, name="rows"), layers.ReLU())
  graph = folded(model)
  assert kinds(graph) == ["Conv2D", "BatchNormalization", "ReLU"]
  (skip,) = graph.skips
  assert (skip.layer, skip.reason) == ("rows", f"normalizes axis [{axis}], not the last one")


@pytest.mark.parametrize("axis", [-1, 3, [3], [-1]])
def test_the_last_axis_in_every_spelling(axis):
  model = stack(layers.Conv2D(5, 3), layers.BatchNormalization(axis=axis), layers.ReLU())
  assert_folded(folded(model), "Conv2D", "ReLU")


# --- alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, expected", [
    ((5,), ["Activation:swish", "Reshape", "DepthwiseConv2D", "Reshape", "ReLU"]),
    ((7, 5), ["Activation:swish", "Reshape", "DepthwiseConv2D", "Reshape", "ReLU"]),
    ((3, 4, 5), ["Activation:swish", "DepthwiseConv2D", "ReLU"])])
def test_alone_it_is_a_depthwise_for_every_rank(shape, expected):
  model = stack(layers.Activation("swish"), bn(), layers.ReLU(), shape=shape)
  graph = folded(model)
  assert_kept(graph, "is not linear", expected=expected)
  assert graph.nodes[-1].shapes == [(None, *shape)]


def test_alone_on_an_image_of_open_size():
  model = stack(layers.Activation("swish"), bn(), layers.ReLU(), shape=(None, None, 4))
  graph = Graph.from_model(model)
  fold_batch_norm(graph)
  x = np.random.default_rng(0).normal(size=(2, 5, 7, 4)).astype(np.float32)
  np.testing.assert_allclose(graph.to_model()(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(None, 4), (2, 3, 4, 5)])
def test_alone_where_no_depthwise_can_stand_it_is_an_error_with_the_name(shape):
  model = stack(layers.Activation("swish"), bn("lonely"), layers.ReLU(), shape=shape)
  with pytest.raises(kq.UnsupportedLayerError, match="'lonely'"):
    fold_batch_norm(model)


def test_an_open_flatten_behind_it_is_an_obstacle_and_no_crash():
  model = stack(layers.ReLU(), bn(), layers.Flatten(name="flat"), shape=(None, None, 4))
  graph = Graph.from_model(model)
  fold_batch_norm(graph)
  x = np.random.default_rng(0).normal(size=(2, 5, 7, 4)).astype(np.float32)
  np.testing.assert_allclose(graph.to_model()(x), model(x), rtol=1e-5, atol=1e-5)


# --- statistics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"scale": False, "center": False},
                                     {"epsilon": 0.1}, {"epsilon": 1e-7}])
@pytest.mark.parametrize("parts", ["backward", "forward", "alone", "twice"])
def test_parameters_that_are_left_out(options, parts):
  conv = lambda: layers.Conv2D(4, 3, padding="valid")
  model = stack(*{"backward": [conv(), bn(**options)], "forward": [layers.ReLU(), bn(**options), conv()],
                  "alone": [layers.ReLU(), bn(**options), layers.ReLU()],
                  "twice": [conv(), bn("other"), bn(**options), layers.ReLU()]}[parts])
  assert not folded(model).find("BatchNormalization")


@pytest.mark.parametrize("variance", [0.0, 1e-12, 1e-3, 1e6])
def test_tiny_and_huge_variances(variance):
  norm = bn()
  model = stack(layers.Conv2D(4, 3), norm, layers.ReLU())
  norm.moving_variance.assign(np.full(4, variance))
  assert_folded(folded(model), "Conv2D", "ReLU")


def test_negative_gammas_keep_their_sign():
  norm = bn()
  model = stack(layers.Conv2D(4, 3, name="conv"), norm)
  norm.gamma.assign([-1.0, -2.0, 0.0, 1.0])
  kernel = model.get_layer("conv").kernel.numpy()
  (node,) = folded(model).find("Conv2D")
  scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
  np.testing.assert_allclose(node.layer.params["kernel"], kernel * scale, rtol=1e-6)
  assert node.layer.params["kernel"].dtype == node.layer.params["bias"].dtype == np.float32


# --- any graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.ZOO)
def test_zoo_has_no_batch_norm_left_and_equal_outputs(name):
  model = models.build(name)
  graph = Graph.from_model(model)
  kq.standardize(graph)
  fold_batch_norm(graph)
  x = models.sample_inputs(model)
  x = dict(zip(model.input_names, x)) if len(x) > 1 else x[0]
  mine, theirs = graph.to_model()(x), model(x)
  for key in theirs if isinstance(theirs, dict) else [...]:
    np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-4, atol=1e-5)
  assert not graph.find("BatchNormalization")


def random_model(rng):
  """Convolutions, batch norms, pools and joins in any order; two outputs."""
  image = keras.Input((8, 8, 4), name="image")
  tensors = [image]
  for _ in range(14):
    x = tensors[rng.integers(max(0, len(tensors) - 3), len(tensors))]
    kind = rng.integers(9)
    if kind <= 3:
      x = layers.BatchNormalization(scale=bool(rng.integers(2)))(x)
    elif kind == 4:
      x = layers.Conv2D(4, int(rng.integers(1, 3)), padding="same", groups=int(rng.choice([1, 2, 4])))(x)
    elif kind == 5:
      x = layers.DepthwiseConv2D(3, padding="same")(x)
    elif kind == 6:
      x = layers.ReLU()(x)
    elif kind == 7:
      x = [layers.MaxPooling2D(1), layers.AveragePooling2D(1), layers.Dropout(0.5),
           layers.Reshape((8, 8, 4))][rng.integers(4)](x)
    else:
      pair = [x, tensors[rng.integers(len(tensors))]]
      x = layers.Conv2D(4, 1)(layers.Concatenate()(pair)) if rng.integers(2) else layers.Add()(pair)
    tensors.append(x)
  tail = layers.Dense(3)(layers.Flatten()(layers.BatchNormalization()(tensors[-1])))
  return keras.Model(image, [tail, tensors[len(tensors) // 2]])


@pytest.mark.parametrize("seed", range(10))
def test_random_graphs_keep_their_outputs(seed):
  graph = folded(filled(random_model(np.random.default_rng(seed)), seed))
  assert not graph.find("BatchNormalization")
  assert len(graph.edits) >= 1
