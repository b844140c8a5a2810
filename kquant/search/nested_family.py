"""A family of widths after training: nested codes, and for each width biases and ranges of its own."""

import dataclasses
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.anyprecision.building import edge_layers
from kquant.anyprecision.family import FamilyMember, signs_of
from kquant.core import nested_codes
from kquant.core.numerics import short_scale
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report
from kquant.core.rule import Rule
from kquant.core.target import LITERT_FAMILY
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.graph import Graph
from kquant.ptq.layerwise.layer_rounding import change_layers
from kquant.ptq.layerwise.nested_rounding import (
  COARSE_BITS,
  NestedKernel,
  coarse_kernel,
  nearest_kernel,
  refined_kernel,
)
from kquant.ptq.layerwise.streaming import LayerTurn, layer_turns
from kquant.qmodel.finalize import finalize_graph
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.rewrites.scaling.channel_statistics import measure_channels
from kquant.rewrites.scaling.dead_channels import prune_dead_channels
from kquant.search.pipeline import Calibrated

NAME = "any8"
WIDTHS = (8, 7, 6, 5, 4)
_ORDER = (COARSE_BITS, 8, 7, 6, 5)


@dataclasses.dataclass
class Family:
  """What `nested_family` found.

  Attributes:
    members: {bits: final network}, widest first.
    network: that of 8 bits, with its quantizers.
  """

  members: dict[int, FamilyMember]
  network: Calibrated


def nested_family(graph: Graph, calibration: list[np.ndarray], report: Report, *, seed: int = 0) -> Family:
  """Quantizes a float network at all of WIDTHS with one set of codes.

  Args:
    graph: standardized, batch norms folded.
    calibration: one array for each input of the model.
    report: takes the seconds, and the edits of the 8 bits.
    seed: of the positions that are looked at.
  """
  prune_dead_channels(graph, statistics=measure_channels(graph, calibration))
  search = _Search(graph, calibration, report, seed)
  networks = {bits: search.network(bits) for bits in _ORDER}
  members = {}
  for bits in WIDTHS:
    with report.stage("finalize"):
      model, final, encodings = finalize_graph(networks[bits].qmodel, target=LITERT_FAMILY,
                                               graph=networks[bits].graph)
    members[bits] = search.member(bits, networks[bits].qmodel, model, final, encodings)
  report.add_edits(members[WIDTHS[0]].graph.edits, [])
  return Family(members, networks[WIDTHS[0]])


class _Search:
  """The kernels of a family in the making."""

  def __init__(self, graph: Graph, calibration: list[np.ndarray], report: Report, seed: int):
    self._graph, self._calibration, self._report, self._seed = graph, calibration, report, seed
    self._edge = Rule(match=edge_layers(graph))
    self._kernels: dict[str, NestedKernel] = {}

  def network(self, bits: int) -> Calibrated:
    """Returns the calibrated network of a width, with its integers and biases."""
    report = self._report if bits == WIDTHS[0] else Report()
    network = Calibrated(self._graph.copy(), self._config(bits), self._calibration, report)
    generator = np.random.default_rng(self._seed)

    def change(turn: LayerTurn, params: dict[str, np.ndarray]) -> None:
      ((name, grid),) = turn.layer.weight_encodings().items()
      kernel = self._kernels[turn.layer.name] = self._chosen(turn, params[name], grid.axis, bits, generator)
      own = nested_codes.CODE_BITS if self._is_edge(turn.layer) else bits
      integers, scale = (kernel.integers, kernel.scale * nested_codes.steps(COARSE_BITS)) if (
          kernel.bits == own == COARSE_BITS) else kernel.at(own)
      turn.layer.set_scale(name, short_scale(scale))
      turn.layer.set_integers(name, integers)

    with self._report.stage("rounding"):
      turns = layer_turns(network.qmodel, self._calibration, graph=network.graph,
                          float_params=network.float_params)
      left = change_layers(turns, network.float_params, network.statistics, change)
    if left:
      raise ValueError(f"Layer {left[0]!r} is of a class of its own, whose weights cannot be rounded "
                       f"together; config {NAME!r} takes convolutions and dense layers.")
    return network

  def _chosen(self, turn: LayerTurn, kernel: np.ndarray, axis: tuple[int, ...], bits: int,
              generator: np.random.Generator) -> NestedKernel:
    """Returns the kernel of a layer as far as it is known once a width is reached."""
    before = self._kernels.get(turn.layer.name)
    if before is None and self._is_edge(turn.layer):
      return nearest_kernel(kernel, axis)
    if before is None:
      return coarse_kernel(turn, kernel, axis, generator)
    if before.bits == COARSE_BITS and bits == nested_codes.CODE_BITS:
      return refined_kernel(turn, kernel, before, generator)
    return before

  def _config(self, bits: int) -> QuantConfig:
    """Returns the grids of a width."""
    return QuantConfig(rules=(
        self._edge, Rule(weights=TensorSpec(bits=nested_codes.grid_bits(bits)), optional=True)))

  def _is_edge(self, layer: QuantizeWeights) -> bool:
    """Whether a layer has 8 bits at every width."""
    return layer.rule == str(self._edge)

  def member(self, bits: int, qmodel: keras.Model, model: Any, graph: Graph, encodings: Any) -> FamilyMember:
    """Returns the member of a width; raises ValueError where its integers are not those of the codes."""
    own, signs = {}, {}
    for name, kernel in self._kernels.items():
      key = f"{name}/kernel"
      own[key] = nested_codes.CODE_BITS if self._is_edge(qmodel.get_layer(name)) else bits
      signs[key] = signs_of(key, kernel.at(own[key])[0], encodings)
    return FamilyMember(model, graph, encodings, own, signs)
