"""Models that tfmot's quantize_apply made with kquant's quantizers, as kquant's own quantized models."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow_model_optimization.quantization.keras import QuantizeWrapper

from kquant.core import numerics
from kquant.core.encodings import Encoding
from kquant.core.errors import UnsupportedLayerError
from kquant.core.quant_config import QuantConfig
from kquant.graph import keras_reader
from kquant.graph.execution import live_layers
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Ref
from kquant.qmodel.insert import check_weights, insert_activation, wrap
from kquant.qmodel.placement import QuantizerPlacement, place
from kquant.quantizers import MinMaxQuantizer, Quantizer
from kquant.rewrites.standardize.standardize import standardize

# A quantizer, and its variables by name.
State = tuple[Quantizer, dict[str, np.ndarray]]
_ANNOTATED = "annotated in tfmot"  # in the place of a rule


def is_tfmot(model: keras.Model) -> bool:
  """Whether tfmot's quantize_apply made the model."""
  return any(isinstance(layer, QuantizeWrapper) for layer in model.layers)


def from_tfmot(model: keras.Model) -> keras.Model:
  """Returns the quantized Keras model that `insert_quantizers` and training would have made.

  Each layer with weights needs a kquant quantizer for its kernel, and each tensor that an integer
  operator writes one for itself, as KernelQuantizeConfig and OutputQuantizeConfig give them; tensors that
  are only moved share that of their source. tfmot's own quantizer of the input is taken over with its grid.

  Raises:
    UnsupportedLayerError: a layer that has no integer form (an unfolded batch norm), or lacks a quantizer.
  """
  graph = Graph.from_model(model)
  graph.pass_name = "from_tfmot"
  live = live_layers(model)
  weights, outputs = _unwrap(graph, live)
  graph.normalize()
  standardize(graph)
  placements = place(graph, QuantConfig())
  for layer in {node.layer: None for node in graph.nodes if node.facts.weights}:
    check_weights(graph, layer)
    for weight in layer.facts.weights:
      if weight.name not in weights.get(layer.name, {}):
        config = "KernelQuantizeConfig" if layer.facts.role == "linear" else "WeightsQuantizeConfig"
        raise UnsupportedLayerError(f"Layer {layer.name!r} has no quantizer for its {weight.key}; annotate "
                                    f"it with a {config} of kquant's quantizers.")
    wrap(layer, weights[layer.name], rule=_ANNOTATED)
  for placement in placements:
    placement.rule = _ANNOTATED
    insert_activation(graph, placement, *_state_of(graph, placement, outputs))
  return graph.to_model()


def _unwrap(graph: Graph, live: dict[str, Any]) -> tuple[dict[str, dict[str, State]], dict[str, State]]:
  """Takes tfmot's layers out; returns the states of weights, by name, and of outputs by layer."""
  weights, outputs, plain = {}, {}, {}
  for node in list(graph.nodes):
    layer = live.get(node.layer.name)
    if type(layer).__name__ == "QuantizeLayer":
      if layer.quantizer is not None:
        outputs[node.inputs[0].node.layer.name] = _known(layer.quantizer, layer.quantizer_vars)
      graph.remove(node)
    elif isinstance(layer, QuantizeWrapper):
      inner = layer.layer
      if inner.name not in plain:
        plain[inner.name] = _plain_layer(layer)
        weights[inner.name] = {_name(variable): _values(quantizer, state)
                               for variable, quantizer, state in layer._weight_vars}
        if layer._output_quantizers:
          outputs[inner.name] = _known(layer._output_quantizers[0], layer._output_quantizer_vars)
      node.layer = plain[inner.name]
  return weights, outputs


def _plain_layer(wrapper) -> LayerDef:
  """The wrapped layer; tfmot has put tensors in the place of the variables that it quantizes."""
  inner = wrapper.layer
  params = {name: variable.numpy() for name, variable in keras_reader.named_variables(inner)}
  for variable, _, _ in wrapper._weight_vars:
    params[_name(variable)] = variable.numpy()
  return LayerDef(inner.name, type(inner), inner.get_config(), params)


def _name(variable: tf.Variable) -> str:
  return variable.name.split(":")[0].rsplit("/", 1)[-1]


def _values(quantizer, variables) -> State:
  if not isinstance(quantizer, Quantizer):
    raise UnsupportedLayerError(f"A kernel is quantized by {type(quantizer).__name__} of another package; "
                                "annotate its layer with a KernelQuantizeConfig of kquant's quantizers.")
  return quantizer, {name: variable.numpy() for name, variable in variables.items()}


def _known(quantizer, variables) -> State:
  """`_values`; of a quantizer of tfmot's own the 8-bit grid that it rounds to."""
  if isinstance(quantizer, Quantizer):
    return _values(quantizer, variables)
  low, high = (min(float(variables["min_var"]), 0.0), max(float(variables["max_var"]), 0.0))
  scale = max(high - low, numerics.SMALLEST_ACTIVATION_WIDTH) / 255
  zero_point = np.clip(np.rint(-128 - low / scale), -128, 127)
  (low,), (high,) = Encoding(np.float32(scale), zero_point).range
  own = MinMaxQuantizer()
  return own, own.initial_values(low, high)


def _state_of(graph: Graph, placement: QuantizerPlacement,
              outputs: dict[str, State]) -> State | tuple[None, None]:
  """The quantizer of a grid group: that of the layers which write its tensors."""
  if placement.fixed is not None:
    return None, None
  by_owner = {}
  for ref in placement.sources:
    name = ref.node.layer.name
    owner = next((owner for owner in outputs if name == owner or name.startswith(f"{owner}/")), None)
    if owner is None or not _is_last(graph, ref, owner):
      raise UnsupportedLayerError(
          f"Tensor {ref.key!r} has no quantizer; annotate the layer that writes it with a Kernel"
          "QuantizeConfig that has an output quantizer, or with an OutputQuantizeConfig.")
    by_owner[owner] = outputs[owner]
  (first, (quantizer, values)), *others = by_owner.items()
  for name, (_, other) in others:
    if any(not np.array_equal(values[key], other.get(key)) for key in values):
      raise UnsupportedLayerError(f"Layers {first!r} and {name!r} write tensors that one integer operator "
                                  "keeps on one grid, but their output quantizers differ; train with "
                                  "kq.insert_quantizers, which lets them share one.")
  return quantizer, values


def _is_last(graph: Graph, ref: Ref, owner: str) -> bool:
  """Whether no part of the layer that tfmot saw as one comes behind the tensor."""
  return not any(reader.layer.name.startswith(f"{owner}/") for reader in graph.readers(ref))
