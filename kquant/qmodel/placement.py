"""Which tensors get a quantizer, which share one, which are fixed, and why.

One quantizer a fused operation: a convolution and the ReLU behind it are one integer operator, so the
tensor between them gets none. Tensors that a runtime kernel keeps on one grid (the two sides of a
pool, all sides of a concatenation) share one, found by union-find.
"""

import dataclasses

import numpy as np
import tf_keras as keras

from kquant.core import numerics
from kquant.core.encodings import Encoding
from kquant.core.errors import UnsupportedLayerError
from kquant.core.spec import QuantConfig, TensorSpec
from kquant.core.target import Target, target
from kquant.graph import layers as facts_table
from kquant.graph.graph import Graph
from kquant.graph.matching import fuses_into_reader, grid_classes
from kquant.graph.nodes import Node, Ref
from kquant.qmodel.refusals import refusal_of
from kquant.qmodel.rules import check_kinds, check_matches
from kquant.rewrites.standardize.operators import BINARY_OPERATORS

_TAKEN_APART = (
    "Activation", "Attention", "Average", "AveragePooling3D", "Conv1DTranspose", "Cropping3D",
    "DepthwiseConv1D", "Dot", "EinsumDense", "GlobalAveragePooling3D", "GlobalMaxPooling3D",
    "GroupNormalization", "LayerNormalization", "MaxPooling3D", "MultiHeadAttention", "Normalization",
    "RepeatVector", "Rescaling", "Resizing", "SeparableConv1D", "SeparableConv2D", "UnitNormalization",
    "UpSampling1D", "UpSampling3D", "ZeroPadding3D")
REMEDIES = {
    "affine": "fold it first: kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])",
    "identity": "drop it first: kq.rewrite(model, [kq.standardize])",
}


@dataclasses.dataclass
class GridGroup:
  """Tensors on one grid.

  Attributes:
    sources: tensors whose values are computed onto the grid; calibration looks at them.
    averages: tensors averaged from others of the group: on the same grid, rounded to it again.
    spec: how the grid is chosen.
    fixed: the grid where the runtime's kernel takes no other.
    rule: where the rule applies that decided the spec.
  """

  sources: list[Ref]
  averages: list[Ref]
  spec: TensorSpec
  fixed: Encoding | None = None
  rule: str = ""

  @property
  def name(self) -> str:
    """The name of its quantizer layer."""
    return _layer_name(self.sources[0], "quantize")


def place(graph: Graph, config: QuantConfig) -> list[GridGroup]:
  """Returns the groups of a standardized graph; adds a planned requantization where grids collide.

  Raises:
    UnsupportedLayerError: a layer that cannot be quantized, by name.
    ValueError: a rule that matches no layer, a layer that no rule matches, activations of 16 bits beside
      others.
  """
  check_kinds(graph, config)
  limits = target(config.target)
  for node in graph.nodes:
    check_supported(node)
  _part_colliding_grids(graph, limits)
  groups, deciders = [], {node.layer: node.layer for node in graph.nodes if node.facts.role == "linear"}
  for refs in grid_classes(graph):
    sources = [ref for ref in refs if ref.node.facts.role not in ("move", "average")]
    averages = [ref for ref in refs if ref.node.facts.role == "average"]
    subject = _rule_subject(graph, sources[0])
    deciders[subject.layer] = subject.layer
    for ref in refs:
      deciders.setdefault(ref.node.layer, subject.layer)
    rule = config.rule(subject.layer.name, subject.kind, subject.layer.origins)
    bits = rule.activations.bits
    fixed = limits.fixed_grid(sources[0].node.kind, bits) or _grid_of_table(sources, rule.activations)
    groups.append(GridGroup(sources, averages, rule.activations, fixed, str(rule)))
  _check_widths(groups)
  check_matches(config, deciders)
  return groups


def _grid_of_table(sources: list[Ref], spec: TensorSpec) -> Encoding | None:
  """The grid of an Embedding that has one for itself: over its whole table, whatever rows the data use."""
  if len(sources) > 1 or sources[0].node.kind != "Embedding":
    return None
  table = sources[0].node.layer.params["embeddings"]
  if spec.symmetric:
    return Encoding(numerics.symmetric_grid(np.abs(table).max(), spec.bits), np.zeros(1, np.int64), spec.bits)
  return Encoding(*numerics.affine_grid(table.min(), table.max(), spec.bits), spec.bits)


def _check_widths(groups: list[GridGroup]) -> None:
  """Raises ValueError where activations of 16 bits meet others: no operator takes both."""
  wide = [group for group in groups if group.spec.bits == 16]
  if wide and len(wide) < len(groups):
    other = next(group for group in groups if group.spec.bits != 16)
    raise ValueError(f"Tensor {wide[0].sources[0].key!r} has 16 bits and {other.sources[0].key!r} has "
                     f"{other.spec.bits}; activations have 16 bits throughout or nowhere, so give every rule "
                     "the same (as the preset int16x8 does).")


def check_supported(node: Node) -> None:
  """Raises UnsupportedLayerError unless placement and lowering know what the layer does."""
  role, config = node.facts.role, node.config
  reason = remedy = ""
  if node.kind == "InputLayer" and config["dtype"] == "string":
    reason, remedy = "holds strings", "turn text into indices before the model and give it those"
  elif role == "opaque" and (refusal := refusal_of(node.kind)):
    reason, remedy = refusal
  elif len(node.inputs) != 1 and node.kind.startswith("tf.") and (
      node.kind in BINARY_OPERATORS or node.facts.unary):
    reason, remedy = "combines tensors of different ranks", "reshape them to the same rank first"
  elif role == "opaque":
    reason = "has no integer form"
    remedy = (f"give a layer of your own its operators with tflite_export.register_lowering, or replace it "
              f"by supported layers: {', '.join(_supported_layers())}")
  elif node.kind == "Embedding" and config["mask_zero"]:
    reason, remedy = "masks index 0", "use mask_zero=False and let the model learn the padding's row"
  elif node.kind == "Embedding" and not node.inputs[0].is_integer:
    reason, remedy = "looks up indices that are computed or numbers too", "make them an input of their own"
  elif node.kind != "Embedding" and any(ref.is_integer for ref in node.inputs):
    reason, remedy = "reads an integer input", "give the model a float32 input, or look it up in an Embedding"
  elif role in REMEDIES:
    reason, remedy = "must not be left at this point", REMEDIES[role]
  elif config.get("data_format") == "channels_first":
    reason, remedy = "is channels_first", "build the model with channels_last"
  elif config.get("output_padding") is not None:
    reason, remedy = "has an output_padding", "leave it out and pad or crop behind the layer"
  elif node.kind == "Conv2DTranspose" and max(config["dilation_rate"]) > 1:
    reason, remedy = "is dilated, which its operator is not", "use a dilation_rate of 1"
  elif node.kind == "ReLU" and (config["threshold"] or config["negative_slope"]):
    reason, remedy = "has a threshold or a capped negative slope", "use a plain ReLU or LeakyReLU"
  elif node.kind == "Softmax" and config["axis"] not in (-1, len(node.shapes[0]) - 1):
    reason, remedy = f"works along axis {config['axis']}", "move that axis to the end"
  elif config.get("activation") not in (None, "linear", "sigmoid", "tanh") and not node.facts.unary:
    reason = f"has the activation {config['activation']!r}, which has no integer form"
    remedy = "use relu, relu6, leaky_relu, sigmoid, tanh or softmax"
  if reason:
    raise UnsupportedLayerError(
        f"Layer {node.name!r} ({node.kind}) {reason}; {remedy}.")


def _supported_layers() -> list[str]:
  """The Keras layers that have an integer form, by class name, those that `standardize` takes apart too."""
  kinds = [kind for kind, facts in facts_table.LAYERS.items()
           if hasattr(keras.layers, kind) and facts.role not in ("input", "identity")]
  return sorted({*kinds, *_TAKEN_APART})


def _part_colliding_grids(graph: Graph, limits: Target) -> None:
  """Puts a requantization behind each source whose grid cannot be that of its class.

  A softmax that is concatenated with a convolution has a grid of its own; so has a ReLU with a cap
  that no fused activation can hold.
  """
  for refs in grid_classes(graph):
    sources = [ref for ref in refs if ref.node.facts.role not in ("move", "average")]
    if len(sources) == 1:
      continue
    for ref in sources:
      kind, cap = ref.node.kind, ref.node.config.get("max_value")
      if kind in limits.fixed:
        reason = f"{kind} has a fixed grid and shares a tensor with {sources[0].node.name!r}"
      elif kind == "ReLU" and cap not in limits.relu_caps:
        reason = f"no fused activation clamps at {cap}"
      else:
        continue
      layer = graph.new_layer(keras.layers.Activation, _layer_name(ref, "requantize"),
                              {"activation": "linear"})
      movers = [node for node in graph.readers(ref) if node.facts.role in ("move", "average")]
      graph.redirect(ref, graph.add_node(layer, (ref,), ref.shape), only=movers.__contains__)
      graph.edit(ref.node, f"requantized: {reason}")
  graph.normalize()


def _layer_name(ref: Ref, suffix: str) -> str:
  """The name of a layer behind a tensor; Keras takes no "@" and no ":"."""
  return f"{ref.key.replace('@', '_call').replace(':', '_')}/{suffix}"


def _rule_subject(graph: Graph, ref: Ref) -> Node:
  """The call of the layer that rules speak of: what is fused with a ReLU goes before the ReLU itself."""
  node = ref.node
  if node.facts.role == "relu" and fuses_into_reader(graph, node.inputs[0]):
    node = node.inputs[0].node
  return node
