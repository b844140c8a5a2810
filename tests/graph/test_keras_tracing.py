"""Subclassed models, layers of the user's own and Lambdas become the layers that their `call` calls."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.graph.model_forms import as_tf_keras

X = np.random.default_rng(0).random((40, 8, 8, 3)).astype(np.float32)


class Block(layers.Layer):
  """Layers inside, weights of its own that it multiplies itself, a mode."""

  def __init__(self, filters=4, **kwargs):
    super().__init__(**kwargs)
    self.conv = layers.Conv2D(filters, 3, padding="same", name="conv")
    self.norm = layers.BatchNormalization(name="norm")
    self.drop = layers.Dropout(0.3, name="drop")

  def build(self, shape):
    self.mixing = self.add_weight("mixing", (4, 4))
    self.gain = self.add_weight("gain", (4,), initializer="ones")
    super().build(shape)

  def call(self, x, training=None):
    y = tf.nn.relu(self.norm(self.conv(x), training=training))
    if training:
      y = self.drop(y, training=training)
    return self.gain * y + tf.matmul(y, self.mixing)


class Outer(layers.Layer):
  """A layer of the user's own in another."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.block, self.pool = Block(name="block"), layers.MaxPooling2D(2, name="pool")

  def call(self, x):
    return self.pool(self.block(x))


class Net(keras.Model):
  """Two layers of one name, an operation, dropout."""

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self.first, self.second = Block(name="block"), Block(name="block")
    self.head = layers.Dense(3, name="head")

  def call(self, x, training=False):
    x = self.second(self.first(x, training=training), training=training)
    return self.head(tf.reduce_mean(x, [1, 2]))


class Deciding(layers.Layer):
  """What no symbols can pass."""

  def call(self, x):
    if tf.reduce_sum(x) > 0:
      return x
    return -x


class Wide(layers.Conv2D):
  """A name of the user's own for a layer of Keras."""


class Doubled(keras.Model):
  """Its call records can be read, but they are not what it computes."""

  def call(self, x):
    return 2.0 * super().call(x)


def built(model, x=X):
  model(x[:2])
  return model


def functional(*stack):
  image = y = keras.Input((8, 8, 3))
  for layer in stack:
    y = layer(y)
  return keras.Model(image, y)


def doubled():
  image = keras.Input((8, 8, 3))
  return Doubled(image, layers.Conv2D(4, 3)(image))


CASES = {
    "own call": doubled,
    "subclassed": lambda: built(Net()),
    "block": lambda: functional(Block(name="own"), layers.Flatten(), layers.Dense(2)),
    "nested": lambda: functional(Outer(name="outer"), layers.Flatten()),
    "shared": lambda: functional(*[Block(name="own")] * 1, layers.Conv2D(3, 1)),
    "Lambda": lambda: functional(layers.Lambda(lambda x: x / 127.5 - 1), layers.Conv2D(4, 3)),
    "Sequential": lambda: keras.Sequential([keras.Input((8, 8, 3)), Block(), layers.Flatten()])}


@pytest.mark.parametrize("case", CASES)
def test_it_becomes_plain_layers_that_compute_the_same(case, tmp_path):
  model = CASES[case]()
  before = [value.copy() for value in model.get_weights()]
  plain = as_tf_keras(model)
  assert all(type(layer).__module__.startswith("tf_keras") and not isinstance(layer, layers.Lambda)
             for layer in plain.layers)
  np.testing.assert_allclose(plain(X), model(X), atol=1e-5)
  result = kq.quantize(model, X, effort=None)
  tflite_export.export(result, tmp_path / "m.tflite", verify=X[:2])
  spread = float(np.ptp(model(X).numpy()))
  assert np.abs(result.model(X) - model(X)).max() < 0.05 * spread
  for old, new in zip(before, model.get_weights(), strict=True):
    np.testing.assert_array_equal(old, new)


def test_layers_inside_are_named_after_what_holds_them():
  names = [layer.name for layer in as_tf_keras(CASES["nested"]()).layers]
  assert {"outer/block/conv", "outer/block/norm", "outer/pool"} <= set(names)


def test_a_layer_called_twice_stays_one_layer():
  block, image = Block(name="own"), keras.Input((8, 8, 4))
  model = keras.Model(image, block(block(image)))
  plain, x = as_tf_keras(model), np.ones((1, 8, 8, 4), np.float32)
  assert [layer.name for layer in plain.layers if isinstance(layer, layers.Conv2D)] == ["own/conv"]
  np.testing.assert_allclose(plain(x), model(x), atol=1e-6)


def test_no_record_stays_on_the_layers_of_the_user():
  model = CASES["nested"]()
  outer = model.get_layer("outer")
  before = [len(layer.inbound_nodes) for layer in (outer.block, outer.block.conv, outer.pool)]
  as_tf_keras(model)
  assert [len(layer.inbound_nodes) for layer in (outer.block, outer.block.conv, outer.pool)] == before


def test_a_rule_speaks_of_the_layer_that_the_user_wrote():
  model = functional(Block(name="own"), layers.Conv2D(4, 1, name="plain"))
  config = kq.QuantConfig(rules=(kq.Rule("^own$", weights=kq.TensorSpec(bits=4)), kq.Rule()))
  rows = {row.layer: row for row in kq.describe(kq.calibrate(kq.insert_quantizers(model, config), X)).rows}
  assert rows["own/conv"].weights[0].bits == 4 and rows["plain"].weights[0].bits == 8


def test_dropout_inside_stays_in_training():
  qmodel = kq.insert_quantizers(functional(Block(name="own"), layers.Dropout(0.5)))
  kinds = [type(layer).__name__ for layer in qmodel.layers]
  assert "Dropout" in kinds


def test_a_class_that_only_has_another_name_is_the_layer_of_keras():
  model = functional(Wide(4, 3, name="wide", activation="relu"))
  (layer,) = [layer for layer in as_tf_keras(model).layers if layer.name == "wide"]
  assert type(layer) is layers.Conv2D
  np.testing.assert_allclose(as_tf_keras(model)(X), model(X), atol=1e-6)


def test_losses_of_the_model_stay():
  image = keras.Input((8, 8, 3))
  y = Block(name="own")(image)
  model = keras.Model(image, y)
  model.add_loss(tf.reduce_mean(y))
  plain = as_tf_keras(model)
  plain(X[:2])
  assert len(plain.losses) == 1


def test_python_conditions_on_values_are_named_with_their_line():
  class Net(keras.Model):
    def call(self, x):
      return x if tf.reduce_sum(x) > 0 else -x

  model = built(Net())
  with pytest.raises(kq.UnsupportedLayerError, match=r"cannot be traced .*test_keras_tracing.py:\d+"):
    kq.quantize(model, X, effort=None)


def test_a_layer_that_cannot_be_traced_is_refused_when_quantized(caplog):
  model = functional(Deciding(name="deciding"))
  with pytest.raises(kq.UnsupportedLayerError, match=r"'deciding' .*register_lowering"):
    kq.quantize(model, X, effort=None)
  assert "test_keras_tracing.py:" in caplog.text


def test_a_subclassed_model_that_is_not_built_says_so():
  with pytest.raises(ValueError, match="is not built: its input shape is unknown. Call it once on data"):
    kq.quantize(Net(), X, effort=None)
