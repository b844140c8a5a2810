"""What the readers of a tensor see of it: the ends beyond which all of them are flat."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from kquant.graph.capped_relu import CappedReLU
from kquant.graph.graph import Graph
from kquant.graph.kinds.flat_parts import EVERYTHING
from kquant.graph.nodes import Ref
from kquant.graph.seen_parts import seen_part, seen_range
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize

SIX, OPEN = 6.0, np.inf


def hard_swish(x):
  return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


def graph_of(read, *, change=lambda graph: None):
  """A graph of what `read` makes of the output of the layer "x", standardized and folded."""
  image = keras.Input((4, 4, 2), name="image")
  graph = Graph.from_model(keras.Model(image, read(layers.Conv2D(2, 1, name="x")(image))))
  standardize(graph)
  change(graph)
  fold_batch_norm(graph)
  return graph


def seen_of_x(read, **options):
  graph = graph_of(read, **options)
  (x,) = [ref for node in graph.nodes for ref in node.outputs if ref.key == "x"]
  return seen_range(graph, [x])


@pytest.mark.parametrize("read, expected", [
    (layers.ReLU(), (0.0, OPEN)),
    (layers.ReLU(SIX), (0.0, SIX)),
    (layers.ThresholdedReLU(1.5), (1.5, OPEN)),
    (lambda x: tf.clip_by_value(x, -0.5, 2.0), (-0.5, 2.0)),
    (lambda x: tf.maximum(x, -1.0), (-1.0, OPEN)),
    (lambda x: tf.minimum(x, 2.0), (-OPEN, 2.0)),
    (lambda x: [layers.Activation("hard_sigmoid")(x), layers.ReLU(1.0)(x)], (-2.5, 2.5)),
    (lambda x: [tf.nn.relu6(x + 3.0) * (1.0 / 6.0), layers.ReLU(1.0)(x)], (-3.0, 3.0)),
    (hard_swish, (-3.0, OPEN)),
    (lambda x: x * tf.nn.relu(x), (0.0, OPEN)),
    (lambda x: x * tf.nn.relu6(3.0 - x), (-OPEN, 3.0)),
    (lambda x: layers.ReLU()(layers.MaxPooling2D()(x)), (0.0, OPEN)),
    (lambda x: layers.ReLU(SIX)(layers.Flatten()(x)), (0.0, SIX)),
    (lambda x: [hard_swish(x), layers.ReLU(SIX)(x)], (-3.0, OPEN)),
    (lambda x: [layers.ReLU(SIX)(x), layers.ReLU(1.0)(x)], (0.0, SIX))])
def test_readers_see_what_lies_between_their_flat_parts(read, expected):
  np.testing.assert_allclose(seen_of_x(read), expected, rtol=1e-6)


@pytest.mark.parametrize("read", [
    lambda x: x,
    layers.Conv2D(2, 1),
    layers.LeakyReLU(),
    layers.AveragePooling2D(),
    lambda x: layers.ReLU()(layers.AveragePooling2D(1)(x)),
    lambda x: [hard_swish(x), layers.Conv2D(2, 1)(x)],
    lambda x: [hard_swish(x), x],
    lambda x: x * x,
    lambda x: layers.Flatten()(x) * layers.ReLU()(layers.Dense(32)(layers.Flatten()(x))),
    lambda x: layers.Concatenate()([x, layers.ReLU()(x)]),
    lambda x: x * layers.GlobalAveragePooling2D(keepdims=True)(tf.nn.relu6(x + 3.0))])
def test_a_reader_that_is_flat_nowhere_sees_everything(read):
  assert seen_of_x(read) == EVERYTHING


@pytest.mark.parametrize("slope, low, high", [(0.25, -2.0, OPEN), (-0.25, -OPEN, 2.0), (0.0, -OPEN, OPEN)])
def test_the_product_with_a_gate_ends_where_the_gate_of_the_channel_does(slope, low, high):
  """max(k x + b, 0) with b = 1/2 is above 0 from -b / k on, or up to there for k < 0; for k = 0 always."""
  graph = graph_of(hard_swish)
  (line,) = graph.find("DepthwiseConv2D")
  line.layer.params = {"depthwise_kernel": np.reshape(np.float32([0.5, slope]), (1, 1, 2, 1)),
                       "bias": np.float32([0.5, 0.5])}
  np.testing.assert_allclose(seen_part(graph, line.inputs[0]), ([-1.0, low], [OPEN, high]))


def test_caps_of_channels_are_seen_one_by_one():
  caps = np.float32([2.0, 5.0])

  def with_caps(graph):
    (relu,) = graph.find("ReLU")
    graph.recall(relu, graph.new_layer(CappedReLU, relu.name, params={"caps": caps}), (relu.inputs[0],))

  graph = graph_of(layers.ReLU(SIX), change=with_caps)
  (relu,) = graph.find("CappedReLU")
  low, high = seen_part(graph, relu.inputs[0])
  assert low == 0.0
  np.testing.assert_array_equal(high, caps)


def test_tensors_of_different_channels_share_a_part():
  """As in a DenseNet: what is concatenated is read through a ReLU behind a line each."""
  image = keras.Input((4, 4, 2))
  narrow, wide = layers.Conv2D(2, 1, name="narrow")(image), layers.Conv2D(3, 1, name="wide")(image)
  lines = [layers.ReLU()(layers.DepthwiseConv2D(1)(x)) for x in (narrow, wide)]
  joined = layers.Concatenate()([narrow, wide])
  model = keras.Model(image, [layers.Concatenate()(lines), layers.ReLU()(layers.DepthwiseConv2D(1)(joined))])
  graph = standardize(Graph.from_model(model))
  refs = [Ref(node) for node in graph.nodes if node.name in ("narrow", "wide")]
  low, high = seen_range(graph, refs)
  assert np.isscalar(low) and low < high
