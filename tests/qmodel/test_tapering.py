"""Ranges that end where what reads a tensor is flat: the float function loses at most half a step."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.graph.execution import Execution, call_float
from kquant.graph.graph import Graph
from kquant.qmodel.calibrate import calibrate
from kquant.qmodel.describe import describe
from kquant.qmodel.insert import insert_quantizers
from kquant.qmodel.tapering import Curve, changing_part

WIDE = 40.0  # of the tensor "x" in a model of `reads`


def hard_swish(x):
  return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


READERS = {
    **{name: layers.Activation(name) for name in (
        "sigmoid", "tanh", "swish", "gelu", "elu", "selu", "softplus", "mish", "softsign")},
    "exp": tf.exp,
    "erf": tf.math.erf,
    "relu6": lambda x: layers.ReLU(6.0)(layers.MaxPooling2D(2)(x)),
    "hard_sigmoid": lambda x: [layers.Activation("hard_sigmoid")(x), layers.ReLU(1.0)(x)],
    "hard_swish": hard_swish,
    "clip": lambda x: tf.clip_by_value(x, -2.0, 3.0),
    "several": lambda x: [layers.Activation("swish")(x), layers.Activation("gelu")(x)],
    "moved": lambda x: layers.Activation("swish")(layers.Permute((2, 1, 3))(x)),
    "swish and relu": lambda x: layers.ReLU()(layers.Activation("swish")(x)),
}
UNCUT = {
    "convolution": layers.Conv2D(3, 1),
    "swish and convolution": lambda x: [layers.Activation("swish")(x), layers.Conv2D(3, 1)(x)],
    "output": lambda x: [layers.Activation("swish")(x), x],
    "softmax": layers.Softmax(),
    "gate of another": lambda x: layers.Multiply()([layers.Conv2D(3, 1)(x), layers.Activation("sigmoid")(x)]),
    "linear": layers.LeakyReLU(),
}
"""Their readers see the whole range, or the gate alone does not."""


def reads(read):
  """A model whose tensor "x" spreads over -WIDE..WIDE and is read by `read`, and its images."""
  image = keras.Input((6, 6, 3), name="image")
  x = layers.DepthwiseConv2D(1, name="x", depthwise_initializer=keras.initializers.Constant(WIDE))(image)
  model = keras.Model(image, read(x))
  images = np.random.default_rng(0).uniform(-1, 1, (8, 6, 6, 3)).astype(np.float32)
  images.reshape(-1)[:2] = -1.0, 1.0
  return model, images


def calibrated(read, **options):
  """Returns (qmodel, images) of `reads`, calibrated."""
  model, images = reads(read)
  return calibrate(insert_quantizers(model, **options), images), images


def range_of_x(qmodel):
  (low,), (high,) = qmodel.get_layer("x/quantize").encoding().range
  return float(low), float(high)


def steps_of_outputs(qmodel):
  return [float(qmodel.get_layer(ref.node.layer.name).encoding().scale[0])
          for ref in Graph.from_model(qmodel).output_refs]


# --- the maths -----------------------------------------------------------------------------------------


def test_ends_worked_by_hand():
  """A ramp from 0 at -1 to 1 at 1, within 0.1 of its ends; a sigmoid within 1 / 512: ln(511) = 6.236."""
  ramp = Curve(lambda x: np.clip(x / 2 + 0.5, 0.0, 1.0), 0.1)
  np.testing.assert_allclose(changing_part(ramp, -8.0, 8.0), (-0.8, 0.8), atol=16 / 4095)
  sigmoid = Curve(lambda x: 1 / (1 + np.exp(-x)), 1 / 512)
  np.testing.assert_allclose(changing_part(sigmoid, -20.0, 20.0), (-np.log(511), np.log(511)), atol=40 / 4095)


def test_a_dip_that_comes_back_is_no_flat_part():
  """x sigmoid(x) falls to -0.278 and comes back to -0.01: below that it stays within 0.01 of it."""
  low, high = changing_part(Curve(lambda x: x / (1 + np.exp(-x)), 0.01), -20.0, 5.0)
  assert low / (1 + np.exp(-low)) == pytest.approx(-0.01, rel=0.1) and low < -1.3
  assert high == pytest.approx(5.0, abs=0.02)


@pytest.mark.parametrize("function", [np.zeros_like, lambda x: x / 1e3])
def test_what_is_flat_everywhere_keeps_its_range(function):
  assert changing_part(Curve(function, 1.0), -3.0, 4.0) == (-3.0, 4.0)


def test_where_a_function_is_not_defined_it_is_0_as_in_its_table():
  with np.errstate(invalid="ignore", divide="ignore"):
    low, high = changing_part(Curve(np.log, 0.5), -4.0, 4.0)
  assert -0.01 < low <= 0.0 < high <= 4.0


# --- in models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_the_float_function_of_the_cut_input_stays_within_half_a_step_of_each_output(name):
  qmodel, images = calibrated(READERS[name])
  low, high = range_of_x(qmodel)
  assert high - low < 1.9 * WIDE
  x = keras.Input((6, 6, 3))
  tail = keras.Model(x, READERS[name](x))
  values = WIDE * images
  whole, cut = (tf.nest.flatten(tail(part)) for part in (values, np.clip(values, low, high)))
  for before, after, step in zip(whole, cut, steps_of_outputs(qmodel)):
    assert np.abs(before - after).max() <= 0.5 * step * 1.01


@pytest.mark.parametrize("name", UNCUT)
def test_what_some_reader_sees_stays_in_the_range(name):
  qmodel, _ = calibrated(UNCUT[name])
  low, high = range_of_x(qmodel)
  assert low <= -0.999 * WIDE and high >= 0.999 * WIDE


@pytest.mark.parametrize("range_name", ["minmax", "mse", "mean_extrema", "percentile:99.9", "kl", "octav"])
def test_estimators_look_at_what_is_seen(range_name):
  config = kq.QuantConfig(rules=(kq.Rule(activations=kq.TensorSpec(range=range_name)),))
  low, high = range_of_x(calibrated(hard_swish, config=config)[0])
  step = (high - low) / 255
  assert -3.0 - step <= low < 0 and high > 3.0


def test_16_bit_grids_are_symmetric_and_stay_where_only_a_step_tells():
  low, high = range_of_x(calibrated(layers.Activation("swish"), config="int16x8")[0])
  assert high == pytest.approx(WIDE) and low == pytest.approx(-WIDE, rel=1e-3)


def test_without_images_ranges_end_there_too():
  image = keras.Input((6, 6, 3), name="image")
  norm = layers.BatchNormalization(gamma_initializer=keras.initializers.Constant(WIDE))
  model = keras.Model(image, hard_swish(norm(layers.Conv2D(3, 1, name="x")(image))))
  low, high = range_of_x(calibrate(insert_quantizers(model), kq.InputRange(-1.0, 1.0)))
  assert low == pytest.approx(-3.0, abs=(high - low) / 255) and high > WIDE


def test_the_first_training_batch_starts_from_what_is_seen():
  model, images = reads(hard_swish)
  qmodel = insert_quantizers(model)
  qmodel(images, training=True)
  low, high = range_of_x(qmodel)
  assert low == pytest.approx(-3.0, abs=(high - low) / 255)


def test_the_float_network_that_statistics_are_taken_of_computes_the_same():
  model, images = reads(hard_swish)
  qmodel = insert_quantizers(model)
  graph = Graph.from_model(qmodel)
  (outputs,) = Execution(graph, qmodel, call=call_float).tap(graph.output_refs)([images])
  np.testing.assert_allclose(outputs, model(images), atol=1e-5)


@pytest.mark.parametrize("recipe", [kq.Recipe(bias="iterative"), kq.Recipe(rounding="closed_form")],
                         ids=["bias", "rounding"])
@pytest.mark.parametrize("config", ["int8", "int16x8"])
def test_methods_on_a_prefix_leave_the_gate_of_a_hard_swish_alone(config, recipe):
  """What its input loses at a cut, or has below that on a symmetric grid, is no error of its weights."""
  model, images = reads(hard_swish)
  result = kq.quantize(model, images, config=config, recipe=recipe)
  (gate,) = [layer for layer in result.model.layers if isinstance(layer, layers.DepthwiseConv2D)
             and layer.name != "x"]
  np.testing.assert_allclose(gate.bias, 0.5, atol=0.01)
  np.testing.assert_allclose(gate.depthwise_kernel, 1 / 6, atol=0.002)


def test_describe_says_where_a_range_was_cut_and_by_what(tmp_path):
  notes = {}
  for name, read in (("hard_swish", hard_swish), ("sigmoid", layers.Activation("sigmoid", name="act"))):
    qmodel, _ = calibrated(read)
    qmodel.save(tmp_path / f"{name}.keras")
    qmodel = keras.models.load_model(tmp_path / f"{name}.keras")
    notes[name] = next(row.note for row in describe(qmodel).rows if row.layer == "x")
  assert "range cut at -3: " in notes["hard_swish"] and "above" not in notes["hard_swish"]
  assert "range cut at -6.2" in notes["sigmoid"] and "range cut at 6.2" in notes["sigmoid"]
  assert "act flat below" in notes["sigmoid"]


def test_a_range_that_needs_no_cut_has_no_note():
  qmodel, _ = calibrated(layers.Conv2D(3, 1))
  assert not any("cut" in row.note for row in describe(qmodel).rows)
