"""All variants in one pass are what runs one by one compute; the sites cover every quantizer."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from kquant.analysis import measure
from kquant.analysis.layer_errors import network_of
from kquant.analysis.sites import ACTIVATION, BOTH, WEIGHTS, sites
from kquant.analysis.sweep import BASE, Sweep
from kquant.graph.execution import Execution, call_float, call_layer
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from tests import models

NAMES = ("branches", "nested_shared", "two_inputs")


@functools.lru_cache
def network(name):
  """Returns a network of the zoo and its images."""
  model = models.build(name)
  images = models.sample_inputs(model, 4)
  qmodel = kq.calibrate(kq.insert_quantizers(model), images)
  return network_of(qmodel, None), images


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_grid", [False, True], ids=["solo", "rest"])
def test_variants_are_what_runs_one_by_one_compute(name, on_grid):
  net, images = network(name)
  found, calls = sites(net.graph), net.calls
  base, changed = calls if on_grid else calls[::-1]
  sweep = Sweep(net.graph, found, base=base, changed=[changed] * len(found))
  variants = range(BASE, len(found))
  run = sweep.traced(net.qmodel, lambda values: [sweep.rows_of(values, ref, variants) for ref in net.answers])
  together = [np.split(values.numpy(), len(variants)) for values in run(list(map(tf.constant, images)))]
  for place, index in enumerate(variants):
    nodes = () if index == BASE else found[index].nodes

    def call(layer, node, values, nodes=nodes):
      return (changed if node in nodes else base)(layer, node, values)

    alone = Execution(net.graph, net.qmodel, call=call).tap(net.answers)(images)
    for one, many in zip(alone, together):
      np.testing.assert_allclose(many[place], one, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_those_of_the_live_layers(name):
  net, images = network(name)
  on_grid, in_float = net.calls
  for mine, theirs in ((on_grid, call_layer), (in_float, call_float)):
    outputs = [Execution(net.graph, net.qmodel, call=call).tap(net.answers)(images)
               for call in (mine, theirs)]
    for one, other in zip(*outputs):
      np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_quantizer_in_front_of_the_answers_has_a_site(name):
  net, _ = network(name)
  layers = {node.layer for node in net.graph.nodes
            if issubclass(node.layer.cls, QuantizeActivation | QuantizeWeights)}
  singles = [site for site in sites(net.graph) if site.part != BOTH]
  assert len(singles) == len(layers) and {site.nodes[0].layer for site in singles} == layers


def test_sites_of_a_fused_operator_and_of_a_shared_layer():
  by_key = {(site.part, site.name): site for site in sites(network("nested_shared")[0].graph)}
  assert [node.name for node in by_key[WEIGHTS, "shared"].nodes] == ["shared", "shared@1"]
  assert by_key[WEIGHTS, "shared"].shared_with == ("shared@1",)
  conv = by_key[BOTH, "inner/conv"]  # its ReLU is in between
  assert [node.layer.cls for node in conv.nodes] == [QuantizeWeights, QuantizeActivation]
  assert (ACTIVATION, "inner/relu") in by_key and (ACTIVATION, "inner/conv") not in by_key


def test_a_variant_departs_only_where_nothing_of_it_arrives():
  net, _ = network("nested_shared")
  found = sites(net.graph)
  sweep = Sweep(net.graph, found, base=net.calls[1], changed=net.calls[:1] * len(found))
  for index, site in enumerate(found):
    assert sweep.entries[index], site
    for node in sweep.entries[index]:
      assert node in site.output and not any(index in sweep.variants[ref] for ref in node.inputs)


def test_variants_of_one_site_may_be_made_in_ways_of_their_own():
  net, images = network("branches")
  site = next(site for site in sites(net.graph) if site.part == ACTIVATION)

  def times(factor):
    return lambda layer, node, values: [factor * values[node.inputs[0]]]

  sweep = Sweep(net.graph, [site] * 3, base=net.calls[1], changed=[times(0.5), net.calls[1], times(0.5)])
  run = sweep.traced(net.qmodel, lambda values: [sweep.rows_of(values, ref, range(BASE, 3))
                                                 for ref in net.answers])
  base, half, same, again = np.split(run(list(map(tf.constant, images)))[0].numpy(), 4)
  np.testing.assert_allclose(same, base, atol=2e-6)
  np.testing.assert_allclose(half, again, atol=2e-6)
  assert np.abs(half - base).max() > 1e-3


def test_what_lies_before_a_site_is_run_once():
  net, _ = network("mobile_block")
  found = sites(net.graph)
  sweep = Sweep(net.graph, found, base=net.calls[1], changed=net.calls[:1] * len(found))
  first = next(node for node in net.graph.nodes if node.name == "stem")
  assert len(sweep.variants[first.outputs[0]]) == 4  # itself, the image, the weights, the layer
  assert len(sweep.variants[net.answers[0]]) == len(found) + 1


def test_parts_for_little_memory_measure_the_same(monkeypatch):
  net, images = network("branches")
  whole = measure.measure(net, sites(net.graph), images, None)
  monkeypatch.setattr(measure, "BYTES_AT_ONCE", whole.parts[0].image_bytes // 3)
  cut = measure.measure(net, sites(net.graph), images, None)
  assert len(whole.parts) == 1 and len(cut.parts) > 2
  assert max(part.image_bytes for part in cut.parts) <= whole.parts[0].image_bytes // 3
  alone = np.concatenate([part.solo.noise[:, 1:] for part in cut.parts], axis=1)
  np.testing.assert_allclose(alone, whole.parts[0].solo.noise[:, 1:], rtol=1e-3, atol=1e-10)


def test_large_images_of_a_model_for_all_sizes_are_measured_in_parts(monkeypatch):
  image = keras.Input((None, None, 3), name="image")
  x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, padding="same")(image))
  images = [np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)]
  net = network_of(kq.calibrate(kq.insert_quantizers(keras.Model(image, x)), images), None)
  monkeypatch.setattr(measure, "BYTES_AT_ONCE", 16 * 16 * 4 * 40)  # 40 values at each place
  found = measure.measure(net, sites(net.graph), images, None)
  assert len(found.parts) > 1 and min(part.rest.noise[0, 0] for part in found.parts) > 0


def test_float_weights_before_rounding_are_those_of_the_float_network():
  model = models.build("conv_bn_relu")
  images = models.sample_inputs(model, 8)
  result = kq.quantize(model, images, recipe=kq.Recipe(rounding="closed_form"), effort=None)
  net = network_of(result.qmodel, result.float_params)
  rounded, found = (Execution(net.graph, net.qmodel, call=call).tap(net.answers)(images)[0]
                    for call in net.calls)
  np.testing.assert_allclose(found, model.predict(images[0], verbose=0), atol=1e-5)
  assert np.abs(rounded - found).max() > 1e-4
