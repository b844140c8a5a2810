"""Masks as tensors: standardized models compute what Keras computes with the masks that it passes along."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.masks import DiffersFrom, IndexMask, Select, ShareFactor
from kquant.qmodel.quantize_activation import QuantizeActivation

STEPS, WORDS = 5, 30


def words(count=16, steps=STEPS, seed=0):
  """Indices [count, steps], 0 behind a random length of at least 1."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, steps + 1, (count, 1))
  return np.where(np.arange(steps) < lengths, rng.integers(1, WORDS, (count, steps)), 0).astype(np.int32)


def rows(value=0.0, seed=0):
  """Reals [16, STEPS, 3], `value` behind a random length of at least 1."""
  x = np.random.default_rng(seed).normal(size=(16, STEPS, 3)).astype(np.float32)
  x[words(seed=seed) == 0] = value
  return x


def embed(size=4):
  return layers.Embedding(WORDS, size, mask_zero=True)


def word_input():
  return keras.Input((STEPS,), dtype="int32")


def mean(x, **call):
  return layers.GlobalAveragePooling1D()(x, **call)


def passed_on():
  image = word_input()
  x = layers.Dropout(0.1)(layers.LayerNormalization()(layers.Dense(5, "relu")(embed()(image))))
  return keras.Model(image, mean(x)), [words()]


def stopped_by_a_convolution():
  image = word_input()
  return keras.Model(image, mean(layers.Conv1D(4, 3)(embed()(image)))), [words()]


def given_by_the_user():
  image, table = word_input(), layers.Embedding(WORDS, 4, mask_zero=True)
  x = layers.Conv1D(4, 3, padding="same")(table(image))
  return keras.Model(image, mean(x, mask=table.compute_mask(image))), [words()]


def merged():
  first, second, table = word_input(), word_input(), embed()
  x = layers.Add()([table(first), table(second)])
  return keras.Model([first, second], mean(layers.Multiply()([x, table(first)]))), [words(), words(seed=1)]


def joined_features():
  first, second = word_input(), word_input()
  x = layers.Concatenate()([embed()(first), layers.Embedding(WORDS, 3)(second), embed(2)(second)])
  return keras.Model([first, second], mean(x)), [words(), words(seed=1)]


def joined_steps():
  first, second = word_input(), word_input()
  x = layers.Concatenate(axis=1)([embed()(first), embed()(second)])
  return keras.Model([first, second], mean(x)), [words(), words(seed=1)]


def nested():
  inner = keras.Sequential([keras.Input((STEPS, 4)), layers.Dense(5)])
  image = word_input()
  return keras.Model(image, mean(inner(embed()(image)))), [words()]


def masked_reals():
  image = keras.Input((STEPS, 3))
  return keras.Model(image, mean(layers.Dense(4)(layers.Masking(-1.5)(image)))), [rows(-1.5)]


def long_sequence():
  image = keras.Input((400,), dtype="int32")
  return keras.Model(image, mean(embed()(image))), [words(steps=400)]


def self_attention():
  image = word_input()
  x = embed()(image)
  x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True))
  return keras.Model(image, layers.Flatten()(x)), [words()]


def cross_attention():
  first, second = word_input(), word_input()
  table = embed()
  x, weights = layers.MultiHeadAttention(2, 3)(table(first), value=table(second), key=embed()(second),
                                               return_attention_scores=True)
  return keras.Model([first, second], [x, weights]), [words(), words(seed=1)]


def attention_with(dtype, give):
  """Attention with a mask [steps] or [steps, steps] that is an input of the model."""
  image, mask = keras.Input((STEPS, 3)), keras.Input((STEPS,), dtype=dtype)
  x = layers.MultiHeadAttention(2, 3)(image, image, attention_mask=give(mask))
  return keras.Model([image, mask], x), [rows(), (words() > 0).astype(dtype)]


def attention_of_rows():
  """A mask written as Keras 3 writes that of a Masking."""
  image = keras.Input((STEPS, 3))
  mask = tf.reduce_any(tf.not_equal(image, 0.0), axis=-1)
  return keras.Model(image, mean(layers.Dense(4)(image), mask=mask)), [rows()]


def constant_mask():
  image = keras.Input((STEPS, 3))
  return keras.Model(image, layers.MultiHeadAttention(2, 3)(
      image, image, attention_mask=np.tri(STEPS, STEPS, 1)[None])), [rows()]


def dot_attention():
  first, second = word_input(), word_input()
  x, weights = layers.Attention(use_scale=True)([embed()(first), embed()(second)], use_causal_mask=True,
                                                return_attention_scores=True)
  return keras.Model([first, second], [mean(x), weights]), [words(), words(seed=1)]


def sums_of_tanh(layer):
  first, second = word_input(), word_input()
  return keras.Model([first, second], layer([embed()(first), embed()(second)])), [words(), words(seed=1)]


def recurrent(layer, *states):
  """A layer of words that are padded behind some sequences and in front of others; given states or none."""
  image, given = word_input(), [keras.Input((size,)) for size in states]
  x = embed()(image)
  padded = words()
  padded[3:8] = padded[3:8, ::-1]
  rng = np.random.default_rng(4)
  return (keras.Model([image, *given], layer(x, initial_state=given) if given else layer(x)),
          [padded, *(rng.normal(size=(16, size)).astype(np.float32) for size in states)])


def masked_lstm():
  image = keras.Input((STEPS, 3))
  return keras.Model(image, layers.Dense(3)(layers.LSTM(4)(layers.Masking(-2.0)(image)))), [rows(-2.0)]


def two_lstms():
  """The first hands the mask on, the second does not."""
  image = word_input()
  x = layers.LSTM(3)(layers.Dropout(0.1)(layers.LSTM(4, return_sequences=True)(embed()(image))))
  return keras.Model(image, x), [words()]


def handed_on(make):
  """What a call makes with a mask that it is given has that mask, whatever its input had."""
  first, second = word_input(), word_input()
  table = embed()
  return (keras.Model([first, second], mean(make(table(first), table.compute_mask(second)))),
          [words(), words(seed=1)])


WHOLE = {"return_sequences": True, "return_state": True}
RECURRENT = {
    "lstm": lambda: recurrent(layers.LSTM(3, **WHOLE)),
    "lstm, backwards": lambda: recurrent(layers.LSTM(3, go_backwards=True)),
    "lstm, zeros": lambda: recurrent(layers.LSTM(3, zero_output_for_mask=True, **WHOLE)),
    "lstm, given": lambda: recurrent(layers.LSTM(3, **WHOLE), 3, 3),
    "gru": lambda: recurrent(layers.GRU(3, **WHOLE)),
    "gru, given": lambda: recurrent(layers.GRU(3, reset_after=False, **WHOLE), 3),
    "simple": lambda: recurrent(layers.SimpleRNN(3, zero_output_for_mask=True)),
    "simple, given": lambda: recurrent(layers.SimpleRNN(3, **WHOLE), 3),
    "stacked": lambda: recurrent(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], go_backwards=True)),
    "both ways": lambda: recurrent(layers.Bidirectional(layers.LSTM(3, return_sequences=True))),
    "both ways, last": lambda: recurrent(layers.Bidirectional(layers.GRU(3), merge_mode="sum")),
    "masked_lstm": masked_lstm, "two_lstms": two_lstms}

MODELS = {
    **{build.__name__: build for build in (
        passed_on, stopped_by_a_convolution, given_by_the_user, merged, joined_features, joined_steps, nested,
        masked_reals, long_sequence, self_attention, cross_attention, constant_mask, dot_attention)},
    "mask of rows": lambda: attention_of_rows(),
    "mask of int32": lambda: attention_with("int32", lambda mask: mask[:, tf.newaxis, :]),
    "mask of bool": lambda: attention_with("bool", lambda mask: mask[:, tf.newaxis, tf.newaxis, :]),
    "mask of float32": lambda: attention_with("float32", lambda mask: tf.expand_dims(mask, 1)),
    **RECURRENT,
    "handed on by a gru": lambda: handed_on(
        lambda x, mask: layers.GRU(3, return_sequences=True)(x, mask=mask)),
    "handed on by both ways": lambda: handed_on(
        lambda x, mask: layers.Bidirectional(layers.GRU(3, return_sequences=True))(x, mask=mask)),
    "handed on by both ways, apart": lambda: handed_on(lambda x, mask: layers.Bidirectional(
        layers.GRU(3, return_sequences=True), merge_mode=None)(x, mask=mask)[1]),
    "handed on by attention": lambda: handed_on(
        lambda x, mask: layers.Attention()([x, x], mask=[mask, None])),
    "additive": lambda: sums_of_tanh(layers.AdditiveAttention()),
    "concatenated": lambda: sums_of_tanh(layers.Attention(score_mode="concat", use_scale=True)),
}


def built(name):
  keras.backend.clear_session()
  keras.utils.set_random_seed(3)
  model, inputs = MODELS[name]()
  for weight in model.weights:
    weight.assign(weight + tf.random.normal(weight.shape, stddev=0.2))
  return model, inputs


def run(model, inputs):
  inputs = [tf.cast(x, tensor.dtype) for x, tensor in zip(inputs, model.inputs)]
  outputs = model(inputs if inputs[1:] else inputs[0], training=False)
  return [output.numpy() for output in tf.nest.flatten(outputs)]


@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays(name):
  model, inputs = built(name)
  for expected, found in zip(run(model, inputs), run(kq.standardize(model), inputs), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)


EXACT = ("joined_steps", "masked_reals", "mask of bool", "cross_attention", "lstm", "lstm, zeros",
         "gru, given")


@pytest.mark.parametrize("name", EXACT)
def test_the_file_is_exact(name, tmp_path):
  model, inputs = built(name)
  inputs = [x.astype(np.int32) if x.dtype == bool else x for x in inputs]
  result = kq.quantize(model, inputs, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=[x[:4] for x in inputs], certify=True)
  assert written.certificate["exact"]
  assert not written.verification.float_operators
  for expected, found in zip(run(model, inputs), run(result.qmodel, inputs)):
    assert np.square(found - expected).mean() < 0.01 * np.square(expected).mean()


def test_a_mask_counts_and_is_no_mask_of_keras_any_more():
  model, inputs = built("passed_on")
  graph = Graph.from_model(model)
  kq.standardize(graph)
  assert {node.layer.cls for node in graph.nodes} >= {IndexMask, Select, ShareFactor}
  assert not any(node.config.get("mask_zero") for node in graph.nodes)
  longer = inputs[0].copy()
  longer[longer == 0] = 5
  assert np.abs(run(kq.standardize(model), [longer])[0] - run(model, inputs)[0]).max() > 0.01


@pytest.mark.parametrize("length", [1, 2, 7, 128, 129, 255, 256, 1000])
def test_the_factors_of_a_count_are_its_reciprocal(length):
  counts = np.arange(1, length + 1)
  shares = (counts / length).astype(np.float32)
  weight, correction, rest = (ShareFactor(length=length, part=part)(shares).numpy()
                              for part in ("weight", "correction", "rest"))
  np.testing.assert_allclose(weight * correction * rest, 1 / counts, rtol=1e-6)
  assert set(weight) <= {2.0**-k for k in range(8)}
  assert correction.max() < 2.0


def test_a_row_without_a_step_that_counts_has_mean_0():
  model, _ = built("passed_on")
  assert not run(kq.standardize(model), [np.zeros((2, STEPS), np.int32)])[0].any()


def test_numbers_that_round_onto_the_mask_value_count_as_it_in_the_file():
  """In the quantized Keras model, as in the float one, the number itself does alone."""
  image = keras.Input((STEPS, 1))
  model = keras.Model(image, layers.Masking(0.5)(image) + 0.0)
  x = np.linspace(-1, 1, 16 * STEPS).reshape(16, STEPS, 1).astype(np.float32)
  x[:, 0] = 0.5
  result = kq.quantize(model, x, effort=None)
  (table,) = [values for key, values in result.encodings.integers.items() if key.endswith("differs/table")]
  grid = result.encodings[result.model.inputs[0].name]
  assert np.flatnonzero(table == 0).tolist() == [int(grid.quantize(0.5)) + 128]
  near = np.full((1, STEPS, 1), 0.5 + grid.scale[0] / 4, np.float32)
  np.testing.assert_allclose(run(result.qmodel, [near])[0], near, atol=grid.scale[0])


def test_a_mask_of_what_tapers_leaves_its_range_to_its_quantizer(tmp_path):
  """A swish, whose range ends where its readers are nearly flat, is compared as it comes too."""
  image = keras.Input((STEPS, 3))
  model = keras.Model(image, layers.Masking()(layers.Activation("swish")(layers.Dense(4)(image))))
  result = kq.quantize(model, rows(), effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=rows()[:4], certify=True)
  assert written.certificate["exact"]


def test_differing_from_a_number_is_told_from_what_came():
  x = np.float32([[0.0, 0.5, 0.5000001]])
  np.testing.assert_array_equal(DiffersFrom(0.5)(x), [[1, 0, 1]])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_long_padding_changes_no_integer_of_the_state(name):
  model, inputs = built(name)
  sequence, state, *_ = run(kq.quantize(model, inputs, effort=None).qmodel, inputs)
  lengths = (inputs[0] > 0).sum(1)
  padded_behind = np.flatnonzero((lengths < STEPS) & (inputs[0][:, 0] > 0))
  assert len(padded_behind)
  for row in padded_behind:
    last = sequence[row, lengths[row] - 1]
    np.testing.assert_array_equal(sequence[row, lengths[row]:], [last] * (STEPS - lengths[row]))
    np.testing.assert_array_equal(state[row], sequence[row, -1])


@pytest.mark.parametrize("name", ["self_attention", "masked_lstm"])
def test_masks_act_in_training_and_are_saved(name, tmp_path):
  model, inputs = built(name)
  qmodel = kq.calibrate(kq.insert_quantizers(model), inputs)
  qmodel.compile(keras.optimizers.SGD(1e-3), "mse")
  qmodel.fit(inputs[0], run(model, inputs)[0], epochs=2, verbose=0)
  qmodel.save(tmp_path / "q.keras")
  loaded = keras.models.load_model(tmp_path / "q.keras")
  np.testing.assert_array_equal(run(loaded, inputs)[0], run(qmodel, inputs)[0])
  written = tflite_export.export(kq.finalize(loaded), tmp_path / "m.tflite", verify=inputs[0][:4],
                                 certify=True)
  assert written.certificate["exact"]
  expected, found = run(model, inputs)[0], run(qmodel, inputs)[0]
  assert np.square(found - expected).mean() < 0.01 * np.square(expected).mean()


def test_losses_look_at_the_mask_of_an_output(tmp_path):
  image = word_input()
  model = keras.Model(image, layers.Dense(3, activation="softmax")(embed()(image)))
  x, y = words(), np.random.default_rng(0).integers(0, 3, (16, STEPS))
  other = np.where(x > 0, y, 2 - y)  # another class behind the end of each sequence
  qmodel = kq.calibrate(kq.insert_quantizers(model), x)
  qmodel.save(tmp_path / "q.keras")
  for each in (model, qmodel, kq.load_model(tmp_path / "q.keras")):
    each.compile("sgd", "sparse_categorical_crossentropy")
    assert each.evaluate(x, y, verbose=0) == each.evaluate(x, other, verbose=0)
  assert not any(type(layer).__name__ == "PassMask" for layer in kq.finalize(qmodel)[0].layers)


def test_the_grid_of_masked_scores_has_room_below_them():
  model, inputs = built("self_attention")
  qmodel = kq.calibrate(kq.insert_quantizers(model), inputs)
  (layer,) = [layer for layer in qmodel.layers if isinstance(layer, QuantizeActivation) and layer.room]
  low = layer.encoding().range[0][0]
  assert layer.room == 8.0 and low < -8.0
  qmodel.compile("sgd", "mse")
  qmodel.fit(inputs[0], run(model, inputs)[0], verbose=0)
  assert layer.encoding().range[0][0] < -8.0


def test_steps_with_a_mask_and_without_are_not_joined():
  image, other = word_input(), keras.Input((STEPS, 1))
  joined = layers.Concatenate(axis=1)([embed(1)(image), other])
  with pytest.raises(UnsupportedLayerError, match="joins steps with a mask and steps without; give all"):
    kq.standardize(keras.Model([image, other], mean(joined)))


CONSTANT_MASKS = {
    "gru": lambda x, mask: layers.GRU(2, name="named")(x, mask=mask),
    "attention": lambda x, mask: layers.Attention(name="named")([x, x], mask=[mask, None]),
    "softmax": lambda x, mask: layers.Softmax(name="named")(x, mask=mask[..., None])}


@pytest.mark.parametrize("call", CONSTANT_MASKS.values(), ids=CONSTANT_MASKS)
def test_constant_masks_are_refused(call):
  image = keras.Input((STEPS, 3))
  model = keras.Model(image, call(image, tf.constant([[True] * (STEPS - 1) + [False]])))
  with pytest.raises(UnsupportedLayerError, match="Layer 'named' .* is called with a mask.*; "):
    kq.insert_quantizers(model)


def test_an_open_number_of_steps_is_refused():
  image = keras.Input((None,), dtype="int32")
  model = keras.Model(image, mean(embed()(image)))
  with pytest.raises(UnsupportedLayerError, match="mask over an open number of steps; give the model"):
    kq.quantize(model, words(), effort=None)
