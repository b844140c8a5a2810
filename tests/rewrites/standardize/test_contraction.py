"""tf.einsum and EinsumDense as matrix products, in float and as exact integers."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from tests.rewrites.standardize.written import assert_written

SIZES = {"b": 3, "c": 4, "d": 5, "e": 6, "f": 2}


@pytest.mark.parametrize("equation, bias", [
    ("abc,cd->abd", "d"), ("abcd,de->abce", None), ("abc,cde->abde", "de"), ("abc,bcd->ad", "d"),
    ("...c,cd->...d", "d"), ("abcd,be->aecd", None), ("abc,dc->adb", None), ("abc,cbe->ae", "e"),
    ("abc,ced->adbe", "d"), ("abc,c->ab", None)])
def test_einsum_dense(equation, bias):
  left, right, result = equation.replace("...", "ab").replace("->", ",").split(",")
  shape = tuple(SIZES[letter] for letter in left[1:])
  made = tuple(None if letter in left else SIZES[letter] for letter in result[1:])
  if "..." in equation:
    made = made[-1:]
  layer = layers.EinsumDense(equation, made, bias_axes=bias, activation="tanh")
  assert "EinsumDense" not in assert_written(layer, shape)


@pytest.mark.parametrize("equation", [
    "abc,adc->abd", "abc,acd->abd", "abc,acd->adb", "abcd,aecd->abe", "abcd,abed->abce", "abcd,adbe->abce",
    "abc,ade->abcde", "abc,abc->ab", "...bc,...dc->...bd", "abcd,acbe->acde"])
def test_einsum_of_two_tensors(equation, tmp_path):
  terms = equation.replace("...", "a").replace("->", ",").split(",")
  inputs = [keras.Input([SIZES[letter] for letter in term[1:]]) for term in terms[:2]]
  model = keras.Model(inputs, tf.einsum(equation, *inputs))
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=(4, *tensor.shape[1:])).astype(np.float32) for tensor in inputs]
  expected = model(arrays).numpy()
  np.testing.assert_allclose(kq.standardize(model)(arrays).numpy(), expected, atol=1e-5)
  written = tflite_export.export(kq.quantize(model, arrays, effort=None), tmp_path / "m.tflite",
                                 verify=[x[:2] for x in arrays], certify=True)
  assert written.certificate["exact"]


@pytest.mark.parametrize("equation, shape", [("abc,cd->abd", (4, 5)), ("dc,abc->abd", (5, 4)),
                                             ("abc,ce->aeb", (4, 6)), ("abc,bc->a", (3, 4))])
def test_einsum_with_a_constant_is_a_dense_layer(equation, shape):
  constant = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  order = equation.index("abc") and slice(None, None, -1) or slice(None)
  kinds = assert_written(lambda x: tf.einsum(equation, *[x, constant][order]), (3, 4))
  assert "Dense" in kinds and "TFOpLambda" not in kinds


@pytest.mark.parametrize("equation", ["abc,abd->bcd", "abc,adc->ab"])
def test_other_equations_are_refused(equation):
  """A sum over the batch, or over an axis of one tensor alone, is no matrix product."""
  image = keras.Input((4, 4))
  model = keras.Model(image, tf.einsum(equation, image, image))
  with pytest.raises(UnsupportedLayerError, match="no matrix product of two operands.*; let the batch lead"):
    kq.quantize(model, np.zeros((4, 4, 4), np.float32), effort=None)
