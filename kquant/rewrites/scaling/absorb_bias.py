"""High-bias absorption: what a channel always exceeds moves on into the next layer's bias.

relu(x) = relu(x - c) + c wherever x >= c >= 0: the producer's bias is lowered by c_i, and every reader's
bias raised by sum over taps and inputs of W[.., i, o] c_i (Nagel et al. 2019, section 4.1.3). The
tensor's range shrinks by c. Readers that pad with zeros would not see c at the border: they forbid it.
"""

from typing import Any

import numpy as np

from kquant.core import numerics
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.graph.passes import graph_pass
from kquant.rewrites.scaling.channel_statistics import ChannelStatistics, measure_channels


@graph_pass
def absorb_bias(graph: Graph, *, calibration: Any = None, margin: float = 0.1,
                statistics: ChannelStatistics | None = None) -> None:
  """Absorbs the part of each biased channel that lies above zero on all of the data.

  Nagel et al. 2019, section 4.1.3, with c_i = max(0, min_x pre_i - margin * deviation_i): the function stays
  the same on the data, and wherever no pre-activation is smaller than it was there.

  Args:
    graph: a standardized Graph whose batch norms are folded, which is edited; or such a tf_keras model, which
      is not changed.
    calibration: inputs, as `kquant.quantize` takes them; needed where there are no statistics.
    margin: distance kept from the smallest pre-activation, in standard deviations.
    statistics: of this graph, where they were measured already.

  Returns:
    The Graph, or a new model. Called with keywords alone: the pass with these options, for `kq.rewrite`.

  Raises:
    ValueError: neither calibration nor statistics.

  Example:
    >>> layers = [keras.layers.Dense(4, input_shape=(3,)), keras.layers.ReLU(), keras.layers.Dense(2)]
    >>> model = kq.standardize(keras.Sequential(layers))
    >>> images = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    >>> _ = model.layers[1].bias.assign([99.0, 0.0, 0.0, 0.0])  # channel 0 never comes near to 0
    >>> bool(kq.absorb_bias(model, calibration=images).layers[1].bias.numpy()[0] < 20)
    True
  """
  if statistics is None:
    if calibration is None:
      raise ValueError("absorb_bias: give calibration=images; without data no channel is known to stay "
                       "above zero.")
    statistics = measure_channels(graph, calibration)
  for node in graph.nodes:
    if node.facts.role != "linear":
      continue
    low = statistics.low[Ref(node)] - margin * statistics.deviation(Ref(node))
    absorbed = np.maximum(low, 0.0) * (statistics.deviation(Ref(node)) > 0)
    if not absorbed.any():
      continue
    obstacle = _obstacle(graph, node)
    if obstacle:
      graph.skip(node, f"{(absorbed > 0).sum()} high biases kept: {obstacle}")
      continue
    (relu,) = graph.readers(Ref(node))
    _absorb(graph, node, relu, absorbed)
    graph.edit(node, f"{(absorbed > 0).sum()} high biases moved behind {relu.name!r}")


def _obstacle(graph: Graph, node: Node) -> str | None:
  """Returns why a constant cannot move from a layer through its ReLU into the readers, or None."""
  readers = graph.readers(Ref(node))
  if len(readers) != 1 or not graph.is_private(Ref(node)) or readers[0].facts.role != "relu":
    return "no ReLU of its own follows"
  (relu,) = readers
  if len(graph.calls(node.layer)) > 1 or len(graph.calls(relu.layer)) > 1:
    return "the layer is shared"
  if relu.config.get("max_value") is not None:
    return "the ReLU behind has one cap for all channels"
  if Ref(relu) in graph.output_refs:
    return "it is an output of the model"
  for reader in graph.readers(Ref(relu)):
    if reader.facts.role != "linear":
      return f"{reader.name!r} ({reader.kind}) reads it"
    if len(graph.calls(reader.layer)) > 1:
      return f"{reader.name!r} is shared"
    if reader.facts.transposed:
      return f"{reader.name!r} is transposed: a shift is not uniform behind it"
    if reader.config.get("padding", "valid") != "valid" and max(reader.config["kernel_size"]) > 1:
      return f"{reader.name!r} pads"
  return None


def _absorb(graph: Graph, node: Node, relu: Node, absorbed: np.ndarray) -> None:
  params = node.layer.params
  node.layer.params = {**params, "bias": (params["bias"] - absorbed).astype(np.float32)}
  for layer in (node.layer, relu.layer):
    if layer.output_moments is not None:
      layer.output_moments = layer.output_moments[0] - absorbed, layer.output_moments[1]
  if caps := relu.facts.caps:
    relu.layer.params = {caps: (relu.layer.params[caps] - absorbed).astype(np.float32)}
  for reader in graph.readers(Ref(relu)):
    facts, kernel = reader.facts, reader.layer.params[reader.facts.kernel.name].astype(np.float64)
    spread = numerics.along_inputs(absorbed, kernel.shape, facts.kernel.in_axes[0])
    taps = tuple(i for i in range(kernel.ndim) if i not in facts.kernel.out_axes)
    moved = (kernel * spread).sum(axis=taps).reshape(-1)
    reader.layer.params = {**reader.layer.params,
                           "bias": (reader.layer.params["bias"] + moved).astype(np.float32)}
