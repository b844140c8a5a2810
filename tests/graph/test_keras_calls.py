"""Models are read from their call records and replayed: the rebuilt model computes the same, to the bit."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from kquant.core.errors import UnsupportedLayerError
from kquant.graph import keras_calls, keras_reader
from kquant.graph.graph import Graph
from tests import models


def random_weights(model, seed=5):
  """Gives every float weight a value of its own, in place; variances stay positive."""
  rng = np.random.default_rng(seed)
  for weight in model.weights:
    if weight.dtype.is_floating:
      values = rng.normal(0, 0.5, weight.shape)
      weight.assign(np.abs(values) + 0.1 if "variance" in weight.name else values)
  return model


def inputs_of(model, seed=1):
  """Returns a nest of arrays for a model; open dimensions are 6."""
  rng = np.random.default_rng(seed)
  arrays = [rng.uniform(-1, 1, [3, *(n or 6 for n in t.shape[1:])]) for t in model.inputs]
  arrays = [array.astype(t.dtype.as_numpy_dtype) if t.dtype.is_floating
            else rng.integers(0, 9, array.shape) for array, t in zip(arrays, model.inputs)]
  return tf.nest.pack_sequence_as(model._nested_inputs, arrays)


def assert_same_outputs(model, other):
  """The outputs have the same nest and the same bits."""
  x = inputs_of(model)
  mine, theirs = model(x, training=False), other(x, training=False)
  tf.nest.assert_same_structure(mine, theirs, check_types=False)
  for a, b in zip(tf.nest.flatten(mine), tf.nest.flatten(theirs), strict=True):
    np.testing.assert_array_equal(a, b)


def assert_same_calls(graph, other):
  """Reading what was written gives every call its name, kind and shapes again."""
  for mine, theirs in zip(graph.nodes, other.nodes, strict=True):
    assert (mine.name, mine.kind, mine.shapes) == (theirs.name, theirs.kind, theirs.shapes)
  assert len({node.name for node in graph.nodes}) == len(graph.nodes)
  assert other.name == graph.name


def rebuilt(model):
  return Graph.from_model(model).to_model()


# --- models that are hard to rebuild ---------------------------------------------------------------


def dict_inputs_and_outputs():
  a, b = keras.Input((4,), name="second"), keras.Input((4,), name="first")
  y = layers.Dense(3)(a - 2.0 * b)
  return keras.Model({"x": b, "w": a}, {"scores": y, "more": [layers.ReLU()(y), (b,)]})


def list_of_outputs_one_twice():
  image = keras.Input((4,))
  x = layers.Dense(3)(image)
  return keras.Model([image], [x, layers.ReLU()(x), x])


def input_is_output():
  image = keras.Input((3,))
  return keras.Model(image, [image, layers.Dense(2)(image)])


def unread_input():
  image, unused = keras.Input((3,), name="image"), keras.Input((5,), name="unused")
  return keras.Model([unused, image], layers.Dense(2)(image))


def nested_three_deep():
  core = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3, padding="same", name="conv"),
                           layers.BatchNormalization(name="bn")], name="core")
  image = keras.Input((6, 6, 4))
  middle = keras.Model(image, layers.Add()([core(image), layers.Conv2D(4, 1, name="conv")(image)]),
                       name="middle")
  image = keras.Input((6, 6, 4))
  return keras.Model(image, layers.Flatten()(middle(layers.Conv2D(4, 1, name="conv")(image))))


def nested_called_twice():
  inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d"), layers.ReLU()], name="inner")
  image = keras.Input((4,))
  return keras.Model(image, inner(inner(image) + 1.0))


def siamese():
  inner = keras.Sequential([keras.Input((5, 5, 2)), layers.Conv2D(3, 3), layers.Flatten()], name="tower")
  left, right = keras.Input((5, 5, 2), name="left"), keras.Input((5, 5, 2), name="right")
  return keras.Model([right, left], layers.Dot(1)([inner(left), layers.ReLU()(inner(right))]))


def nested_with_dict_of_other_order():
  # The inner inputs are a list in the order b, a; the call names them.
  b, a = keras.Input((4,), name="b"), keras.Input((4,), name="a")
  inner = keras.Model([b, a], b - 2.0 * a)
  first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
  return keras.Model([first, second], inner({"a": first, "b": second}))


def nested_with_dicts_called_by_dict_and_list():
  b, a = keras.Input((4,), name="b"), keras.Input((4,), name="a")
  inner = keras.Model({"z": b, "k": a}, {"q": b - 2.0 * a, "c": a})
  first, second = keras.Input((4,)), keras.Input((4,))
  by_dict, by_list = inner({"z": second, "k": first}), inner([second, first])
  return keras.Model([first, second], {"o": by_dict["q"], "p": [by_dict["c"], by_list["q"]]})


def nested_called_with_keyword():
  inner = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
  image = keras.Input((4,))
  return keras.Model(image, inner(inputs=image))


def nested_name_taken_by_a_layer():
  inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="conv")], name="inner")
  image = keras.Input((4,))
  return keras.Model(image, layers.Dense(4, name="inner/conv")(inner(image)))


def two_nested_of_equal_layer_names():
  towers = [keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d")], name=name) for name in "ab"]
  image = keras.Input((4,))
  return keras.Model(image, towers[1](towers[0](image)))


def layer_shared_with_a_nested_model():
  shared = layers.Dense(4, name="shared")
  inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
  image = keras.Input((4,))
  return keras.Model(image, shared(inner(image)))


def shared_three_times():
  # Called on c, b, a; depth first from the output they come as a, b, c.
  shared = layers.Dense(4, name="shared")
  image = keras.Input((4,))
  c = shared(layers.Dense(4, name="before_c")(image))
  b = shared(layers.ReLU()(image))
  a = shared(image)
  return keras.Model(image, layers.Concatenate()([a, layers.Subtract()([b, c])]))


def operators_with_constants_and_keywords():
  image = keras.Input((4, 4, 3))
  x = tf.pad(image, [[0, 0], [1, 1], [2, 0], [0, 0]], constant_values=2.0)
  x = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
  x = tf.concat([x, 2 * x, x - np.float32([1, 2, 3])], axis=-1)
  parts = tf.split(tf.nn.leaky_relu(x, alpha=0.3), 3, axis=-1)
  mixed = tf.einsum("bhwc,cd->bhwd", image, np.eye(3, 2))
  return keras.Model(image, [tf.stack([parts[2], parts[0]], 1), image[:, 1:, ::2, 1],
                             tf.where(image > 0, image, 0.1), mixed])


def operator_with_keywords_only():
  a, b = keras.Input((4,)), keras.Input((4,))
  return keras.Model([a, b], tf.subtract(y=a, x=b))


def operator_with_a_variable():
  image = keras.Input((4,))
  return keras.Model(image, image * tf.Variable([1.0, 2.0, 3.0, 4.0]))


def lambda_layer():
  image = keras.Input((4,))
  return keras.Model(image, layers.Lambda(lambda x, factor: x * factor + 1, arguments={"factor": 3})(image))


def attention():
  query, value = keras.Input((6, 8)), keras.Input((5, 8))
  x = layers.MultiHeadAttention(2, 4)(query, value)
  y, scores = layers.MultiHeadAttention(2, 4)(query=x, value=value, return_attention_scores=True)
  return keras.Model([query, value], [layers.LayerNormalization()(x + y), scores])


def recurrent():
  x = image = keras.Input((6, 3))
  x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
  x = layers.GRU(5, return_sequences=True)(x)
  x = layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])(x)
  return keras.Model(image, x)


def encoder_and_decoder():
  source, target = keras.Input((6, 3), name="source"), keras.Input((5, 2), name="target")
  _, h, c = layers.LSTM(4, return_state=True)(source)
  return keras.Model([source, target], layers.LSTM(4, return_sequences=True)(target, initial_state=[h, c]))


def masked():
  words = keras.Input((6,), dtype="int32")
  return keras.Model(words, layers.GlobalAveragePooling1D()(layers.Embedding(9, 4, mask_zero=True)(words)))


def time_distributed():
  inner = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 3), layers.Flatten()])
  image = keras.Input((6, 4, 4, 3))
  return keras.Model(image, layers.TimeDistributed(layers.Dense(3))(layers.TimeDistributed(inner)(image)))


def names_with_slashes():
  image = keras.Input((4,))
  return keras.Model(image, layers.Dense(3, name="a/b/c")(layers.Dense(3, name="a/b")(image)))


def open_shape():
  image = keras.Input((None, None, 3))
  return keras.Model(image, layers.GlobalMaxPooling2D()(layers.Conv2D(4, 3)(image)))


def fixed_batch():
  image = keras.Input(batch_shape=(3, 4))
  return keras.Model(image, layers.Dense(2)(image))


@keras.utils.register_keras_serializable("test_keras_calls")
class TwoDense(layers.Layer):
  """A layer of a user's whose sublayers name themselves."""

  def __init__(self, units, **kwargs):
    super().__init__(**kwargs)
    self.units = units
    self.first, self.second = layers.Dense(units), layers.Dense(units)

  def call(self, x):
    return self.second(tf.nn.relu(self.first(x)))

  def get_config(self):
    return {**super().get_config(), "units": self.units}


def custom_layer_with_sublayers():
  image = keras.Input((4,))
  return keras.Model(image, TwoDense(4)(TwoDense(4)(image)))


def sequential():
  return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dropout(0.5), layers.Dense(2)])


def sequential_built_late():
  model = keras.Sequential([layers.Dense(3), layers.Dense(2)])
  model.build((None, 4))
  return model


HARD = {build.__name__: build for build in (
    dict_inputs_and_outputs, list_of_outputs_one_twice, input_is_output, unread_input, nested_three_deep,
    nested_called_twice, siamese, nested_with_dict_of_other_order, nested_with_dicts_called_by_dict_and_list,
    nested_called_with_keyword, nested_name_taken_by_a_layer, two_nested_of_equal_layer_names,
    layer_shared_with_a_nested_model, shared_three_times, operators_with_constants_and_keywords,
    operator_with_keywords_only, operator_with_a_variable, lambda_layer, attention, recurrent,
    encoder_and_decoder, masked, time_distributed, names_with_slashes, open_shape, fixed_batch,
    custom_layer_with_sublayers, sequential, sequential_built_late)}


def build(name):
  return models.build(name) if name in models.ZOO else random_weights(HARD[name]())


ALL = [*models.ZOO, *HARD]


@pytest.mark.parametrize("name", ALL)
def test_rebuilt_model_is_the_same_to_the_bit_and_the_users_stays_as_it_was(name):
  model = build(name)
  config = [layer.get_config() for layer in model.layers]
  weights = [weight.copy() for weight in model.get_weights()]
  calls = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
  attributes = [set(vars(layer)) for layer in model._flatten_layers()]
  graph = Graph.from_model(model)
  other = graph.to_model()
  assert_same_outputs(model, other)
  assert_same_calls(graph, Graph.from_model(other))
  assert not {id(v) for v in model.variables} & {id(v) for v in other.variables}
  assert not {id(layer) for layer in model._flatten_layers()} & {id(v) for v in other._flatten_layers()}
  assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == calls
  assert [set(vars(layer)) for layer in model._flatten_layers()] == attributes
  assert [layer.get_config() for layer in model.layers] == config
  for mine, before in zip(model.get_weights(), weights, strict=True):
    np.testing.assert_array_equal(mine, before)
  # Changing the rebuilt model's weights changes neither the user's model nor the graph.
  for variable in other.variables:
    variable.assign(tf.zeros_like(variable))
  for mine, before in zip(model.get_weights(), weights, strict=True):
    np.testing.assert_array_equal(mine, before)
  assert_same_outputs(model, graph.to_model())


IN_FILES = ["mobile_block", "convolutions", "operators", "nested_shared", "two_inputs", "nested_three_deep",
            "nested_called_twice", "names_with_slashes", "attention", "shared_three_times",
            "dict_inputs_and_outputs", "nested_name_taken_by_a_layer"]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", IN_FILES)
def test_rebuilt_model_survives_a_file(name, suffix, tmp_path):
  other = rebuilt(build(name))
  other.save(tmp_path / f"m{suffix}", **({"save_format": "h5"} if suffix == ".h5" else {}))
  loaded = keras.models.load_model(tmp_path / f"m{suffix}", compile=False)
  assert_same_outputs(other, loaded)


def test_an_adapted_normalization_keeps_its_statistics():
  image = keras.Input((4, 4, 3))
  layer = layers.Normalization()
  layer.adapt(np.random.default_rng(0).normal(3, 2, (5, 4, 4, 3)))
  model = keras.Model(image, layer(image))
  assert_same_outputs(model, rebuilt(model))


def test_dropout_and_batch_norm_still_train_in_the_rebuilt_model():
  image = keras.Input((50,))
  model = keras.Model(image, layers.Dropout(0.5)(layers.BatchNormalization()(image)))
  other = rebuilt(model)
  assert (other(np.ones((2, 50)), training=True).numpy() == 0).mean() > 0.1
  assert len(other.trainable_variables) == 2


def test_layers_keep_their_trainable_flag_and_regularizer():
  image = keras.Input((4,))
  frozen = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1), name="frozen", trainable=False)
  other = rebuilt(keras.Model(image, frozen(image)))
  assert not other.get_layer("frozen").trainable and len(other.losses) == 1


def test_mixed_precision_is_rebuilt_in_float32():
  image = keras.Input((4,))
  x = layers.Dense(3, dtype=keras.mixed_precision.Policy("mixed_float16"), name="mixed")(image)
  other = rebuilt(keras.Model(image, x))
  assert other.get_layer("mixed").compute_dtype == "float32" and other.output.dtype == tf.float32


def test_a_subclassed_model_inside_is_one_opaque_layer_or_an_error():
  class Block(keras.Model):
    """A block whose constructor takes nothing."""

    def __init__(self, **kwargs):
      super().__init__(**kwargs)
      self.dense = layers.Dense(3)

    def call(self, x):
      return self.dense(x) if tf.size(x) > 0 else x[:, :3]  # cannot be traced

  image = keras.Input((4,))
  model = random_weights(keras.Model(image, Block(name="block")(image)))
  graph = Graph.from_model(model)
  assert [node.facts.role for node in graph.nodes] == ["input", "opaque"]
  assert_same_outputs(model, graph.to_model())


def test_the_rebuilt_model_bears_the_given_name():
  graph = Graph.from_model(sequential())
  assert graph.to_model("other").name == "other" and graph.to_model().name == graph.name


# --- reading ---------------------------------------------------------------------------------------


def test_layers_of_nested_models_bear_the_path_as_name():
  graph = Graph.from_model(nested_three_deep())
  names = [node.name for node in graph.nodes]
  assert [name for name in names if "conv" in name] == ["conv", "middle/core/conv", "middle/conv"]
  assert "middle/core/bn" in names


def test_calls_of_a_shared_layer_are_one_layer_with_names_by_depth():
  graph = Graph.from_model(shared_three_times())
  calls = [node for node in graph.nodes if node.layer.name == "shared"]
  assert [node.name for node in calls] == ["shared", "shared@1", "shared@2"]
  assert len({id(node.layer) for node in calls}) == 1 and graph.calls(calls[0].layer) == calls
  # Depth first: a reads the input, b the ReLU, c the other Dense.
  assert [node.inputs[0].node.kind for node in calls] == ["InputLayer", "ReLU", "Dense"]


def test_weights_are_named_within_their_layer():
  model = models.build("conv_bn_relu")
  (bn,) = Graph.from_model(model).find("BatchNormalization")
  assert set(bn.layer.params) == {"gamma", "beta", "moving_mean", "moving_variance"}
  np.testing.assert_array_equal(bn.layer.params["beta"], model.get_layer("bn").beta.numpy())
  names = [key for key, _ in keras_reader.named_variables(attention().layers[2])]
  assert names[:2] == ["query/kernel", "query/bias"] and len(set(names)) == len(names)


def test_the_graph_holds_copies_of_the_weights():
  model = models.build("conv_bn_relu")
  graph = Graph.from_model(model)
  (conv,) = graph.find("Conv2D")
  before = conv.layer.params["kernel"].copy()
  model.get_layer("conv").kernel.assign(tf.zeros_like(model.get_layer("conv").kernel))
  np.testing.assert_array_equal(conv.layer.params["kernel"], before)
  conv.layer.config["filters"] = 99
  assert model.get_layer("conv").filters == 8


def test_a_variable_in_an_operator_is_copied_too():
  variable = tf.Variable([1.0, 2.0, 3.0, 4.0])
  image = keras.Input((4,))
  other = rebuilt(keras.Model(image, image * variable))
  variable.assign(tf.zeros(4))
  assert other(np.ones((1, 4))).numpy().tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_input_specs_are_those_of_the_model():
  words, image = keras.Input((6,), dtype="int32", name="words"), keras.Input((None, 3), name="image")
  model = keras.Model({"b": words, "a": image}, layers.Dense(2)(image))
  assert [(s.name, s.shape, s.dtype) for s in keras_calls.input_specs(model)] == [
      ("image", (None, 3), "float32"), ("words", (6,), "int32")]


def test_call_takes_flat_tensors_in_the_order_of_the_inputs():
  model = random_weights(dict_inputs_and_outputs())
  x = inputs_of(model)
  flat = [x["w"], x["x"]]  # sorted keys
  assert [tensor.name for tensor in model.inputs] == ["second", "first"]
  np.testing.assert_array_equal(keras_calls.call(model, flat)["scores"], model(x)["scores"])


# --- models that are refused -----------------------------------------------------------------------


class Subclassed(keras.Model):
  """Its calls are code."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.dense = layers.Dense(2)

  def call(self, x):
    return self.dense(x)


def subclassed():
  return Subclassed(name="classy")


def unbuilt():
  return keras.Sequential([layers.Dense(2)], name="open")


def with_bad_weights(value, where="dense/kernel"):
  image = keras.Input((4,))
  inner = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="dense"), layers.BatchNormalization()])
  model = keras.Model(image, inner(image), name="broken")
  variable = next(v for v in model.weights if where in v.name)
  variable.assign(np.where(np.arange(variable.shape[-1]) == 1, value, variable.numpy()))
  return model


REFUSED = {
    "subclassed": (subclassed, ValueError, "'classy' (Subclassed)", "Call it once on data"),
    "unbuilt": (unbuilt, ValueError, "'open'", "input_shape"),
    "NaN": (lambda: with_bad_weights(np.nan), ValueError, "'broken'", "Train or load the model again"),
    "infinity": (lambda: with_bad_weights(np.inf), ValueError, "'dense/kernel:0'", "finite"),
    "NaN statistics": (lambda: with_bad_weights(np.nan, "moving_mean"), ValueError, "moving_mean", "finite"),
    "a layer": (lambda: layers.Dense(2), TypeError, "got Dense", "tf_keras model"),
    "a path": (lambda: "model.h5", TypeError, "got str", "load it first: kquant.load_model('model.h5')"),
    "None": (lambda: None, TypeError, "got NoneType", "tf_keras model"),
    "the class": (lambda: keras.Model, TypeError, "got", "tf_keras model")}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_name_with_the_remedy_in_one_line(case):
  make, kind, name, remedy = REFUSED[case]
  with pytest.raises(kind) as error:
    Graph.from_model(make())
  message = str(error.value)
  assert name in message and remedy in message and "\n" not in message
  assert type(error.value) is kind


@pytest.mark.parametrize("call", [
    lambda x: layers.Dropout(0.5, name="wild")(x, training=True),
    lambda x: layers.Dropout(0.5, name="wild")(x, True),
    lambda x: layers.BatchNormalization(name="wild")(x, training=True),
    lambda x: keras.Sequential([keras.Input((4,)), layers.Dropout(0.5)], name="wild")(x, training=True)])
def test_a_call_with_training_true_is_refused(call):
  image = keras.Input((4,))
  with pytest.raises(UnsupportedLayerError, match="'wild' is called with training=True"):
    Graph.from_model(keras.Model(image, call(image)))


@pytest.mark.parametrize("training", [False, None])
def test_a_call_with_training_false_is_inference_in_both(training):
  image = keras.Input((4,))
  x = layers.BatchNormalization(name="bn")(image, training=training)
  model = random_weights(keras.Model(image, x))
  graph = Graph.from_model(model)
  assert graph.find("BatchNormalization")[0].kwargs == {}
  assert_same_outputs(model, graph.to_model())


class Scale(layers.Layer):
  """Takes an argument and has no get_config: Keras notes the argument where it can."""

  def __init__(self, factor):
    super().__init__()
    self.factor = factor

  def call(self, x):
    return x * self.factor if tf.size(x) > 0 else x  # cannot be traced


def test_a_layer_without_config_is_named():
  image = keras.Input((4,))
  model = keras.Model(image, Scale(np.float32([1, 2, 3, 4]))(image))
  with pytest.raises(UnsupportedLayerError, match=r"'scale' \(Scale\) has no get_config"):
    Graph.from_model(model)


def test_a_layer_that_takes_no_name_keeps_its_own():
  image = keras.Input((4,))
  inner = keras.Model(image, Scale(3)(image), name="inner")
  image = keras.Input((4,))
  model = keras.Model(image, inner(Scale(2)(image)))
  other = rebuilt(model)
  assert [layer.name for layer in other.layers[1:]] == ["scale_1", "inner/scale"]
  assert_same_outputs(model, other)


def test_a_layer_whose_config_forgets_its_weights_is_named():
  class Growing(layers.Layer):
    """Its number of units is not in its config."""

    def __init__(self, units=2, **kwargs):
      super().__init__(**kwargs)
      self.dense = layers.Dense(units)

    def call(self, x):
      return self.dense(x) if tf.size(x) > 0 else x  # cannot be traced

    def get_config(self):
      return super().get_config()

  image = keras.Input((4,))
  graph = Graph.from_model(keras.Model(image, Growing(5, name="growing")(image)))
  with pytest.raises(ValueError, match="'growing'"):
    graph.to_model()


@pytest.mark.parametrize("option", ["ragged", "sparse"])
def test_ragged_and_sparse_inputs_are_refused(option):
  image = keras.Input((4,), name="odd", **{option: True})
  model = keras.Model(image, layers.Lambda(lambda x: x)(image))
  with pytest.raises(UnsupportedLayerError, match="'odd' is ragged or sparse"):
    rebuilt(model)
