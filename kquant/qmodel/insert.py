"""Float model + QuantConfig -> quantized Keras model."""

from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.graph import Graph
from kquant.core.nodes import LayerDef, Ref
from kquant.core.spec import QuantConfig, TensorSpec
from kquant.qmodel.configs import KernelQuantizeConfig
from kquant.qmodel.layers import QuantizeActivation, QuantizeWeights, observing
from kquant.qmodel.placement import GridGroup, place
from kquant.quantizers import QUANTIZERS, MinMaxQuantizer, Quantizer
from kquant.ranges.weights import weight_range
from kquant.rewrites.standardize import standardize


def insert_quantizers(model: keras.Model, config: QuantConfig | str = "int8") -> keras.Model:
  """Returns a new model with quantizers: weights have their ranges, activations wait for calibration.

  Args:
    model: float model, its batch norms folded.
    config: a QuantConfig or the name of a preset.

  Raises:
    UnsupportedLayerError: a layer that cannot be quantized, by name.
  """
  graph = Graph.from_model(model)
  standardize(graph)
  return insert_into_graph(graph, QuantConfig.preset(config) if isinstance(config, str) else config)


def insert_into_graph(graph: Graph, config: QuantConfig) -> keras.Model:
  """Adds the quantizers to a standardized graph in place and returns the model that it makes.

  The model is built with its quantizers passing through: tracing each of them takes most of the time,
  and no result of that trace is used.
  """
  graph.pass_name = "insert_quantizers"
  groups = place(graph, config)
  for layer in {node.layer: None for node in graph.nodes if node.facts.role == "linear"}:
    wrap(layer, *_weight_quantizer(layer, config.rule(layer.name, layer.kind).weights))
  for group in groups:
    layer = activation_layer(graph, group, _activation_quantizer(graph, group))
    for ref in group.sources:
      graph.insert_after(ref, layer)
    for ref in group.averages:
      graph.insert_after(ref, layer, kwargs={"observe": False})
  with observing():
    return graph.to_model()


def wrap(layer: LayerDef, quantizer: Quantizer, values: dict[str, Any]) -> None:
  """Turns the definition of a layer into that of its QuantizeWeights, with the state of its quantizer."""
  wrapper = QuantizeWeights(layer.cls.from_config(layer.config), KernelQuantizeConfig(quantizer))
  layer.params = {**layer.params,
                  **{f"{layer.facts.kernel}_{name}": value for name, value in values.items()}}
  layer.cls, layer.config = QuantizeWeights, wrapper.get_config()


def activation_layer(graph: Graph, group: GridGroup, quantizer: Quantizer | None,
                     values: dict[str, Any] | None = None) -> LayerDef:
  """Returns the QuantizeActivation of a group, turned on where the state of its quantizer is known."""
  fixed = None
  if group.fixed is not None:
    quantizer = MinMaxQuantizer(bits=group.fixed.bits)
    fixed = [float(end[0]) for end in group.fixed.range]
  layer = graph.new_layer(QuantizeActivation, group.name,
                          {"quantizer": quantizer, "range": group.spec.range, "fixed": fixed,
                           "float_in_training": fixed is not None and _ends_model(graph, group.sources[0])})
  if values is not None:
    layer.params = {**{f"output_{name}": value for name, value in values.items()},
                    "quantizing": np.asarray(True)}
  return layer


def _ends_model(graph: Graph, ref: Ref) -> bool:
  """Whether the tensor is an output of the model, moved at most."""
  return ref in graph.output_refs or any(
      _ends_model(graph, Ref(node)) for node in graph.readers(ref) if node.facts.role == "move")


def _weight_quantizer(layer: LayerDef, spec: TensorSpec) -> tuple[Quantizer, dict[str, Any]]:
  """Returns the quantizer of a layer's kernel, and its state over the range that the spec names."""
  kernel = layer.params[layer.facts.kernel]
  axis = layer.facts.out_axes if spec.per_channel else None
  quantizer = QUANTIZERS[spec.quantizer](bits=spec.bits, symmetric=True, narrow=True, axis=axis)
  values = quantizer.values_of(kernel)
  if values is None:
    values = quantizer.initial_values(*weight_range(kernel, axis, method=spec.range, bits=spec.bits))
  return quantizer, values


def _activation_quantizer(graph: Graph, group: GridGroup) -> Quantizer:
  spec = group.spec
  if spec.per_channel:
    raise ValueError(f"Tensor {group.sources[0].key!r}: an activation has one grid; its TensorSpec must not "
                     "be per_channel.")
  if spec.range == "cross_entropy" and group.fixed is None:
    _check_logits(graph, group.sources)
  return QUANTIZERS[spec.quantizer](bits=spec.bits, symmetric=spec.symmetric)


def _check_logits(graph: Graph, sources: list[Ref]) -> None:
  """Raises ValueError unless each tensor is [images, classes] and ends the model or feeds its softmax."""
  for ref in sources:
    if len(ref.shape) < 2 or any(n != 1 for n in ref.shape[1:-1]) or not _ends_model(graph, ref):
      raise ValueError(f"Tensor {ref.key!r} of shape {ref.shape}: the range 'cross_entropy' is for logits "
                       "[images, classes] that end the model or feed its softmax; name their layer in a Rule "
                       "of its own, Rule(match='^name$', ...), and give the others another range.")


def _ends_model(graph: Graph, ref: Ref) -> bool:
  """Whether a tensor, moved or not, is an output of the model or read by a softmax alone."""
  if ref in graph.output_refs:
    return True
  readers = graph.readers(ref)
  return bool(readers) and all(
      node.kind == "Softmax" or (node.facts.role == "move" and _ends_model(graph, Ref(node)))
      for node in readers)
