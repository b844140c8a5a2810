"""What widths there are to choose from, what noise each of them makes and what it costs: plain numbers.

The noise of a plan is the sum of the noises of its parts. The cost of a layer depends on the bits of its
weights and on those of the activations that its operator computes with: the most of its grids.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LayerChoice:
  """The weights of a layer, in all its calls.

  Attributes:
    name: of the layer.
    widths: bits to choose from, ascending.
    noise: at the output of the network, of each width, [widths].
    costs: {what: cost of each width beside each width of activations, [widths, activations]}.
    grids: places of the grids that its calls read and write.
  """

  name: str
  widths: tuple[int, ...]
  noise: np.ndarray
  costs: Mapping[str, np.ndarray]
  grids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class GridChoice:
  """All tensors on one grid.

  Attributes:
    name: of the first of them.
    widths: bits to choose from, ascending.
    noise: at the output of the network, of each width, [widths].
    costs: {what: cost of each width, [widths]}, without that of the layers.
  """

  name: str
  widths: tuple[int, ...]
  noise: np.ndarray
  costs: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Bits of each layer's weights and of each grid, in the order of the choices."""

  weights: tuple[int, ...]
  activations: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
  """All that is chosen of a network.

  Attributes:
    layers: choices of weights.
    grids: choices of activations.
    activations: every width of a grid, ascending; costs of layers have a column for each.
    constant: {what: cost of the rest}.
  """

  layers: tuple[LayerChoice, ...]
  grids: tuple[GridChoice, ...]
  activations: tuple[int, ...]
  constant: Mapping[str, float]

  def noise(self, plan: Plan) -> float:
    """Returns the predicted noise of a plan."""
    parts = [choice.noise[choice.widths.index(bits)] for choice, bits in self._chosen(plan)]
    return float(np.sum(parts))

  def cost(self, plan: Plan, what: str) -> float:
    """Returns what a plan costs."""
    total = self.constant[what]
    for layer, bits in zip(self.layers, plan.weights, strict=True):
      widest = max((plan.activations[place] for place in layer.grids), default=self.activations[0])
      total += layer.costs[what][layer.widths.index(bits), self.activations.index(widest)]
    for grid, bits in zip(self.grids, plan.activations, strict=True):
      total += grid.costs[what][grid.widths.index(bits)]
    return float(total)

  def uniform(self, weights: int, activations: int) -> Plan:
    """Returns the plan with such bits wherever they are to choose, with the next that are where not."""
    def nearest(widths: tuple[int, ...], bits: int) -> int:
      return next((width for width in widths if width >= bits), widths[-1])

    return Plan(tuple(nearest(layer.widths, weights) for layer in self.layers),
                tuple(nearest(grid.widths, activations) for grid in self.grids))

  def with_narrow_grids(self) -> "Choices":
    """Returns the choices with the fewest bits of each grid alone."""
    return dataclasses.replace(self, grids=tuple(
        dataclasses.replace(grid, widths=grid.widths[:1], noise=grid.noise[:1],
                            costs={what: costs[:1] for what, costs in grid.costs.items()})
        for grid in self.grids))

  def refitted(self, weights: float, activations: float) -> "Choices":
    """Returns the choices with the noises of weights and of activations times a factor each."""
    return dataclasses.replace(
        self, layers=tuple(dataclasses.replace(layer, noise=layer.noise * weights) for layer in self.layers),
        grids=tuple(dataclasses.replace(grid, noise=grid.noise * activations) for grid in self.grids))

  def _chosen(self, plan: Plan):
    yield from zip(self.layers, plan.weights, strict=True)
    yield from zip(self.grids, plan.activations, strict=True)
