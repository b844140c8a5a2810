"""MinMaxQuantizer: what it computes is what its encoding stores; gradient; ranges; use in tfmot."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from kquant.graph.kinds.table import LAYERS
from kquant.qmodel.configs import KernelQuantizeConfig
from kquant.quantizers import MinMaxQuantizer

# Kernel shapes whose channel counts differ on every axis, so that a wrong axis cannot go unseen.
KERNELS = {"Conv1D": (3, 5, 4), "Conv2D": (3, 2, 5, 4), "DepthwiseConv2D": (3, 2, 5, 4),
           "Conv2DTranspose": (3, 2, 5, 4), "Dense": (6, 4)}


def built(quantizer, shape, low, high):
  """Returns the quantizer's variables for a tensor of that shape, with a range."""
  variables = quantizer.build(shape, "tensor", keras.layers.Layer(name="holder"))
  quantizer.set_range(variables, low, high)
  return variables


def fake_quantized(quantizer, variables, x):
  return quantizer(tf.constant(x), False, variables).numpy()


def magnitudes(kernel, axes):
  return np.abs(kernel).max(axis=tuple(i for i in range(kernel.ndim) if i not in axes)).reshape(-1)


# --- worked by hand --------------------------------------------------------------------------------


def test_three_bit_weights_by_hand():
  # scale 3 / 3 = 1, integers -3..3; 0.5 and 1.5 are ties, to even.
  quantizer = MinMaxQuantizer(bits=3, symmetric=True, narrow=True)
  variables = built(quantizer, (9,), -3.0, 3.0)
  x = np.float32([-4, -3, -0.6, -0.5, 0.0, 0.5, 1.5, 2.4, 9.0])
  np.testing.assert_array_equal(fake_quantized(quantizer, variables, x), [-3, -3, -1, 0, 0, 0, 2, 2, 3])
  encoding = quantizer.encoding(variables)
  assert (encoding.scale.tolist(), encoding.zero_point.tolist()) == ([1.0], [0])
  assert (encoding.bits, encoding.axis, encoding.narrow) == (3, None, True)


def test_two_bit_activations_by_hand():
  # [-1, 2] in 4 steps of 1: scale 1, zero point -2 + 1 = -1, values -1, 0, 1, 2.
  quantizer = MinMaxQuantizer(bits=2)
  variables = built(quantizer, (6,), -1.0, 2.0)
  x = np.float32([-7, -0.7, -0.2, 0.9, 1.6, 7])
  np.testing.assert_array_equal(fake_quantized(quantizer, variables, x), [-1, -1, 0, 1, 2, 2])
  encoding = quantizer.encoding(variables)
  assert (encoding.scale.tolist(), encoding.zero_point.tolist()) == ([1.0], [-1])
  assert encoding.quantize(x).tolist() == [-2, -2, -1, 0, 1, 1]


def test_each_channel_has_its_own_grid_by_hand():
  quantizer = MinMaxQuantizer(bits=2, symmetric=True, narrow=True, axis=(1,))
  variables = built(quantizer, (2, 3), [-1.0, -10.0, -100.0], [1.0, 10.0, 100.0])
  x = np.float32([[0.6, 6.0, 6.0], [-0.4, -4.0, -90.0]])
  np.testing.assert_array_equal(fake_quantized(quantizer, variables, x), [[1, 10, 0], [0, 0, -100]])


# --- what is trained is what is exported -----------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_exactly_the_dequantized_integers(kind, bits, per_channel):
  axis = LAYERS[kind].kernel.out_axes if per_channel else None
  quantizer = MinMaxQuantizer(bits=bits, symmetric=True, narrow=True, axis=axis)
  for seed in range(3):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=KERNELS[kind]) * 2.0 ** rng.integers(-20, 8, KERNELS[kind][-1:])
    kernel = kernel.astype(np.float32)
    high = magnitudes(kernel, axis or ())
    if seed == 2:
      high = high * 0.7  # some weights lie outside
    variables = built(quantizer, kernel.shape, -high, high)
    encoding = quantizer.encoding(variables)
    integers = encoding.quantize(kernel)
    assert np.abs(integers).max() == 2 ** (bits - 1) - 1
    assert len(encoding.scale) == len(high) and encoding.axis == axis
    np.testing.assert_array_equal(fake_quantized(quantizer, variables, kernel), encoding.dequantize(integers))


def test_weights_on_ties_of_the_grid_go_to_the_even_integer():
  quantizer = MinMaxQuantizer(bits=8, symmetric=True, narrow=True)
  variables = built(quantizer, (254,), -127 * 2.0 ** -7, 127 * 2.0 ** -7)
  x = ((np.arange(-127, 127) + 0.5) * 2.0 ** -7).astype(np.float32)
  encoding = quantizer.encoding(variables)
  assert encoding.scale[0] == 2.0 ** -7
  result = fake_quantized(quantizer, variables, x) * 2 ** 7
  assert (result % 2 == 0).all()
  np.testing.assert_array_equal(result, encoding.quantize(x))


@pytest.mark.parametrize("seed", range(3))
def test_weights_next_to_ties_fall_where_float64_says(seed):
  high = np.random.default_rng(seed).uniform(0.1, 10, 40)
  quantizer = MinMaxQuantizer(bits=8, symmetric=True, narrow=True, axis=(1,))
  variables = built(quantizer, (252, 40), -high, high)
  encoding = quantizer.encoding(variables)
  ties = (np.arange(-126, 126)[:, None] + 0.5) * encoding.scale.astype(np.float64)
  x = ties.astype(np.float32)  # a float32 quotient would be the tie itself for many of them
  assert (x / encoding.scale % 1 == 0.5).mean() > 0.1 and (x != ties).mean() > 0.5
  np.testing.assert_array_equal(fake_quantized(quantizer, variables, x),
                                encoding.dequantize(encoding.quantize(x)))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_activations_are_the_dequantized_integers_but_for_ties(bits, symmetric, seed):
  rng = np.random.default_rng(seed)
  low, high = np.sort(rng.normal(size=2) * 10.0 ** rng.integers(-4, 4))
  x = rng.uniform(low - (high - low), high + (high - low), 4000).astype(np.float32)
  quantizer = MinMaxQuantizer(bits=bits, symmetric=symmetric)
  variables = built(quantizer, x.shape, low, high)
  encoding = quantizer.encoding(variables)
  scale = float(encoding.scale[0])
  result = fake_quantized(quantizer, variables, x).astype(np.float64)
  steps = result / scale
  np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)  # on the grid
  away_from_ties = np.abs(x / scale % 1 - 0.5) > 1e-3
  assert away_from_ties.mean() > 0.9
  expected = encoding.dequantize(encoding.quantize(x))
  np.testing.assert_allclose(result[away_from_ties], expected[away_from_ties], rtol=1e-6, atol=1e-6 * scale)
  assert np.abs(result - expected).max() <= scale * 1.0001


def test_range_without_zero_is_widened_to_hold_it():
  quantizer = MinMaxQuantizer()
  for low, high in ((2.0, 5.1), (-5.1, -2.0), (3.0, 3.0), (0.0, 0.0)):
    variables = built(quantizer, (3,), low, high)
    encoding = quantizer.encoding(variables)
    assert fake_quantized(quantizer, variables, np.float32([0.0])).tolist() == [0.0]
    (first,), (last,) = encoding.range
    assert first <= 0.0 <= last
    assert first <= low + encoding.scale[0] and last >= high - encoding.scale[0]


def test_dead_channel_stays_zero_and_finite():
  quantizer = MinMaxQuantizer(symmetric=True, narrow=True, axis=(1,))
  kernel = np.float32([[0, 1], [0, -2]])
  variables = built(quantizer, kernel.shape, -magnitudes(kernel, (1,)), magnitudes(kernel, (1,)))
  np.testing.assert_allclose(fake_quantized(quantizer, variables, kernel), kernel, atol=0.01)
  assert (quantizer.encoding(variables).scale > 0).all()


def test_output_is_the_same_eagerly_and_traced():
  quantizer = MinMaxQuantizer(axis=(1,), symmetric=True, narrow=True)
  x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
  variables = built(quantizer, x.shape, [-1, -2, -3], [1, 2, 3])
  traced = tf.function(lambda values: quantizer(values, True, variables))
  np.testing.assert_array_equal(traced(tf.constant(x)), fake_quantized(quantizer, variables, x))


# --- gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [True, False])
def test_gradient_is_one_inside_the_range_and_zero_outside(narrow):
  quantizer = MinMaxQuantizer(symmetric=narrow, narrow=narrow)
  variables = built(quantizer, (6,), -1.0, 1.0)
  x = tf.constant([-1.5, -0.9, -0.1, 0.3, 0.9, 1.5])
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = quantizer(x, True, variables) * tf.constant([1.0, 2, 3, 4, 5, 6])
  np.testing.assert_array_equal(tape.gradient(y, x), [0, 2, 3, 4, 5, 0])


def test_gradient_of_a_kernel_is_masked_channel_by_channel():
  quantizer = MinMaxQuantizer(symmetric=True, narrow=True, axis=(1,))
  variables = built(quantizer, (2, 2), [-1.0, -3.0], [1.0, 3.0])
  x = tf.constant([[2.0, 2.0], [0.5, 5.0]])
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = quantizer(x, True, variables)
  np.testing.assert_array_equal(tape.gradient(y, x), [[0, 1], [1, 0]])


def test_the_range_gets_no_gradient_and_is_not_trainable():
  quantizer = MinMaxQuantizer()
  layer = keras.layers.Layer(name="holder")
  variables = quantizer.build((3,), "tensor", layer)
  assert not layer.trainable_weights and len(layer.non_trainable_weights) == 2
  assert [v.name for v in layer.weights] == ["tensor_min:0", "tensor_max:0"]
  assert all(not variable.trainable for variable in variables.values())


# --- ranges ----------------------------------------------------------------------------------------


def test_variables_have_one_entry_a_channel():
  for axis, shape, count in ((None, (3, 4, 5), 1), ((2,), (3, 4, 5), 5), ((2, 3), (3, 3, 4, 2), 8)):
    variables = MinMaxQuantizer(axis=axis).build(shape, "tensor", keras.layers.Layer())
    assert {name: tuple(v.shape) for name, v in variables.items()} == {"min": (count,), "max": (count,)}


def test_initial_values_are_what_set_range_sets():
  quantizer = MinMaxQuantizer(axis=(1,), symmetric=True)
  variables = built(quantizer, (4, 2), np.float64([-1.1, -2.2]), np.float64([1.1, 2.2]))
  values = quantizer.initial_values(np.float64([-1.1, -2.2]), np.float64([1.1, 2.2]))
  assert values.keys() == variables.keys()
  for name, value in values.items():
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, variables[name])


def test_scalar_limits_set_every_channel():
  quantizer = MinMaxQuantizer(axis=(1,), symmetric=True)
  variables = built(quantizer, (4, 3), -2.0, 2.0)
  np.testing.assert_array_equal(variables["min"], [-2, -2, -2])
  np.testing.assert_array_equal(variables["max"], [2, 2, 2])


def test_symmetric_range_takes_the_larger_end():
  quantizer = MinMaxQuantizer(symmetric=True)
  encoding = quantizer.encoding(built(quantizer, (1,), -12.7, 3.0))
  assert encoding.scale[0] == np.float32(np.float64(np.float32(12.7)) / 127)
  assert encoding.zero_point.tolist() == [0]


# --- as a tfmot quantizer --------------------------------------------------------------------------


def annotated(layer, axis):
  config = KernelQuantizeConfig(MinMaxQuantizer(symmetric=True, narrow=True, axis=axis), MinMaxQuantizer())
  return tfmot.quantization.keras.quantize_annotate_layer(layer, config)


def tfmot_models():
  """Returns (float model, the same quantized by tfmot): kernel ranges, outputs [-4, 4], input [-1, 1].

  The quantizer of the input is tfmot's own.
  """
  image = keras.Input((6, 6, 2), name="image")
  conv, dense = keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Dense(3, name="dense")
  x = keras.layers.Flatten()(annotated(conv, (3,))(image))
  model = keras.Model(image, annotated(dense, (1,))(x))
  quantized = tfmot.quantization.keras.quantize_apply(model)
  for wrapper in wrappers(quantized).values():
    ((variable, quantizer, state),) = wrapper._weight_vars
    high = magnitudes(variable.numpy(), quantizer.axis)
    quantizer.set_range(state, -high, high)
    wrapper.quantize_config.output.set_range(wrapper._output_quantizer_vars, -4.0, 4.0)
  low, high, _ = quantized.layers[1].weights
  low.assign(-1.0), high.assign(1.0)
  return model, quantized


def wrappers(model):
  return {layer.layer.name: layer for layer in model.layers
          if isinstance(getattr(layer, "quantize_config", None), KernelQuantizeConfig)}


def test_tfmot_quantize_apply_computes_on_the_grids_of_the_encodings():
  model, quantized = tfmot_models()
  assert set(wrappers(quantized)) == {"conv", "dense"}
  x = np.random.default_rng(0).uniform(-1, 1, (4, 6, 6, 2)).astype(np.float32)
  expected = quantized.layers[1](x, training=False).numpy()
  for wrapper in wrappers(quantized).values():
    ((variable, quantizer, state),) = wrapper._weight_vars
    encoding = quantizer.encoding(state)
    kernel = encoding.dequantize(encoding.quantize(variable.numpy()))
    assert np.abs(kernel - variable.numpy()).max() > 0
    output = wrapper.quantize_config.output.encoding(wrapper._output_quantizer_vars)
    if kernel.ndim == 4:
      expected = tf.nn.conv2d(expected, kernel, 1, "VALID").numpy()
    else:
      expected = expected.reshape(len(x), -1) @ kernel
    expected = output.dequantize(output.quantize(expected))
  result = quantized.predict(x, verbose=0)
  step = 8 / 255
  assert np.abs(result - expected).max() <= 1.01 * step  # a float tie may fall to the other side
  assert (np.abs(result - expected) < 1e-5).mean() > 0.8
  assert np.abs(result - model.predict(x, verbose=0)).max() < 4 * step


def test_tfmot_model_trains_its_float_kernels_and_keeps_its_ranges():
  _, quantized = tfmot_models()
  before = {w.name: w.numpy() for w in quantized.weights}
  quantized.compile("sgd", "mse")
  x = np.random.default_rng(0).uniform(-1, 1, (8, 6, 6, 2)).astype(np.float32)
  quantized.fit(x, np.ones((8, 3), np.float32), epochs=1, verbose=0)
  changed = {w.name for w in quantized.weights if not np.array_equal(w.numpy(), before[w.name])}
  assert {name for name in changed if "kernel" in name} == {"conv/kernel:0", "dense/kernel:0"}
  own = [name for wrapper in wrappers(quantized).values() for name in (w.name for w in wrapper.weights)]
  assert len([name for name in own if "_min" in name or "_max" in name]) == 8
  assert not [name for name in changed.intersection(own) if "_min" in name or "_max" in name]


def test_tfmot_model_survives_saving_as_h5(tmp_path):  # tfmot's own input layer does not as .keras
  _, quantized = tfmot_models()
  x = np.random.default_rng(0).uniform(-1, 1, (4, 6, 6, 2)).astype(np.float32)
  expected = quantized.predict(x, verbose=0)
  quantized.save(tmp_path / "m.h5")
  with tfmot.quantization.keras.quantize_scope():
    loaded = keras.models.load_model(tmp_path / "m.h5")
  np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
