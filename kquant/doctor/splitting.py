"""Outlier split of one kernel: the input channels that set its grid are read as two halves each.

Zhao et al. 2019, "Improving Neural Network Quantization without Retraining using Outlier Channel Splitting".
"""

import numpy as np

from kquant.analysis.calls import calls_with
from kquant.analysis.measure import Network
from kquant.analysis.sites import Site
from kquant.core.quant_config import QuantConfig
from kquant.core.tensor_spec import TensorSpec
from kquant.doctor.remedies import Remedy, weight_grid
from kquant.doctor.rules import rule_of
from kquant.doctor.variants import Variant
from kquant.graph.execution import live_layers
from kquant.graph.graph import Graph
from kquant.ptq.layerwise.bias_correction import corrected_biases
from kquant.qmodel.calibrate import Statistics
from kquant.rewrites.scaling.outlier_channels import can_split, split_inputs, split_kernel

SPLIT = "outlier split"
_RATIO = 0.05
"""Of the channels that a kernel reads: so many are added. Zhao et al. add 1 to 5 %."""


def split_remedy(network: Network, graph: Graph, site: Site, spec: TensorSpec,
                 statistics: Statistics) -> Remedy | None:
  """Returns the outlier split of a kernel; None where no kernel makes what it reads for it alone.

  Both halves of a channel read the same integers, so the layer computes with their sum.

  Args:
    graph: of the float network.
    site: the weights.
    spec: that they have.
    statistics: of the float network, for the bias correction.
  """
  reader = next((node for node in graph.nodes if node.name == site.name), None)
  if reader is None or not can_split(graph, reader):
    return None
  facts = reader.facts.kernel
  params = network.float_params[site.name]
  kernel = params[facts.name]
  halves, sources = split_kernel(kernel, facts, ratio=_RATIO, bits=spec.bits, per_channel=spec.per_channel)
  grid = weight_grid(halves, facts, spec)
  rounded = grid.dequantize(grid.quantize(halves))
  added, axis = np.zeros(kernel.shape), facts.in_axes[0]
  np.add.at(np.moveaxis(added, axis, 0), sources, np.moveaxis(rounded, axis, 0))
  weights = {facts.name: added.astype(np.float32)}
  weights.update(corrected_biases(live_layers(network.qmodel)[site.name], params, weights, statistics))
  return Remedy(SPLIT, Variant(site, calls_with({site.name: weights})), splits=True, cost="bytes")


def split_layers(graph: Graph, layers: list[str], config: QuantConfig) -> None:
  """Splits the outlier channels of some layers of a float graph in place; its outputs stay."""
  for node in [node for node in graph.nodes if node.name in layers]:
    spec = rule_of(config, node.layer).weights
    split_inputs(graph, node, ratio=_RATIO, bits=spec.bits, per_channel=spec.per_channel)
