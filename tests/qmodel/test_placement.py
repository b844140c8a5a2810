"""Placement: which tensors share a grid, which are fixed or requantized, what is refused."""

import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from kquant.core.errors import UnsupportedLayerError
from kquant.core.quant_config import QuantConfig
from kquant.core.rule import Rule
from kquant.core.target import LITERT
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.graph import Graph
from kquant.graph.kinds.table import LAYERS
from kquant.qmodel.insert import insert_quantizers
from kquant.qmodel.placement import REMEDIES, place
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize


def image(shape=(8, 8, 4)):
  return keras.Input(shape, name="image")


def conv(name, filters=4, **options):
  return layers.Conv2D(filters, 3, padding="same", name=name, **options)


def placed(inputs, outputs, config=None, *, fold=False):
  """Returns (graph, groups) of a model after `standardize` (and batch norm folding) and `place`."""
  graph = Graph.from_model(keras.Model(inputs, outputs))
  standardize(graph)
  if fold:
    fold_batch_norm(graph)
  return graph, place(graph, config or QuantConfig())


def names(groups):
  """Returns {(sources, averages)} by key."""
  return {(tuple(ref.key for ref in group.sources), tuple(ref.key for ref in group.averages))
          for group in groups}


def sources(groups):
  assert all(not group.averages for group in groups)
  return {tuple(ref.key for ref in group.sources) for group in groups}


# --- one group a fused operation -------------------------------------------------------------------


@pytest.mark.parametrize("linear", [
    lambda: conv("linear"), lambda: layers.DepthwiseConv2D(3, name="linear"),
    lambda: layers.Dense(3, name="linear")])
def test_linear_layer_and_its_relu_have_one_grid(linear):
  x = image()
  assert sources(placed(x, layers.ReLU(name="relu")(linear()(x)))[1]) == {("image",), ("relu",)}


def test_fused_activation_argument_is_one_grid_too():
  x = image()
  assert sources(placed(x, conv("a", activation="relu")(x))[1]) == {("image",), ("a/relu",)}


def test_transposed_convolution_has_the_grid_of_the_relu_behind_it():
  x = image()
  y = layers.ReLU(name="relu")(layers.Conv2DTranspose(4, 3, name="up")(x))
  assert sources(placed(x, y)[1]) == {("image",), ("relu",)}


def test_add_and_its_relu_have_one_grid_and_the_branches_their_own():
  x = image()
  y = layers.ReLU(name="relu")(layers.Add(name="add")([conv("a")(x), conv("b")(x)]))
  assert sources(placed(x, y)[1]) == {("image",), ("a",), ("b",), ("relu",)}


def test_residual_keeps_the_block_input_apart_from_its_output():
  x = image()
  short = layers.ReLU(name="relu")(conv("a")(x))
  y = layers.Add(name="add")([short, conv("b")(short)])
  assert sources(placed(x, y)[1]) == {("image",), ("relu",), ("b",), ("add",)}


def test_relu_with_other_readers_before_it_is_not_fused():
  x = image()
  y = conv("a")(x)
  z = layers.Add(name="add")([layers.ReLU(name="relu")(y), y])
  assert sources(placed(x, z)[1]) == {("image",), ("a",), ("relu",), ("add",)}


def test_tensor_that_is_a_model_output_has_a_grid_although_a_relu_reads_it():
  x = image()
  y = conv("a")(x)
  assert sources(placed(x, [y, layers.ReLU(name="relu")(y)])[1]) == {("image",), ("a",), ("relu",)}


def test_every_model_output_and_input_has_a_grid():
  first, second = image(), keras.Input((3,), name="vector")
  outputs = {"one": conv("a")(first), "two": layers.Dense(2, name="dense")(second)}
  assert sources(placed([first, second], outputs)[1]) == {("image",), ("vector",), ("a",), ("dense",)}


def test_unary_layers_have_their_own_grids():
  x = image()
  y = layers.LeakyReLU(name="leaky")(conv("a")(x))
  y = layers.GlobalAveragePooling2D(name="mean")(y)
  assert sources(placed(x, y)[1]) == {("image",), ("a",), ("leaky",), ("mean",)}


def test_each_call_of_a_shared_layer_has_a_grid():
  x = image()
  shared = conv("shared")
  assert sources(placed(x, layers.Add(name="add")([shared(x), shared(shared(x))]))[1]) == {
      ("image",), ("shared",), ("shared@1",), ("shared@2",), ("add",)}


# --- tensors that move -----------------------------------------------------------------------------


def test_concatenation_ties_all_its_inputs():
  x = image()
  y = layers.Concatenate(name="both")([conv("a")(x), layers.ReLU(name="relu")(conv("b")(x))])
  assert sources(placed(x, y)[1]) == {("image",), ("a", "relu")}


def test_concatenations_in_a_row_tie_everything_that_reaches_them():
  x = image()
  a, b, c = conv("a")(x), conv("b")(x), conv("c")(x)
  y = layers.Concatenate()([layers.Concatenate()([a, b]), layers.MaxPooling2D(1)(c)])
  assert sources(placed(x, y)[1]) == {("image",), ("a", "b", "c")}


def test_two_concatenations_that_share_an_input_are_one_group():
  x = image()
  a, b, c = conv("a")(x), conv("b")(x), conv("c")(x)
  outputs = [layers.Concatenate()([a, b]), layers.Concatenate()([b, c])]
  assert sources(placed(x, outputs)[1]) == {("image",), ("a", "b", "c")}


@pytest.mark.parametrize("mover", [
    layers.MaxPooling2D(2), layers.ZeroPadding2D(1), layers.Flatten(), layers.Reshape((4, 64)),
    layers.UpSampling2D(2), layers.GlobalMaxPooling2D()])
def test_layer_that_moves_integers_adds_no_grid(mover):
  x = image()
  y = layers.Dense(2, name="dense")(mover(conv("a")(x)))
  assert sources(placed(x, y)[1]) == {("image",), ("a",), ("dense",)}


def test_input_that_is_moved_shares_the_inputs_grid():
  x = image()
  y = layers.Concatenate()([layers.MaxPooling2D(2)(x), layers.Conv2D(2, 2, strides=2, name="a")(x)])
  assert sources(placed(x, y)[1]) == {("image", "a")}


@pytest.mark.parametrize("pool", [
    layers.AveragePooling2D(2, name="pool"),
    layers.UpSampling2D(2, interpolation="bilinear", name="pool")])
def test_averages_are_on_the_grid_of_what_they_average(pool):
  x = image()
  y = layers.Dense(2, name="dense")(pool(conv("a")(x)))
  assert names(placed(x, y)[1]) == {(("image",), ()), (("a",), ("pool",)), (("dense",), ())}


def test_average_behind_a_concatenation_belongs_to_its_group():
  x = image()
  y = layers.Concatenate()([conv("a")(x), layers.AveragePooling2D(1, name="pool")(conv("b")(x))])
  assert names(placed(x, y)[1]) == {(("image",), ()), (("a", "b"), ("pool",))}


def test_group_is_named_after_its_first_source():
  x = image()
  _, groups = placed(x, layers.Concatenate(name="both")([conv("a")(x), conv("b")(x)]))
  assert sorted(group.name for group in groups) == ["a/quantize", "image/quantize"]


# --- fixed grids and collisions --------------------------------------------------------------------


@pytest.mark.parametrize("kind, layer", [
    ("Softmax", layers.Softmax(name="fixed")), ("Sigmoid", layers.Activation("sigmoid", name="fixed")),
    ("Tanh", layers.Activation("tanh", name="fixed"))])
def test_layers_of_fixed_grid_get_it_and_others_none(kind, layer):
  x = image()
  _, groups = placed(x, layer(conv("a")(x)))
  fixed = {group.sources[0].key: group.fixed for group in groups}
  assert fixed == {"image": None, "a": None, "fixed": LITERT.fixed[LAYERS[kind].fixed_grid]}


def test_pools_behind_a_sigmoid_are_on_its_fixed_grid():
  x = image()
  y = layers.AveragePooling2D(2, name="pool")(layers.Activation("sigmoid", name="gate")(x))
  graph, groups = placed(x, y)
  assert names(groups) == {(("image",), ()), (("gate",), ("pool",))}
  assert not graph.find("Requantize")


def test_sigmoid_into_a_concatenation_is_requantized_with_a_reason():
  x = image()
  y = layers.Concatenate(name="both")([conv("a")(x), layers.Activation("sigmoid", name="gate")(x)])
  graph, groups = placed(x, y)
  assert sources(groups) == {("image",), ("gate",), ("a", "gate/requantize")}
  fixed = {group.sources[0].key: group.fixed for group in groups}
  assert fixed == {"image": None, "a": None, "gate": LITERT.fixed["unit"]}
  (edit,) = [edit for edit in graph.edits if "requantized" in edit.what]
  assert edit.layer == "gate" and "Sigmoid has a fixed grid" in edit.what and "'a'" in edit.what


def test_other_readers_of_a_requantized_tensor_keep_the_fixed_grid():
  x = image()
  gate = layers.Activation("sigmoid", name="gate")(x)
  y = layers.Multiply(name="gated")([layers.Concatenate(name="both")([x, gate]),
                                     layers.Concatenate(name="again")([gate, x])])
  graph, groups = placed(x, [y, layers.Add(name="add")([gate, x])])
  add = graph.find("Add")[0]
  assert [ref.key for ref in add.inputs] == ["gate", "image"]
  (requantize,) = graph.find("Requantize")
  assert {node.name for node in graph.readers(add.inputs[0])} == {requantize.name, "add"}
  assert ("image", "gate/requantize") in sources(groups)


def test_softmax_flattened_into_a_concatenation_is_requantized_before_it_moves():
  x = image()
  left = layers.Flatten(name="flat")(layers.Softmax(name="soft")(x))
  y = layers.Concatenate()([left, layers.Flatten()(conv("a")(x))])
  graph, groups = placed(x, y)
  (requantize,) = graph.find("Requantize")
  assert [node.name for node in graph.readers(requantize.inputs[0])] == [requantize.name]
  assert ("soft",) in sources(groups)


def test_relu_with_a_cap_of_its_own_into_a_concatenation_is_requantized():
  x = image()
  y = layers.Concatenate(name="both")([layers.ReLU(4.0, name="cap4")(conv("a")(x)), conv("b")(x)])
  graph, groups = placed(x, y)
  assert sources(groups) == {("image",), ("cap4",), ("cap4/requantize", "b")}
  (edit,) = [edit for edit in graph.edits if "requantized" in edit.what]
  assert edit.layer == "cap4" and "clamps at 4.0" in edit.what


@pytest.mark.parametrize("cap", [None, 6.0])
def test_relu_that_a_fused_activation_can_hold_stays_in_the_group(cap):
  x = image()
  y = layers.Concatenate()([layers.ReLU(cap, name="relu")(conv("a")(x)), conv("b")(x)])
  graph, groups = placed(x, y)
  assert sources(groups) == {("image",), ("relu", "b")}
  assert not graph.find("Requantize")


def test_relu_with_a_cap_of_its_own_alone_or_pooled_needs_no_requantization():
  x = image()
  y = layers.MaxPooling2D(2)(layers.ReLU(4.0, name="cap4")(conv("a")(x)))
  graph, groups = placed(x, y)
  assert sources(groups) == {("image",), ("cap4",)} and not graph.find("Requantize")


# --- rules -----------------------------------------------------------------------------------------

FOUR, FIVE, SIX = (TensorSpec(bits=bits) for bits in (4, 5, 6))


def bits_of(config):
  x = image()
  y = layers.ReLU(name="relu_x")(conv("conv_a")(x))
  y = layers.GlobalAveragePooling2D(name="mean")(layers.Add(name="add")([conv("conv_b")(y), y]))
  _, groups = placed(x, y, config)
  return {group.sources[0].key: group.spec.bits for group in groups}


def test_rule_by_name_speaks_of_the_relu_fused_to_the_named_layer():
  of_relu = Rule("relu_x", activations=FIVE, optional=True)
  config = QuantConfig((Rule("conv_a", activations=FOUR), of_relu, Rule()))
  assert bits_of(config) == {"image": 8, "relu_x": 4, "conv_b": 8, "add": 8, "mean": 8}


def test_rule_by_kind_speaks_of_the_fused_relu_as_its_convolution():
  config = QuantConfig((Rule(kinds=("ReLU",), activations=SIX, optional=True),
                        Rule(kinds=("Conv2D",), activations=FOUR),
                        Rule(kinds=("Add", "InputLayer"), activations=FIVE), Rule()))
  assert bits_of(config) == {"image": 5, "relu_x": 4, "conv_b": 4, "add": 5, "mean": 8}


def test_first_rule_that_matches_decides():
  config = QuantConfig((Rule("conv", activations=FOUR), Rule("conv_a", activations=FIVE), Rule()))
  assert bits_of(config)["relu_x"] == 4
  config = QuantConfig((Rule("^image$", activations=FIVE), Rule(activations=SIX)))
  assert bits_of(config) == {"image": 5, "relu_x": 6, "conv_b": 6, "add": 6, "mean": 6}


def test_lone_relu_is_spoken_of_by_its_own_name():
  x = image()
  y = layers.ReLU(name="lone")(x)
  _, groups = placed(x, y, QuantConfig((Rule("lone", kinds=("ReLU",), activations=FOUR), Rule())))
  assert {group.sources[0].key: group.spec.bits for group in groups} == {"image": 8, "lone": 4}


def test_no_rule_for_a_layer_is_an_error_that_names_it():
  with pytest.raises(ValueError, match=r"no rule matches layer 'image' \(InputLayer\)"):
    bits_of(QuantConfig((Rule("conv"),)))


@pytest.mark.parametrize("rule, message", [
    (Rule("^conv_c$"), r"Rule with match '\^conv_c\$' matches no layer .*expected 'conv_b' or 'conv_a' or "),
    (Rule(kinds=("Dense",)), "kinds Dense matches no layer .*expected 'Add' or 'Conv2D'"),
    (Rule("conv_a", ("Add",)), "matches no layer"),
    (Rule(kinds=("Conv2d",)), "there is no layer kind 'Conv2d'; expected 'Conv2D' or "),
    (Rule(kinds=("Conv2D", "multi_head_attention")), "'multi_head_attention'; expected 'MultiHeadAtt"),
    (Rule(kinds=("Add", "tf.nn.rleu")), "no layer kind 'tf.nn.rleu'; expected 'tf.nn.elu' or "),
    (Rule("relu_x"), "matches 'relu_x' alone, which has no grid of its own; expected .* 'conv_a'")])
def test_a_rule_that_cannot_decide_anything_is_an_error_that_names_the_nearest(rule, message):
  with pytest.raises(ValueError, match=message):
    bits_of(QuantConfig((rule, Rule())))


@pytest.mark.parametrize("rule", [
    Rule("conv_c", optional=True), Rule(kinds=("Dense",), optional=True), Rule(kinds=("Add", "tf.nn.relu")),
    Rule(kinds=("Add", "LSTM")), Rule("conv|dense")])
def test_a_rule_that_may_or_does_match_is_none(rule):
  assert bits_of(QuantConfig((Rule(activations=SIX), rule)))["image"] == 6  # an earlier rule decides


def test_presets_suit_models_without_the_layers_they_name():
  x = image()
  assert placed(x, conv("conv")(x), QuantConfig.preset("int8_tflm"))[1]


def test_a_kind_of_the_users_own_is_known_where_the_model_has_it():
  x = image()
  with pytest.raises(UnsupportedLayerError, match="'bad'"):
    placed(x, Custom(name="bad")(x), QuantConfig((Rule(kinds=(f"{__name__}.Custom",)), Rule())))
  with pytest.raises(ValueError, match=r"no layer kind '.*test_placement.Custom'; expected '"):
    placed(x, conv("conv")(x), QuantConfig((Rule(kinds=(f"{__name__}.Custom",)), Rule())))


# --- what is refused -------------------------------------------------------------------------------


class Custom(layers.Layer):
  """A layer of a user's own that cannot be traced."""

  def call(self, inputs):
    return inputs * 2.0 if tf.size(inputs) > 0 else inputs


def cubic(x):
  """An activation of a user's own."""
  return x * x * x


def undecided(x):
  """What cannot be traced."""
  return tf.cond(tf.size(x) > 0, lambda: x, lambda: -x)


class Dense(layers.Dense):
  """A user's own layer under a name that kquant knows."""

  def call(self, inputs):
    return super().call(inputs) if tf.size(inputs) > 0 else inputs


REFUSED = {
    "ConvLSTM3D": (lambda: layers.ConvLSTM3D(2, 2, name="bad"), (3, 3, 3, 3, 2), "use ConvLSTM2D"),
    "channels_first": (lambda: layers.Conv2D(4, 3, data_format="channels_first", name="bad"), (4, 8, 8),
                       "build the model with channels_last"),
    "channels_first pool": (lambda: layers.MaxPooling2D(2, data_format="channels_first", name="bad"),
                            (4, 8, 8), "build the model with channels_last"),
    "softmax axis": (lambda: layers.Softmax(axis=1, name="bad"), (8, 8, 4), "move that axis to the end"),
    "own activation": (lambda: layers.Activation(cubic, name="bad"), (8, 8, 4), "no integer form"),
    "own activation inside": (lambda: layers.Conv2D(4, 3, activation=cubic, name="bad"), (8, 8, 4),
                              "no integer form"),
    "threshold": (lambda: layers.ReLU(threshold=0.5, name="bad"), (8, 8, 4), "use a plain ReLU"),
    "capped slope": (lambda: layers.ReLU(6.0, negative_slope=0.1, name="bad"), (8, 8, 4),
                     "use a plain ReLU"),
    "custom": (lambda: Custom(name="bad"), (8, 8, 4), "so that it can be traced"),
    "borrowed name": (lambda: Dense(3, name="bad"), (8,), "register_lowering"),
    "Lambda": (lambda: layers.Lambda(undecided, name="bad"), (8, 8, 4), "call TensorFlow functions"),
    "LayerNormalization": (lambda: layers.LayerNormalization(name="bad"), (None, 4), "of fixed shape"),
    "output padding": (lambda: layers.Conv2DTranspose(4, 3, strides=2, output_padding=1, name="bad"),
                       (8, 8, 4), "leave it out"),
    "dilated transposed": (lambda: layers.Conv2DTranspose(4, 3, dilation_rate=2, name="bad"), (8, 8, 4),
                           "use a dilation_rate of 1"),
    "operator": (lambda: tf.math.cumsum, (8, 8, 4), "a product with constants"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_layer_is_refused_by_name_with_a_remedy_in_one_line(case):
  layer, shape, remedy = REFUSED[case]
  x = image(shape)
  with pytest.raises(UnsupportedLayerError) as caught:
    placed(x, layer()(x))
  message = str(caught.value)
  assert "\n" not in message and "; " in message and message.endswith(".")
  assert ("'bad" in message or case == "operator") and remedy in message


def test_message_names_functions_that_exist():
  x = image()
  with pytest.raises(UnsupportedLayerError, match="has no integer form; use what has one, such") as caught:
    placed(x, tf.math.cumprod(x))
  named = str(caught.value).split("such as ")[1].split(":")[0].split(", ")
  assert len(named) == 3 and set(named) <= set(LAYERS)


def test_unfolded_batch_norm_is_refused_with_the_passes_that_fold_it():
  x = image()
  y = layers.BatchNormalization(name="bad")(conv("a")(x))
  with pytest.raises(UnsupportedLayerError, match=r"'bad' \(BatchNormalization\).*fold_batch_norm"):
    placed(x, y)
  assert sources(placed(x, y, fold=True)[1]) == {("image",), ("a",)}


def test_identity_layers_have_a_remedy_where_standardize_was_left_out():
  x = image()
  graph = Graph.from_model(keras.Model(x, layers.Dropout(0.5, name="drop")(x)))
  with pytest.raises(UnsupportedLayerError, match="'drop' .*kq.standardize"):
    place(graph, QuantConfig())
  assert {facts.role for facts in LAYERS.values()} - {"identity", "affine"} == (
      {facts.role for facts in LAYERS.values()} - set(REMEDIES))


@pytest.mark.parametrize("operator", [
    "add", "multiply"])
def test_tensors_of_different_ranks_are_refused(operator):
  x, y = image(), keras.Input((4,), name="vector")
  operation = {"add": lambda a, b: a + b, "multiply": lambda a, b: a * b}[operator]
  with pytest.raises(UnsupportedLayerError, match="different ranks; reshape them"):
    placed([x, y], operation(x, y))


def test_unsupported_layer_inside_a_nested_model_is_named_with_its_path():
  inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Softmax(axis=1, name="bad")], name="inner")
  x = image()
  with pytest.raises(UnsupportedLayerError, match="'inner/bad'"):
    placed(x, inner(x))


@pytest.mark.parametrize("mode", ["fold", "train", "absorb"])
def test_a_batch_norm_with_a_mask_is_refused(mode):
  series, mask = keras.Input((6, 4), name="series"), keras.Input((6,), dtype="bool", name="mask")
  model = keras.Model([series, mask], layers.BatchNormalization(name="norm")(
      layers.Dense(4)(series), mask=mask))
  with pytest.raises(UnsupportedLayerError, match="'norm' .*is called with a mask; call it without"):
    insert_quantizers(model, batch_norm=mode)


def test_an_input_that_nothing_reads_is_refused():
  image, other = keras.Input((8, 8, 4), name="image"), keras.Input((7,), name="other")
  with pytest.raises(UnsupportedLayerError, match="Input 'other' is read by no layer; leave it out"):
    placed([image, other], conv("conv")(image))


@pytest.mark.parametrize("function", [tf.sort, lambda x: tf.math.top_k(x, 2)[0]])
def test_medians_and_sparsemax_are_refused_in_one_line(function):
  image = keras.Input((9,))
  with pytest.raises(UnsupportedLayerError, match="chooses among values; leave it out") as raised:
    placed(image, function(image))
  assert "\n" not in str(raised.value)
