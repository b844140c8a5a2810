"""Noise and cost of each width of each layer and each grid, measured on one network: the choices.

The noise of a width is that at the output of the float network where this layer alone has its weights rounded
to it, or where this grid alone rounds (Gluska & Grobman 2020), by backward passes (`meter`).
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from kquant.allocation.choices import Choices, GridChoice, LayerChoice, Plan
from kquant.allocation.meter import Alone, NoiseMeter
from kquant.allocation.prices import Prices
from kquant.allocation.rounded import Rounded, RoundedLayer
from kquant.analysis.layer_errors import network_of
from kquant.analysis.sites import ACTIVATION, BOTH, WEIGHTS, Site, quantizer_behind, sites
from kquant.core.encodings import activation_grid
from kquant.core.tensor_spec import at_bits
from kquant.doctor.patient import Patient
from kquant.doctor.remedies import may_be_wide
from kquant.doctor.rules import SpecChange, rule_of
from kquant.graph.execution import live_layers
from kquant.graph.nodes import Node, Ref
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.widths import WIDE


@dataclasses.dataclass(frozen=True)
class Widths:
  """Bits to choose from, ascending."""

  weights: tuple[int, ...]
  activations: tuple[int, ...]


class Subject:
  """The network whose widths are chosen, and the sites that have some.

  Args:
    patient: of the most bits of weights and the fewest of activations.
    widths: to choose from.

  Attributes:
    patient: this.
    network: how it computes, on its grids and in float.
    layers, grids: sites of weights and of activations.
    columns: every width that a grid has, ascending: those to choose from, and those of grids that are fixed.
    places: {quantizer's call: place of its grid among `grids`}.
  """

  def __init__(self, patient: Patient, widths: Widths):
    self.patient, self.widths = patient, widths
    self.network = network_of(patient.calibrated.qmodel, patient.calibrated.float_params)
    found = [site for site in sites(self.network.graph) if site.part != BOTH]
    self.layers = [site for site in found if site.part == WEIGHTS]
    self.grids = [site for site in found if site.part == ACTIVATION]
    self._live = live_layers(self.network.qmodel)
    graph = patient.calibrated.graph
    bordering = [ref.key for ref in (*graph.input_refs, *graph.output_refs)]
    self._widths = {site: self._possible(site, bordering) for site in self.grids}
    self.columns = tuple(sorted({*widths.activations, *itertools.chain(*self._widths.values())}))
    self.places = {node: place for place, grid in enumerate(self.grids) for node in grid.nodes}

  def quantizer(self, site: Site) -> QuantizeActivation:
    """Returns the layer that rounds a grid."""
    return self._live[site.nodes[0].layer.name]

  def grid_widths(self, site: Site) -> tuple[int, ...]:
    """Returns the bits that a grid can have: its own where it is fixed or at the border of the model."""
    return self._widths[site]

  def _possible(self, site: Site, bordering: list[str]) -> tuple[int, ...]:
    own = self.quantizer(site).quantizer.bits
    is_free = own == self.widths.activations[0] and may_be_wide(site, bordering)
    return self.widths.activations if is_free else (own,)

  def changes(self, plan: Plan) -> list[SpecChange]:
    """Returns the specs of a plan, those of parts of a layer before those of the layer.

    What is not to choose keeps its own: a rule for the layer that it is a part of would decide for it.
    """
    config, found = self.patient.config, []
    for site in self.grids:
      layer = self.patient.subjects[site.nodes[0].layer.name]
      found.append(SpecChange(layer, "activations", rule_of(config, layer).activations))
    for site, bits in zip(self.layers, plan.weights, strict=True):
      layer = self.patient.layers[site.name]
      found.append(SpecChange(layer, "weights", at_bits(rule_of(config, layer).weights, bits)))
    for site, bits in zip(self.grids, plan.activations, strict=True):
      layer = self.patient.subjects[site.nodes[0].layer.name]
      if len(self.grid_widths(site)) > 1:
        found.append(SpecChange(layer, "activations", at_bits(rule_of(config, layer).activations, bits)))
    return sorted(found, key=lambda change: -change.layer.name.count("/"))


def measured_noises(subject: Subject, rounded: Rounded, images: list[np.ndarray], *,
                    seed: int = 0) -> list[float]:
  """Returns the noise of each width of each layer, then of each grid.

  Args:
    subject: the network.
    rounded: its layers at each width.
    images: that noise is measured on.
    seed: of the signs that it is measured with.
  """
  alone = [*(Alone(site.name, rounded=at) for site in subject.layers for at in rounded[site.name].values()),
           *(alone for site in subject.grids for alone in _of_grid(subject, site))]
  return NoiseMeter(subject.network, images, alone, seed=seed).measure().tolist()


def priced_choices(subject: Subject, rounded: Rounded, measured: list[float], prices: Prices) -> Choices:
  """Returns the choices of a network.

  Args:
    subject: the network.
    rounded: its layers at each width.
    measured: what `measured_noises` returned.
    prices: of layers and grids.
  """
  noises = iter(measured)
  widths = subject.widths
  layers = tuple(_layer_choice(subject, site, rounded[site.name], noises, prices) for site in subject.layers)
  grids = tuple(_grid_choice(subject, site, noises, prices) for site in subject.grids)
  of_file = prices.base()
  choices = Choices(layers, grids, subject.columns, dict.fromkeys(("bops", *of_file), 0.0))
  base = choices.uniform(widths.weights[-1], widths.activations[0])
  rest = {what: cost - choices.cost(base, what) for what, cost in of_file.items()}
  return dataclasses.replace(choices, constant={**choices.constant, **rest})


def _of_grid(subject: Subject, site: Site) -> list[Alone]:
  """A grid at each of its widths."""
  grid = subject.quantizer(site).encoding()
  low, high = (float(end[0]) for end in grid.range)
  return [Alone(site.name, grid=None if bits == grid.bits else
                activation_grid(low, high, bits=bits, symmetric=bits == WIDE))
          for bits in subject.grid_widths(site)]


def _layer_choice(subject: Subject, site: Site, rounded: dict[int, RoundedLayer],
                  noises: Iterator[float], prices: Prices) -> LayerChoice:
  patient = subject.patient
  costs = prices.of_layer(patient.graph, patient.layers[site.name], rounded, subject.columns)
  return LayerChoice(site.name, tuple(rounded), _next(noises, len(rounded)), costs, _grids_of(subject, site))


def _grid_choice(subject: Subject, site: Site, noises: Iterator[float], prices: Prices) -> GridChoice:
  widths = subject.grid_widths(site)
  costs = prices.of_grid([site.name_of(call) for call in site.nodes], widths)
  return GridChoice(site.name, widths, _next(noises, len(widths)), costs)


def _next(noises: Iterator[float], count: int) -> np.ndarray:
  return np.array([next(noises) for _ in range(count)])


def _grids_of(subject: Subject, site: Site) -> tuple[int, ...]:
  """The places of the grids that the calls of a layer read and write."""
  found = [quantizer for call in site.nodes for quantizer in
           (_quantizer_before(call.inputs[0]), quantizer_behind(subject.network.graph, Ref(call)))]
  return tuple(sorted({subject.places[node] for node in found if node in subject.places}))


def _quantizer_before(ref: Ref) -> Node | None:
  """The quantizer of the grid that a tensor lies on; what moves a tensor leaves it there."""
  while not issubclass(ref.node.layer.cls, QuantizeActivation):
    if not ref.node.inputs:
      return None
    ref = ref.node.moved[0]
  return ref.node
