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


@pytest.mark.parametrize("make, dtype, message", [
    (lambda: embedded(layers.Discretization([0.5]), 2), "float32", "input one of dtype int32"),
    (lambda: embedded(layers.IntegerLookup(vocabulary=[1, 9000]), 3), "int32", "more than 4,096 numbers"),
    (lambda: embedded(layers.IntegerLookup(vocabulary=WORDS, num_oov_indices=2), 6), "int32",
     "several indices")])
def test_other_forms_are_refused_with_the_remedy(make, dtype, message):
  with pytest.raises(UnsupportedLayerError, match=message):
    kq.quantize(model_of(make, dtype), np.zeros((4, 3)), effort=None)
