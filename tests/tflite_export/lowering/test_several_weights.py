"""A user's layer with two kernels and two biases: quantized, trained, saved, exported, verified."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.quantization.keras import quantize_annotate_layer as annotate
from tensorflow_model_optimization.quantization.keras import quantize_apply
from tf_keras import layers

import kquant as kq
import tflite_export
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.kinds.table import LAYERS
from kquant.graph.nodes import Ref
from kquant.ptq.layerwise.bias_correction import correct_iteratively, linear_params
from kquant.ptq.layerwise.layer_rounding import round_layers
from kquant.ptq.layerwise.streaming import layer_turns
from kquant.qmodel.calibrate import observe
from kquant.qmodel.configs import WeightsQuantizeConfig
from kquant.quantizers import MovingAverageQuantizer
from kquant.rewrites.standardize.standardize import standardize
from tests import models
from tflite_export import WeightFacts
from tflite_export.lowering.lower import LOWERINGS
from tflite_export.program.program import IntTensor

WEIGHTS = (WeightFacts("A", (1,), (0,), bias="a"), WeightFacts("B", (1,), (0,), bias="b"))


@keras.saving.register_keras_serializable("tests")
class Pair(layers.Layer):
  """y = concat([x @ A + a, x @ B + b])."""

  def __init__(self, first=3, second=5, **kwargs):
    super().__init__(**kwargs)
    self.first, self.second = first, second

  def build(self, shape):
    for name, units in (("A", self.first), ("B", self.second)):
      setattr(self, name, self.add_weight(name, (shape[-1], units)))
      setattr(self, name.lower(), self.add_weight(name.lower(), (units,)))
    super().build(shape)

  def call(self, x):
    return tf.concat([tf.matmul(x, self.A) + self.a, tf.matmul(x, self.B) + self.b], axis=-1)

  def get_config(self):
    return {**super().get_config(), "first": self.first, "second": self.second}


def lower_pair(builder, node):
  """Two FULLY_CONNECTED onto the grid of the output, and a CONCATENATION."""
  output, parts = builder.activation(Ref(node)), []
  grid = builder.program.tensors[output]
  for weight in WEIGHTS:
    kernel = builder.integers(f"{node.layer.name}/{weight.key}", layout=np.transpose, axis=0)
    units = builder.program.tensors[kernel].shape[0]
    part = builder.program.add_tensor(
        IntTensor(f"{node.name}/{weight.name}x", (1, units), grid.dtype, grid.scale, grid.zero_point))
    builder.add(node, "FULLY_CONNECTED", [*builder.inputs(node), kernel, builder.bias(node, weight.bias)],
                [part], version=5, keep_num_dims=False, fused_activation_function="NONE")
    parts.append(part)
  builder.add(node, "CONCATENATION", parts, [output], version=2, axis=1, fused_activation_function="NONE")


@pytest.fixture(autouse=True)
def _registered():
  kept = dict(LAYERS), dict(LOWERINGS)
  tflite_export.register_lowering(Pair, lower_pair, weights=WEIGHTS)
  yield
  for table, before in zip((LAYERS, LOWERINGS), kept):
    table.clear()
    table.update(before)


def pair_model():
  x = keras.Input((6,), name="x")
  hidden = layers.Dense(8, activation="relu", name="before")(x)
  y = Pair(name="pair")(hidden)
  return models.randomized(keras.Model(x, layers.Dense(4, name="behind")(y)))


def calibrated(config="int8"):
  model = pair_model()
  (x,) = models.sample_inputs(model)
  return model, x, kq.calibrate(kq.insert_quantizers(model, config), x)


@pytest.mark.parametrize("preset", ["int8", "int8_per_tensor", "w4a8", "int16x8"])
def test_the_file_holds_both_weights_and_is_exact(preset, tmp_path):
  model = pair_model()
  (x,) = models.sample_inputs(model)
  result = kq.quantize(model, x, config=preset, effort=None)
  written = tflite_export.export(result, tmp_path / "m.tflite", verify=x[:8], certify=True)
  assert written.verification.ok and written.certificate["exact"]
  assert written.program.operator_counts()["FULLY_CONNECTED"] == 4
  encodings = result.encodings
  for weight, units in zip(WEIGHTS, (3, 5)):
    grid = encodings[f"pair/{weight.key}"]
    assert grid.axis == (None if preset == "int8_per_tensor" else (1,))
    assert grid.bits == (4 if preset == "w4a8" else 8)
    integers = encodings.integers[f"pair/{weight.bias}"]
    assert integers.shape == (units,) and integers.dtype == ("int64" if preset == "int16x8" else "int32")
    np.testing.assert_array_equal(written.program.tensors[f"pair/{weight.name}"].data,
                                  encodings.integers[f"pair/{weight.name}"].T)


def test_a_changed_bias_or_weight_is_found(tmp_path):
  model = pair_model()
  (x,) = models.sample_inputs(model)
  result = kq.quantize(model, x, effort=None)
  data = tflite_export.export(result, tmp_path / "m.tflite").path.read_bytes()
  result.encodings.integers["pair/b"][0] += 1
  found = tflite_export.verify(data, None, result.encodings)
  assert not found.biases_equal and found.weights_equal
  result.encodings.integers["pair/A"][0, 0] -= 1
  assert not tflite_export.verify(data, None, result.encodings).weights_equal


def test_bias_integers_are_on_the_grid_of_input_times_weight():
  """By hand: inputs in [-128, 127] have s_x 1; A has s_w 1/127 and 2/127, B 4/127; q_b = b / (s_x s_w)."""
  x = keras.Input((2,), name="x")
  model = keras.Model(x, Pair(2, 1, name="pair")(x))
  pair = model.get_layer("pair")
  pair.A.assign([[1.0, 2.0], [0.5, -1.0]])
  pair.a.assign([3.0, -10.0])
  pair.B.assign([[-4.0], [2.0]])
  pair.b.assign([8.0])
  qmodel = kq.calibrate(kq.insert_quantizers(model), np.array([[-128.0, 127.0]], np.float32))
  final, encodings = kq.finalize(qmodel)
  np.testing.assert_allclose(encodings["x"].scale, [1.0])
  np.testing.assert_allclose(encodings["pair/A"].scale, [1 / 127, 2 / 127])
  np.testing.assert_allclose(encodings["pair/a"].scale, [1 / 127, 2 / 127])
  np.testing.assert_array_equal(encodings.integers["pair/A"], [[127, 127], [64, -64]])
  np.testing.assert_array_equal(encodings.integers["pair/a"], [381, -635])
  np.testing.assert_allclose(encodings["pair/b"].scale, [4 / 127])
  np.testing.assert_array_equal(encodings.integers["pair/B"], [[-127], [64]])
  np.testing.assert_array_equal(encodings.integers["pair/b"], [254])
  np.testing.assert_allclose(final.get_layer("pair").B.numpy(), [[-4.0], [64 * 4 / 127]], rtol=1e-6)


def test_the_scale_of_one_weight_is_raised_where_its_bias_would_overflow():
  _, _, qmodel = calibrated()
  _, before = kq.finalize(qmodel)
  qmodel.get_layer("pair").layer.b.assign([1e9, 0, 0, 0, 0])
  _, encodings = kq.finalize(qmodel)
  np.testing.assert_array_equal(encodings["pair/A"].scale, before["pair/A"].scale)
  assert encodings["pair/B"].scale[0] > before["pair/B"].scale[0]
  assert abs(int(encodings.integers["pair/b"][0])) < 2**30


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_saved_model_has_the_same_encodings(suffix, tmp_path):
  _, _, qmodel = calibrated("w4a8")
  qmodel.save(tmp_path / f"m{suffix}")
  loaded = kq.load_model(tmp_path / f"m{suffix}")
  (_, before), (_, after) = kq.finalize(qmodel), kq.finalize(loaded)
  assert {"pair/A", "pair/a", "pair/B", "pair/b"} < before.grids.keys() == after.grids.keys()
  for key, grid in before.grids.items():
    np.testing.assert_array_equal(grid.scale, after[key].scale)
    np.testing.assert_array_equal(grid.zero_point, after[key].zero_point)
  for key, integers in before.integers.items():
    np.testing.assert_array_equal(integers, after.integers[key])


def test_methods_of_layers_leave_it_at_the_nearest_integers_and_name_it():
  model, x, qmodel = calibrated("w4a8")
  params = linear_params(standardize(Graph.from_model(model)))
  assert set(params["pair"]) == {"A", "a", "B", "b"}
  statistics = observe(qmodel, x)
  turns = layer_turns(qmodel, [x], float_params=params)
  assert list(round_layers(turns, params, statistics)) == ["pair"]
  np.testing.assert_array_equal(qmodel.get_layer("pair").layer.A.numpy(), params["pair"]["A"])
  assert correct_iteratively(layer_turns(qmodel, [x]), statistics) == ["pair"]


def test_each_bias_loses_the_mean_error_of_its_own_weight():
  model, x, qmodel = calibrated("w4a8")
  kq.correct_bias(qmodel, model, x)
  pair, grids = qmodel.get_layer("pair"), qmodel.get_layer("pair").weight_encodings()
  mean = keras.Model(model.input, model.get_layer("before").output)(x).numpy().mean(axis=0)
  for weight in WEIGHTS:
    kernel = getattr(model.get_layer("pair"), weight.name).numpy()
    error = grids[weight.name].dequantize(grids[weight.name].quantize(kernel)) - kernel
    expected = getattr(model.get_layer("pair"), weight.bias).numpy() - mean @ error
    np.testing.assert_allclose(getattr(pair.layer, weight.bias).numpy(), expected, atol=1e-5)
    assert np.abs(mean @ error).max() > 1e-3


@pytest.mark.parametrize("options", [
    {"effort": "fast"}, {"config": "w4a8", "recipe": kq.Recipe(rounding="closed_form")}])
def test_one_call_methods_take_the_layer(options, tmp_path):
  model = pair_model()
  (x,) = models.sample_inputs(model, images=64)
  written = tflite_export.export(kq.quantize(model, x, **options), tmp_path / "m.tflite", verify=x[:4])
  assert written.verification.ok


def test_fine_tuning_leaves_the_layer_as_it_is():
  model, x, qmodel = calibrated("w4a8")
  before = [variable.numpy() for variable in qmodel.get_layer("pair").weights]
  kq.finetune(qmodel, model, x, method="qft", settings=kq.FinetuneSettings(epochs=1))
  for variable, value in zip(qmodel.get_layer("pair").weights, before, strict=True):
    np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("quantizer", ["minmax", "lsq"])
def test_training_moves_both_kernels(quantizer):
  spec = kq.TensorSpec(bits=4, symmetric=True, per_channel=True, quantizer=quantizer)
  _, x, qmodel = calibrated(kq.QuantConfig((kq.Rule(weights=spec),)))
  pair = qmodel.get_layer("pair").layer
  before = {name: getattr(pair, name).numpy() for name in "AaBb"}
  qmodel.compile(keras.optimizers.SGD(0.1), "mse")
  qmodel.fit(x, np.ones((len(x), 4), np.float32), epochs=1, batch_size=len(x), verbose=0,
             callbacks=[kq.TrackOscillations(), kq.DampenOscillations()])
  assert all((getattr(pair, name).numpy() != value).any() for name, value in before.items())
  assert set(qmodel.get_layer("pair").histories) == {"A", "B"}


def test_a_model_of_tfmot_has_a_quantizer_for_each_weight():
  def kernel():
    return MovingAverageQuantizer(momentum=0.8, bits=4, symmetric=True, narrow=True, axis=(1,))

  x = keras.Input((6,), name="x")
  config = WeightsQuantizeConfig({"A": kernel(), "B": kernel()}, MovingAverageQuantizer(momentum=0.8))
  model = keras.Model(x, annotate(Pair(name="pair"), config)(x))
  with keras.utils.custom_object_scope({"Pair": Pair, "WeightsQuantizeConfig": WeightsQuantizeConfig}):
    qmodel = quantize_apply(model)
  (images,) = models.sample_inputs(qmodel)
  qmodel.compile("sgd", "mse")
  qmodel.fit(images, np.zeros((len(images), 8), np.float32), epochs=10, batch_size=8, verbose=0)
  final, encodings = kq.finalize(qmodel)
  assert {"pair/A", "pair/a", "pair/B", "pair/b"} < encodings.grids.keys()
  (low,), (high,) = encodings["pair"].range  # qmodel quantizes its output, final does not
  expected = qmodel(images).numpy()
  np.testing.assert_allclose(np.clip(final(images), low, high), expected, atol=2 * encodings["pair"].scale[0])


def test_what_cannot_be_is_refused_by_name():
  with pytest.raises(ValueError, match="the role own, got 'move'"):
    tflite_export.register_lowering(Pair, lower_pair, role="move", weights=WEIGHTS)
  with pytest.raises(ValueError, match="got twice: a"):
    twice = (WEIGHTS[0], WeightFacts("B", (1,), (0,), bias="a"))
    tflite_export.register_lowering(Pair, lower_pair, weights=twice)
  with pytest.raises(ValueError, match="Weight 'A' must have at least one output axis and one input axis"):
    tflite_export.register_lowering(Pair, lower_pair, weights=(WeightFacts("A", (1,), ()),))


@pytest.mark.parametrize("weight, message", [
    (WeightFacts("C", (1,), (0,)), "the weight 'C', but its variables are A, a, B, b"),
    (WeightFacts("A", (2,), (0,)), r"shape \(8, 3\), registered with other axes"),
    (WeightFacts("A", (1,), (0,), bias="b"), r"bias 'b' of shape \(5,\), expected \(3,\)")])
def test_a_layer_without_the_registered_weights_is_refused_by_name(weight, message):
  tflite_export.register_lowering(Pair, lower_pair, weights=(weight,))
  with pytest.raises(UnsupportedLayerError, match=f"'pair'.*{message}"):
    kq.insert_quantizers(pair_model())
