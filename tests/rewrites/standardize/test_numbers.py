"""IntegerLookup and Discretization of whole numbers: rows of one table, whatever numbers come."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.core.errors import UnsupportedLayerError
from tests.models import randomized

WORDS = [7, -3, 20, 11]


def embedded(layer, rows, **given):
  return lambda x: layers.Flatten()(layers.Embedding(rows, 3, **given)(layer(x)))


def adapted():
  layer = layers.Discretization(num_bins=4)
  layer.adapt(np.arange(-5, 25)[:, None])
  return layer


MODELS = {
    "lookup, embedding": lambda: embedded(layers.IntegerLookup(vocabulary=WORDS), 5),
    "lookup, mask": lambda: embedded(layers.IntegerLookup(vocabulary=WORDS, mask_token=0), 6),
    "lookup, one_hot": lambda: layers.IntegerLookup(vocabulary=WORDS, output_mode="one_hot"),
    "lookup, multi_hot": lambda: layers.IntegerLookup(vocabulary=WORDS, output_mode="multi_hot",
                                                      mask_token=4),
    "lookup, count": lambda: layers.IntegerLookup(vocabulary=WORDS, output_mode="count"),
    "lookup, encoding": lambda: lambda x: layers.CategoryEncoding(5, "multi_hot")(
        layers.IntegerLookup(vocabulary=WORDS)(x)),
    "bins, embedding": lambda: embedded(layers.Discretization([-2.5, 0.0, 9.0]), 4),
    "bins, adapted": lambda: embedded(adapted(), 4),
    "bins, count": lambda: layers.Discretization([-2.5, 0.0, 9.0], output_mode="count"),
}


def model_of(make, dtype="int32", numbers=3):
  keras.backend.clear_session()
  keras.utils.set_random_seed(0)
  x = keras.Input((numbers,), dtype=dtype, name="x")
  return randomized(keras.Model(x, layers.Dense(2)(make()(x))))


@pytest.mark.parametrize("name", MODELS)
def test_a_table_holds_what_each_number_becomes_those_beyond_it_too(name, tmp_path):
  numbers = 1 if "one_hot" in name else 3
  model = model_of(MODELS[name], "int64" if "mask" in name else "int32", numbers)
  data = np.random.default_rng(0).integers(-40, 60, (64, 3))
  data[:4] = [[-3, 7, 11], [20, 0, 4], [2**31 - 1, -2**31, 9], [-2, 8, -4]]
  data = data[:, :numbers]
  expected = model(data).numpy()
  data = data.astype(np.int32)
  np.testing.assert_allclose(kq.standardize(model)(data), expected, atol=1e-6)
  result = kq.quantize(model, data, effort=None)
  written = kq.export(result, tmp_path / "m.tflite", verify=data[:8], certify=True)
  assert written.certificate["exact"] and not written.verification.float_operators


def lookup(**given):
  return lambda: embedded(layers.IntegerLookup(**{"vocabulary": WORDS, **given}), 9)


@pytest.mark.parametrize("make, message", [
    (lookup(vocabulary=[1, 9000]), "numbers that span more than 4,096"),
    (lookup(vocabulary=[5000, 5001], mask_token=0), "numbers that span more than 4,096"),
    (lookup(vocabulary=[2**31 - 2, 2**31 - 1]), "numbers beyond those of int32"),
    (lookup(vocabulary=[-2**31, 1 - 2**31]), "numbers beyond those of int32"),
    (lookup(vocabulary=[3 * 10**9, 3 * 10**9 + 1]), "numbers beyond those of int32"),
    (lambda: embedded(layers.Discretization([0.0, np.inf]), 3), "numbers beyond those of int32"),
    (lambda: embedded(layers.Discretization([0.0, 5000.0]), 3), "numbers that span more than 4,096"),
    (lookup(num_oov_indices=2), "num_oov_indices=2"),
    (lookup(num_oov_indices=0), "num_oov_indices=0"),
    (lookup(invert=True), "invert=True"),
    (lambda: layers.IntegerLookup(vocabulary=WORDS, output_mode="tf_idf", idf_weights=[1.0] * 4),
     "output_mode='tf_idf'"),
    (lambda: lambda x: layers.Rescaling(2.0)(layers.IntegerLookup(vocabulary=WORDS)(x)),
     "read by layers other"),
])
def test_other_forms_are_refused_with_the_reason(make, message):
  with pytest.raises(UnsupportedLayerError, match=message):
    kq.quantize(model_of(make), np.zeros((4, 3)), effort=None)


def test_an_input_of_other_numbers_is_refused():
  model = model_of(lambda: embedded(layers.Discretization([0.5]), 2), "float32")
  with pytest.raises(UnsupportedLayerError, match="input one of dtype int32"):
    kq.quantize(model, np.zeros((4, 3)), effort=None)


def test_a_table_of_too_few_rows_is_refused_with_what_it_needs():
  for make in (lambda: embedded(layers.IntegerLookup(vocabulary=WORDS, name="lookup"), 4, name="table"),
               lambda: lambda x: layers.CategoryEncoding(4, "multi_hot", name="table")(
                   layers.IntegerLookup(vocabulary=WORDS, name="lookup")(x))):
    with pytest.raises(UnsupportedLayerError, match="'table' .* has 4 rows.*'lookup' .*makes 5 indices"):
      kq.quantize(model_of(make), np.zeros((4, 3)), effort=None)


def test_rules_and_notes_know_the_embedding():
  model = model_of(lambda: embedded(layers.IntegerLookup(vocabulary=WORDS), 5, name="table"))
  wide = kq.Rule(kinds=("Embedding",), activations=kq.TensorSpec(bits=16))
  config = kq.QuantConfig(rules=(wide, kq.Rule()))
  result = kq.quantize(model, np.zeros((4, 3)), config=config, effort=None)
  assert result.encodings["table/rows"].bits == 16
  assert [(skip.layer, skip.reason) for skip in result.report.skips] == [
      ("table", "its table is left out of training")]


@pytest.mark.parametrize("shape, layer, message", [
    ((3,), layers.IntegerLookup, "no vocabulary; adapt it"),
    ((3, 1), lambda: layers.IntegerLookup(vocabulary=WORDS), "a tensor of rank 3")])
def test_a_lookup_that_has_no_table_stays_as_it_is(shape, layer, message):
  x = keras.Input(shape, dtype="int32")
  model = keras.Model(x, layers.Flatten()(layers.Embedding(9, 3)(layer()(x))))
  assert "IntegerLookup" in [type(layer).__name__ for layer in kq.standardize(model).layers]
  with pytest.raises(UnsupportedLayerError, match=message):
    kq.quantize(model, np.zeros((4, *shape)), effort=None)
