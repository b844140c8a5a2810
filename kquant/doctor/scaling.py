"""One-step factorization around one tensor: its channels are scaled, what makes and reads them takes it back.

The scales are those of Meller et al. 2019, with the channels of every other tensor left as they are.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kquant.analysis.calls import calls_with, grid_tensors
from kquant.analysis.measure import Network
from kquant.analysis.sites import ACTIVATION, WEIGHTS, Site
from kquant.core import numerics
from kquant.core.encodings import activation_grid
from kquant.core.fake_quantization import fake_quantize
from kquant.core.quant_config import QuantConfig
from kquant.doctor.remedies import Remedy, rounded_weights, together
from kquant.doctor.rules import rule_of
from kquant.doctor.variants import Variant
from kquant.graph.execution import NodeCall
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from kquant.qmodel.calibrate import Statistics
from kquant.rewrites.scaling.channel_statistics import measure_channels
from kquant.rewrites.scaling.equalization_rules import one_step
from kquant.rewrites.scaling.scale_groups import scale_channels, scale_groups

FACTORIZATION = "factorization"
_LARGEST_LOG_SCALE = np.log(64.0)
_NEGLIGIBLE = 0.05
"""Log-scales that lie this near to one another scale nothing."""


def scale_tensors(graph: Graph, scales: dict[str, np.ndarray]) -> None:
  """Scales tensors of a float graph in place, {tensor: scale of each channel}; its outputs stay."""
  groups = scale_groups(graph)
  refs, scale = {ref.key: ref for ref in groups.index}, np.ones(groups.count)
  for key, values in scales.items():
    scale[groups.index[refs[key]]] = values
  scale_channels(graph, groups, scale)


class Factorization:
  """The scales of each tensor that can be scaled by itself.

  Args:
    graph: of the float network.
    config: how it is quantized.
    images: to calibrate on.
    statistics: of the float network on them.
  """

  def __init__(self, graph: Graph, config: QuantConfig, images: list[np.ndarray], statistics: Statistics):
    self._graph, self._config, self._groups = graph, config, scale_groups(graph)
    self._statistics = statistics
    self._channels = measure_channels(graph, images)
    t = one_step(graph, self._groups, self._channels)
    self._t = np.where(self._groups.free, np.clip(t, -_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE), 0.0)
    self._refs = {ref.key: ref for ref in self._groups.index}

  def remedy(self, network: Network, sites: Sequence[Site], site: Site) -> Remedy | None:
    """Returns the factorization around the tensor of an activation site.

    None where it is tied to tensors with grids of their own, or where there is nothing to gain.

    Args:
      network: that the site is of.
      sites: all of them.
    """
    ref = self._refs.get(site.name)
    ids = self._groups.index[ref] if ref is not None else []
    if not len(ids) or site.shared_with or np.ptp(self._t[ids]) < _NEGLIGIBLE:
      return None
    tied = {tensor for tensor, own in self._groups.index.items() if np.isin(own, ids).any()}
    on_grids = {node.inputs[0].key for other in sites if other.part == ACTIVATION for node in other.nodes}
    if on_grids & {tensor.key for tensor in tied} != {ref.key}:
      return None
    scale = np.ones(self._groups.count)
    scale[ids] = np.exp(self._t[ids])
    by_name = {other.name: other for other in sites if other.part == WEIGHTS}
    variants = [Variant(site, self._scaled_grid(network, site, ref, scale))]
    for node in {node.layer: node for node in self._linear(tied)}.values():
      variants.append(Variant(by_name[node.layer.name], self._scaled_weights(network, node, scale)))
    as_it_is = [Variant(variant.site, network.calls[0]) for variant in variants]
    return Remedy(FACTORIZATION, together(variants), baseline=together(as_it_is),
                  scales={ref.key: scale[ids]}, cost="latency" if _has_cap(tied) else "")

  def _linear(self, tied: set[Ref]) -> list[Node]:
    """The calls that make or read tied tensors by weights."""
    return [node for node in self._graph.nodes
            if node.facts.role == "linear" and tied & {Ref(node), node.inputs[0]}]

  def _scaled_grid(self, network: Network, site: Site, ref: Ref, scale: np.ndarray) -> NodeCall:
    """Rounds a tensor on the grid that it has with its channels scaled."""
    own = scale[self._groups.index[ref]]
    low, high = (own * ends[ref] for ends in (self._channels.low, self._channels.high))
    quantizer = network.qmodel.get_layer(site.nodes[0].layer.name).quantizer
    grid = grid_tensors(activation_grid(low.min(), high.max(), bits=quantizer.bits,
                                        symmetric=quantizer.symmetric))
    factor = tf.constant(own, tf.float32)
    return lambda layer, node, values: [fake_quantize(values[node.inputs[0]] * factor, grid) / factor]

  def _scaled_weights(self, network: Network, node: Node, scale: np.ndarray) -> NodeCall:
    """Rounds the weights of a layer as they are with the channels before and behind it scaled."""
    facts, spec = node.facts.kernel, rule_of(self._config, node.layer).weights
    shape = node.layer.params[facts.name].shape
    factor = numerics.along(scale[self._groups.index[Ref(node)]], shape, facts.out_axes)
    before = scale[self._groups.index[node.inputs[0]]]
    factor = factor / numerics.along_inputs(before, shape, facts.in_axes[0])
    layer = network.qmodel.get_layer(node.layer.name)
    return calls_with({layer.name: rounded_weights(network, layer, spec, self._statistics, factor=factor)})


def _has_cap(tensors: set[Ref]) -> bool:
  """Whether some tensors end at a cap, as that of a ReLU6: scaled it is a MINIMUM of its own."""
  return any(tensor.node.facts.role == "relu" and tensor.node.config.get("max_value") is not None
             for tensor in tensors)
