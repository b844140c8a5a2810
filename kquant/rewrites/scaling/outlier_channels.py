"""Outlier channel splitting: the input channel that sets a kernel's grid is read as two halves.

A channel x_i with the largest weight w is made twice by the layer before; the copies are read with
weights (w - s / 2) / 2 and (w + s / 2) / 2, s the step of the grid, whose rounded sum is the rounded w
(Zhao et al. 2019, "Improving Neural Network Quantization without Retraining using Outlier Channel
Splitting"). The largest weight halves, and with it the step of all; the layer before grows by a channel.
"""

import numpy as np

from kquant.core import numerics
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node
from kquant.graph.passes import graph_pass


@graph_pass
def split_outlier_channels(graph: Graph, *, ratio: float = 0.02, bits: int = 8) -> None:
  """Splits the input channels with the largest weights; the outputs of the model stay.

  Only where a convolution or dense layer feeds another one alone, through layers of one element or
  pools; other tensors would have to be copied in the network. Zhao et al. 2019, with the two halves of the
  module's text.

  Args:
    graph: a standardized Graph, which is edited; or such a tf_keras model, which is not changed.
    ratio: channels that are added, as a part of the channels read; at least one a kernel.
    bits: of the kernel's per-tensor grid.

  Returns:
    The Graph, or a new model. Called with keywords alone: the pass with these options, for `kq.rewrite`.

  Raises:
    ValueError: a ratio that is not in (0, 1].

  Example:
    >>> layers = [keras.layers.Dense(4, input_shape=(3,)), keras.layers.ReLU(), keras.layers.Dense(2)]
    >>> model = kq.standardize(keras.Sequential(layers))
    >>> kq.split_outlier_channels(model, ratio=0.25).layers[-1].kernel.shape
    TensorShape([5, 2])
  """
  if not 0 < ratio <= 1:
    raise ValueError(f"split_outlier_channels: ratio must be above 0 and at most 1, got {ratio}.")
  for reader in graph.nodes:
    if reader.facts.size and len(graph.calls(reader.layer)) == 1 and not _is_grouped(reader):
      path = _path_from_producer(graph, reader)
      if path is None:
        graph.skip(reader, "what it reads is not made for it alone by a convolution or dense layer")
        continue
      split = _split(path[0], reader, ratio, bits)
      for node in path:
        node.shapes = [(*node.shapes[0][:-1], node.shapes[0][-1] + len(split))]
      graph.edit(reader, f"{len(split)} input channels split")


def _is_grouped(node: Node) -> bool:
  return node.config.get("groups", 1) > 1


def _path_from_producer(graph: Graph, reader: Node) -> list[Node] | None:
  """The calls from the layer that makes the channels to the last before `reader`, or None."""
  path: list[Node] = []
  ref = reader.inputs[0]
  while graph.is_private(ref) and len(graph.calls(ref.node.layer)) == 1:
    path.insert(0, ref.node)
    if ref.node.facts.size:
      return path
    if not ref.node.facts.passes_copies:
      return None
    (ref,) = ref.node.inputs
  return None


def _split(producer: Node, reader: Node, ratio: float, bits: int) -> list[int]:
  """Adds channels one by one, each a copy of the one with the largest weight; returns the copied ones."""
  name, in_axis = reader.facts.kernel.name, reader.facts.kernel.in_axes[0]
  kernel = reader.layer.params[name].astype(np.float64)
  copied = []
  for _ in range(max(1, int(ratio * kernel.shape[in_axis]))):
    others = tuple(i for i in range(kernel.ndim) if i != in_axis)
    largest = np.abs(kernel).max(axis=others)
    channel = int(largest.argmax())
    (step,) = numerics.symmetric_grid(_largest_after(largest, channel), bits).astype(np.float64)
    weights = np.take(kernel, [channel], axis=in_axis)
    np.moveaxis(kernel, in_axis, 0)[channel] = np.moveaxis((weights - step / 2) / 2, in_axis, 0)[0]
    kernel = np.concatenate([kernel, (weights + step / 2) / 2], axis=in_axis)
    copied.append(channel)
  sources = list(range(reader.layer.params[name].shape[in_axis]))
  for channel in copied:  # a copy may be copied again
    sources.append(sources[channel])
  reader.layer.params = {**reader.layer.params, name: kernel.astype(np.float32)}
  _repeat_outputs(producer, sources)
  return copied


def _largest_after(largest: np.ndarray, channel: int) -> float:
  """max |W| once a channel is halved."""
  return float(max(largest[channel] / 2, np.delete(largest, channel).max(initial=0.0)))


def _repeat_outputs(producer: Node, sources: list[int]) -> None:
  layer, facts = producer.layer, producer.facts
  if layer.output_moments is not None:
    layer.output_moments = tuple(values[sources] for values in layer.output_moments)
  kernel = np.take(layer.params[facts.kernel.name], sources, facts.kernel.out_axes[0])
  layer.params = {**layer.params, facts.kernel.name: kernel, "bias": layer.params["bias"][sources]}
  layer.config = {**layer.config, facts.size: len(sources)}
