"""The streaming pass: each layer's turn comes on the quantized prefix, as the whole network computes it."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from kquant.graph.graph import Graph
from kquant.ptq.layerwise import streaming
from kquant.ptq.layerwise.bias_correction import (
  correct_bias,
  correct_iteratively,
  correct_local_shift,
  linear_params,
  shrunk_mean,
)
from kquant.ptq.layerwise.streaming import layer_turns
from kquant.qmodel.calibrate import calibrate, observe
from kquant.qmodel.finalize import finalize
from kquant.qmodel.insert import insert_quantizers
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize
from tests import models


def calibrated(name, images=24, config="int8"):
  graph = Graph.from_model(models.build(name))
  standardize(graph)
  fold_batch_norm(graph)
  model = graph.to_model()
  inputs = models.sample_inputs(model, images=images)
  return model, calibrate(insert_quantizers(model, config), inputs), inputs


def test_a_batch_norm_left_in_a_layer_is_refused():
  model = models.build("conv_bn_relu")
  inputs = models.sample_inputs(model, images=8)
  qmodel = calibrate(insert_quantizers(model, "int8", batch_norm="train"), inputs)
  with pytest.raises(ValueError, match="still has its batch norm; insert the quantizers with"):
    next(layer_turns(qmodel, inputs))


@pytest.mark.parametrize("name", ["conv_bn_relu", "mobile_block", "branches", "two_inputs", "sequence"])
def test_turns_see_what_the_quantized_model_computes(name):
  _, qmodel, inputs = calibrated(name)
  wrappers = [layer for layer in qmodel.layers if isinstance(layer, QuantizeWeights)]
  probe = keras.Model(qmodel.inputs, {layer.name: layer.get_output_at(0) for layer in wrappers})
  expected = probe.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
  turns = {turn.layer.name: (np.concatenate([turn.layer(inputs) for inputs in turn.inputs()]),
                             turn.image_means()) for turn in layer_turns(qmodel, inputs)}
  assert set(turns) == {layer.name for layer in wrappers}
  for key, (output, means) in turns.items():
    np.testing.assert_allclose(output, expected[key], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(means, output.reshape(len(output), -1, output.shape[-1]).mean(1), atol=1e-4)


def test_a_change_is_seen_by_the_layers_behind_it():
  _, qmodel, inputs = calibrated("mobile_block")
  seen = []
  for turn in layer_turns(qmodel, inputs):
    seen.append(turn.image_means().mean())
    if len(seen) == 1:
      turn.layer.layer.bias.assign_add(np.ones(turn.layer.layer.bias.shape, np.float32))
  again = [turn.image_means().mean() for turn in layer_turns(qmodel, inputs)]
  assert not np.isclose(again[0], seen[0]) and np.isclose(again[1], seen[1])


@pytest.mark.parametrize("fewest_traced", [1, 1000], ids=["traced", "eager"])
def test_chunks_give_the_same(fewest_traced, monkeypatch):
  _, qmodel, inputs = calibrated("mobile_block")
  whole = [turn.image_means() for turn in layer_turns(qmodel, inputs)]
  monkeypatch.setattr(streaming, "_CHUNK_ELEMENTS", 6000)
  monkeypatch.setattr(streaming, "FEWEST_TRACED", fewest_traced)
  for first, second in zip(whole, (turn.image_means() for turn in layer_turns(qmodel, inputs))):
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_iterative_correction_takes_the_mean_error_of_every_layer():
  model, qmodel, inputs = calibrated("mobile_block", images=64, config="w4a8")
  statistics = observe(qmodel, inputs)
  correct_local_shift(qmodel, linear_params(Graph.from_model(model)), statistics)
  correct_iteratively(layer_turns(qmodel, inputs), statistics)
  for turn in layer_turns(qmodel, inputs):
    errors = turn.image_means() - statistics.output_means[turn.layer.name]
    chance = errors.std(axis=0) / np.sqrt(len(errors))
    assert (np.abs(errors.mean(axis=0)) <= chance + 1e-6).mean() > 0.9


@pytest.mark.parametrize("name", ["mobile_block", "branches", "sequence"])
@pytest.mark.parametrize("config", ["int8", "w4a8"])
def test_without_shrinkage_no_layer_keeps_half_a_bias_step_of_mean_error(name, config):
  model, qmodel, inputs = calibrated(name, config=config)
  means = observe(qmodel, inputs).output_means  # of the float network, its biases still those of the model
  correct_bias(qmodel, model, inputs, method="iterative", shrink=False)
  _, encodings = finalize(qmodel)
  for turn in layer_turns(qmodel, inputs):
    errors = np.abs((turn.image_means() - means[turn.layer.name]).mean(axis=0))
    assert (errors <= encodings[f"{turn.layer.name}/bias"].scale / 2).all()


def test_iterative_correction_brings_the_output_nearer_than_local():
  model, _, inputs = calibrated("mobile_block", images=64)
  reference = keras.Model(model.input, model.get_layer("logits").output).predict(inputs[0], verbose=0)

  def error(method):
    qmodel = calibrate(insert_quantizers(model, "w3a8"), inputs)
    correct_bias(qmodel, model, inputs, method=method)
    probe = keras.Model(qmodel.input, qmodel.get_layer("logits").get_output_at(0))
    return ((probe.predict(inputs[0], verbose=0) - reference).mean(axis=0) ** 2).sum()

  assert error("iterative") < 0.5 * error("local")


def test_a_second_correction_changes_nothing():
  model, qmodel, inputs = calibrated("conv_bn_relu")
  first = [w.copy() for w in correct_bias(qmodel, model, inputs, method="iterative").get_weights()]
  second = correct_bias(qmodel, model, inputs, method="iterative").get_weights()
  for a, b in zip(first, second):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_shared_layers_keep_the_local_correction_and_are_named():
  image = keras.Input((6, 6, 2))
  shared = layers.Conv2D(2, 1, name="shared")
  model = keras.Model(image, shared(layers.ReLU()(shared(image))))
  x = [np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype(np.float32)]
  qmodel = calibrate(insert_quantizers(model), x)
  assert correct_iteratively(layer_turns(qmodel, x), observe(qmodel, x)) == ["shared"]


def test_shrinkage_by_hand():
  """Errors without spread are taken whole; pure noise around zero is left."""
  np.testing.assert_allclose(shrunk_mean(np.tile([1.0, -2.0], (8, 1))), [1.0, -2.0])
  noise = np.random.default_rng(0).normal(size=(16, 400))
  assert np.abs(shrunk_mean(noise)).mean() < 0.2 * np.abs(noise.mean(axis=0)).mean()
  errors = np.array([[3.0, 0.0], [1.0, 0.0]])  # d = (2, 0), se^2 = (1, 0), tau^2 = 2 - 0.5
  np.testing.assert_allclose(shrunk_mean(errors), [2 * 1.5 / 2.5, 0.0])
