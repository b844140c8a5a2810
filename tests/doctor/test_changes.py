"""Changes become rules of single layers; a tensor that is scaled by itself leaves the function as it is."""

import numpy as np

import kquant as kq
from kquant.doctor.rules import Changes, SpecChange, with_specs
from kquant.doctor.scaling import scale_tensors
from kquant.graph.graph import Graph
from kquant.qmodel.outputs import network_outputs
from tests.analysis.test_layer_errors import chain, photos

WIDE, NARROW = kq.TensorSpec(bits=16).for_activations(), kq.TensorSpec(bits=4).for_weights()


def graph_of(model):
  """The float graph of a model."""
  return Graph.from_model(kq.rewrite(model, [kq.standardize]))


def layer_of(graph, name):
  """A layer of a graph."""
  return next(node.layer for node in graph.nodes if node.name == name)


def test_changes_of_a_layer_are_one_rule_in_front():
  graph, config = graph_of(chain()), kq.QuantConfig.preset("w4a8")
  changes = [SpecChange(layer_of(graph, "conv1"), "activations", WIDE),
             SpecChange(layer_of(graph, "conv2"), "weights", kq.TensorSpec(bits=8).for_weights()),
             SpecChange(layer_of(graph, "conv1"), "weights", kq.TensorSpec(bits=8).for_weights())]
  first, second, *others = with_specs(config, changes).rules
  assert (first.match, first.weights.bits, first.activations.bits) == ("^conv1$", 8, 16)
  assert (second.match, second.weights.bits, second.activations.bits) == ("^conv2$", 8, 8)
  assert tuple(others) == config.rules


def test_what_a_rule_says_of_the_other_tensor_stays():
  graph = graph_of(chain())
  own = kq.Rule(match="conv1|conv2", kinds=("Conv2D",), weights=NARROW, optional=True)
  config = with_specs(kq.QuantConfig(rules=[own, kq.Rule()]),
                      [SpecChange(layer_of(graph, "conv1"), "activations", WIDE)])
  rule = config.rules[0]
  assert (rule.weights, rule.activations, rule.kinds, rule.optional) == (NARROW, WIDE, (), False)


def test_names_are_no_regular_expressions():
  graph = graph_of(chain())
  layer = layer_of(graph, "conv1")
  layer.name = "conv.1+"
  (rule, _) = with_specs(kq.QuantConfig(), [SpecChange(layer, "activations", WIDE)]).rules
  assert rule.matches("conv.1+", "Conv2D") and not rule.matches("conv11", "Conv2D")


def test_there_may_be_none():
  assert not Changes() and Changes(rounded=["conv1"]) and Changes(scales={"conv1": np.ones(12)})


def test_a_scaled_tensor_leaves_the_function_as_it_is():
  graph, images = graph_of(chain()), photos(4)
  before = network_outputs(graph.to_model(), [images])[0]
  kernel = layer_of(graph, "conv1").params["kernel"].copy()
  scale = np.where(np.arange(12) == 4, 1 / 16, 2.0)
  scale_tensors(graph, {"conv1/relu": scale})
  np.testing.assert_allclose(layer_of(graph, "conv1").params["kernel"], kernel * scale, rtol=1e-6)
  np.testing.assert_allclose(network_outputs(graph.to_model(), [images])[0], before, atol=1e-5)
