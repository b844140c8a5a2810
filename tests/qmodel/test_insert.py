"""insert_quantizers: which layers are in the quantized model and how they are set up."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant import QuantConfig, Rule, TensorSpec
from kquant.core.target import LITERT
from kquant.graph.graph import Graph
from kquant.graph.kinds.table import LAYERS
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.ranges.weights import weight_range
from tests import models

FOLD = [kq.standardize, kq.fold_batch_norm]


def inserted(model, config="int8"):
  return kq.insert_quantizers(kq.rewrite(model, FOLD), config)


def kernels(qmodel):
  """Returns {layer: (float kernel, Encoding)}."""
  found = {}
  for wrapper in qmodel.layers:
    if isinstance(wrapper, QuantizeWeights):
      ((name, encoding),) = wrapper.weight_encodings().items()
      found[wrapper.name] = getattr(wrapper.layer, name).numpy(), encoding
  return found


def activations(qmodel):
  return {layer.name: layer for layer in qmodel.layers if isinstance(layer, QuantizeActivation)}


@pytest.mark.parametrize("name", ["mobile_block", "convolutions", "sequence", "nested_shared"])
def test_every_linear_layer_is_wrapped_once_under_its_name_and_no_other(name):
  rewritten = kq.rewrite(models.build(name), FOLD)
  qmodel = kq.insert_quantizers(rewritten)
  linear = {layer.name for layer in rewritten.layers
            if LAYERS.get(type(layer).__name__) and LAYERS[type(layer).__name__].role == "linear"}
  wrapped = [layer.name for layer in qmodel.layers if isinstance(layer, QuantizeWeights)]
  assert linear and set(wrapped) == linear and len(wrapped) == len(linear)


def test_kernel_ranges_are_set_from_the_kernels_before_any_calibration():
  qmodel = inserted(models.build("convolutions"))
  found = kernels(qmodel)
  assert len(found) == 8
  for name, (kernel, encoding) in found.items():
    axis = LAYERS[type(qmodel.get_layer(name).layer).__name__].kernel.out_axes
    taps = tuple(i for i in range(kernel.ndim) if i not in axis)
    largest = np.abs(kernel).max(axis=taps).reshape(-1).astype(np.float64)
    assert encoding.axis == axis and encoding.narrow and encoding.bits == 8
    np.testing.assert_array_equal(encoding.scale, (largest / 127).astype(np.float32))


def test_float_weights_and_the_users_model_are_unchanged():
  model = kq.rewrite(models.build("conv_bn_relu"), FOLD)
  before = [w.copy() for w in model.get_weights()]
  qmodel = kq.insert_quantizers(model, "w2a8")
  for mine, theirs in zip(before, model.get_weights()):
    np.testing.assert_array_equal(mine, theirs)
  for name in ("conv", "dense"):
    np.testing.assert_array_equal(qmodel.get_layer(name).layer.kernel, model.get_layer(name).kernel)
    assert qmodel.get_layer(name).layer.kernel is not model.get_layer(name).kernel


def test_activations_pass_through_until_calibration_and_weights_do_not():
  model = kq.rewrite(models.build("conv_bn_relu"), FOLD)
  (x,) = models.sample_inputs(model, images=4)
  qmodel = kq.insert_quantizers(model, "w4a8")
  noisy = qmodel(x, training=False).numpy()
  for name, (kernel, encoding) in kernels(qmodel).items():
    model.get_layer(name).kernel.assign(encoding.dequantize(encoding.quantize(kernel)))
  np.testing.assert_allclose(noisy, model(x, training=False), rtol=1e-5, atol=1e-6)
  assert not any(layer.quantizing.numpy() for layer in activations(qmodel).values())


def test_rules_decide_the_kernels_by_name_and_kind():
  config = QuantConfig((
      Rule("project", weights=TensorSpec(bits=2, symmetric=True, per_channel=True)),
      Rule(kinds=("DepthwiseConv2D",), weights=TensorSpec(bits=5, per_channel=False)), Rule()))
  bits = {name: (encoding.bits, encoding.axis)
          for name, (_, encoding) in kernels(inserted(models.build("mobile_block"), config)).items()}
  assert bits == {"stem": (8, (3,)), "expand": (8, (3,)), "depthwise": (5, None), "project": (2, (3,)),
                  "logits": (8, (1,))}


def test_per_tensor_kernel_has_one_scale():
  kernel, encoding = kernels(inserted(models.build("conv_bn_relu"), "int8_per_tensor"))["conv"]
  assert encoding.scale.shape == (1,) and encoding.axis is None
  assert encoding.scale[0] == np.float32(np.float64(np.abs(kernel).max()) / 127)


def test_range_of_a_kernel_follows_its_spec():
  spec = TensorSpec(bits=3, symmetric=True, per_channel=True, range="mse")
  kernel, encoding = kernels(inserted(models.build("conv_bn_relu"), QuantConfig((Rule(weights=spec),))))[
      "conv"]
  _, high = weight_range(kernel, (3,), method="mse", bits=3)
  np.testing.assert_array_equal(encoding.scale, (high.astype(np.float32).astype(np.float64) / 3)
                                .astype(np.float32))
  assert (encoding.scale * 3 < np.abs(kernel).max(axis=(0, 1, 2))).any()


def test_one_quantizer_serves_all_tensors_of_a_group():
  x = image = keras.Input((6, 6, 2), name="image")
  x = layers.Concatenate()([layers.Conv2D(2, 1, name="a")(x), layers.Conv2D(2, 1, name="b")(x)])
  qmodel = kq.insert_quantizers(keras.Model(image, layers.AveragePooling2D(2, name="pool")(x)))
  assert sorted(activations(qmodel)) == ["a/quantize", "image/quantize"]
  assert len(activations(qmodel)["a/quantize"].inbound_nodes) == 3


def test_averages_are_quantized_but_not_observed():
  image = keras.Input((4, 4, 1), name="image")
  qmodel = kq.insert_quantizers(keras.Model(image, layers.AveragePooling2D(2, name="pool")(image)))
  x = np.random.default_rng(0).uniform(-1, 1, (8, 4, 4, 1)).astype(np.float32)
  x[0, 0, 0] = 8.0
  kq.calibrate(qmodel, x)
  encoding = activations(qmodel)["image/quantize"].encoding()
  y = qmodel(x, training=False).numpy()
  np.testing.assert_array_equal(y, encoding.dequantize(encoding.quantize(y)))


SOFT = {"softmax": (1 / 256, -128), "sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}


@pytest.mark.parametrize("activation", SOFT)
@pytest.mark.parametrize("spec", [TensorSpec(), TensorSpec(symmetric=True), TensorSpec(bits=4),
                                  TensorSpec(range="mse")], ids=str)
def test_fixed_grid_is_exact_whatever_the_rule_says(activation, spec):
  image = keras.Input((6,), name="image")
  model = keras.Model(image, layers.Dense(3, activation=activation, name="dense")(image))
  qmodel = kq.insert_quantizers(model, QuantConfig((Rule(activations=spec),)))
  encoding = activations(qmodel)[f"dense/{activation}/quantize"].encoding()
  scale, zero_point = SOFT[activation]
  assert (encoding.scale.tolist(), encoding.zero_point.tolist()) == ([scale], [zero_point])
  assert encoding.bits == 8
  assert encoding in LITERT.fixed.values()


def classifier(*, reshaped=False):
  image = keras.Input((5, 5, 2), name="image")
  x = layers.Conv2D(4, 5, name="logits")(layers.ReLU(name="relu")(layers.Conv2D(3, 1, name="conv")(image)))
  x = layers.Reshape((4,))(x) if reshaped else layers.Flatten()(x)
  return keras.Model(image, layers.Softmax()(x))


@pytest.mark.parametrize("reshaped", [False, True])
def test_cross_entropy_is_for_logits_alone(reshaped):
  spec = TensorSpec(range="cross_entropy")
  model, x = classifier(reshaped=reshaped), np.random.default_rng(0).normal(size=(6, 5, 5, 2))
  qmodel = inserted(model, QuantConfig((Rule("^logits$", activations=spec), Rule())))
  kq.calibrate(qmodel, x)
  assert qmodel.get_layer("logits/quantize").range == "cross_entropy"
  for match in ("^conv$", ""):
    with pytest.raises(ValueError, match=r"'(image|relu)' of shape .*is for logits \[images, classes\]"):
      inserted(model, QuantConfig((Rule(match, activations=spec), Rule())))
  x = keras.Input((6,), name="x")
  hidden = keras.Model(x, layers.Dense(2)(layers.Dense(3, name="hidden")(x)))
  with pytest.raises(ValueError, match="'hidden' of shape"):
    inserted(hidden, QuantConfig((Rule("^hidden$", activations=spec), Rule())))


def test_only_what_ends_the_model_is_float_in_training():
  """A sigmoid that a softmax alone reads is rounded in training; an output that others read too is not."""
  x = keras.Input((6,), name="x")
  gate = layers.Activation("sigmoid", name="gate")(layers.Dense(3, name="dense")(x))
  shares = layers.Softmax(name="shares")(gate)
  model = keras.Model(x, [layers.Reshape((1, 3))(shares), layers.Dense(2, name="more")(shares)])
  quantizers = activations(inserted(model))
  assert not quantizers["gate/quantize"].float_in_training
  assert quantizers["shares/quantize"].float_in_training


def test_per_channel_activations_are_refused():
  spec = TensorSpec(symmetric=True, per_channel=True)
  with pytest.raises(ValueError, match="per_channel"):
    inserted(models.build("conv_bn_relu"), QuantConfig((Rule(activations=spec),)))


def test_model_in_a_preset_by_name_or_config_is_the_same():
  first, second = (inserted(models.build("conv_bn_relu"), config)
                   for config in ("w4a8", QuantConfig.preset("w4a8")))
  assert first.to_json() == second.to_json()
  for mine, theirs in zip(first.get_weights(), second.get_weights()):
    np.testing.assert_array_equal(mine, theirs)


def test_unknown_preset_is_an_error():
  with pytest.raises(ValueError, match="Unknown preset 'int9'"):
    inserted(models.build("conv_bn_relu"), "int9")


# --- rules of the user's own layers ----------------------------------------------------------------


def user_model():
  """Layers that standardize takes apart, and one that it does not."""
  x = image = keras.Input((8, 4), name="image")
  x = layers.Conv1DTranspose(4, 2, strides=2, padding="same", activation="relu", name="up")(x)
  x = layers.SeparableConv1D(6, 3, name="separable")(x)
  x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
  x = layers.Reshape((7, 2, 6))(layers.Dense(6, name="mixed")(x))
  x = layers.SeparableConv2D(4, 2, activation="sigmoid", name="sep")(x)
  return models.randomized(keras.Model(image, layers.Activation("swish", name="act")(x)))


MADE_OF = {
    "up": {"up/image"},
    "separable": {"separable/image/depthwise", "separable/image"},
    "attention": {"attention/query", "attention/key", "attention/value", "attention/attention_output"},
    "mixed": {"mixed"}, "sep": {"sep/depthwise", "sep"}}
KINDS_OF = {"up": "Conv1DTranspose", "separable": "SeparableConv1D", "attention": "MultiHeadAttention",
            "mixed": "Dense", "sep": "SeparableConv2D"}


def kernels_of_4_bits(qmodel):
  return {name for name, (_, encoding) in kernels(qmodel).items() if encoding.bits == 4}


@pytest.mark.parametrize("name", MADE_OF)
@pytest.mark.parametrize("passes", [[], [kq.standardize]], ids=["whole", "standardized before"])
def test_a_rule_by_name_applies_to_all_that_becomes_of_a_users_layer(name, passes):
  config = QuantConfig((Rule(f"^{name}$", weights=TensorSpec(bits=4)), Rule()))
  qmodel = kq.insert_quantizers(kq.rewrite(user_model(), passes), config)
  assert kernels_of_4_bits(qmodel) == MADE_OF[name]
  assert all(encoding.axis is not None for _, encoding in kernels(qmodel).values())


@pytest.mark.parametrize("name", KINDS_OF)
def test_a_rule_by_kind_applies_to_all_that_becomes_of_a_users_layer(name):
  config = QuantConfig((Rule(kinds=(KINDS_OF[name],), weights=TensorSpec(bits=4)), Rule()))
  expected = MADE_OF[name] | (MADE_OF["attention"] if name == "mixed" else set())  # Dense, as it was made
  assert kernels_of_4_bits(kq.insert_quantizers(user_model(), config)) == expected


def test_a_rule_on_an_activation_reaches_what_it_was_written_as():
  config = QuantConfig((Rule(kinds=("Activation",), activations=TensorSpec(bits=5)), Rule()))
  found = activations(kq.insert_quantizers(user_model(), config))
  assert {name for name, layer in found.items() if layer.rule == "kinds Activation"} == {
      "act/quantize", "act/sigmoid/quantize"}
  assert found["act/quantize"].quantizer.bits == 5


def test_a_batch_norm_that_stays_as_a_depthwise_is_reached_as_a_batch_norm():
  config = QuantConfig((Rule(kinds=("BatchNormalization",), weights=TensorSpec(bits=4)), Rule()))
  assert kernels_of_4_bits(kq.insert_quantizers(models.build("lone_batch_norm"), config))


def test_a_copy_of_a_graph_knows_the_users_layers():
  graph = Graph.from_model(user_model())
  kq.standardize(graph)
  twin = graph.copy()
  assert [node.layer.origins for node in twin.nodes] == [node.layer.origins for node in graph.nodes]
  assert all(node.layer.origins for node in twin.nodes)


def test_equalization_asks_the_rules_of_the_users_layers():
  config = QuantConfig((Rule(kinds=("SeparableConv2D",), weights=TensorSpec(per_channel=False)), Rule()))
  graph = Graph.from_model(user_model())
  kq.standardize(graph)
  by_name = {node.layer.name: node.layer for node in graph.nodes}
  of_part = by_name["sep/depthwise"]
  assert not config.rule(of_part.name, of_part.kind, of_part.origins).weights.per_channel


def test_a_rule_without_a_layer_is_an_error_of_the_one_call_route_too():
  model = models.build("conv_bn_relu")
  with pytest.raises(ValueError, match="'Conv2d'; expected 'Conv2D'"):
    kq.quantize(model, models.sample_inputs(model), config=QuantConfig((Rule(kinds=("Conv2d",)), Rule())),
                effort=None)
