"""The weights of each layer at each width, rounded as they will be: by the recipe's rounding, layer by layer.

Inputs are those that a network of the most bits gives a layer, and nothing is compensated that layers before
did: what is measured of a layer is its own noise.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kquant.core.encodings import Encoding
from kquant.doctor.patient import Patient
from kquant.doctor.remedies import weight_grid
from kquant.doctor.rules import rule_of
from kquant.graph.nodes import weights_of_class
from kquant.ptq.layerwise.bias_correction import local_shifts
from kquant.ptq.layerwise.input_moments import merged
from kquant.ptq.layerwise.layer_rounding import moments_of, round_kernels
from kquant.ptq.layerwise.streaming import LayerTurn, layer_turns


@dataclasses.dataclass(frozen=True, eq=False)
class RoundedLayer:
  """A layer at one width.

  Attributes:
    integers: of its weights, int8 in Keras layout, by name.
    grids: that these lie on, by name.
    biases: corrected, by name.
  """

  integers: dict[str, np.ndarray]
  grids: dict[str, Encoding]
  biases: dict[str, np.ndarray]

  @property
  def params(self) -> dict[str, np.ndarray]:
    """Its weights on their grids and its biases, by name."""
    return {name: grid.dequantize(self.integers[name]) for name, grid in self.grids.items()} | self.biases


Rounded = dict[str, dict[int, RoundedLayer]]
"""{layer: {bits: how it is rounded}}."""


def rounded_layers(patient: Patient, images: list[np.ndarray], widths: Sequence[int], *,
                   seed: int = 0) -> Rounded:
  """Returns how all layers with quantized weights are rounded.

  Args:
    patient: the network of the most bits.
    images: that it was calibrated on.
    widths: bits.
    seed: of the positions that rounding looks at.
  """
  generator, found = np.random.default_rng(seed), {}
  network = patient.calibrated
  for turn in layer_turns(network.qmodel, images, graph=network.graph, float_params=network.float_params):
    if turn.layer.name not in found:
      found[turn.layer.name] = _at_widths(patient, turn, widths, generator)
  return found


def _at_widths(patient: Patient, turn: LayerTurn, widths: Sequence[int],
               generator: np.random.Generator) -> dict[int, RoundedLayer]:
  method = patient.config.recipe.rounding
  if method == "nearest" or not turn.is_known:
    return {bits: _nearest(patient, turn, bits) for bits in widths}
  grids, found = turn.layer.weight_encodings(), {}
  choices = [{name: dataclasses.replace(grid, bits=bits) for name, grid in grids.items()} for bits in widths]
  moments = [merged(moments_of(turn, generator))]
  for bits, wanted, rounded in zip(widths, choices, round_kernels(turn, choices, moments, method=method)):
    chosen = {name: dataclasses.replace(wanted[name], scale=scale) for name, (_, scale) in rounded.items()}
    found[bits] = _rounded(patient, turn, chosen, {name: integers for name, (integers, _) in rounded.items()})
  return found


def _nearest(patient: Patient, turn: LayerTurn, bits: int) -> RoundedLayer:
  params = patient.calibrated.float_params[turn.layer.name]
  spec = dataclasses.replace(rule_of(patient.config, patient.layers[turn.layer.name]).weights, bits=bits)
  grids = {facts.name: weight_grid(params[facts.name], facts, spec)
           for facts in weights_of_class(type(turn.layer.layer))}
  return _rounded(patient, turn, grids, {name: grid.quantize(params[name]) for name, grid in grids.items()})


def _rounded(patient: Patient, turn: LayerTurn, grids: dict[str, Encoding],
             integers: dict[str, np.ndarray]) -> RoundedLayer:
  """Returns integers with the biases that go with them."""
  network, name = patient.calibrated, turn.layer.name
  params = network.float_params[name]
  errors = {key: grid.dequantize(integers[key]).astype(np.float64) - params[key]
            for key, grid in grids.items()}
  if turn.patches is None or turn.is_shared:
    shifts = local_shifts(turn.layer, errors, network.statistics)
  else:
    shifts = {facts.bias: turn.means_with(errors[facts.name]).mean(0)
              for facts in weights_of_class(type(turn.layer.layer)) if facts.bias}
  biases = {bias: (params[bias] - shift).astype(np.float32) for bias, shift in shifts.items()}
  return RoundedLayer({key: values.astype(np.int8) for key, values in integers.items()}, grids, biases)
