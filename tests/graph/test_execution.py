"""Execution: the values of a graph's tensors, on batches of any size, with calls of one's own."""

import numpy as np
import pytest
import tensorflow as tf

from kquant.graph import execution
from kquant.graph.execution import Execution, call_layer, live_layers, run_nodes
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from tests import models


def executed(name, **options):
  model = models.build(name)
  graph = Graph.from_model(model)
  copy = graph.to_model()
  return model, Execution(graph, copy, **options)


@pytest.mark.parametrize("name", ["branches", "nested_shared", "two_inputs", "rearranged"])
def test_values_are_those_of_the_model(name):
  model, run = executed(name)
  x = models.sample_inputs(model, images=3)
  values = run.values([tf.constant(array) for array in x])
  outputs = tf.nest.flatten(model(dict(zip(model.input_names, x)) if len(x) > 1 else x[0]))
  for ref, expected in zip(run.graph.output_refs, outputs):
    np.testing.assert_allclose(values[ref], expected, rtol=1e-6, atol=1e-6)
  assert set(values) == {ref for node in run.graph.nodes for ref in node.outputs}


def test_a_tap_gives_inner_tensors_whatever_the_last_batch():
  model, run = executed("mobile_block")
  (x,) = models.sample_inputs(model, images=7)
  inner = Ref(next(node for node in run.graph.nodes if node.name == "stem"))
  (found,) = run.tap([inner])([x], 3)
  np.testing.assert_allclose(found, run.values([tf.constant(x)])[inner], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["branches", "nested_shared", "two_inputs", "rearranged"])
@pytest.mark.parametrize("batch_size", [1, 4])  # seven batches are traced, two are not
def test_running_once_gives_what_a_tap_gives(name, batch_size):
  model, run = executed(name)
  x = models.sample_inputs(model, images=7)
  wanted = [*run.graph.output_refs, Ref(run.graph.nodes[len(run.graph.nodes) // 2])]
  for found, expected in zip(run.run_once(wanted, x, batch_size), run.tap(wanted)(x, batch_size)):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_running_once_forgets_what_no_call_reads_any_more():
  held = []

  def counting(layer, node, values):
    held.append(len(values))
    return call_layer(layer, node, values)

  model, run = executed("mobile_block", call=counting)
  run.run_once(run.graph.output_refs, models.sample_inputs(model, images=2))
  assert max(held) <= 2 < len(run.graph.nodes)  # a block's input waits for its end


def test_one_trace_serves_every_batch_size_and_follows_the_weights():
  model, _ = executed("conv_bn_relu")
  traces = []

  def counting(layer, node, values):
    traces.append(node.name)
    return call_layer(layer, node, values)

  graph = Graph.from_model(model)
  run = Execution(graph, model, call=counting).tap(graph.output_refs)
  (x,) = models.sample_inputs(model, images=5)
  first = run([x], 2)[0]
  assert len(traces) == len(set(traces))
  model.get_layer("dense").bias.assign_add(tf.ones(5))
  np.testing.assert_allclose(run([x], 4)[0], first + 1, rtol=1e-5, atol=1e-5)
  assert len(traces) == len(set(traces))


def test_a_shared_layer_is_called_at_each_of_its_nodes():
  model, _ = executed("nested_shared")
  called = []

  def noted(layer, node, values):
    called.append((node.name, layer.name))
    return call_layer(layer, node, values)

  graph = Graph.from_model(model)
  copy = graph.to_model()
  Execution(graph, copy, call=noted).values([tf.constant(models.sample_inputs(model, images=1)[0])])
  assert [name for name, layer in called if layer == "shared"] == ["shared", "shared@1"]


def test_a_part_of_a_graph_runs_from_the_tensors_given():
  model, run = executed("mobile_block")
  (x,) = models.sample_inputs(model, images=2)
  whole = run.values([tf.constant(x)])
  nodes = run.graph.nodes
  at = next(i for i, node in enumerate(nodes) if node.name == "logits")
  values = {ref: whole[ref] for ref in nodes[at].inputs}
  run_nodes(nodes[at:], live_layers(run.graph.to_model()), values)
  np.testing.assert_allclose(values[run.graph.output_refs[0]], whole[run.graph.output_refs[0]], rtol=1e-6)


def test_a_call_may_replace_what_the_nodes_behind_read():
  model, run = executed("conv_bn_relu", call=lambda layer, node, values: [
      tf.zeros_like(output) for output in call_layer(layer, node, values)])
  values = run.values([tf.constant(models.sample_inputs(model, images=2)[0])])
  assert not any(np.any(value) for ref, value in values.items() if ref not in run.graph.input_refs)


def test_nothing_of_a_run_stays_in_the_module():
  state = {name for name, value in vars(execution).items() if isinstance(value, (list, dict, set))
           and not name.startswith("__")}
  assert not state
