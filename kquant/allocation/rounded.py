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
from kquant.ptq.layerwise.bias_correction import output_shift
from kquant.ptq.layerwise.input_moments import merged
from kquant.ptq.layerwise.layer_rounding import fitting_threads, moments_of, round_kernel
from kquant.ptq.layerwise.streaming import LayerTurn, layer_turns


@dataclasses.dataclass(frozen=True, eq=False)
class RoundedLayer:
  """A layer at one width.

  Attributes:
    params: its weights on their grids, and its biases corrected, by name.
    integers: of its weights, int8 in Keras layout, by name.
  """

  params: dict[str, np.ndarray]
  integers: dict[str, np.ndarray]


def rounded_layers(patient: Patient, images: list[np.ndarray], widths: Sequence[int], *,
                   seed: int = 0) -> dict[str, dict[int, RoundedLayer]]:
  """Returns {layer: {bits: how it is rounded}} of all layers with quantized weights.

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
  params, method = patient.calibrated.float_params[turn.layer.name], patient.config.recipe.rounding
  if method == "nearest" or turn.patches is None:
    return {bits: _nearest(patient, turn, bits) for bits in widths}
  ((name, grid),) = turn.layer.weight_encodings().items()
  moments, found = [merged(moments_of(turn, generator))], {}
  for bits in widths:
    wanted = dataclasses.replace(grid, bits=bits)
    with fitting_threads(turn):
      integers, scale = round_kernel(turn, params[name], wanted, moments, method=method)
    found[bits] = _rounded(patient, turn, {name: dataclasses.replace(wanted, scale=scale)}, {name: integers})
  return found


def _nearest(patient: Patient, turn: LayerTurn, bits: int) -> RoundedLayer:
  params = patient.calibrated.float_params[turn.layer.name]
  spec = dataclasses.replace(rule_of(patient.config, patient.layers[turn.layer.name]).weights, bits=bits)
  grids = {facts.name: weight_grid(params[facts.name], facts, spec)
           for facts in weights_of_class(type(turn.layer.layer))}
  return _rounded(patient, turn, grids, {name: grid.quantize(params[name]) for name, grid in grids.items()})


def _rounded(patient: Patient, turn: LayerTurn, grids: dict[str, Encoding],
             integers: dict[str, np.ndarray]) -> RoundedLayer:
  """Returns integers with the weights that they are, and the biases that go with them."""
  network, name = patient.calibrated, turn.layer.name
  params, mean = network.float_params[name], network.statistics.input_means[name]
  found = {key: grid.dequantize(integers[key]) for key, grid in grids.items()}
  for facts in weights_of_class(type(turn.layer.layer)):
    if facts.bias:
      error = found[facts.name].astype(np.float64) - params[facts.name]
      has_means = turn.patches is not None and not turn.is_shared
      shift = turn.means_with(error).mean(0) if has_means else output_shift(error, mean, facts)
      found[facts.bias] = (params[facts.bias] - shift).astype(np.float32)
  return RoundedLayer(found, {key: values.astype(np.int8) for key, values in integers.items()})
