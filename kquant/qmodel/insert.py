"""Float model + QuantConfig -> quantized Keras model."""

import math
import zlib
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.core.quant_config import QuantConfig
from kquant.core.tensor_spec import TensorSpec
from kquant.graph.graph import NOTES, Graph
from kquant.graph.nodes import LayerDef, Ref
from kquant.graph.passes import log_skips
from kquant.graph.policies import float32_policy
from kquant.graph.weights import WeightFacts
from kquant.qmodel.batch_norm_modes import (
  check_absorbable,
  folded_kernel,
  put_back_batch_norms,
  take_out_batch_norms,
)
from kquant.qmodel.configs import WeightsQuantizeConfig
from kquant.qmodel.folded_conv import FoldedConv
from kquant.qmodel.outputs import split_outputs
from kquant.qmodel.placement import QuantizerPlacement, place
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.qmodel.training_layers import put_back_training_layers, take_out_training_layers
from kquant.quantizers import QUANTIZERS, MinMaxQuantizer, Quantizer
from kquant.quantizers.gradients import GradientQuantizer
from kquant.ranges.weights import weight_range
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize


def insert_quantizers(model: keras.Model, config: QuantConfig | str = "int8", *,
                      batch_norm: str = "fold") -> keras.Model:
  """Makes a new model with quantizers: weights have their ranges, activations wait for calibration.

  One that is trained without `calibrate` takes the ranges of its first batch to start from.

  Args:
    model: float model.
    config: a QuantConfig or the name of a preset. Where a TensorSpec names no quantizer its range follows the
      tensor in training (`TensorSpec.for_training`). Where a rule names gradients, they are quantized, too.
    batch_norm: what becomes of a batch norm right behind a linear layer (all others are folded):
      "fold": it is folded now; training adapts the folded kernel and bias.
      "train": it learns on, folded into the quantized kernel in every step (`FoldedConv`).
      "absorb": it learns on behind the quantized layer; `finalize` multiplies it into the scales, for
      which weights need per-channel scales.

  Returns:
    The quantized model; `model` is not changed.

  Raises:
    UnsupportedLayerError: a layer that cannot be quantized, by name.
    TypeError: not a tf_keras model, or a subclassed one.
    ValueError: a model that is not built or has weights that are not finite; an unknown preset or
      `batch_norm`, or "absorb" with per-tensor weights; a rule that matches no layer, or a kind that does not
      exist; activations that are per-channel, or whose range is "cross_entropy" where there are no logits.

  Example:
    >>> qmodel = kq.insert_quantizers(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]))
    >>> [type(layer).__name__ for layer in qmodel.layers]
    ['InputLayer', 'QuantizeActivation', 'QuantizeWeights', 'QuantizeActivation']
  """
  config = (QuantConfig.preset(config) if isinstance(config, str) else config).for_training()
  graph = Graph.from_model(model, keep_losses=True)
  standardize(graph, keep_training=True, recurrent=config.recurrent_form)
  taken = None
  if batch_norm == "fold":
    fold_batch_norm(graph)
  else:
    taken = take_out_batch_norms(graph, batch_norm)
  if config.split_outputs:
    split_outputs(graph)
  log_skips(graph)
  return insert_into_graph(graph, config, batch_norms=taken, absorb=batch_norm == "absorb")


def insert_into_graph(graph: Graph, config: QuantConfig, *,
                      batch_norms: dict[LayerDef, LayerDef] | None = None,
                      absorb: bool = False) -> keras.Model:
  """Adds the quantizers to a standardized graph in place and returns the model that it makes.

  The model is built with its quantizers passing through: tracing each of them takes most of the time,
  and no result of that trace is used.

  Args:
    batch_norms: {linear layer: the batch norm that was taken out behind it}.
    absorb: put these back behind their layers, rather than into them.
  """
  graph.pass_name = "insert_quantizers"
  training = take_out_training_layers(graph)
  placements, batch_norms = place(graph, config), batch_norms or {}
  for layer in {node.layer: None for node in graph.nodes if node.facts.weights}:
    check_weights(graph, layer)
    rule, norm = config.rule(layer.name, layer.kind, layer.origins), batch_norms.get(layer)
    if norm is not None and absorb:
      check_absorbable(layer, rule.weights)
    norm = None if absorb else norm
    quantizers = {weight.name: _weight_quantizer(layer, weight, rule.weights, norm)
                  for weight in layer.facts.weights}
    wrap(layer, quantizers, batch_norm=norm, rule=str(rule),
         gradients=_gradient_quantizer(layer, rule.gradients))
  for placement in placements:
    insert_activation(graph, placement, _activation_quantizer(graph, placement))
  if absorb:
    put_back_batch_norms(graph, batch_norms)
  put_back_training_layers(graph, training)
  return graph.to_model()


def check_weights(graph: Graph, layer: LayerDef) -> None:
  """Raises UnsupportedLayerError unless a layer has the weights that its facts name and one input and output.

  What a user registered need not be what his layer has; a linear layer that learns behind a batch norm has
  no bias yet.
  """
  reason = ""
  for weight in layer.facts.weights if layer.facts.role != "linear" else ():
    reason = reason or _misfit(weight, layer.params)
  if any(len(call.inputs) != 1 or len(call.shapes) != 1 for call in graph.calls(layer)):
    reason = "has quantized weights and must have one input and one output"
  if reason:
    raise UnsupportedLayerError(f"Layer {layer.name!r} ({layer.kind}) {reason}; mend the layer, or what "
                                "tflite_export.register_lowering is told of it.")


def _misfit(weight: WeightFacts, params: dict[str, np.ndarray]) -> str:
  """Returns in which way a layer's variables are not what a weight's facts say; "" where they are."""
  for name in (weight.name, weight.bias):
    if name and name not in params:
      return f"is registered with the weight {name!r}, but its variables are {', '.join(params)}"
  shape = params[weight.name].shape
  if max(*weight.out_axes, *weight.in_axes) >= len(shape):
    return f"has the weight {weight.name!r} of shape {shape}, registered with other axes"
  channels = math.prod(shape[axis] for axis in weight.out_axes)
  if weight.bias and params[weight.bias].shape != (channels,):
    return f"has the bias {weight.bias!r} of shape {params[weight.bias].shape}, expected {(channels,)}"
  return ""


@float32_policy()
def wrap(layer: LayerDef, weights: dict[str, tuple[Quantizer, dict[str, Any]]], *,
         batch_norm: LayerDef | None = None, rule: str = "",
         gradients: GradientQuantizer | None = None) -> None:
  """Turns the definition of a layer into that of its QuantizeWeights, with the state of its quantizers.

  With a batch norm it becomes their FoldedConv.

  Args:
    weights: {name: (quantizer, its state)}.
    batch_norm: that of its output channels.
    rule: where the rule applies that decided.
    gradients: of what flows back into its output in training.
  """
  inner = layer.cls.from_config(layer.config)
  quantize_config = WeightsQuantizeConfig({name: quantizer for name, (quantizer, _) in weights.items()})
  state = {f"{weight}_{name}": value for weight, (_, values) in weights.items()
           for name, value in values.items()}
  options = {"rule": rule, "gradients": gradients}
  if batch_norm is None:
    wrapper = QuantizeWeights(inner, quantize_config, trainable=inner.trainable, **options)
    layer.params = {**layer.params, **state}
  else:
    norm = batch_norm.cls.from_config(batch_norm.config)
    wrapper = FoldedConv(inner, quantize_config, norm, trainable=inner.trainable or norm.trainable, **options)
    layer.params = {**layer.params, **batch_norm.params, **state}
  layer.cls, layer.config = type(wrapper), wrapper.get_config()


def insert_activation(graph: Graph, placement: QuantizerPlacement, quantizer: Quantizer | None,
                      values: dict[str, Any] | None = None) -> None:
  """Puts a QuantizeActivation behind the tensors of a grid group, on where its quantizer's state is known."""
  sources, fixed = placement.sources, None
  if placement.fixed is not None:
    quantizer = MinMaxQuantizer(bits=placement.fixed.bits)
    fixed = [float(end[0]) for end in placement.fixed.range]
  learns = any(ref.node.config.get("trainable", True) for ref in sources)
  layer = graph.new_layer(QuantizeActivation, placement.name,
                          {"quantizer": quantizer, "range": placement.spec.range, "fixed": fixed,
                           "float_in_training": fixed is not None and _ends_model(graph, sources[0]),
                           "rule": placement.rule, "trainable": learns})
  layer.config["room"] = placement.room
  layer.config["seen"] = [float(np.float32(end)) if math.isfinite(end) else None for end in placement.seen]
  if not any(NOTES in other.config for other in graph.layers):
    layer.config[NOTES] = {}
  if values is not None:
    layer.params = {**{f"output_{name}": value for name, value in values.items()},
                    "quantizing": np.asarray(True)}
  for ref in sources:
    others = [reader for reader in graph.readers(ref) if not reader.facts.compares]
    on_grid = graph.insert_after(ref, layer)
    if others:  # a number is told from others as they come; a grid that nothing reads would be lost
      graph.redirect(on_grid, ref, only=lambda reader: bool(reader.facts.compares))
  for ref in placement.averages:
    graph.insert_after(ref, layer, kwargs={"observe": False})


def _ends_model(graph: Graph, ref: Ref) -> bool:
  """Whether the tensor is an output of the model, moved or requantized at most."""
  return ref in graph.output_refs or any(
      _ends_model(graph, Ref(node)) for node in graph.readers(ref)
      if node.facts.role == "move" or node.facts.requantizes)


def _weight_quantizer(layer: LayerDef, weight: WeightFacts, spec: TensorSpec,
                      batch_norm: LayerDef | None) -> tuple[Quantizer, dict[str, Any]]:
  """Returns the quantizer of a layer's weight, and its state over the range that the spec names."""
  kernel = layer.params[weight.name] if batch_norm is None else folded_kernel(layer, batch_norm)
  axis = weight.scale_axes(spec.per_channel)
  quantizer = QUANTIZERS[spec.quantizer or "minmax"](bits=spec.bits, symmetric=True, narrow=True, axis=axis)
  values = quantizer.values_of(kernel)
  if values is None:
    values = quantizer.initial_values(*weight_range(kernel, axis, method=spec.range, bits=spec.bits))
  return quantizer, values


def _gradient_quantizer(layer: LayerDef, spec: TensorSpec | None) -> GradientQuantizer | None:
  """Returns the quantizer of what flows back into a layer; its seed follows from the name of the layer."""
  if spec is None:
    return None
  ranges = QUANTIZERS[spec.quantizer](bits=spec.bits, symmetric=spec.symmetric)
  return GradientQuantizer(ranges, stochastic=spec.rounding == "stochastic",
                           seed=zlib.crc32(layer.name.encode()))


def _activation_quantizer(graph: Graph, placement: QuantizerPlacement) -> Quantizer:
  spec = placement.spec
  if spec.per_channel:
    raise ValueError(f"Tensor {placement.sources[0].key!r}: an activation has one grid; its TensorSpec must "
                     "not be per_channel.")
  if spec.range == "cross_entropy" and placement.fixed is None:
    _check_logits(graph, placement.sources)
  return QUANTIZERS[spec.quantizer or "minmax"](bits=spec.bits, symmetric=spec.symmetric)


def _check_logits(graph: Graph, sources: list[Ref]) -> None:
  """Raises ValueError unless each tensor is [images, classes] and ends the model or feeds its softmax."""
  for ref in sources:
    if len(ref.shape) < 2 or any(n != 1 for n in ref.shape[1:-1]) or not _are_scores(graph, ref):
      raise ValueError(f"Tensor {ref.key!r} of shape {ref.shape}: the range 'cross_entropy' is for logits "
                       "[images, classes] that end the model or feed its softmax; name their layer in a Rule "
                       "of its own, Rule(match='^name$', ...), and give the others another range.")


def _are_scores(graph: Graph, ref: Ref) -> bool:
  """Whether a tensor, moved or not, is an output of the model or read by a softmax alone."""
  if ref in graph.output_refs:
    return True
  readers = graph.readers(ref)
  return bool(readers) and all(
      node.facts.takes_scores or (node.facts.role == "move" and _are_scores(graph, Ref(node)))
      for node in readers)
