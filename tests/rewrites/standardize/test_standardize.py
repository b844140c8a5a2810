"""standardize: each spelling becomes the one form kquant knows, and the outputs stay."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from kquant.graph.graph import Graph
from kquant.rewrites.folding.affine import affine_of
from kquant.rewrites.standardize.standardize import standardize
from tests import models

IMAGE = (6, 6, 4)


def stack(*parts, shape=IMAGE, **options):
  """A model of one layer or function behind the other."""
  x = image = keras.Input(shape, name="image", **options)
  for part in parts:
    x = part(x)
  return models.randomized(keras.Model(image, x))


def standardized(model, *, exact=False, scale=2.0, x=None):
  """Returns the graph behind standardize, after checking that the outputs are equal."""
  graph = Graph.from_model(model)
  standardize(graph)
  x = [scale * array for array in models.sample_inputs(model, images=3)] if x is None else [x]
  x = tf.nest.pack_sequence_as(model.input, x)
  mine, theirs = graph.to_model()(x, training=False), model(x, training=False)
  for a, b in zip(tf.nest.flatten(mine), tf.nest.flatten(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6 * np.abs(b).max())
  return graph


def kinds(graph):
  return [node.kind for node in graph.nodes[len(graph.input_refs):]]


def names(graph):
  return [node.name for node in graph.nodes[len(graph.input_refs):]]


def last(graph):
  return graph.nodes[-1]


# --- activations -----------------------------------------------------------------------------------

RELU, RELU6 = ("ReLU", {"max_value": None}), ("ReLU", {"max_value": 6.0})
LEAKY, SLOPE = ("LeakyReLU", {"alpha": 0.2}), ("LeakyReLU", {"alpha": 0.3})
SOFTMAX, SIGMOID, TANH = ("Softmax", {}), ("Sigmoid", {}), ("Tanh", {})

SPELLINGS = {
    "Activation relu": (lambda: layers.Activation("relu"), RELU),
    "Activation of tf.nn.relu": (lambda: layers.Activation(tf.nn.relu), RELU),
    "Activation of keras.activations.relu": (lambda: layers.Activation(keras.activations.relu), RELU),
    "tf.nn.relu": (lambda: tf.nn.relu, RELU),
    "keras.activations.relu": (lambda: keras.activations.relu, RELU),
    "ReLU": (lambda: layers.ReLU(), RELU),
    "Activation relu6": (lambda: layers.Activation("relu6"), RELU6),
    "Activation of tf.nn.relu6": (lambda: layers.Activation(tf.nn.relu6), RELU6),
    "tf.nn.relu6": (lambda: tf.nn.relu6, RELU6),
    "keras.activations.relu to 6": (lambda: lambda x: keras.activations.relu(x, max_value=6.0), RELU6),
    "ReLU to 6": (lambda: layers.ReLU(6.0), RELU6),
    "ReLU to 1": (lambda: layers.ReLU(max_value=1.0), ("ReLU", {"max_value": 1.0})),
    "Activation leaky_relu": (lambda: layers.Activation("leaky_relu"), LEAKY),
    "Activation of tf.nn.leaky_relu": (lambda: layers.Activation(tf.nn.leaky_relu), LEAKY),
    "tf.nn.leaky_relu": (lambda: tf.nn.leaky_relu, LEAKY),
    "tf.nn.leaky_relu 0.3": (lambda: lambda x: tf.nn.leaky_relu(x, 0.3), SLOPE),
    "tf.nn.leaky_relu alpha": (lambda: lambda x: tf.nn.leaky_relu(x, alpha=0.3), SLOPE),
    "ReLU with a slope": (lambda: layers.ReLU(negative_slope=0.3), SLOPE),
    "LeakyReLU": (lambda: layers.LeakyReLU(0.3), SLOPE),
    "Activation softmax": (lambda: layers.Activation("softmax"), SOFTMAX),
    "tf.nn.softmax": (lambda: tf.nn.softmax, SOFTMAX),
    "tf.nn.softmax axis": (lambda: lambda x: tf.nn.softmax(x, axis=-1), SOFTMAX),
    "keras.activations.softmax": (lambda: keras.activations.softmax, SOFTMAX),
    "Softmax": (lambda: layers.Softmax(), SOFTMAX),
    "Activation sigmoid": (lambda: layers.Activation("sigmoid"), SIGMOID),
    "tf.nn.sigmoid": (lambda: tf.nn.sigmoid, SIGMOID),
    "tf.math.sigmoid": (lambda: tf.math.sigmoid, SIGMOID),
    "keras.activations.sigmoid": (lambda: keras.activations.sigmoid, SIGMOID),
    "Activation tanh": (lambda: layers.Activation("tanh"), TANH),
    "tf.nn.tanh": (lambda: tf.nn.tanh, TANH),
    "tf.tanh": (lambda: tf.tanh, TANH)}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_an_activation_becomes_its_layer(spelling):
  make, (kind, config) = SPELLINGS[spelling]
  graph = standardized(stack(make()), exact=True, scale=10.0)
  assert kinds(graph) == [kind]
  assert {key: last(graph).config[key] for key in config} == pytest.approx(config)


FUSED = {"relu": RELU, "relu6": RELU6, "leaky_relu": LEAKY, "softmax": SOFTMAX, "sigmoid": SIGMOID,
         "tanh": TANH, "elu": ("Activation:elu", {}), "gelu": ("Activation:gelu", {})}
HOSTS = {"Conv2D": lambda **o: layers.Conv2D(5, 3, name="host", **o),
         "DepthwiseConv2D": lambda **o: layers.DepthwiseConv2D(3, name="host", **o),
         "Conv2DTranspose": lambda **o: layers.Conv2DTranspose(5, 3, name="host", **o),
         "Dense": lambda **o: layers.Dense(5, name="host", **o),
         "Conv1D": lambda **o: layers.Conv1D(5, 3, name="host", **o)}


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("host", HOSTS)
def test_a_fused_activation_becomes_a_layer_behind_its_host(host, activation):
  shape = (8, 4) if host == "Conv1D" else IMAGE
  graph = standardized(stack(HOSTS[host](activation=activation), shape=shape))
  assert kinds(graph) == [host, FUSED[activation][0]] and names(graph) == ["host", f"host/{activation}"]
  assert graph.nodes[1].config["activation"] == "linear"
  assert last(graph).shapes == graph.nodes[1].shapes


def test_a_fused_linear_activation_is_none():
  for activation in (None, "linear"):
    assert kinds(standardized(stack(layers.Dense(3, activation=activation)), exact=True)) == ["Dense"]


def test_the_fused_activation_of_a_shared_layer_comes_behind_each_call():
  image, shared = keras.Input(IMAGE), layers.Conv2D(4, 1, activation="relu", name="shared")
  model = models.randomized(keras.Model(image, layers.Add()([shared(shared(image)), image])))
  graph = standardized(model)
  assert kinds(graph) == ["Conv2D", "ReLU", "Conv2D", "ReLU", "Add"]
  assert graph.nodes[1].layer is graph.nodes[3].layer and graph.nodes[2].layer is not graph.nodes[4].layer


@pytest.mark.parametrize("activation", ["relu6", "tanh", "swish", "elu", "hard_sigmoid"])
def test_the_activations_of_a_shared_layer_have_names_that_keras_takes(activation):
  """Found by the model fuzz: the second call's activation was named "dense@1/tanh"."""
  image, shared = keras.Input(IMAGE), layers.Dense(4, activation=activation, name="dense")
  graph = standardized(models.randomized(keras.Model(image, [shared(image), shared(-image)])))
  assert not [node.layer.name for node in graph.nodes if "@" in node.layer.name]
  assert len({node.layer.name for node in graph.nodes}) == len(graph.nodes) - 1  # Dense is called twice


def test_swish_is_a_product_with_its_sigmoid():
  for swish in (layers.Activation("swish"), layers.Activation("silu"), tf.nn.silu, keras.activations.swish):
    graph = standardized(stack(swish))
    assert kinds(graph) == ["Sigmoid", "Multiply"]
    assert len(graph.readers(graph.input_refs[0])) == 2
  assert kinds(standardized(stack(layers.Conv2D(3, 1, activation="swish")))) == [
      "Conv2D", "Sigmoid", "Multiply"]


def test_hard_sigmoid_is_a_line_and_a_capped_relu():
  graph = standardized(stack(layers.Activation("hard_sigmoid")), scale=5.0)
  assert kinds(graph) == ["BatchNormalization", "ReLU"] and last(graph).config["max_value"] == 1.0


@pytest.mark.parametrize("function", [
    lambda x: tf.nn.softmax(x, axis=1), lambda x: tf.nn.softmax(x, 1), lambda x: tf.nn.silu(x, beta=2.0),
    lambda x: tf.nn.silu(x, 2.0), layers.ReLU(threshold=0.5), layers.ReLU(1.0, negative_slope=0.1),
    layers.ReLU(negative_slope=0.1, threshold=0.5),
    layers.Softmax(axis=1), layers.Activation("elu"), layers.PReLU(), tf.nn.elu])
def test_functions_that_are_not_the_plain_one_keep_their_outputs(function):
  standardized(stack(function))


# --- operators -------------------------------------------------------------------------------------

VECTOR = np.float32([0.5, -2.0, 3.0, 1.0])


@pytest.mark.parametrize("operator, kind", [
    (lambda x, y: x + y, "Add"), (tf.add, "Add"), (tf.math.add, "Add"),
    (lambda x, y: x - y, "Subtract"), (tf.subtract, "Subtract"),
    (lambda x, y: x * y, "Multiply"), (tf.multiply, "Multiply"),
    (lambda x, y: tf.multiply(x, y=y), "Multiply"),
    (lambda x, y: tf.subtract(x, y, name="difference"), "Subtract"),
    (lambda x, y: tf.subtract(x=x, y=y), "Subtract"), (lambda x, y: tf.subtract(y=y, x=x), "Subtract")])
def test_operators_of_two_tensors_become_layers(operator, kind):
  image = keras.Input(IMAGE)
  graph = standardized(keras.Model(image, operator(layers.ReLU()(image), image)), exact=True)
  assert kinds(graph) == ["ReLU", kind]


def test_an_operator_of_a_tensor_with_itself():
  assert kinds(standardized(stack(lambda x: x * x), exact=True)) == ["Multiply"]
  assert kinds(standardized(stack(lambda x: x + x), exact=True)) == ["Add"]


def test_operators_that_broadcast_a_gate_become_layers():
  image = keras.Input(IMAGE)
  gate = layers.GlobalAveragePooling2D(keepdims=True)(image)
  assert kinds(standardized(keras.Model(image, image * gate), exact=True))[-1] == "Multiply"


@pytest.mark.parametrize("operator", [lambda x, y: x + y, lambda x, y: x * y, lambda x, y: y - x])
def test_tensors_of_different_rank_are_left_alone(operator):
  # Keras' Add would align their axes from the front, the operator aligns them from the back.
  image = keras.Input((4, 4))
  vector = layers.GlobalMaxPooling1D()(image)
  graph = standardized(keras.Model(image, operator(image, tf.reshape(vector, (-1, 4))[:1])), exact=True)
  assert last(graph).kind.startswith("tf.") and "Add" not in kinds(graph)


def test_a_quotient_of_tensors_is_left_alone():
  image = keras.Input(IMAGE)
  graph = standardized(keras.Model(image, image / (2.0 + layers.ReLU()(image))), exact=True)
  assert last(graph).kind == "tf.math.truediv"


AFFINE = {
    "x * c": (lambda x: x * VECTOR, VECTOR, 0), "c * x": (lambda x: VECTOR * x, VECTOR, 0),
    "x + c": (lambda x: x + VECTOR, 1, VECTOR), "c + x": (lambda x: VECTOR + x, 1, VECTOR),
    "x - c": (lambda x: x - VECTOR, 1, -VECTOR), "c - x": (lambda x: VECTOR - x, -1, VECTOR),
    "x / c": (lambda x: x / VECTOR, 1 / VECTOR, 0), "-x": (lambda x: -x, -1, 0),
    "2 * x": (lambda x: 2.0 * x, 2, 0), "x / 2": (lambda x: x / 2, 0.5, 0),
    "1 - x": (lambda x: 1 - x, -1, 1), "x - 1": (lambda x: x - 1, 1, -1),
    "x / 127.5": (lambda x: x / 127.5, 1 / 127.5, 0), "tf.negative": (tf.negative, -1, 0),
    "tf.divide": (lambda x: tf.divide(x, 4.0), 0.25, 0),
    "tf.subtract": (lambda x: tf.subtract(1.0, x), -1, 1), "keyword": (lambda x: tf.multiply(x, y=3.0), 3, 0),
    "array (1, 1, 4)": (lambda x: x * VECTOR[None, None], VECTOR, 0),
    "array (1, 1, 1, 1)": (lambda x: x * np.full((1, 1, 1, 1), 3.0, np.float32), 3, 0),
    "list": (lambda x: x * [0.5, -2.0, 3.0, 1.0], VECTOR, 0),
    "tensor": (lambda x: x + tf.constant(VECTOR), 1, VECTOR),
    "variable": (lambda x: x * tf.Variable(VECTOR), VECTOR, 0)}


@pytest.mark.parametrize("name", AFFINE)
def test_a_constant_a_channel_becomes_an_affine_layer(name):
  function, scale, shift = AFFINE[name]
  graph = standardized(stack(function))
  assert kinds(graph) == ["BatchNormalization"]
  got_scale, got_shift = affine_of(last(graph).layer)
  np.testing.assert_allclose(got_scale, np.broadcast_to(scale, 4), rtol=1e-6)
  np.testing.assert_allclose(got_shift, np.broadcast_to(shift, 4), rtol=1e-6)


@pytest.mark.parametrize("function, kind", [
    (lambda x, c: x + c, "tf.math.add"), (lambda x, c: c + x, "tf.math.add"),
    (lambda x, c: x - c, "tf.math.add"), (lambda x, c: c - x, "tf.math.subtract"),
    (lambda x, c: x * c, "tf.math.multiply"), (lambda x, c: x / c, "tf.math.multiply")])
@pytest.mark.parametrize("shape", [(1, 6, 6, 4), (6, 6, 4), (6, 6, 1), (1, 6, 1, 1)])
def test_a_constant_of_another_shape_stays_an_operand(function, kind, shape):
  constant = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
  graph = standardized(stack(lambda x: function(x, constant)))
  assert kinds(graph) == [kind]
  arrays = [a for a in last(graph).args if isinstance(a, np.ndarray)]
  assert [a.dtype for a in arrays] == [np.float32] and len(last(graph).inputs) == 1


def test_a_constant_that_widens_the_tensor_keeps_its_shape():
  graph = standardized(stack(lambda x: x * np.arange(1, 4, dtype=np.float32), shape=(6, 6, 1)))
  assert last(graph).shapes == [(None, 6, 6, 3)]


@pytest.mark.parametrize("function", [lambda x: 2.0 / x, lambda x: tf.math.divide_no_nan(x, 0.0),
                                      lambda x: x // 2.0, lambda x: x ** 2, tf.abs])
def test_functions_that_are_not_affine_are_left_alone(function):
  graph = standardized(stack(function), exact=True)
  assert last(graph).kind.startswith("tf.") and len(kinds(graph)) == 1


@pytest.mark.parametrize("function", [lambda x: 2.0 * x, lambda x: x - 1.0, tf.nn.silu,
                                      layers.Activation("hard_sigmoid"), layers.Rescaling(0.5)])
def test_open_channels_are_no_crash(function):
  model = stack(function, shape=(None,))
  standardized(model, x=np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32))


def test_a_scalar_a_sample_is_no_crash():
  standardized(stack(lambda x: 2.0 * x, shape=()), x=np.float32([1, 2, 3]))


def test_integers_stay_integers():
  # Word indices: an affine layer would turn them into floats.
  model = stack(lambda x: x * 2 + 1, layers.Embedding(20, 3), shape=(5,), dtype="int32")
  standardized(model, x=np.array([[1, 2, 3, 4, 5]], np.int32), exact=True)


def test_operators_inside_a_nested_model_that_is_called_twice():
  x = inner_image = keras.Input((4,))
  inner = keras.Model(inner_image, tf.nn.relu(x * VECTOR + tf.nn.sigmoid(x)), name="inner")
  image = keras.Input((4,))
  graph = standardized(keras.Model(image, inner(inner(image))))
  assert kinds(graph) == 2 * ["BatchNormalization", "Sigmoid", "Add", "ReLU"]
  assert len(set(names(graph))) == 8


@pytest.mark.parametrize("options, scale, shift", [
    ({"scale": 1 / 255}, 1 / 255, 0), ({"scale": 1 / 127.5, "offset": -1.0}, 1 / 127.5, -1),
    ({"scale": [1.0, 2.0, 3.0, 4.0], "offset": [0.0, 1.0, 2.0, 3.0]}, [1, 2, 3, 4], [0, 1, 2, 3])])
def test_rescaling_becomes_an_affine_layer(options, scale, shift):
  graph = standardized(stack(layers.Rescaling(**options)))
  assert kinds(graph) == ["BatchNormalization"]
  got_scale, got_shift = affine_of(last(graph).layer)
  np.testing.assert_allclose(got_scale, np.broadcast_to(scale, 4), rtol=1e-6)
  np.testing.assert_allclose(got_shift, np.broadcast_to(shift, 4), rtol=1e-6)


@pytest.mark.parametrize("options", [
    {"mean": 0.5, "variance": 4.0, "axis": None}, {"mean": [1.0, 2, 3, 4], "variance": [4.0, 1, 9, 16]},
    {"mean": [1.0, 2, 3, 4], "variance": [4.0, 0, 9, 16]},
    {"mean": [1.0, 2, 3, 4], "variance": [4.0, 1, 9, 16], "invert": True}])
def test_normalization_becomes_an_affine_layer(options):
  graph = standardized(stack(layers.Normalization(**options)))
  assert kinds(graph) == ["BatchNormalization"]


def test_rescaling_of_pixels_that_are_bytes():
  model = stack(layers.Rescaling(1 / 127.5, offset=-1.0), layers.Conv2D(3, 3), dtype="uint8")
  standardized(model, x=np.random.default_rng(0).integers(0, 256, (2, *IMAGE)).astype(np.uint8))


def test_an_adapted_normalization_becomes_an_affine_layer():
  layer = layers.Normalization()
  layer.adapt(np.random.default_rng(0).normal(3, 2, (5, 6, 6, 4)))
  image = keras.Input(IMAGE)
  assert kinds(standardized(keras.Model(image, layer(image)))) == ["BatchNormalization"]


def test_a_normalization_by_position_is_left_alone():
  layer = layers.Normalization(axis=(1, 2))
  layer.adapt(np.random.default_rng(0).normal(3, 2, (5, 6, 6, 4)))
  image = keras.Input(IMAGE)
  assert kinds(standardized(keras.Model(image, layer(image)), exact=True)) == ["Normalization"]


# --- layers that split, join or go -----------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {}, {"use_bias": False}, {"padding": "same", "strides": 2}, {"dilation_rate": 2}, {"depth_multiplier": 3},
    {"activation": "relu"}])
def test_separable_becomes_depthwise_and_pointwise(options):
  graph = standardized(stack(layers.SeparableConv2D(5, 3, name="separable", **options)))
  expected = ["DepthwiseConv2D", "Conv2D"] + (["ReLU"] if "activation" in options else [])
  assert kinds(graph) == expected and names(graph)[:2] == ["separable/depthwise", "separable"]
  depthwise, pointwise = graph.nodes[1:3]
  assert pointwise.config["kernel_size"] == (1, 1)
  assert depthwise.shapes[0][:3] == pointwise.shapes[0][:3]
  assert depthwise.shapes[0][3] == 4 * options.get("depth_multiplier", 1)


def test_a_shared_separable_is_split_once_for_all_calls():
  image, shared = keras.Input(IMAGE), layers.SeparableConv2D(4, 3, padding="same", activation="relu")
  graph = standardized(models.randomized(keras.Model(image, shared(shared(image)))))
  assert kinds(graph) == 2 * ["DepthwiseConv2D", "Conv2D", "ReLU"]
  assert graph.nodes[1].layer is graph.nodes[4].layer and graph.nodes[2].layer is graph.nodes[5].layer


@pytest.mark.parametrize("layer", [
    layers.Dropout(0.5), layers.SpatialDropout2D(0.5), layers.GaussianNoise(0.1), layers.GaussianDropout(0.1),
    layers.AlphaDropout(0.1), layers.ActivityRegularization(l2=0.1), layers.Identity(),
    layers.Activation("linear"), layers.Activation(None)])
def test_layers_that_do_nothing_at_inference_go(layer):
  graph = standardized(stack(layers.ReLU(), layer, layers.ReLU()), exact=True)
  assert kinds(graph) == ["ReLU", "ReLU"]
  assert [(edit.layer, edit.pass_name) for edit in graph.edits] == [(layer.name, "standardize")]
  assert "does nothing at inference" in graph.edits[0].what


def test_a_model_of_nothing_but_dropout_is_its_input():
  assert kinds(standardized(stack(layers.Dropout(0.5), layers.Dropout(0.5)), exact=True)) == []


@pytest.mark.parametrize("make, operation", [(layers.Add, "Add"), (layers.Multiply, "Multiply")])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_joins_of_many_become_joins_of_two_in_order(make, operation, count):
  image = keras.Input(IMAGE)
  parts = [layers.Conv2D(4, 1)(image) for _ in range(count)]
  graph = standardized(models.randomized(keras.Model(image, make(name="join")(parts))))
  assert kinds(graph).count(operation) == count - 1
  assert all(len(node.inputs) == 2 for node in graph.find(operation)) and last(graph).name == "join"


def test_a_join_of_many_that_is_called_twice():
  image, join = keras.Input(IMAGE), layers.Add(name="join")
  parts = [layers.Conv2D(4, 1)(image) for _ in range(3)]
  model = keras.Model(image, join([join(parts), parts[0], image]))
  graph = standardized(models.randomized(model))
  assert kinds(graph).count("Add") == 4 and len(set(names(graph))) == len(names(graph))


def test_the_shape_of_a_split_join_stays_open_where_it_was():
  image = keras.Input((None, None, 4))
  gate = layers.GlobalAveragePooling2D(keepdims=True)(image)
  model = keras.Model(image, layers.Multiply(name="join")([gate, image, layers.ReLU()(image)]))
  graph = Graph.from_model(model)
  standardize(graph)
  assert [node.shapes for node in graph.find("Multiply")] == 2 * [[(None, None, None, 4)]]
  again = Graph.from_model(graph.to_model())
  assert [node.shapes for node in again.nodes] == [node.shapes for node in graph.nodes]


@pytest.mark.parametrize("host", [*HOSTS, "SeparableConv2D"])
def test_every_linear_layer_has_a_bias(host):
  layer = {**HOSTS, "SeparableConv2D": lambda **o: layers.SeparableConv2D(3, 3, **o)}[host](use_bias=False)
  graph = standardized(stack(layer, shape=(8, 4) if host == "Conv1D" else IMAGE))
  for node in graph.nodes[1:]:
    assert node.config["use_bias"] and node.layer.params["bias"].shape == node.shapes[0][-1:]
    np.testing.assert_array_equal(node.layer.params["bias"], 0)


# --- padding ---------------------------------------------------------------------------------------


def padded(size, kernel, stride, dilation, pads, *, conv=layers.Conv2D, **options):
  conv = conv(*([4] if conv is layers.Conv2D else []), kernel, strides=stride, dilation_rate=dilation,
              name="conv", **options)
  return stack(layers.ZeroPadding2D(pads, name="pad"), conv, shape=(*size, 2))


@pytest.mark.parametrize("size, kernel, stride, dilation, pads, absorbed", [
    # odd size, stride 2: TensorFlow pads one on each side; even size: none before, one behind
    ((7, 7), 3, 2, 1, 1, True), ((8, 8), 3, 2, 1, 1, False),
    ((8, 8), 3, 2, 1, ((0, 1), (0, 1)), True), ((7, 7), 3, 2, 1, ((0, 1), (0, 1)), False),
    ((7, 8), 3, 2, 1, ((1, 1), (0, 1)), True), ((8, 7), 3, 2, 1, ((1, 1), (0, 1)), False),
    ((7, 7), 3, 1, 1, 1, True), ((8, 8), 3, 1, 1, 1, True), ((8, 8), 3, 1, 1, 2, False),
    ((7, 7), 3, 1, 2, 2, True), ((7, 7), 3, 1, 2, 1, False), ((7, 7), 5, 1, 1, 2, True),
    ((8, 8), 2, 1, 1, ((0, 1), (0, 1)), True), ((8, 8), 2, 1, 1, ((1, 0), (1, 0)), False),
    ((8, 8), 4, 1, 1, ((1, 2), (1, 2)), True), ((8, 8), (3, 5), 1, 1, (1, 2), True),
    ((8, 8), 1, 1, 1, 0, True), ((9, 9), 1, 2, 1, 1, False), ((224 // 8, 28), 7, 2, 1, 3, False),
    ((28, 28), 7, 2, 1, ((2, 3), (2, 3)), True)])
def test_padding_is_absorbed_where_tensorflow_pads_as_much(size, kernel, stride, dilation, pads, absorbed):
  graph = standardized(padded(size, kernel, stride, dilation, pads))
  assert kinds(graph) == (["Conv2D"] if absorbed else ["ZeroPadding2D", "Conv2D"])
  assert last(graph).config["padding"] == ("same" if absorbed else "valid")
  assert len(graph.edits) == absorbed


def random_case(rng):
  stride, dilation = (int(rng.integers(1, 4)), 1) if rng.integers(2) else (1, int(rng.integers(1, 4)))
  size, kernel = rng.integers(5, 12, 2).tolist(), rng.integers(1, 5, 2).tolist()
  if rng.integers(2):
    kernel = kernel[:1] * 2
  reach = [(k - 1) * dilation + 1 for k in kernel]
  total = [max(((n + stride - 1) // stride - 1) * stride + r - n, 0) for n, r in zip(size, reach)]
  pads = [[t // 2, t - t // 2] for t in total]
  for _ in range(rng.integers(0, 3)):
    pads[rng.integers(2)][rng.integers(2)] += 1
  if any(n + sum(p) < r for n, p, r in zip(size, pads, reach)):
    return random_case(rng)
  return tuple(size), tuple(kernel), stride, dilation, tuple(map(tuple, pads))


@pytest.mark.parametrize("conv", [layers.Conv2D, layers.DepthwiseConv2D])
def test_padding_of_random_sizes_keeps_the_outputs(conv):
  rng, absorbed = np.random.default_rng(4), 0
  for _ in range(25):
    graph = standardized(padded(*random_case(rng), conv=conv), scale=1.0)
    absorbed += "ZeroPadding2D" not in kinds(graph)
  assert 3 < absorbed < 22


def test_padding_of_an_open_size_stays():
  model = stack(layers.ZeroPadding2D(1), layers.Conv2D(3, 3, strides=2), shape=(None, None, 2))
  graph = Graph.from_model(model)
  standardize(graph)
  assert kinds(graph) == ["ZeroPadding2D", "Conv2D"]


def test_padding_of_an_open_size_behind_a_join_of_three_stays():
  image = keras.Input((None, None, 2))
  x = layers.Add()([image, layers.ReLU()(image), layers.Conv2D(2, 1)(image)])
  x = layers.Add()([x, image, image])
  graph = Graph.from_model(keras.Model(image, layers.Conv2D(3, 3, strides=2)(layers.ZeroPadding2D(
      ((0, 1), (0, 1)))(x))))
  standardize(graph)
  assert graph.find("ZeroPadding2D")


def test_padding_that_others_read_stays():
  image = keras.Input((7, 7, 2))
  x = layers.ZeroPadding2D(1)(image)
  for y in (layers.ReLU()(x), x):
    graph = standardized(models.randomized(keras.Model(image, [layers.Conv2D(3, 3)(x), y])))
    assert "ZeroPadding2D" in kinds(graph) and graph.find("Conv2D")[0].config["padding"] == "valid"


def test_padding_before_a_shared_convolution_stays():
  image, conv = keras.Input((7, 7, 2)), layers.Conv2D(2, 3, name="conv")
  x = conv(layers.ZeroPadding2D(1)(image))
  graph = standardized(models.randomized(keras.Model(image, conv(x))))
  assert kinds(graph) == ["ZeroPadding2D", "Conv2D", "Conv2D"]


def test_padding_before_a_convolution_that_pads_already_stays():
  graph = standardized(padded((7, 7), 3, 1, 1, 1, padding="same"))
  assert kinds(graph) == ["ZeroPadding2D", "Conv2D"]


def test_padding_before_dropout_and_a_convolution_is_absorbed_too():
  parts = layers.ZeroPadding2D(1), layers.Dropout(0.5), layers.Conv2D(3, 3)
  graph = standardized(stack(*parts, shape=(7, 7, 2)))
  assert kinds(graph) == ["Conv2D"]


# --- the whole -------------------------------------------------------------------------------------


def description(graph):
  return [(n.name, n.kind, n.config, n.shapes, [ref.key for ref in n.inputs]) for n in graph.nodes]


@pytest.mark.parametrize("name", models.ZOO)
def test_running_it_twice_changes_nothing_more(name):
  graph = standardized(models.build(name))
  once, edits = description(graph), len(graph.edits)
  weights = [{key: value.copy() for key, value in node.layer.params.items()} for node in graph.nodes]
  standardize(graph)
  assert description(graph) == once and len(graph.edits) == edits
  for node, params in zip(graph.nodes, weights):
    for key, value in params.items():
      np.testing.assert_array_equal(node.layer.params[key], value)


@pytest.mark.parametrize("name", models.ZOO)
def test_a_standardized_model_is_read_back_as_it_was_written(name):
  graph = Graph.from_model(models.build(name))
  standardize(graph)
  again = Graph.from_model(graph.to_model())
  assert [entry[:2] + entry[3:] for entry in description(again)] == [
      entry[:2] + entry[3:] for entry in description(graph)]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", ["nested_shared", "operators", "convolutions"])
def test_a_standardized_model_survives_a_file(name, suffix, tmp_path):
  model = standardize(models.build(name))
  model.save(tmp_path / f"m{suffix}")
  (x,) = models.sample_inputs(model, images=2)
  loaded = keras.models.load_model(tmp_path / f"m{suffix}", compile=False)
  np.testing.assert_array_equal(loaded(x), model(x))


def test_layers_it_does_not_know_are_left_alone():
  model = stack(layers.Conv2D(3, 3, name="conv"), layers.Softmax(axis=1),
                layers.Permute((3, 1, 2)), layers.Activation("gelu"))
  graph = standardized(model, exact=True)
  assert kinds(graph) == ["Conv2D", "Softmax", "Permute", "Activation:gelu"]


def test_a_cast_of_float32_to_float32_goes():
  assert kinds(standardized(stack(lambda x: tf.cast(x, "float32"), layers.Conv2D(3, 1)))) == ["Conv2D"]
  assert kinds(standardized(stack(lambda x: tf.cast(2 * x, "float32"), layers.Conv2D(3, 1)))) == [
      "BatchNormalization", "Conv2D"]
  kept = kinds(standardized(stack(lambda x: tf.cast(x, "float32"), layers.Conv2D(3, 1), dtype="int32"),
                            x=np.ones((2, *IMAGE), np.int32)))
  assert kept == ["Conv2D"]  # an input of integers becomes one of float32
