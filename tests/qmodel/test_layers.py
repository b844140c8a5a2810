"""QuantizeWeights and QuantizeActivation: state, switch, gradient, float calls, saving."""

import threading

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from kquant.core.target import LITERT
from kquant.graph.execution import Execution, call_float
from kquant.graph.graph import Graph
from kquant.graph.kinds.table import LAYERS
from kquant.qmodel.configs import KernelQuantizeConfig
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.quantizers import MinMaxQuantizer
from tests import models

LINEAR = {
    "Conv1D": lambda: keras.layers.Conv1D(4, 3, padding="causal", name="linear"),
    "Conv2D": lambda: keras.layers.Conv2D(4, 3, strides=2, padding="same", name="linear"),
    "DepthwiseConv2D": lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="linear"),
    "Conv2DTranspose": lambda: keras.layers.Conv2DTranspose(4, 3, strides=2, name="linear"),
    "Dense": lambda: keras.layers.Dense(4, use_bias=False, name="linear"),
}


def images(kind):
  shape = {"Conv1D": (2, 6, 3), "Dense": (2, 5)}.get(kind, (2, 6, 5, 3))
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def wrapped(layer, x, *, bits=8):
  """Returns a layer wrapped and built for x, a range a channel, its grid clipping the top tenth."""
  facts = LAYERS[type(layer).__name__]
  wrapper = QuantizeWeights(layer, KernelQuantizeConfig(
      MinMaxQuantizer(bits=bits, symmetric=True, narrow=True, axis=facts.kernel.out_axes)))
  wrapper(x)
  kernel = getattr(layer, facts.kernel.name).numpy()
  taps = tuple(i for i in range(kernel.ndim) if i not in facts.kernel.out_axes)
  high = 0.9 * np.abs(kernel).max(axis=taps).reshape(-1)
  ((_, quantizer, state),) = wrapper._quantized
  quantizer.set_range(state, -high, high)
  return wrapper, facts.kernel.name


def activation(low=-1.0, high=2.0, **options):
  layer = QuantizeActivation(MinMaxQuantizer(), name="grid", **options)
  layer.build((None, 3))
  if low is not None:
    layer.set_range(low, high)
  return layer


# --- QuantizeWeights -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("kind", LINEAR)
def test_output_is_that_of_the_layer_with_its_kernel_on_the_grid(kind, bits):
  x = images(kind)
  wrapper, kernel = wrapped(LINEAR[kind](), x, bits=bits)
  result = wrapper(x).numpy()
  variable = getattr(wrapper.layer, kernel)
  floats = variable.numpy()
  ((name, encoding),) = wrapper.weight_encodings().items()
  assert name == kernel
  variable.assign(encoding.dequantize(encoding.quantize(floats)))
  assert np.abs(variable.numpy() - floats).max() > 0
  np.testing.assert_array_equal(wrapper.layer(x).numpy(), result)


@pytest.mark.parametrize("kind", LINEAR)
def test_switched_off_the_output_is_the_float_layers_bit_for_bit(kind):
  x = images(kind)
  wrapper, _ = wrapped(LINEAR[kind](), x, bits=4)
  expected = wrapper.layer(x).numpy()
  assert np.abs(wrapper(x).numpy() - expected).max() > 0
  wrapper.quantizing.assign(False)
  np.testing.assert_array_equal(wrapper(x).numpy(), expected)


@pytest.mark.parametrize("kind", LINEAR)
def test_the_layer_has_its_own_variable_back_after_a_call(kind):
  x = images(kind)
  wrapper, kernel = wrapped(LINEAR[kind](), x)
  variable = getattr(wrapper.layer, kernel)
  before = variable.numpy()
  wrapper(x)
  tf.function(wrapper)(tf.constant(x))
  assert getattr(wrapper.layer, kernel) is variable and isinstance(variable, tf.Variable)
  np.testing.assert_array_equal(variable.numpy(), before)


def test_the_layer_has_its_own_variable_back_after_a_call_that_raises(monkeypatch):
  x = images("Dense")
  wrapper, _ = wrapped(LINEAR["Dense"](), x)
  variable = wrapper.layer.kernel
  seen = []

  def fail(inputs):
    seen.append(wrapper.layer.kernel)
    raise RuntimeError("inner call failed")

  monkeypatch.setattr(wrapper.layer, "call", fail)
  with pytest.raises(RuntimeError, match="inner call failed"):
    wrapper(x)
  assert len(seen) == 1 and seen[0] is not variable  # the quantized tensor was in its place
  assert wrapper.layer.kernel is variable
  assert [w.name for w in wrapper.layer.weights] == ["linear/kernel:0"]


def test_weights_keep_the_layers_order_and_quantizer_state_follows():
  wrapper, _ = wrapped(LINEAR["Conv2D"](), images("Conv2D"))
  names = [variable.name.split(":")[0].rsplit("/", 1)[-1] for variable in wrapper.weights]
  assert names == ["kernel", "bias", "kernel_min", "kernel_max", "quantizing"]
  assert [w.name for w in wrapper.trainable_weights] == [w.name for w in wrapper.layer.trainable_weights]
  assert wrapper.weights[0] is wrapper.layer.kernel and wrapper.weights[1] is wrapper.layer.bias


def test_frozen_wrapper_has_no_trainable_weights_and_thaws_again():
  wrapper, _ = wrapped(LINEAR["Conv2D"](), images("Conv2D"))
  count = len(wrapper.weights)
  wrapper.trainable = False
  assert not wrapper.trainable_weights and not wrapper.layer.trainable_weights
  assert len(wrapper.weights) == len(wrapper.non_trainable_weights) == count
  wrapper.trainable = True
  assert len(wrapper.trainable_weights) == 2


def test_wrapper_of_a_frozen_layer_is_frozen():
  layer = LINEAR["Dense"]()
  layer.trainable = False
  wrapper, _ = wrapped(layer, images("Dense"))
  assert not wrapper.trainable_weights
  assert not QuantizeWeights.from_config(wrapper.get_config()).layer.trainable


def test_wrapper_bears_the_layers_name_and_output_shape():
  x = images("Conv2DTranspose")
  wrapper, _ = wrapped(LINEAR["Conv2DTranspose"](), x)
  assert wrapper.name == "linear"
  assert tuple(wrapper.compute_output_shape((None, *x.shape[1:]))) == (None, *wrapper(x).shape[1:])


def test_gradient_reaches_the_float_kernel_where_it_lies_inside_its_grid():
  x = images("Dense")
  wrapper, _ = wrapped(LINEAR["Dense"](), x)
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(wrapper(x))
  gradient = tape.gradient(loss, wrapper.layer.kernel).numpy()
  low, high = next(iter(wrapper.weight_encodings().values())).range
  inside = (wrapper.layer.kernel.numpy() >= low) & (wrapper.layer.kernel.numpy() <= high)
  assert 0 < (~inside).sum() < inside.sum()
  expected = np.broadcast_to(x.sum(axis=0)[:, None], gradient.shape)
  np.testing.assert_allclose(gradient, np.where(inside, expected, 0.0), rtol=1e-5)


def test_two_calls_of_a_wrapper_share_one_kernel():
  layer = LINEAR["Conv2D"]()
  x, y = images("Conv2D"), images("Conv2D")[:, 1:]
  wrapper, _ = wrapped(layer, x)
  count = len(wrapper.weights)
  wrapper(y)
  assert len(wrapper.weights) == count


# --- QuantizeActivation ----------------------------------------------------------------------------


def test_activation_is_off_until_it_has_a_range():
  layer = activation(low=None)
  x = np.float32([[0.1234, -7.0, 99.0]])
  np.testing.assert_array_equal(layer(x).numpy(), x)
  with pytest.raises(ValueError, match="'grid' has no range yet; run kq.calibrate"):
    layer.encoding()
  layer.set_range(-1.0, 2.0)
  assert layer(x).numpy().max() <= 2.0


def test_activation_is_the_dequantized_integers():
  layer = activation()
  x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
  encoding = layer.encoding()
  np.testing.assert_allclose(layer(x), encoding.dequantize(encoding.quantize(x)), rtol=1e-6, atol=1e-7)


def test_activation_switched_off_passes_its_input_bit_for_bit():
  layer = activation()
  x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
  layer.quantizing.assign(False)
  np.testing.assert_array_equal(layer(x).numpy(), x)


def test_activation_variables_are_not_trainable():
  assert not activation().trainable_weights


def test_activation_keeps_nan_visible():
  assert np.isnan(activation()(np.float32([[np.nan, 0, 1]])).numpy()).any()


# The grids that the kernels of these layers compute for: (scale, zero point).
MASKS = {"IndexMask": (1.0, 0), "DiffersFrom": (1.0, 0)}
FIXED = {"Softmax": (1 / 256, -128), "Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0)}


@pytest.mark.parametrize("kind", FIXED)
def test_fixed_grid_is_exact_and_needs_no_calibration(kind):
  low, high = LITERT.fixed[LAYERS[kind].fixed_grid].range
  layer = activation(low=None, fixed=(float(low[0]), float(high[0])))
  encoding = layer.encoding()
  assert (float(encoding.scale[0]), int(encoding.zero_point[0])) == FIXED[kind]
  x = np.linspace(-1.5, 1.5, 999, dtype=np.float32).reshape(-1, 3)
  np.testing.assert_array_equal(layer(x).numpy(), encoding.dequantize(encoding.quantize(x)))


def test_every_fixed_grid_of_the_target_is_pinned():
  grids = {kind: LITERT.fixed[facts.fixed_grid] for kind, facts in LAYERS.items() if facts.fixed_grid}
  found = {kind: (float(grid.scale[0]), int(grid.zero_point[0])) for kind, grid in grids.items()}
  assert found == FIXED | MASKS


# --- switching without a new trace -----------------------------------------------------------------


def test_flipping_the_switches_does_not_trace_again():
  x = tf.constant(np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32))
  wrapper, _ = wrapped(LINEAR["Dense"](), x, bits=3)
  grid = QuantizeActivation(MinMaxQuantizer(bits=3), name="grid")
  grid(wrapper(x))
  grid.set_range(-1.0, 1.0)
  traces = []

  @tf.function
  def step(inputs):
    traces.append(1)
    return grid(wrapper(inputs))

  on = step(x).numpy()
  grid.quantizing.assign(False)
  only_weights = step(x).numpy()
  wrapper.quantizing.assign(False)
  off = step(x).numpy()
  grid.set_range(-0.5, 0.5)
  narrower = step(x).numpy()
  assert len(traces) == 1
  np.testing.assert_array_equal(off, wrapper.layer(x).numpy())
  assert len(np.unique(on)) <= 8 < len(np.unique(off))
  assert np.abs(only_weights - off).max() > 0
  assert np.abs(narrower).max() < 0.7 < np.abs(on).max()


def test_predict_follows_a_new_range_without_compiling_again():
  image = keras.Input((3,))
  layer = QuantizeActivation(MinMaxQuantizer(), name="grid")
  model = keras.Model(image, layer(image))
  x = np.float32([[0.3, 5.0, -5.0]])
  np.testing.assert_array_equal(model.predict(x, verbose=0), x)
  function = model.predict_function
  layer.set_range(-1.0, 1.0)
  assert model.predict(x, verbose=0).max() <= 1.0
  assert model.predict_function is function


# --- the float network in a quantized model -------------------------------------------------------


def test_float_calls_are_the_float_network_and_change_no_quantizer():
  model = models.build("branches")
  (x,) = models.sample_inputs(model, images=6)
  float_model = kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])
  qmodel = kq.calibrate(kq.insert_quantizers(float_model, "w4a8"), x)
  noisy = qmodel(x, training=False).numpy()
  graph = Graph.from_model(qmodel)
  run = Execution(graph, qmodel, call=call_float).tap(graph.output_refs)
  expected = float_model(x, training=False).numpy()
  np.testing.assert_allclose(run([x])[0], expected, rtol=1e-5, atol=1e-6)
  assert np.abs(noisy - expected).max() > 1e-4
  np.testing.assert_array_equal(qmodel(x, training=False).numpy(), noisy)


def test_one_model_runs_in_float_while_another_quantizes_in_a_second_thread():
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model, images=4)
  qmodel = kq.calibrate(kq.insert_quantizers(model, "w4a8"), x)
  noisy, found = qmodel(x, training=False).numpy(), []
  start, done = threading.Event(), threading.Event()

  def quantize():
    start.wait(30)
    found.append(qmodel(x, training=False).numpy())
    done.set()

  thread = threading.Thread(target=quantize)
  thread.start()

  def waiting(layer, node, values):
    start.set()
    assert done.wait(30)
    return call_float(layer, node, values)

  other = kq.insert_quantizers(models.build("conv_bn_relu"), "w4a8")
  Execution(Graph.from_model(other), other, call=waiting).values([tf.constant(x)])
  thread.join()
  np.testing.assert_array_equal(found[0], noisy)


def test_layers_of_a_built_model_do_not_pass_through():
  qmodel = kq.insert_quantizers(models.build("conv_bn_relu"), "w4a8")
  ours = [layer for layer in qmodel.layers if isinstance(layer, (QuantizeActivation, QuantizeWeights))]
  assert ours and not any(layer.passes_through for layer in ours)


# --- saving ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["branches", "nested_shared"])
def calibrated(request):
  """(qmodel, inputs, its outputs) of a model of the zoo."""
  model = models.build(request.param)
  inputs = models.sample_inputs(model, images=4)
  qmodel = kq.insert_quantizers(kq.rewrite(model, [kq.standardize, kq.fold_batch_norm]), "w4a8")
  kq.calibrate(qmodel, inputs if inputs[1:] else inputs[0])
  return qmodel, inputs, outputs(qmodel, inputs)


def outputs(model, inputs):
  fed = dict(zip(model.input_names, inputs)) if inputs[1:] else inputs[0]
  return [tensor.numpy() for tensor in tf.nest.flatten(model(fed, training=False))]


@pytest.mark.parametrize("file", ["m.keras", "m.h5", "saved_model"])
def test_whole_quantized_model_survives_saving_without_custom_objects(calibrated, file, tmp_path):
  qmodel, inputs, expected = calibrated
  if file == "saved_model" and qmodel.name != "branches":
    pytest.skip("one is enough of the slow format")
  qmodel.save(tmp_path / file)
  loaded = keras.models.load_model(tmp_path / file)
  for mine, theirs in zip(outputs(loaded, inputs), expected, strict=True):
    np.testing.assert_array_equal(mine, theirs)
  assert [w.name.rsplit("/", 1)[-1] for w in loaded.weights] == [
      w.name.rsplit("/", 1)[-1] for w in qmodel.weights]
  for mine, theirs in zip(loaded.weights, qmodel.weights):
    np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
  assert {layer.name: type(layer) for layer in loaded.layers} == {
      layer.name: type(layer) for layer in qmodel.layers}
  assert kq.finalize(loaded)[1] == kq.finalize(qmodel)[1]


def test_weights_alone_survive_saving(calibrated, tmp_path):
  qmodel, inputs, expected = calibrated
  qmodel.save_weights(tmp_path / "w.h5")
  fresh = keras.models.clone_model(qmodel)
  fresh.load_weights(tmp_path / "w.h5")
  for mine, theirs in zip(outputs(fresh, inputs), expected):
    np.testing.assert_array_equal(mine, theirs)


def test_quantized_model_trains_and_keeps_its_grids():
  model = models.build("conv_bn_relu")
  (x,) = models.sample_inputs(model, images=8)
  still = kq.QuantConfig().with_quantizers(weights="minmax", activations="minmax")
  qmodel = kq.insert_quantizers(kq.rewrite(model, [kq.standardize, kq.fold_batch_norm]), still)
  kq.calibrate(qmodel, x)
  before = {w.name: w.numpy() for w in qmodel.weights}
  qmodel.compile("sgd", "mse")
  qmodel.fit(x, np.ones((8, 5), np.float32), epochs=2, verbose=0)
  changed = {w.name for w in qmodel.weights if not np.array_equal(w.numpy(), before[w.name])}
  assert changed == {w.name for w in qmodel.trainable_weights}
  assert {name.rsplit("/", 1)[-1] for name in changed} == {"kernel:0", "bias:0"}
