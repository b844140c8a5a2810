"""Convolutional LSTM layers as convolutions that are called once a step."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.core.errors import UnsupportedLayerError
from tests.models import randomized
from tests.rewrites.standardize.test_recurrent import assert_equal_in_float, assert_exact, data_of

ROWS, IMAGES = (3, 7, 2), (3, 5, 6, 2)
TRAINED = ("kernel_gates/image", "recurrent_gates", "recurrent_candidate")

LAYERS = {
    "rows": (ROWS, lambda: layers.ConvLSTM1D(2, 3)),
    "rows, sequence, strides": (ROWS, lambda: layers.ConvLSTM1D(2, 3, 2, "same", return_sequences=True,
                                                                return_state=True)),
    "rows, dilated": (ROWS, lambda: layers.ConvLSTM1D(2, 3, dilation_rate=2, use_bias=False,
                                                      recurrent_activation="sigmoid")),
    "images": (IMAGES, lambda: layers.ConvLSTM2D(2, 3, padding="same", return_sequences=True)),
    "images, backwards": (IMAGES, lambda: layers.ConvLSTM2D(2, (2, 3), (2, 1), "same", go_backwards=True,
                                                            use_bias=False)),
    "images, dilated": (IMAGES, lambda: layers.ConvLSTM2D(2, (1, 2), dilation_rate=(1, 2), activation="relu",
                                                          recurrent_activation="sigmoid", return_state=True)),
    "images, strides": (IMAGES, lambda: layers.ConvLSTM2D(1, 2, 2, dropout=0.2, recurrent_dropout=0.2)),
    "both": (IMAGES, lambda: layers.Bidirectional(layers.ConvLSTM2D(2, 2, return_sequences=True))),
}


def model_of(shape, layer, *states):
  keras.backend.clear_session()
  keras.utils.set_random_seed(0)
  inputs = [keras.Input(shape, name="x"), *(keras.Input(state) for state in states)]
  outputs = layer(inputs[0], initial_state=inputs[1:]) if states else layer(inputs[0])
  return randomized(keras.Model(inputs, outputs))


@pytest.mark.parametrize("name", LAYERS)
def test_steps_compute_what_the_layer_does_and_become_exact_integers(name, tmp_path):
  shape, layer = LAYERS[name]
  model = model_of(shape, layer())
  assert_equal_in_float(model)
  assert_exact(model, tmp_path)


def test_given_states_are_read(tmp_path):
  model = model_of(ROWS, layers.ConvLSTM1D(2, 3), (5, 2), (5, 2))
  assert_equal_in_float(model)
  assert_exact(model, tmp_path)


def test_a_kernel_is_stored_once_and_the_cell_has_16_bits(tmp_path):
  result = assert_exact(model_of(IMAGES, layers.ConvLSTM2D(2, 2, name="conv")), tmp_path)
  kernels = [key for key in result.encodings.integers if key.endswith("/kernel")]
  assert len(kernels) == 4
  assert result.encodings.integers["conv/recurrent_gates/kernel"].shape == (2, 2, 2, 6)
  assert result.encodings["conv/cell"].bits == 16


def test_it_trains_with_quantizers_and_becomes_the_integers_that_were_trained(tmp_path):
  model = model_of(IMAGES, layers.ConvLSTM2D(2, 2, name="conv", kernel_regularizer="l2", dropout=0.1))
  x = data_of(model)
  qmodel = kq.calibrate(kq.insert_quantizers(model), x)
  before = [qmodel.get_layer(f"conv/{name}").layer.kernel.numpy() for name in TRAINED]
  qmodel.compile("adam", "mse")
  qmodel.fit(x[0], np.zeros((16, *model.output_shape[1:])), epochs=1, verbose=0)
  for name, kernel in zip(TRAINED, before):
    assert np.abs(qmodel.get_layer(f"conv/{name}").layer.kernel.numpy() - kernel).max() > 0
  qmodel.save(tmp_path / "m.keras")
  np.testing.assert_array_equal(kq.load_model(tmp_path / "m.keras")(x[0]), qmodel(x[0]))
  written = kq.export(kq.finalize(qmodel), tmp_path / "m.tflite", verify=x[0][:2], certify=True)
  assert written.certificate["exact"]


@pytest.mark.parametrize("layer, shape, message", [
    (lambda: layers.ConvLSTM2D(2, 2, data_format="channels_first"), (2, 1, 4, 4), "channels_last"),
    (lambda: layers.ConvLSTM3D(2, 2), (2, 3, 3, 3, 1), "use ConvLSTM2D with the depth in the channels")])
def test_other_forms_are_refused_with_the_remedy(layer, shape, message):
  x = keras.Input(shape)
  model = keras.Model(x, layer()(x))
  with pytest.raises(UnsupportedLayerError, match=message):
    kq.quantize(model, np.zeros((2, *shape), np.float32), effort=None)


@pytest.mark.parametrize("layer, shape, sizes", [
    (lambda: layers.GRU(2), (None, 3), "STEPS,FEATURES"),
    (lambda: layers.ConvLSTM1D(2, 2), (None, 4, 1), "STEPS,LENGTH,CHANNELS"),
    (lambda: layers.Bidirectional(layers.ConvLSTM2D(2, 2)), (None, 4, 4, 1), "STEPS,HEIGHT,WIDTH,CHANNELS")])
def test_an_open_length_is_refused_with_the_shape_to_give(layer, shape, sizes):
  x = keras.Input(shape)
  with pytest.raises(UnsupportedLayerError, match=f"--input_shape={sizes}, or .*=\\({sizes.lower()[:5]}, "):
    kq.insert_quantizers(keras.Model(x, layer()(x)))


def test_a_mask_is_refused_as_such():
  x, mask = keras.Input((2, 4, 4, 1)), keras.Input((2,), dtype="bool")
  model = keras.Model([x, mask], layers.ConvLSTM2D(2, 2)(x, mask=mask))
  with pytest.raises(UnsupportedLayerError, match="is called with a mask; "):
    kq.insert_quantizers(model)


@pytest.mark.parametrize("layer", [
    lambda: layers.Bidirectional(layers.LSTM(2, stateful=True)),
    lambda: layers.RNN([layers.GRUCell(2), layers.LSTMCell(2)], stateful=True)])
def test_states_that_streaming_refuses_are_not_sent_there(layer):
  x = keras.Input((2, 3), 1)
  with pytest.raises(UnsupportedLayerError, match="stateful=True.; use layers of one direction and one cell"):
    kq.insert_quantizers(keras.Model(x, layer()(x)))
