"""Brings a graph to the few forms that placement and lowering know; the function stays the same.

Fused activations become layers, SeparableConv becomes depthwise and pointwise, operators written as
`x + y`, `x * c` or tf.nn.relu become layers, every linear layer has a bias, what does nothing at
inference goes, constants are folded, and a padding that equals the "same" padding of the convolution or max
pool behind it is left to that.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.graph.passes import graph_pass
from kquant.rewrites.standardize.attention import split_attention
from kquant.rewrites.standardize.constant_weights import name_constant_weights
from kquant.rewrites.standardize.constants import fold_constants
from kquant.rewrites.standardize.contraction import split_contraction
from kquant.rewrites.standardize.copies import join_copies
from kquant.rewrites.standardize.dimensions import change_dimensions
from kquant.rewrites.standardize.fused import fuse
from kquant.rewrites.standardize.indices import look_up_categories, look_up_numbers, take_integer_indices
from kquant.rewrites.standardize.masks import split_masked_mean, take_masks
from kquant.rewrites.standardize.normalization import split_normalization
from kquant.rewrites.standardize.operators import name_activation, name_operator, name_scaling
from kquant.rewrites.standardize.padding import absorb_lowest, absorb_zeros
from kquant.rewrites.standardize.recurrent import unroll
from kquant.rewrites.standardize.resizing import split_resizing
from kquant.rewrites.standardize.shape_operators import drop_cast, name_shape_operator
from kquant.rewrites.standardize.time_distributed import distribute
from kquant.rewrites.standardize.training_config import split_activity_regularizer, training_config
from kquant.rewrites.standardize.volumes import split_volume_kernel


@graph_pass
def standardize(graph: Graph, *, keep_training: bool = False, recurrent: str = "unrolled") -> None:
  """Splits, renames and drops layers as the module says; the output is unchanged.

  Args:
    graph: a Graph, which is edited; or a tf_keras model, which is not changed.
    keep_training: layers that act in training alone (Dropout, GaussianNoise, RandomFlip) stay.
    recurrent: what recurrent layers become, as in `QuantConfig`.

  Returns:
    The Graph, or a new model. Called with keywords alone: the pass with these options, for `kq.rewrite`.

  Example:
    >>> model = keras.Sequential([keras.layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 3))])
    >>> [type(layer).__name__ for layer in kq.standardize(model).layers]
    ['InputLayer', 'Conv2D', 'ReLU']
  """
  fold_constants(graph)
  _treat_each(graph, name_constant_weights)
  take_masks(graph, keep_training=keep_training)
  _treat_each(graph, distribute)
  graph.normalize()
  if recurrent != "unrolled":
    _treat_each(graph, functools.partial(fuse, required=recurrent == "fused"))
  _treat_each(graph, functools.partial(unroll, made={}))
  _treat_each(graph, change_dimensions, split_resizing, split_volume_kernel, split_attention,
              split_contraction, split_masked_mean, split_normalization, look_up_categories,
              take_integer_indices, drop_cast, join_copies)
  graph.normalize()
  _treat_each(graph, look_up_numbers)
  _treat_each(graph, _split_separable)
  _treat_each(graph, _split_activation)
  _treat_each(graph, name_operator, name_activation, name_scaling, name_shape_operator)
  drop_identities(graph, keep_training=keep_training)
  for node in graph.nodes:
    if node.facts.role == "linear" and "bias" not in node.layer.params:
      _give_bias(node.layer)
  _treat_each(graph, _split_nary)
  for node in list(graph.nodes):
    if node.facts.role == "linear" and node.facts.spatial == 2 and not node.facts.transposed:
      absorb_zeros(graph, node)
    elif node.facts.takes_maximum and "pool_size" in node.config:
      absorb_lowest(graph, node)


def drop_identities(graph: Graph, *, keep_training: bool = False) -> None:
  """Takes out the calls that do nothing at inference; those that act in training stay if asked for."""
  for node in list(graph.nodes):
    stays = keep_training and node.facts.training_only
    alone = node.facts.joins and len(tf.nest.flatten(node.args)) == 1  # Keras does not load such a call
    if (node.facts.role == "identity" or node.facts.requantizes or alone) and not stays:
      graph.edit(node, f"dropped: {node.layer.cls.__name__} does nothing at inference")
      graph.remove(node)


def _treat_each(graph: Graph, *treatments: Callable[[Graph, Node], None]) -> None:
  """Treats each node; layers that come of it stand for the user's layer that it stood for."""
  for node in list(graph.nodes):
    with graph.in_place_of(node):
      for treatment in treatments:
        treatment(graph, node)


def _split_separable(graph: Graph, node: Node) -> None:
  """Depthwise without bias ("name/depthwise"), then a 1x1 convolution that keeps the name."""
  if node.kind != "SeparableConv2D":
    return
  config, layer = node.config, node.layer
  common = {"data_format": config["data_format"], "dtype": config["dtype"], "use_bias": False}
  depthwise = graph.new_layer(
      keras.layers.DepthwiseConv2D, f"{layer.name}/depthwise",
      {**common, **training_config(graph, node, {"depthwise": "depthwise"}),
       "kernel_size": config["kernel_size"], "strides": config["strides"],
       "padding": config["padding"], "dilation_rate": config["dilation_rate"],
       "depth_multiplier": config["depth_multiplier"]},
      {"depthwise_kernel": layer.params["depthwise_kernel"]})
  pointwise = graph.new_layer(
      keras.layers.Conv2D, layer.name,
      {**common, **training_config(graph, node, {"kernel": "pointwise", "bias": "bias"}),
       "filters": config["filters"], "kernel_size": 1, "use_bias": config["use_bias"],
       "activation": config["activation"], "activity_regularizer": config.get("activity_regularizer")},
      {"kernel": layer.params["pointwise_kernel"],
       **({"bias": layer.params["bias"]} if config["use_bias"] else {})})
  for call in graph.calls(layer):
    channels = layer.params["pointwise_kernel"].shape[-2]
    middle = graph.add_node(depthwise, call.args, (*call.shapes[0][:-1], channels))
    graph.redirect(Ref(call), graph.add_node(pointwise, (middle,), call.shapes[0]))
    graph.edit(call, "split into depthwise and pointwise")
    graph.drop(call)
  graph.normalize()


def _split_activation(graph: Graph, node: Node) -> None:
  """Conv2D(activation="relu") becomes Conv2D and an activation layer behind it."""
  if node.facts.role != "linear" or node.config.get("activation") in (None, "linear"):
    return
  layer, activation = node.layer, node.config["activation"]
  if isinstance(activation, dict):
    return  # an activation object of the user's; refused by name when quantizers are placed
  layer.config = {**layer.config, "activation": "linear"}
  for call in graph.calls(layer):
    behind = graph.new_layer(keras.layers.Activation, f"{call.layer_name}/{activation}",
                             {"activation": "linear"})
    behind.config = {**behind.config, "activation": activation}
    result = graph.insert_after(Ref(call), behind)
    split_activity_regularizer(graph, call, result)
    graph.edit(call, f"activation {activation!r} split off")


def _give_bias(layer: LayerDef) -> None:
  """A bias of zeros: the integer operators have one, and bias correction needs it."""
  kernel = layer.params[layer.facts.kernel.name]
  outputs = int(np.prod([kernel.shape[axis] for axis in layer.facts.kernel.out_axes]))
  layer.config = {**layer.config, "use_bias": True}
  layer.params = {**layer.params, "bias": np.zeros(outputs, np.float32)}


def _split_nary(graph: Graph, node: Node) -> None:
  """Add([a, b, c]) becomes Add([Add([a, b]), c]): the runtime's operator takes two."""
  if not node.facts.arithmetic or not 3 <= len(node.inputs) == len(node.operands):
    return
  first, *others, last = node.inputs
  for index, other in enumerate(others):
    layer = graph.new_layer(node.layer.cls, f"{node.layer_name}/{index + 1}")
    shape = node.layer.cls().compute_output_shape([first.shape, other.shape])
    first = graph.add_node(layer, ([first, other],), shape)
  graph.recall(node, node.layer, ([first, last],))
