"""Models that kquant returns save and load in every format; a part of the sweep, and their names."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from tests import models
from tests.qmodel.saving_sweep import FUNCTIONS, failures, of_function

layers = keras.layers
X = {"alpha": np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32),
     "beta": np.random.default_rng(1).normal(size=(24, 4)).astype(np.float32)}
Y = {"class": np.zeros(24), "value": np.zeros((24, 1))}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_tensorflow_save_and_load(name, tmp_path):
  model = of_function(name)
  assert list(failures(model, models.sample_inputs(model, images=8), tmp_path, ("m.keras",))) == []


@pytest.mark.parametrize("name", ["rearranged", "branches"])
def test_models_of_the_zoo_save_and_load(name, tmp_path):
  model = models.build(name)
  assert list(failures(model, models.sample_inputs(model, images=8), tmp_path)) == []


def two_by_two(inputs, outputs):
  first, second = keras.Input((6,), name="in_a"), keras.Input((4,), name="in_b")
  x = layers.Concatenate()([layers.Dense(5, activation="relu")(first), layers.Dense(5)(second)])
  ends = [layers.Dense(3, activation="softmax", name="first")(x), layers.Dense(1, name="second")(x)]
  return keras.Model(dict(zip(inputs, (first, second))) if inputs else [first, second],
                     dict(zip(outputs, ends)) if outputs else ends)


@pytest.mark.parametrize("outputs", [None, ("class", "value"), ("first", "second")])
@pytest.mark.parametrize("inputs", [None, ("alpha", "beta"), ("in_a", "in_b")])
def test_a_qmodel_takes_and_names_what_the_float_model_does(inputs, outputs, tmp_path):
  model = two_by_two(inputs, outputs)
  x = dict(zip(inputs, X.values())) if inputs else list(X.values())
  y = dict(zip(outputs or ("first", "second"), Y.values()))
  losses = dict(zip(y, ("sparse_categorical_crossentropy", "mse")))
  qmodel = kq.calibrate(kq.insert_quantizers(model), x)
  logs = []
  for network in (model, qmodel):
    network.compile("sgd", loss=losses, metrics={next(iter(y)): ["accuracy"]})
    stop = keras.callbacks.EarlyStopping(monitor="val_first_accuracy", patience=1)
    logs.append(sorted(network.fit(x, y, validation_data=(x, y), verbose=0, callbacks=[stop]).history))
  assert logs[0] == logs[1] and "val_first_accuracy" in logs[1]
  mine, theirs = qmodel.predict(x, verbose=0), model.predict(x, verbose=0)
  assert type(mine) is type(theirs) and (outputs is None or sorted(mine) == sorted(outputs))
  dataset = tf.data.Dataset.from_tensor_slices((x if inputs else tuple(x), y)).batch(8)
  by_layers = dict(zip(("in_a", "in_b"), X.values()))
  encodings = [kq.quantize(model, data, effort=None).encodings for data in (x, dataset, by_layers)]
  assert encodings[0] == encodings[1] == encodings[2]
  assert encodings[0].input_names == list(inputs or ("in_a", "in_b"))
  assert encodings[0].output_names == list(outputs or ("first", "second"))


def test_wrong_keys_are_named():
  with pytest.raises(ValueError, match=r"keys \['in_a', 'in_b'\], got \['alpha', 'gamma'\]"):
    kq.quantize(two_by_two(("alpha", "beta"), None), {"alpha": X["alpha"], "gamma": X["beta"]}, effort=None)
