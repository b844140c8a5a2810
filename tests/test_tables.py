"""Tables of functions and of embeddings: chosen by finalize, compared by the verifier, exact."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from tests import models
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.proof.verifier import verify


def embedding_model():
  words = keras.Input((5,), dtype="int32", name="words")
  x = layers.Embedding(11, 4, name="embed")(words)
  x = layers.Activation("gelu", name="gelu")(layers.Dense(3, name="dense")(x))
  return models.randomized(keras.Model(words, layers.Flatten()(x), name="words_to_numbers"))


@pytest.fixture
def words():
  return np.random.default_rng(0).integers(0, 11, (16, 5)).astype(np.int32)


@pytest.mark.parametrize("preset, dtype", [("int8", "int8"), ("w4a8", "int8"), ("int16x8", "int16")])
def test_tables_are_encodings_and_exact(words, preset, dtype, tmp_path):
  result = kq.quantize(embedding_model(), words, config=preset, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=words[:3], certify=True)
  assert written.certificate["exact"]
  rows = result.qmodel.get_layer("embed").get_weights()[0]
  for key, values in (("embed/table", rows), ("gelu/table", None)):
    stored = from_bytes(written.path.read_bytes()).tensors[key]
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored.data, result.encodings.integers[key])
    assert result.encodings[key] == result.encodings[key.removesuffix("/table")]
    if values is not None:
      np.testing.assert_array_equal(stored.data, result.encodings[key].quantize(values))


def test_a_table_of_16_bits_takes_part_in_the_file_as_it_was_chosen(words, tmp_path):
  result = kq.quantize(embedding_model(), words, config="int16x8", effort=None)
  tflite_export.export(result, tmp_path / "m.tflite")  # without inputs to run
  table = result.encodings.integers["embed/table"]
  assert np.abs(table).max() > 127  # what int8 would cut off


@pytest.mark.parametrize("preset", ["int8", "int16x8"])
@pytest.mark.parametrize("key", ["embed/table", "gelu/table"])
def test_one_wrong_integer_of_a_table_is_found_without_running_the_file(words, preset, key, tmp_path):
  result = kq.quantize(embedding_model(), words, config=preset, effort=None)
  program = tflite_export.export(result, tmp_path / "m.tflite").program
  program.tensors[key].data = program.tensors[key].data.copy()
  program.tensors[key].data.reshape(-1)[3] ^= 1
  found = verify(to_bytes(program), None, result.encodings)
  assert found.problems == [f"{key}: the file's integers differ from the chosen ones"]


def test_a_function_behind_which_a_relu_is_fused_has_its_table_on_the_relus_grid(tmp_path):
  x = image = keras.Input((6, 6, 3), name="image")
  x = layers.Activation("softsign", name="sign")(layers.Conv2D(4, 3, name="conv")(x))
  x = layers.ReLU(name="relu")(x)
  model = models.randomized(keras.Model(image, x))
  (data,) = models.sample_inputs(model)
  result = kq.quantize(model, data, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=data[:2], certify=True)
  assert written.certificate["exact"]
  assert result.encodings["sign/table"] == result.encodings["relu"] and "sign" not in result.encodings
  assert result.encodings.integers["sign/table"].min() == result.encodings["relu"].zero_point[0]


def test_softmax_of_many_classes_is_as_far_off_at_16_bits_as_its_table_of_exp_lets_it_be(tmp_path):
  classes = 1001
  x = keras.Input((12,), name="x")
  spread = keras.initializers.RandomNormal(stddev=6.0)
  scores = layers.Dense(classes, name="scores", kernel_initializer=spread)
  model = keras.Model(x, layers.Softmax(name="softmax")(scores(x)))
  data = np.random.default_rng(0).normal(size=(32, 12)).astype(np.float32)
  result = kq.quantize(model, data, config="int16x8", effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=data[:8], certify=True)
  off = written.verification.layers["softmax"]
  assert 256 < off <= 256 + 2 * classes  # of 32,768 steps; 256 is what few classes have
