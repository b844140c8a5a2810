"""Keras 3 models become tf_keras models that compute the same, and go all the way to a file."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tf_keras

import kquant as kq
from kquant.graph.model_forms import as_tf_keras
from kquant.graph.readers.keras3 import is_keras3
from kquant.graph.readers.keras3_operations import ANY_BATCH
from tests import keras3_cases

keras = pytest.importorskip("keras", minversion="3.0")
layers, ops = keras.layers, keras.ops
RANDOM = np.random.default_rng(0)


class Scaled(layers.Layer):
  """A layer of one's own with weights and a layer inside."""

  def build(self, shape):
    self.scale = self.add_weight(shape=(shape[-1],), initializer="random_normal", name="scale")
    self.dense = layers.Dense(3, name="inner")
    self.dense.build(shape)

  def call(self, x):
    return self.dense(ops.relu(x) * self.scale)


class Tokens(layers.Layer):
  """A vision transformer's start: rows of the image, and a variable that is repeated for each image."""

  def build(self, shape):
    self.token = self.add_weight(shape=(1, 1, shape[-2] * shape[-1]), initializer="normal", name="token")

  def call(self, x):
    shape = ops.shape(x)
    rows = ops.reshape(x, [shape[0], -1, shape[2] * shape[3]])
    return ops.concatenate([ops.tile(self.token, (shape[0], 1, 1)), rows], axis=1)


class Subclassed(keras.Model):
  """A model that is no graph of layers."""

  def __init__(self):
    super().__init__()
    self.conv, self.dense = layers.Conv2D(4, 3), layers.Dense(2)

  def call(self, x):
    return self.dense(ops.mean(ops.relu(self.conv(x)), axis=(1, 2)))


class Branching(keras.Model):
  """A model whose path depends on values."""

  def __init__(self):
    super().__init__()
    self.dense = layers.Dense(2)

  def call(self, x):
    return self.dense(x) if ops.sum(x) > 0 else x[:, :2]


def of(shape, function, **options):
  x = keras.Input(shape, **options)
  return keras.Model(x, function(x))


def shared():
  a, b, dense = keras.Input((6,), name="a"), keras.Input((6,), name="b"), layers.Dense(4, name="both")
  product = layers.Multiply()([dense(a), b[:, :4]])
  return keras.Model({"a": a, "b": b}, {"sum": dense(a) + dense(b), "product": product})


def normalized():
  layer = layers.Normalization()
  layer.adapt(np.random.default_rng(0).normal(3, 2, size=(50, 5)))
  return of((5,), lambda x: layers.Dense(2)(layer(x)))


def half():
  policy = keras.config.dtype_policy()
  keras.config.set_dtype_policy("mixed_float16")
  try:
    return of((8, 8, 3), lambda x: layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))))
  finally:
    keras.config.set_dtype_policy(policy)


def subclassed():
  model = Subclassed()
  model(np.zeros((1, 8, 8, 3)))
  return model


class TokensModel(keras.Model):
  """The same in a model that is no graph of layers."""

  def __init__(self):
    super().__init__()
    self.tokens, self.dense = Tokens(), layers.Dense(2)

  def call(self, x):
    x = self.tokens(x)
    return self.dense(ops.concatenate([ops.broadcast_to(self.tokens.token, [ops.shape(x)[0], 1, 8]), x], 1))


def tokens_model():
  model = TokensModel()
  model(np.zeros((2, 8, 4, 2)))
  return model


def augmented(x):
  x = layers.RandomZoom(0.1)(layers.RandomRotation(0.1)(layers.RandomFlip()(x)))
  x = layers.Rescaling(1 / 255)(x)
  return layers.Dropout(0.3)(layers.Conv2D(3, 3, activation="swish")(x))


def of_operations(x):
  y = x - ops.mean(x, axis=(1, 2), keepdims=True)
  y = ops.transpose(ops.reshape(y, (-1, 64, 3)), (0, 2, 1))
  y = ops.concatenate([y, 2.0 * y], axis=1)[:, 1:, ::2]
  return ops.softmax(ops.relu(y) / 2 + 1.5)


MODELS = {
    "sequential": lambda: keras.Sequential([
        keras.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu6"), layers.Flatten(),
        layers.Dense(3, activation="softmax")]),
    "nested": lambda: of((8, 8, 3), keras.Sequential([
        keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.LeakyReLU(0.3)])),
    "shared layers, dicts": shared,
    "operations": lambda: of((8, 8, 3), of_operations),
    "attention": lambda: of((6, 8), lambda x: layers.LayerNormalization()(
        x + layers.MultiHeadAttention(2, 4)(x, x))),
    "Normalization": normalized,
    "RMSNormalization": lambda: of((6, 8), layers.RMSNormalization()),
    "Lambda": lambda: of((6, 8), layers.Lambda(lambda x: 2 * ops.tanh(x))),
    "a layer of one's own": lambda: of((8,), lambda x: Scaled()(Scaled()(x))),
    "subclassed": subclassed,
    "a variable for each image": lambda: of((8, 4, 2), lambda x: layers.Dense(3)(Tokens()(x))),
    "subclassed, a variable for each image": tokens_model,
    "augmentation": lambda: of((16, 16, 3), augmented),
    "recurrent": lambda: of((5, 4), lambda x: layers.GRU(2)(layers.Bidirectional(
        layers.LSTM(3, return_sequences=True))(x))),
    "TimeDistributed": lambda: of((5, 8), layers.TimeDistributed(layers.Dense(3))),
    "Embedding": lambda: of((5,), layers.Embedding(10, 4), dtype="int32"),
    "half precision": half,
    "sequences": lambda: of((20, 4), lambda x: layers.Conv1DTranspose(3, 2)(layers.UpSampling1D(2)(
        layers.MaxPooling1D(2)(layers.SeparableConv1D(4, 3)(
            layers.Conv1D(6, 3, padding="causal", activation="gelu")(x)))))),
    "activations": lambda: of((8,), lambda x: [layers.Dense(3, activation=name)(x) for name in (
        "hard_sigmoid", "hard_silu", "silu", "gelu", "leaky_relu", "elu", "relu6", "log_softmax", "mish")]),
    "regularizer": lambda: of((8,), layers.Dense(4, kernel_regularizer="l2", kernel_constraint="non_neg")),
    "open dimensions": lambda: of((None, None, 3), lambda x: layers.GlobalAveragePooling2D()(
        layers.Conv2D(4, 3)(x))),
}


def moved(model):
  """Random statistics and biases, so that every weight counts."""
  random = np.random.default_rng(1)
  for weight in model.weights:
    if len(weight.shape) == 1 and "float" in weight.dtype:
      weight.assign(random.uniform(0.5, 1.5, weight.shape))
  return model


def inputs_of(made):
  random = np.random.default_rng(2)
  arrays = [random.integers(0, 9, (3, *x.shape[1:])) if not x.dtype.is_floating else
            random.normal(size=(3, *(n or 16 for n in x.shape[1:]))).astype(np.float32) for x in made.inputs]
  return dict(zip(made.input_names, arrays)) if len(arrays) > 1 else arrays[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same(name):
  keras.utils.set_random_seed(0)
  model = MODELS[name]()
  model = model if name == "Normalization" else moved(model)
  made = kq.from_keras3(model)
  assert isinstance(made, tf_keras.Model) and not is_keras3(made)
  x = inputs_of(made)
  mine, theirs = made(x, training=False), model(x, training=False)
  structure = sorted(theirs) if isinstance(theirs, dict) else range(len(theirs)) if isinstance(
      theirs, (list, tuple)) else None
  for key in [None] if structure is None else structure:
    a, b = (np.asarray(value if key is None else value[key], np.float64) for value in (mine, theirs))
    assert np.abs(a - b).max() <= (3e-2 if name == "half precision" else 1e-5) * np.abs(b).max()


class Shifted(layers.Layer):
  """Adds a weight to each feature."""

  def build(self, shape):
    self.shift = self.add_weight(shape=(shape[-1],), initializer="ones", name="shift")

  def call(self, x):
    return x + self.shift


def test_a_weight_as_long_as_the_batch_that_calls_are_traced_with():
  model = of((ANY_BATCH,), lambda x: Shifted()(x))
  x = RANDOM.normal(size=(3, ANY_BATCH)).astype(np.float32)
  np.testing.assert_array_equal(kq.from_keras3(model)(x), x + 1)


def test_names_trainability_and_regularizers_stay():
  x = keras.Input((8, 8, 3), name="picture")
  conv = layers.Conv2D(4, 3, name="conv", kernel_regularizer=keras.regularizers.L2(0.5))
  model = keras.Model(x, layers.Flatten(name="flat")(conv(x)), name="network")
  made = kq.from_keras3(model)
  assert made.name == "network" and [layer.name for layer in made.layers] == ["picture", "conv", "flat"]
  assert made.input_names == ["picture"] and made.output_names == ["flat"]
  np.testing.assert_allclose(float(sum(made.losses)), float(sum(model.losses)), rtol=1e-6)
  conv.trainable = False
  assert not kq.from_keras3(model).trainable_weights


REFUSED = {
    "not built": (lambda: keras.Sequential([layers.Dense(2)]), ValueError, "is not built"),
    "a subclass that was never called": (Subclassed, ValueError, r"\(Subclassed\) is not built"),
    "always in training": (lambda: of((8,), lambda x: layers.Dropout(0.5, name="wild")(x, training=True)),
                           kq.UnsupportedLayerError, "'wild' is called with training=True"),
    "an unknown operation": (lambda: of((8,), lambda x: ops.sinc(x)), kq.UnsupportedLayerError,
                             "sinc.*has no form"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_equal_is_named_on_one_line(name):
  make, error, message = REFUSED[name]
  with pytest.raises(error, match=message) as raised:
    kq.from_keras3(make())
  assert "\n" not in str(raised.value)


def test_python_conditions_on_values_are_named():
  model = Branching()
  model(np.ones((1, 4)))
  with pytest.raises(ValueError, match="'branching.*conditions on values cannot be traced"):
    kq.from_keras3(model)


def test_a_model_of_another_function_is_refused(monkeypatch):
  from kquant.graph.readers import keras3_layers
  monkeypatch.setattr(keras3_layers, "_SAME_ACTIVATIONS", ("hard_sigmoid",))  # another function in tf_keras
  with pytest.raises(ValueError, match="output 0 of its tf_keras form differs by"):
    kq.from_keras3(of((8,), layers.Dense(3, activation="hard_sigmoid")))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_file_of_keras_3_becomes_a_tflite_file(ending, tmp_path):
  keras.utils.set_random_seed(0)
  model = moved(of((8, 8, 3), lambda x: layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(
      layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(6, 3)(x)))))))
  model.save(tmp_path / f"m.{ending}")
  made = kq.load_model(tmp_path / f"m.{ending}")
  images = RANDOM.normal(size=(24, 8, 8, 3)).astype(np.float32)
  np.testing.assert_allclose(made.predict(images, verbose=0), np.asarray(model(images)), atol=1e-5)
  results = [kq.quantize(given, images, effort=None) for given in (made, model)]  # a live model is taken too
  assert results[0].encodings == results[1].encodings
  assert kq.export(results[1], tmp_path / "m.tflite", verify=images[:2]).verification.ok
  qmodel = kq.calibrate(kq.insert_quantizers(model), images)
  qmodel.compile("sgd", "sparse_categorical_crossentropy")
  assert np.isfinite(qmodel.fit(images, np.zeros(24), verbose=0).history["loss"]).all()


def test_a_lambda_in_a_file_is_run_where_the_file_is_trusted_only(tmp_path):
  of((8,), layers.Lambda(lambda x: x * 2)).save(tmp_path / "m.keras")
  with pytest.raises(ValueError, match="is a Lambda.*trusted=True") as error:
    kq.load_model(tmp_path / "m.keras")
  assert "\n" not in str(error.value)
  assert kq.load_model(tmp_path / "m.keras", trusted=True)(np.ones((1, 8))).numpy().tolist() == [[2.0] * 8]


def test_keras_3_is_not_imported_for_other_models():
  code = ("import sys, kquant, tf_keras\n"
          "from kquant.graph.model_forms import as_tf_keras\n"
          "model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])\n"
          "assert as_tf_keras(model) is model\n"
          "assert 'keras.src.models' not in sys.modules or 'tensorflow' in sys.modules\n")
  environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
  assert done.returncode == 0, done.stderr[-2000:]


def test_other_things_are_left_alone():
  assert as_tf_keras(3) == 3 and not is_keras3(tf_keras.Sequential())
  with pytest.raises(TypeError, match="expected a Keras 3 model, got int"):
    kq.from_keras3(3)


@pytest.mark.parametrize("cases, least", [(keras3_cases.functions, 130), (keras3_cases.layers, 100)])
def test_every_function_and_layer_of_keras_comes_in_equal_or_is_refused_by_name(cases, least):
  equal, refused = keras3_cases.come_in(cases())
  assert len(equal) >= least
  for name, reason in refused:
    assert "\n" not in reason and reason.startswith(("Operation '", "Layer '")), (name, reason)
