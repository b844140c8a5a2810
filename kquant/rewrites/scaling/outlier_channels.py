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
from kquant.graph.weights import WeightFacts


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
    if can_split(graph, reader):
      split_inputs(graph, reader, ratio=ratio, bits=bits)
    elif _reads_by_kernel(graph, reader):
      graph.skip(reader, "what it reads is not made for it alone by a convolution or dense layer")


def can_split(graph: Graph, reader: Node) -> bool:
  """Whether a call reads by a kernel what another kernel makes for it alone, channel by channel."""
  return _reads_by_kernel(graph, reader) and _path_from_producer(graph, reader) is not None


def split_inputs(graph: Graph, reader: Node, *, ratio: float, bits: int, per_channel: bool = False) -> None:
  """Splits the input channels of one call's kernel, which `can_split` allows; its output stays.

  Args:
    graph: standardized; it is edited.
    reader: the call.
    ratio, bits, per_channel: as of `split_kernel`.
  """
  facts, layer, path = reader.facts.kernel, reader.layer, _path_from_producer(graph, reader)
  kernel, sources = split_kernel(layer.params[facts.name], facts, ratio=ratio, bits=bits,
                                 per_channel=per_channel)
  layer.params = {**layer.params, facts.name: kernel}
  for node in path:
    node.shapes = [(*node.shapes[0][:-1], len(sources))]
  _repeat_outputs(path[0], sources)
  added = len(sources) - len(set(sources))
  graph.edit(reader, f"{added} input channels split")


def split_kernel(kernel: np.ndarray, facts: WeightFacts, *, ratio: float, bits: int,
                 per_channel: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """Splits input channels of a kernel one by one, each time the one whose halves lower the grid most.

  Args:
    kernel: in Keras layout.
    facts: its axes.
    ratio: channels that are added, as a part of the channels read; at least one.
    bits, per_channel: of its grid: what counts is the sum of squares of its steps.

  Returns:
    The kernel with the added channels last, and which channel of the input each of its own reads.

  >>> facts = WeightFacts("kernel", out_axes=(1,), in_axes=(0,))
  >>> kernel, sources = split_kernel(np.float32([[1], [8]]), facts, ratio=0.5, bits=8)
  >>> kernel.round(2).tolist(), sources.tolist()
  ([[1.0], [3.98], [4.02]], [0, 1, 1])
  """
  axis, axes = facts.in_axes[0], facts.scale_axes(per_channel)
  count = kernel.shape[axis]
  halves, sources = kernel.astype(np.float64), list(range(count))
  for _ in range(max(1, int(ratio * count))):
    channel, magnitude = _best_split(_magnitudes(halves, axis, axes))
    step = numerics.symmetric_grid(magnitude, bits).astype(np.float64)
    step = step if axes is None else numerics.along(step, halves.shape, axes)
    weights = np.take(halves, [channel], axis=axis)
    np.moveaxis(halves, axis, 0)[channel] = np.moveaxis((weights - step / 2) / 2, axis, 0)[0]
    halves = np.concatenate([halves, (weights + step / 2) / 2], axis=axis)
    sources.append(sources[channel])  # a copy may be copied again
  return halves.astype(np.float32), np.array(sources)


def _magnitudes(kernel: np.ndarray, axis: int, axes: tuple[int, ...] | None) -> np.ndarray:
  """max |W| of each input channel under each scale, [inputs, scales]."""
  kept = (axis, *(axes or ()))
  others = tuple(i for i in range(kernel.ndim) if i not in kept)
  largest = np.abs(kernel).max(axis=others, keepdims=True)
  return np.moveaxis(largest, axis, 0).reshape(kernel.shape[axis], -1)


def _best_split(magnitudes: np.ndarray) -> tuple[int, np.ndarray]:
  """Returns the input channel whose halves lower the scales most, and max |W| of each scale with them."""
  largest, owner = magnitudes.max(axis=0), magnitudes.argmax(axis=0)
  others = magnitudes.copy()
  np.put_along_axis(others, owner[None], 0.0, axis=0)
  halved = np.maximum(largest / 2, others.max(axis=0))
  gain = np.bincount(owner, weights=np.square(largest) - np.square(halved), minlength=len(magnitudes))
  channel = int(gain.argmax())
  return channel, np.where(owner == channel, halved, largest)


def _reads_by_kernel(graph: Graph, node: Node) -> bool:
  return bool(node.facts.size) and len(graph.calls(node.layer)) == 1 and node.config.get("groups", 1) == 1


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


def _repeat_outputs(producer: Node, sources: np.ndarray) -> None:
  layer, facts = producer.layer, producer.facts
  if layer.output_moments is not None:
    layer.output_moments = tuple(values[sources] for values in layer.output_moments)
  kernel = np.take(layer.params[facts.kernel.name], sources, facts.kernel.out_axes[0])
  layer.params = {**layer.params, facts.kernel.name: kernel, "bias": layer.params["bias"][sources]}
  layer.config = {**layer.config, facts.size: len(sources)}
