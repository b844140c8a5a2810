"""The table of kinds: how a kind is found, and records that agree with the Keras classes they describe."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers
from tf_keras.src.applications import convnext

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.kinds.record import LayerFacts
from kquant.graph.kinds.table import LAYERS, OPAQUE, facts_of, kind_of, register
from kquant.graph.nodes import LayerDef


def kind_in_graph(layer, shape=(4, 4, 2)):
  image = keras.Input(shape)
  return Graph.from_model(keras.Model(image, layer(image))).nodes[-1].kind


@pytest.mark.parametrize("class_name, config, kind", [
    ("Conv2D", {}, "Conv2D"),
    ("Activation", {"activation": "sigmoid"}, "Sigmoid"),
    ("Activation", {"activation": "tanh"}, "Tanh"),
    ("Activation", {"activation": "linear"}, "Requantize"),
    ("Activation", {"activation": "relu"}, "Activation:relu"),
    ("UpSampling2D", {}, "UpSampling2D"),
    ("UpSampling2D", {"interpolation": "nearest"}, "UpSampling2D"),
    ("UpSampling2D", {"interpolation": "bilinear"}, "UpSampling2DBilinear"),
    ("UpSampling2D", {"interpolation": "bicubic"}, "UpSampling2DBicubic"),
    ("TFOpLambda", {"function": "math.add"}, "tf.math.add"),
    ("TFOpLambda", {"function": "__operators__.add"}, "tf.__operators__.add")])
def test_kinds_by_hand(class_name, config, kind):
  assert kind_of(class_name, config) == kind


@pytest.mark.parametrize("layer, kind", [
    (lambda x: x + x, "tf.__operators__.add"),
    (lambda x: 2.0 * x, "tf.math.multiply"),
    (keras.activations.relu, "tf.nn.relu"),
    (layers.Activation("relu"), "Activation:relu"),
    (layers.Activation(keras.activations.tanh), "Tanh"),
    (layers.UpSampling2D(interpolation="bilinear"), "UpSampling2DBilinear"),
    (layers.MaxPool2D(), "MaxPooling2D"), (layers.AvgPool2D(), "AveragePooling2D"),
    (layers.GlobalAvgPool2D(), "GlobalAveragePooling2D"),
    (layers.Convolution2D(3, 1), "Conv2D"), (layers.Convolution2DTranspose(3, 1), "Conv2DTranspose"),
    (layers.BatchNormalization(), "BatchNormalization")])
def test_kinds_of_layers_as_users_write_them(layer, kind):
  assert kind_in_graph(layer) == kind


def test_a_user_class_that_borrows_a_name_is_opaque():
  class Conv2D(layers.Conv2D):
    """Not the Keras one: it may compute anything."""

  layer = Conv2D(3, 1)
  definition = LayerDef("x", Conv2D, layer.get_config())
  assert definition.kind.endswith(".Conv2D") and definition.kind != "Conv2D"
  assert definition.facts is OPAQUE


def test_unknown_kinds_are_opaque():
  assert facts_of("Unheard") is OPAQUE and OPAQUE.role == "opaque"
  for kind in ("LSTM", "UpSampling2DBicubic", "Activation:relu", "Resizing:area"):
    assert facts_of(kind).role == "opaque"


def test_the_record_of_a_class_speaks_for_forms_without_one():
  assert facts_of("Resizing:area") is LAYERS["Resizing"] is not LAYERS["Resizing:nearest"]


def test_a_kind_of_the_users_is_added_and_none_of_keras_is_changed(monkeypatch):
  monkeypatch.setattr("kquant.graph.kinds.table.LAYERS", dict(LAYERS))
  register("my.Turn", LayerFacts("move"))
  assert facts_of("my.Turn") == LayerFacts("move")
  for kind in ("Conv2D", "Unheard", "tf.math.add"):
    with pytest.raises(ValueError, match=f"{kind} is a layer of Keras"):
      register(kind, LayerFacts("move"))


def test_the_error_is_a_value_error():
  assert issubclass(UnsupportedLayerError, ValueError)


BUILT = {"Conv1D": (lambda: layers.Conv1D(5, 3), (8, 4)), "Conv2D": (lambda: layers.Conv2D(5, 3), (8, 8, 4)),
         "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4)),
         "Conv2DTranspose": (lambda: layers.Conv2DTranspose(5, 3), (8, 8, 4)),
         "Dense": (lambda: layers.Dense(5), (4,))}


def test_every_linear_row_is_tested_here():
  assert set(BUILT) == {kind for kind, facts in LAYERS.items() if facts.role == "linear"}


@pytest.mark.parametrize("kind", BUILT)
def test_kernel_axes_are_those_that_keras_uses(kind):
  # Scaling one output channel of the kernel scales that output channel and nothing else; a kernel
  # whose input channel is zero does not see that input.
  make, shape = BUILT[kind]
  layer, facts = make(), LAYERS[kind]
  x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
  before = layer(x).numpy()
  variable = getattr(layer, facts.kernel.name)
  kernel = variable.numpy()
  out_shape = [kernel.shape[axis] for axis in facts.kernel.out_axes]
  assert np.prod(out_shape) == before.shape[-1]
  for channel in range(before.shape[-1]):
    index = [slice(None)] * kernel.ndim
    for axis, position in zip(facts.kernel.out_axes, np.unravel_index(channel, out_shape)):
      index[axis] = position
    scaled = kernel.copy()
    scaled[tuple(index)] *= 3
    variable.assign(scaled)
    expected = before * np.where(np.arange(before.shape[-1]) == channel, 3, 1)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
  (axis,) = facts.kernel.in_axes
  kernel = np.moveaxis(kernel.copy(), axis, 0)
  kernel[1] = 0
  variable.assign(np.moveaxis(kernel, 0, axis))
  blind = x.copy()
  blind[..., 1] = 1e3
  np.testing.assert_array_equal(layer(x), layer(blind))


@pytest.mark.parametrize("kind, layer, shape", [
    ("UpSampling2D", layers.UpSampling2D(2), (4, 4, 3)),
    ("UpSampling2DBilinear", layers.UpSampling2D(2, interpolation="bilinear"), (4, 4, 3)),
    ("AveragePooling2D", layers.AveragePooling2D(2), (4, 4, 3)),
    ("AveragePooling1D", layers.AveragePooling1D(2), (4, 3)),
    ("GlobalAveragePooling2D", layers.GlobalAveragePooling2D(), (4, 4, 3)),
    ("GlobalAveragePooling1D", layers.GlobalAveragePooling1D(), (4, 3)),
    ("Dropout", layers.Dropout(0.5), (4, 3)), ("Identity", layers.Identity(), (4, 3))])
def test_pointwise_rows_commute_with_an_affine_function_of_the_channels(kind, layer, shape):
  assert LAYERS[kind].pointwise
  rng = np.random.default_rng(2)
  x = rng.normal(size=(2, *shape)).astype(np.float32)
  scale, shift = rng.normal(size=(2, 3)).astype(np.float32)
  np.testing.assert_allclose(layer(x * scale + shift), layer(x) * scale + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [k for k, facts in LAYERS.items()
                                  if facts.role == "identity" and k != "PassMask"])
def test_identity_rows_do_nothing_at_inference(kind):
  cls = convnext.StochasticDepth if kind == "StochasticDepth" else getattr(layers, kind)
  arguments = {"Identity": (), "ActivityRegularization": (), "RandomFlip": (),
               "RandomTranslation": (0.5, 0.5)}
  shape = {"1D": (2, 4, 3), "3D": (2, 4, 4, 2, 3)}.get(kind[-2:], (2, 4, 4, 3))
  layer = cls(*arguments.get(kind, (0.5,)))
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  takes_mode = kind == "StochasticDepth" or "Random" in kind or "Dropout" in kind
  np.testing.assert_array_equal(layer(x, training=False) if takes_mode else layer(x), x)
