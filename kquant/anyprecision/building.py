"""One quantized model for each width of a float model, over shared layers."""

import re
from collections.abc import Sequence

import tf_keras as keras

from kquant.anyprecision.family import are_widths
from kquant.anyprecision.unit import UnitQuantizer
from kquant.core import nested_codes
from kquant.core.quant_config import QuantConfig
from kquant.core.rule import Rule
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef
from kquant.graph.policies import float32_policy
from kquant.qmodel.batch_norm_modes import put_back_batch_norms, take_out_batch_norms
from kquant.qmodel.distill import LOSSES
from kquant.qmodel.insert import insert_into_graph, wrap
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.quantizers import XnorQuantizer, base
from kquant.quantizers.xnor import FLOAT_BITS
from kquant.rewrites.standardize.standardize import standardize

MODES = {"nested": "nested", "paper": "xnor"}
"""{mode: the quantizer of its weights}."""
LABELS = ("widest", "all")
"""Which widths learn from the labels."""
_EDGE_BITS = 8


def check_options(widths: Sequence[int], mode: str, distill: str | None, labels: str) -> None:
  """Raises ValueError for what AnyPrecisionModel does not take."""
  known = {*nested_codes.WIDTHS, FLOAT_BITS}
  if not are_widths(widths) or not set(widths) & set(nested_codes.WIDTHS) or set(widths) - known:
    raise ValueError(f"AnyPrecisionModel: expected widths of 1 to 8 bits, and {FLOAT_BITS} for float beside "
                     f"them, as in (2, 4, 8), got {widths!r}.")
  if mode not in MODES:
    raise ValueError(f"AnyPrecisionModel: mode must be one of {', '.join(MODES)}, got {mode!r}.")
  if distill is not None and distill not in LOSSES:
    raise ValueError(f"AnyPrecisionModel: distill must be one of {', '.join(LOSSES)}, or None, got "
                     f"{distill!r}.")
  if labels not in LABELS:
    raise ValueError(f"AnyPrecisionModel: labels must be one of {', '.join(LABELS)}, got {labels!r}.")


def standardized(model: keras.Model) -> Graph:
  """Returns the graph that all widths are built of."""
  graph = Graph.from_model(model, keep_losses=True)
  standardize(graph, keep_training=True)
  return graph


def edge_layers(graph: Graph) -> str:
  """Returns a regular expression of the first and the last layer with a kernel."""
  names = [node.layer.name for node in graph.of_role("linear")]
  if not names:
    raise ValueError(f"Model {graph.name!r} has no convolution and no dense layer whose kernel could have "
                     "several widths; quantize it with 'int8'.")
  return f"^({re.escape(names[0])}|{re.escape(names[-1])})$"


def width_model(graph: Graph, bits: int, mode: str, eight_bits: str) -> keras.Model:
  """Returns the model of a width, on layers of its own.

  Args:
    graph: what `standardized` returned; it stays as it is.
    bits: 1 to 8, or 32 for float.
    mode: of MODES.
    eight_bits: regular expression of the layers that have 8 bits at every width.
  """
  graph = graph.copy()
  name = f"{graph.name}_{bits}"
  norms = take_out_batch_norms(graph, "absorb")
  if bits == FLOAT_BITS:
    if mode == "paper":
      _normalize_weights(graph, eight_bits)
    put_back_batch_norms(graph, norms)
    return graph.to_model(name)
  graph.name = name
  model = insert_into_graph(graph, _config(bits, mode, eight_bits), batch_norms=norms, absorb=True)
  return _with_unit_activations(model, bits) if mode == "paper" else model


def nearest_width(widths: Sequence[int], bits: int) -> int:
  """Returns the width whose batch norms suit another one best: the next wider one, or else the next narrower.

  Args:
    widths: 1 to 8 bits.
    bits: the other one.
  """
  return min(widths, key=lambda width: (width < bits, abs(width - bits)))


def at_other_width(model: keras.Model, bits: int, name: str, eight_bits: str) -> keras.Model:
  """Returns a copy of a width's model whose weights have another width, on layers of its own.

  Args:
    model: of a width of 1 to 8 bits.
    bits: 1 to 8.
    name: of the new model.
    eight_bits: as in `width_model`: these layers keep their 8 bits.
  """
  graph, edge = Graph.from_model(model, keep_losses=True), str(Rule(match=eight_bits))
  for layer in graph.layers:
    if issubclass(layer.cls, QuantizeWeights) and model.get_layer(layer.name).rule != edge:
      _change_bits(layer, bits)
  return graph.to_model(name)


def share_layers(models: Sequence[keras.Model]) -> None:
  """Lets all models use the layers with weights of the first one, by name."""
  first, *others = models
  shared = {layer.name: inner_layer(layer) for layer in first.layers}
  for model in others:
    for wrapper in model.layers:
      if isinstance(wrapper, QuantizeWeights):
        wrapper.layer = shared[wrapper.name]


def inner_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
  """Returns what a wrapper of quantized weights runs, or the layer itself."""
  return layer.layer if isinstance(layer, QuantizeWeights) else layer


def _config(bits: int, mode: str, eight_bits: str) -> QuantConfig:
  """Returns the config of a width; activations have 8 bits, their clips are trained."""
  activations = TensorSpec(quantizer="lsq")

  def rule(width: int, match: str = "") -> Rule:
    weights = TensorSpec(bits=width, quantizer=MODES[mode])
    return Rule(match=match, weights=weights, activations=activations)

  return QuantConfig(rules=(rule(_EDGE_BITS, eight_bits), rule(bits)))


def _normalize_weights(graph: Graph, eight_bits: str) -> None:
  """Puts the paper's float weights into the layers of its float branch."""
  edge = Rule(match=eight_bits)
  config = QuantConfig(rules=(edge, Rule()))
  for layer in graph.layers:
    if layer.facts.weights and config.rule(layer.name, layer.kind, layer.origins) is not edge:
      quantizers = {weight.name: XnorQuantizer(bits=FLOAT_BITS, axis=weight.out_axes)
                    for weight in layer.facts.weights}
      wrap(layer, {name: (quantizer, quantizer.values_of(layer.params[name]))
                   for name, quantizer in quantizers.items()})


def _with_unit_activations(model: keras.Model, bits: int) -> keras.Model:
  """Returns the model with the paper's activations behind its ReLUs; all others keep their 8 bits."""
  graph = Graph.from_model(model, keep_losses=True)
  for layer in graph.layers:
    if layer.cls is QuantizeActivation and all(
        call.inputs[0].node.facts.role == "relu" for call in graph.calls(layer)):
      layer.config = {**layer.config, "quantizer": base.serialize(UnitQuantizer(bits=bits))}
      layer.params = {"quantizing": layer.params["quantizing"]}
  return graph.to_model()


@float32_policy()
def _change_bits(layer: LayerDef, bits: int) -> None:
  """Gives the weights of a wrapped layer another width."""
  wrapper = layer.cls.from_config(layer.config)
  for name, old in wrapper.quantize_config.weights.items():
    quantizer = type(old).from_config({**old.get_config(), "bits": bits})
    wrapper.quantize_config.weights[name] = quantizer
    state = {f"{name}_{key}": value for key, value in quantizer.values_of(layer.params[name]).items()}
    layer.params = {**layer.params, **state}
  layer.config = wrapper.get_config()
