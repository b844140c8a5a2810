"""The remedies for one tensor: other grids for an activation, other integers for the weights of a layer."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kquant.analysis.calls import calls_with, grid_tensors
from kquant.analysis.measure import Network
from kquant.analysis.sites import Site
from kquant.core import numerics
from kquant.core.encodings import Encoding, activation_grid
from kquant.core.fake_quantization import fake_quantize
from kquant.core.tensor_spec import TensorSpec
from kquant.doctor.variants import Variant
from kquant.graph.execution import Execution, NodeCall, Values, live_layers
from kquant.graph.nodes import Ref, weights_of_class
from kquant.graph.weights import WeightFacts
from kquant.ptq.layerwise.bias_correction import corrected_biases
from kquant.qmodel.calibrate import Statistics, as_one
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.ranges.estimators import make_estimator
from kquant.ranges.weights import weight_range

WIDE = "16 bits"
EIGHT_BITS = "weights of 8 bits"
PER_CHANNEL = "a scale a channel"
_ACTIVATION_RANGES = ("minmax", "mse", "percentile:99.99", "percentile:99.9")
_WEIGHT_RANGES = ("minmax", "mse")

Ranges = dict[str, tuple[float, float]]
"""{range estimator: (low, high)}."""


@dataclasses.dataclass(frozen=True, eq=False)
class Remedy:
  """A change to one tensor.

  Attributes:
    name: in words.
    variant: how the site's calls are made with it.
    spec: that a rule gives the tensor; None with `scales` or `splits`, and where its layer is rounded in
      closed form.
    scales: {tensor: scale of each channel}.
    splits: the input channels that set the grid of its kernel are split.
    baseline: what `variant` is compared with; None: the site on its grid.
    cost: what it takes of the user: "bytes" or "latency"; "": nothing.
  """

  name: str
  variant: Variant
  spec: TensorSpec | None = None
  scales: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  splits: bool = False
  baseline: Variant | None = None
  cost: str = ""


def activation_remedies(network: Network, site: Site, spec: TensorSpec, ranges: Ranges, *,
                        wide: bool) -> Iterator[Remedy]:
  """Yields the remedies for the grid of a site, cheap to dear.

  Args:
    spec: that it has now.
    ranges: {range estimator: what it says}, one of them "minmax".
    wide: it may have 16 bits.
  """
  layer = live_layers(network.qmodel)[site.nodes[0].layer.name]
  specs = {f"range {name}": dataclasses.replace(spec, range=name) for name in ranges if name != spec.range}
  if wide:
    specs[WIDE] = TensorSpec(bits=16).for_activations()
  for name, other in specs.items():
    low, high = _within_cut(ranges[other.range], layer) if other.bits < 16 else ranges["minmax"]
    grid = activation_grid(low, high, bits=other.bits, symmetric=other.symmetric)
    yield Remedy(name, Variant(site, on_grid(grid)), other, cost="latency" if name == WIDE else "")


def measured_ranges(network: Network, sites: Sequence[Site],
                    images: list[np.ndarray]) -> dict[Site, Ranges]:
  """Returns what each estimator says of each activation site, by one float pass over the images."""
  if not sites:
    return {}
  layers = live_layers(network.qmodel)
  estimators = {site: {name: make_estimator(name) for name in _ACTIVATION_RANGES} for site in sites}
  execution = Execution(network.graph, network.qmodel, call=network.calls[1])

  def measure(values: Values) -> list[list[Any]]:
    tensors = [as_one([values[Ref(node)] for node in site.nodes if node.kwargs.get("observe", True)])
               for site in sites]
    return [[estimator.measure(tensor) for estimator in estimators[site].values()]
            for site, tensor in zip(sites, tensors)]

  run = execution.traced(measure)
  for batch in execution.batches(images, batch_size=32, what="ranges"):
    measured = tf.nest.map_structure(np.asarray, run([tf.convert_to_tensor(array) for array in batch]))
    for site, of_site in zip(sites, measured):
      for estimator, values in zip(estimators[site].values(), of_site):
        estimator.absorb(values)
  quantizers = {site: layers[site.nodes[0].layer.name].quantizer for site in sites}
  return {site: {name: estimator.range(bits=quantizers[site].bits, symmetric=quantizers[site].symmetric)
                 for name, estimator in estimators[site].items()} for site in sites}


def weight_remedies(network: Network, site: Site, spec: TensorSpec,
                    statistics: Statistics) -> Iterator[Remedy]:
  """Yields the remedies for the weights of a layer that change their grid, cheap to dear.

  Args:
    spec: that they have now.
    statistics: of the float network, for the bias correction.
  """
  layer = live_layers(network.qmodel)[site.name]
  specs = {f"weight range {name}": dataclasses.replace(spec, range=name)
           for name in _WEIGHT_RANGES if name != spec.range}
  if not spec.per_channel:
    specs[PER_CHANNEL] = dataclasses.replace(spec, per_channel=True)
  if spec.bits < 8:
    specs[EIGHT_BITS] = dataclasses.replace(spec, bits=8)
  for name, other in specs.items():
    weights = rounded_weights(network, layer, other, statistics)
    cost = "bytes" if name in (EIGHT_BITS, PER_CHANNEL) else ""
    yield Remedy(name, Variant(site, calls_with({layer.name: weights})), other, cost=cost)


def rounding_remedy(network: Network, site: Site) -> Remedy:
  """Returns closed-form rounding of a layer, whose live weights are rounded so and its bias corrected."""
  layer = live_layers(network.qmodel)[site.name]
  weights = {name: value.numpy() for name, value in layer.simulated_weights().items()}
  biases = {facts.bias: getattr(layer.layer, facts.bias).numpy() for facts in _facts(layer) if facts.bias}
  call = calls_with({layer.name: {**weights, **biases}})
  return Remedy("closed-form rounding", Variant(site, call))


def together(variants: Sequence[Variant]) -> Variant:
  """Returns the variant in which the sites of several are made, each in its way."""
  calls = {node: variant.call for variant in variants for node in variant.site.nodes}
  first = variants[0].site
  site = Site(first.name, first.part, tuple(calls), (), {node: Ref(node) for node in calls})
  return Variant(site, lambda layer, node, values: calls[node](layer, node, values))


def may_be_wide(site: Site, bordering: Collection[str]) -> bool:
  """Whether a grid can have 16 bits: it is free, and no input or output of the model lies on it.

  Args:
    bordering: the inputs and outputs of the model, with its quantizers, by name.
  """
  names = {ref.key for node in site.nodes for ref in (*node.outputs, *node.inputs)}
  return site.nodes[0].layer.config["fixed"] is None and not names & set(bordering)


def _within_cut(limits: tuple[float, float], layer: QuantizeActivation) -> tuple[float, float]:
  """A range that ends where calibration cut it, as all that reads the tensor is flat there."""
  (low, high), (first, last) = limits, layer.cut
  return (low if first is None else max(low, first)), (high if last is None else min(high, last))


def on_grid(grid: Encoding) -> NodeCall:
  """Returns how a quantizer's call is made on a grid."""
  tensors = grid_tensors(grid)
  return lambda layer, node, values: [fake_quantize(values[node.inputs[0]], tensors)]


def rounded_weights(network: Network, layer: QuantizeWeights, spec: TensorSpec, statistics: Statistics, *,
                    factor: np.ndarray | float = 1.0) -> dict[str, np.ndarray]:
  """Returns the weights of a layer on the grids of a spec, and its biases corrected locally.

  Args:
    statistics: of the float network.
    factor: they are rounded times this.
  """
  params = network.float_params[layer.name]
  found = {}
  for facts in _facts(layer):
    scaled = params[facts.name] * factor
    grid = weight_grid(scaled, facts, spec)
    found[facts.name] = (grid.dequantize(grid.quantize(scaled)) / factor).astype(np.float32)
  return {**found, **corrected_biases(layer, params, found, statistics)}


def weight_grid(kernel: np.ndarray, facts: WeightFacts, spec: TensorSpec) -> Encoding:
  """Returns the grid that a spec gives a kernel in Keras layout."""
  axis = facts.scale_axes(spec.per_channel)
  _, high = weight_range(kernel, axis, method=spec.range, bits=spec.bits)
  scale = numerics.symmetric_grid(high, spec.bits)
  return Encoding(scale, np.zeros(len(scale), np.int64), spec.bits, axis, narrow=True)


def _facts(layer: QuantizeWeights) -> tuple[WeightFacts, ...]:
  return weights_of_class(type(layer.layer))
