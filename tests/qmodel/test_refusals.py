"""What users write that has no integer form is told about itself: one line with the remedy."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export

X = np.random.default_rng(0).random((24, 6, 6, 4)).astype(np.float32)


def model_of(function):
  image = keras.Input((6, 6, 4), name="image")
  return keras.Model(image, function(layers.Conv2D(4, 3, name="conv")(image)))


FUNCTIONS = {
    "leave it out of the model: the integers": lambda y: tf.argmax(layers.Flatten()(y), -1),
    "have the same order": lambda y: tf.math.top_k(layers.Flatten()(y), 2).values,
    "make the input of the model float32": lambda y: tf.cast(y, "int32"),
    "a product with constants": lambda y: tf.cumsum(y, -1),
    "apply it to the images before": tf.image.per_image_standardization,
    "write it with tf.nn.relu": lambda y: tf.where(y > 0, y, 0.1 * y),
    "tf.square and tf.reduce_mean": lambda y: tf.math.reduce_std(y, -1),
    "end in the logits": tf.nn.log_softmax,
    "such as tf.math.": lambda y: tf.math.cumprod(y, -1)}


@pytest.mark.parametrize("remedy", FUNCTIONS)
def test_a_function_is_refused_with_its_own_remedy(remedy):
  with pytest.raises(kq.UnsupportedLayerError) as caught:
    kq.quantize(model_of(FUNCTIONS[remedy]), X, effort=None)
  message = str(caught.value)
  assert remedy in message and "\n" not in message and len(message) < 260


def test_a_quantized_model_is_not_quantized_again():
  result = kq.quantize(model_of(layers.ReLU()), X, effort=None)
  with pytest.raises(kq.UnsupportedLayerError, match="is quantized already: finalize it with kq.finalize"):
    kq.quantize(result.qmodel, X, effort=None)


def test_an_integer_input_that_is_cast_is_an_input_of_numbers(tmp_path):
  image = keras.Input((6, 6, 4), dtype="uint8", name="image")
  model = keras.Model(image, layers.Conv2D(3, 3)(tf.cast(image, tf.float32) / 255.0))
  x = (255 * X).astype(np.uint8)
  result = kq.quantize(model, x, effort=None)
  np.testing.assert_allclose(result.model(x.astype(np.float32)), model(x), atol=0.02)
  written = tflite_export.export(result, tmp_path / "m.tflite", io="uint8", verify=x[:2])
  assert written.program.tensors[written.program.inputs[0]].dtype == "uint8"


@pytest.mark.parametrize("name", ["an image", "größe", "_x", "a:b", "a/b"])
def test_names_that_are_no_scopes_of_tensorflow_work(name, tmp_path):
  image = keras.Input((6, 6, 4), name=name)
  result = kq.quantize(keras.Model(image, layers.Conv2D(3, 3)(image)), X, effort=None)
  assert result.encodings.input_names == [name]
  tflite_export.export(result, tmp_path / "m.tflite", verify=X[:2])


def test_a_unit_length_written_as_a_function_is_the_layer(tmp_path):
  model = model_of(lambda y: tf.math.l2_normalize(y, axis=-1))
  result = kq.quantize(model, X, effort=None)
  np.testing.assert_allclose(result.model(X), model(X), atol=0.05)


def test_graph_mode_is_named():
  with tf.Graph().as_default(), pytest.raises(RuntimeError, match="needs eager execution; leave out"):
    kq.quantize(model_of(layers.ReLU()), X, effort=None)
