"""The quantized network that is diagnosed: how it was made, and how it is made again with other rules."""

import dataclasses
from collections.abc import Collection

from kquant.analysis.layer_errors import network_of
from kquant.analysis.measure import Network
from kquant.api import QuantizationResult
from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import Recipe
from kquant.core.records import Report
from kquant.core.target import target
from kquant.doctor.rules import Changes, with_specs
from kquant.doctor.scaling import scale_tensors
from kquant.doctor.splitting import split_layers
from kquant.qmodel.finalize import finalize_graph
from kquant.qmodel.placement import place
from kquant.search.automatic import automatic
from kquant.search.efforts import effort_steps, with_effort
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import Calibrated

EFFORTS = ("auto", "fast", "balanced", None)


def resolved(network: FloatNetwork, config: QuantConfig, effort: str | None, decided: Recipe,
             report: Report) -> QuantConfig:
  """Returns the config with the methods that an effort chooses, but for those that are decided."""
  if effort is None:
    return config
  steps = effort_steps(effort, decided)
  if effort == "auto":
    return automatic(config, steps, network, report).config
  return with_effort(config, steps, network, report)


class Patient:
  """A float network and the quantized one that is made of it.

  Args:
    network: the float network and the calibration images.
    config: with its methods; fine-tuning is none of them.
    report: takes the seconds.

  Attributes:
    graph: of the float network, scaled.
    calibrated: the quantized network.
    subjects: {its activation quantizer: the layer by which rules decide}.
    layers: {weighted layer: of the float graph}.
  """

  def __init__(self, network: FloatNetwork, config: QuantConfig, report: Report):
    self.config, self._images, self._seed, self._report = config, network.images, network.seed, report
    self.graph = network.scaled(config, report)
    self.calibrated = Calibrated(self.graph.copy(), config, network.images, report)
    self.subjects = {placement.name: placement.subject for placement in place(self.graph.copy(), config)}
    self.layers = {layer.name: layer for layer in self.graph.layers}

  def for_analysis(self) -> Network:
    """Returns the network with integers whose noise is their own.

    A bias that is corrected iteratively makes up for what the layers before do; alone it would be noise.
    """
    recipe = self.config.recipe
    if recipe.rounding == "nearest" and recipe.bias == "iterative":
      recipe = dataclasses.replace(recipe, bias="local")
    self.calibrated.choose_integers(dataclasses.replace(self.config, recipe=recipe), self._report,
                                    seed=self._seed)
    return network_of(self.calibrated.qmodel, self.calibrated.float_params)

  def finish(self) -> Calibrated:
    """Chooses the integers as the config says."""
    self.calibrated.choose_integers(self.config, self._report, seed=self._seed)
    return self.calibrated

  def round(self, layers: Collection[str]) -> None:
    """Rounds some layers in closed form, all else as the config says."""
    self.calibrated.choose_integers(self.config, self._report, seed=self._seed, rounded=layers)

  def changed(self, changes: Changes) -> tuple[QuantConfig, Calibrated]:
    """Returns the config with other specs, and the network that all changes make."""
    config, graph = with_specs(self.config, changes.specs), self.graph.copy()
    scale_tensors(graph, changes.scales)
    split_layers(graph, changes.split, config)
    network = Calibrated(graph, config, self._images, self._report)
    network.choose_integers(config, self._report, seed=self._seed, rounded=changes.rounded)
    return config, network


def result_of(network: Calibrated, config: QuantConfig, report: Report) -> QuantizationResult:
  """Returns a quantized network as `kquant.quantize` returns it."""
  final, graph, encodings = finalize_graph(network.qmodel, target=target(config.target), graph=network.graph)
  return QuantizationResult(final, encodings, network.qmodel, report, graph, network.float_params)
