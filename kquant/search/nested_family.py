"""A family of widths after training: nested codes, and for each width biases and ranges of its own."""

import dataclasses

import numpy as np

from kquant.anyprecision.building import edge_layers
from kquant.anyprecision.family import FamilyMember, family_member
from kquant.core import nested_codes
from kquant.core.numerics import short_scale
from kquant.core.quant_config import QuantConfig
from kquant.core.records import Report
from kquant.core.rule import Rule
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
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.rewrites.scaling.channel_statistics import measure_channels
from kquant.rewrites.scaling.dead_channels import prune_dead_channels
from kquant.search.pipeline import Calibrated

NAME = "any8"
WIDTHS = (8, 7, 6, 5, 4)
_CHOSEN = (COARSE_BITS, nested_codes.CODE_BITS)
"""Widths whose integers are chosen; all others are truncations."""
_ORDER = (*_CHOSEN, 7, 6, 5)


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
  networks: dict[int, Calibrated] = {}
  for bits in WIDTHS:
    networks[bits] = search.calibrated(bits, networks.get(WIDTHS[0]))
  for bits in _ORDER:
    search.round(bits, networks[bits])
  with report.stage("finalize"):
    members = {bits: search.member(bits, network) for bits, network in networks.items()}
  report.add_edits(members[WIDTHS[0]].graph.edits, [])
  return Family(members, networks[WIDTHS[0]])


class _Search:
  """The kernels of a family in the making."""

  def __init__(self, graph: Graph, calibration: list[np.ndarray], report: Report, seed: int):
    self._graph, self._calibration, self._report, self._seed = graph, calibration, report, seed
    self._edge = Rule(match=edge_layers(graph))
    self._kernels: dict[str, NestedKernel] = {}

  def calibrated(self, bits: int, first: Calibrated | None) -> Calibrated:
    """Returns the network of a width before its weights are rounded; `first` is that of another width."""
    config = QuantConfig(rules=(
        self._edge, Rule(weights=TensorSpec(bits=nested_codes.grid_bits(bits)), optional=True)))
    if first is None:
      return Calibrated(self._graph.copy(), config, self._calibration, self._report)
    return Calibrated(self._graph.copy(), config, self._calibration, Report(), first.statistics)

  def round(self, bits: int, network: Calibrated) -> None:
    """Sets the integers of a width and corrects its biases; widths come in `_ORDER`."""
    generator = np.random.default_rng(self._seed)

    def change(turn: LayerTurn, params: dict[str, np.ndarray]) -> None:
      ((name, grid),) = turn.layer.weight_encodings().items()
      kernel = self._kernels[turn.layer.name] = self._chosen(turn, params[name], grid.axis, bits, generator)
      integers, scale = kernel.at(self._bits_of(turn.layer, bits))
      turn.layer.set_scale(name, short_scale(scale))
      turn.layer.set_integers(name, integers)

    with self._report.stage("rounding"):
      turns = layer_turns(network.qmodel, self._calibration, graph=network.graph,
                          float_params=network.float_params if bits in _CHOSEN else None)
      left = change_layers(turns, network.float_params, network.statistics, change)
    if left:
      raise ValueError(f"Layer {left[0]!r} is of a class of its own, whose weights cannot be rounded "
                       f"together; config {NAME!r} takes convolutions and dense layers.")

  def _chosen(self, turn: LayerTurn, kernel: np.ndarray, axis: tuple[int, ...], bits: int,
              generator: np.random.Generator) -> NestedKernel:
    """Returns the kernel of a layer as far as it is known once a width is reached."""
    if bits == COARSE_BITS:
      return nearest_kernel(kernel, axis) if self._is_edge(turn.layer) else coarse_kernel(
          turn, kernel, axis, generator)
    before = self._kernels[turn.layer.name]
    if bits == nested_codes.CODE_BITS and not self._is_edge(turn.layer):
      return refined_kernel(turn, kernel, before, generator)
    return before

  def member(self, bits: int, network: Calibrated) -> FamilyMember:
    """Returns the member of a width; raises ValueError where its integers are not those of the codes."""
    kernels = {}
    for name, kernel in self._kernels.items():
      own = self._bits_of(network.qmodel.get_layer(name), bits)
      kernels[f"{name}/kernel"] = own, kernel.at(own)[0]
    return family_member(network.qmodel, kernels, network.graph)

  def _bits_of(self, layer: QuantizeWeights, bits: int) -> int:
    """Returns the bits of a layer's codes at a width."""
    return nested_codes.CODE_BITS if self._is_edge(layer) else bits

  def _is_edge(self, layer: QuantizeWeights) -> bool:
    """Whether a layer has 8 bits at every width."""
    return layer.rule == str(self._edge)
