"""A pass edits a Graph in place, returns a new model of a model, and is configured by keywords."""

import numpy as np
import pytest
import tf_keras as keras

import kquant as kq
from kquant.core.records import Edit
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from kquant.graph.passes import graph_pass, rewrite
from tests import models


@graph_pass
def scale_kernels(graph, *, factor=2.0):
  """Multiplies every kernel."""
  for node in graph.find("Conv2D"):
    node.layer.params["kernel"] = node.layer.params["kernel"] * np.float32(factor)
    graph.edit(node, f"times {factor}")


def kernel(model):
  return model.get_layer("conv").kernel.numpy()


@pytest.fixture
def model():
  return models.build("conv_bn_relu")


def test_a_graph_is_edited_in_place_and_returned(model):
  graph = Graph.from_model(model)
  assert scale_kernels(graph, factor=3.0) is graph
  assert graph.edits == [Edit("conv", "scale_kernels", "times 3.0")]
  np.testing.assert_array_equal(kernel(graph.to_model()), 3 * kernel(model))


def test_a_model_gives_a_new_model_and_stays_as_it_was(model):
  before = kernel(model)
  other = scale_kernels(model)
  assert isinstance(other, keras.Model) and other is not model
  np.testing.assert_array_equal(kernel(other), 2 * before)
  np.testing.assert_array_equal(kernel(model), before)


def test_keywords_alone_give_a_configured_pass(model):
  configured = scale_kernels(factor=5.0)
  np.testing.assert_array_equal(kernel(configured(model)), 5 * kernel(model))
  np.testing.assert_array_equal(kernel(configured(model, factor=7.0)), 7 * kernel(model))
  graph = Graph.from_model(model)
  assert configured(graph) is graph and graph.edits[0].pass_name == "scale_kernels"
  np.testing.assert_array_equal(kernel(scale_kernels()(model)), 2 * kernel(model))


def test_a_pass_keeps_its_name_and_docstring():
  for entry in (scale_kernels, scale_kernels(factor=3.0)):
    assert entry.__name__ == "scale_kernels" and entry.__doc__ == "Multiplies every kernel."


def test_a_wrong_keyword_is_an_error(model):
  with pytest.raises(TypeError, match="size"):
    scale_kernels(model, size=3)


def test_a_pass_leaves_a_graph_in_order(model):
  @graph_pass
  def insert(graph):
    (conv,) = graph.find("Conv2D")
    graph.insert_after(Ref(conv), graph.new_layer(keras.layers.ReLU, "between"))

  graph = insert(Graph.from_model(model))
  assert [node.name for node in graph.nodes][:4] == ["image", "conv", "between", "bn"]


def test_rewrite_runs_the_passes_in_order(model):
  def note(graph):
    assert [edit.what for edit in graph.edits] == ["times 2.0"]

  other = rewrite(model, [scale_kernels, note, scale_kernels(factor=10.0)])
  np.testing.assert_allclose(kernel(other), 20 * kernel(model), rtol=1e-6)


def test_rewrite_with_no_pass_is_a_copy(model):
  other = rewrite(model, [])
  (x,) = models.sample_inputs(model)
  assert other is not model and other.name == model.name
  np.testing.assert_array_equal(other(x), model(x))


def test_rewrite_takes_any_iterable(model):
  np.testing.assert_array_equal(kernel(rewrite(model, iter([scale_kernels]))), 2 * kernel(model))


@pytest.mark.parametrize("entry", ["fold_batch_norm", None, 3, ["pass"]])
def test_rewrite_names_what_is_no_pass(entry, model):
  with pytest.raises(TypeError, match="expected graph passes such as kq.fold_batch_norm") as error:
    rewrite(model, [scale_kernels, entry])
  assert repr(entry) in str(error.value)


@pytest.mark.parametrize("target", ["model.h5", 3, np.zeros(3)])
def test_a_pass_on_something_else_is_refused(target):
  with pytest.raises(TypeError, match="Expected a tf_keras model"):
    scale_kernels(target)


def test_public_passes_are_passes(model):
  for entry in (kq.standardize, kq.fold_batch_norm):
    graph = Graph.from_model(model)
    assert entry(graph) is graph and isinstance(entry(model), keras.Model)


def lone():
  """A batch norm that no linear layer can take."""
  image = keras.Input((4, 4, 2), name="image")
  return keras.Model(image, keras.layers.BatchNormalization(name="bn")(keras.layers.ReLU()(image)))


@pytest.mark.parametrize("route", [
    lambda model: kq.rewrite(model, [kq.standardize, kq.fold_batch_norm]), kq.fold_batch_norm,
    kq.insert_quantizers], ids=["rewrite", "pass", "insert"])
def test_what_is_skipped_is_logged_in_a_line(route, caplog):
  route(lone())
  (message,) = caplog.messages
  assert message.startswith("fold_batch_norm: layer 'bn' skipped: ") and message.endswith("1x1 depthwise.")


def test_a_pass_on_a_graph_leaves_logging_to_its_caller(caplog):
  graph = Graph.from_model(lone())
  kq.fold_batch_norm(graph)
  assert graph.skips and not caplog.messages


def test_layers_that_a_pass_adds_stand_for_the_layer_it_treats(model):
  graph = Graph.from_model(model)
  (conv,) = graph.find("Conv2D")
  assert conv.layer.origins == (("conv", "Conv2D"),)
  with graph.in_place_of(conv):
    graph.insert_after(Ref(conv), graph.new_layer(keras.layers.ReLU, "inside"))
  graph.insert_after(Ref(conv), graph.new_layer(keras.layers.ReLU, "outside"))
  graph.normalize()
  found = {node.name: node.layer.origins for node in graph.nodes}
  assert found["inside"] == conv.layer.origins and found["outside"] == ()
  graph.recall(conv, graph.new_layer(keras.layers.ReLU, "new"), (conv.inputs[0],))
  assert conv.layer.name == "new" and conv.layer.origins == (("conv", "Conv2D"),)
