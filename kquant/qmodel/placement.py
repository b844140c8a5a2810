"""Which tensors get a quantizer, which share one, which are fixed, and why.

One quantizer a fused operation: a convolution and the ReLU behind it are one integer operator, so the
tensor between them gets none. Tensors that a runtime kernel keeps on one grid (the two sides of a
pool, all sides of a concatenation) share one, found by union-find, and with it a rule and a width.
"""

import dataclasses
import difflib

import tf_keras as keras

from kquant.core.encodings import Encoding, activation_grid
from kquant.core.errors import UnsupportedLayerError
from kquant.core.quant_config import QuantConfig
from kquant.core.rule import Rule
from kquant.core.target import Target, target
from kquant.core.tensor_spec import TensorSpec
from kquant.core.text import scope_name
from kquant.graph.graph import Graph
from kquant.graph.kinds.flat_parts import EVERYTHING
from kquant.graph.kinds.table import LAYERS
from kquant.graph.matching import (
  carried_states,
  fuses_into_reader,
  grid_groups,
  looped_layers,
  remembering_layers,
)
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.graph.seen_parts import seen_range
from kquant.qmodel.quantize_activation import QuantizeActivation
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.qmodel.rules import check_kinds, check_matches
from kquant.qmodel.widths import WIDE, Conversions, part_widths, wide_spec

REMEDIES = {
    "affine": "fold it first: kq.rewrite(model, [kq.standardize, kq.fold_batch_norm])",
    "identity": "drop it first: kq.rewrite(model, [kq.standardize])",
}


@dataclasses.dataclass
class QuantizerPlacement:
  """The quantizer of a grid group, and the tensors that it comes behind.

  Attributes:
    sources: tensors whose values are computed onto the grid; calibration looks at them.
    averages: tensors averaged from others of the group: on the same grid, rounded to it again.
    spec: how the grid is chosen.
    fixed: the grid where the runtime's kernel takes no other.
    rule: where the rule applies that decided the spec.
    seen: (low, high) beyond which all readers of the group are flat; infinite where they are not.
    room: how far its grid reaches below its tensors: there lie the scores of masked positions.
    subject: the layer by which rules decide, once it is placed.
  """

  sources: list[Ref]
  averages: list[Ref]
  spec: TensorSpec
  fixed: Encoding | None = None
  rule: str = ""
  seen: tuple[float, float] = EVERYTHING
  room: float = 0.0
  subject: LayerDef | None = None

  @property
  def name(self) -> str:
    """The name of its quantizer layer."""
    return _layer_name(self.sources[0], "quantize")


def place(graph: Graph, config: QuantConfig) -> list[QuantizerPlacement]:
  """Returns where quantizers go in a standardized graph; adds requantizations where grids or widths meet.

  Raises:
    UnsupportedLayerError: a layer that cannot be quantized, by name.
    ValueError: a rule that matches no layer, a layer that no rule matches.
  """
  check_kinds(graph, config)
  limits = target(config.target)
  _check_inputs(graph)
  for node in graph.nodes:
    check_supported(node)
  if config.memory_bits == WIDE:
    _part_read_states(graph)
  _part_colliding_grids(graph, limits)
  remembering = remembering_layers(graph)
  decided = {ref: _decide(graph, refs, config, remembering) for refs in grid_groups(graph) for ref in refs}
  conversions = part_widths(graph, {ref: rule.activations.bits for ref, (rule, _) in decided.items()})
  decided |= {ref: decided[wide] for ref, wide in conversions.narrowed.items()}
  _check_narrow(graph, decided, conversions)
  unquantized = set(conversions.widened.values())
  placements, deciders = [], {node.layer: node.layer for node in graph.nodes if node.facts.role == "linear"}
  for refs in grid_groups(graph):
    if refs[0] in unquantized:
      continue
    rule, subject = decided[refs[0]]
    deciders[subject.layer] = subject.layer
    for ref in refs:
      deciders.setdefault(ref.node.layer, subject.layer)
    placements.append(_placement(graph, refs, rule, conversions, limits))
    placements[-1].subject = subject.layer
  check_matches(config, deciders)
  return placements


def _decide(graph: Graph, refs: list[Ref], config: QuantConfig,
            remembering: set[LayerDef]) -> tuple[Rule, Node]:
  """Returns the rule of a grid group and the call of the layer that it matches.

  Args:
    remembering: layers of loops, which get at least `QuantConfig.memory_bits`.
  """
  sources = _sources(refs)
  subject = _rule_subject(graph, sources[0])
  rule = config.rule(subject.layer.name, subject.kind, subject.layer.origins)
  if config.memory_bits > rule.activations.bits and all(ref.node.layer in remembering for ref in sources):
    rule = dataclasses.replace(rule, activations=wide_spec(rule.activations))
  return rule, subject


def _sources(refs: list[Ref]) -> list[Ref]:
  """The tensors of a grid group whose values are computed onto the grid."""
  return [ref for ref in refs if ref.node.facts.role not in ("move", "average")]


def _placement(graph: Graph, refs: list[Ref], rule: Rule, conversions: Conversions,
               limits: Target) -> QuantizerPlacement:
  sources, spec = _sources(refs), rule.activations
  first = sources[0]
  if first in conversions.narrowed.values():
    spec = wide_spec(spec)
  alone = conversions.narrowed.get(first, first) if len(sources) == 1 else first
  fixed = limits.fixed_grid(alone.node.facts.fixed_grid, spec.bits) or _known_grid(sources, spec)
  averages = [ref for ref in refs if ref.node.facts.role == "average"]
  room = max(float(ref.node.facts.chooses and ref.node.config["room"]) for ref in refs)
  return QuantizerPlacement(sources, averages, spec, fixed, str(rule), seen_range(graph, refs), room)


def _check_narrow(graph: Graph, decided: dict[Ref, tuple[Rule, Node]], conversions: Conversions) -> None:
  """Raises UnsupportedLayerError for a layer that reads or makes 16 bits where its operator takes 8 alone."""
  wide = {*conversions.narrowed.values(), *conversions.widened.values()}
  for node in graph.nodes:
    if node.facts.narrow and any(ref in wide or decided[ref][0].activations.bits > 8
                                 for ref in (*node.inputs, *node.outputs)):
      raise UnsupportedLayerError(
          f"Layer {node.name!r} ({node.kind}) takes activations of 8 bits alone; give it, and what it reads, "
          "8 bits, or quantize with QuantConfig(recurrent='unrolled').")


def check_config(graph: Graph, config: QuantConfig) -> None:
  """Raises what `place` raises, before the work that comes in front of it; the graph stays as it is."""
  place(graph.copy(), config)


def _known_grid(sources: list[Ref], spec: TensorSpec) -> Encoding | None:
  """The grid of a tensor that has one for itself and whose range is known without data."""
  node = sources[0].node
  if len(sources) > 1 or node.facts.known_range is None:
    return None
  return activation_grid(*node.facts.known_range(node), bits=spec.bits, symmetric=spec.symmetric)


def _check_inputs(graph: Graph) -> None:
  """Raises UnsupportedLayerError for an input that nothing reads: it would have no grid."""
  for ref in graph.input_refs:
    if not graph.readers(ref) and ref not in graph.output_refs:
      raise UnsupportedLayerError(f"Input {ref.key!r} is read by no layer; leave it out of the model.")


def check_supported(node: Node) -> None:
  """Raises UnsupportedLayerError unless placement and lowering know what the layer does."""
  facts = node.facts
  refusal = (facts.refusal or (facts.refused_form and facts.refused_form(node)) or _refusal_of_role(node)
             or _refusal_of_config(node))
  if refusal:
    reason, remedy = refusal
    raise UnsupportedLayerError(
        f"Layer {node.name!r} ({node.kind}) {reason}; {remedy}.")


def _refusal_of_role(node: Node) -> tuple[str, str] | None:
  """Returns (reason, remedy) of a layer whose role, or whose place in the graph, has no integer form."""
  role = node.facts.role
  if role == "opaque":
    return "has no integer form", _remedy_of_unknown(node)
  if not node.facts.takes_indices and any(ref.is_integer for ref in node.inputs):
    return "reads an integer input", "give the model a float32 input, or look it up in an Embedding"
  if role in REMEDIES:
    return "must not be left at this point", REMEDIES[role]
  return None


def _refusal_of_config(node: Node) -> tuple[str, str] | None:
  """Returns (reason, remedy) of a layer in a form that no kind has."""
  config = node.config
  if config.get("data_format") == "channels_first":
    return "is channels_first", "build the model with channels_last"
  if config.get("output_padding") is not None:
    return "has an output_padding", "leave it out and pad or crop behind the layer"
  if config.get("activation") not in (None, "linear", "sigmoid", "tanh") and not node.facts.unary:
    return (f"has the activation {config['activation']!r}, which has no integer form",
            "use relu, relu6, leaky_relu, sigmoid, tanh or softmax")
  return None


def _remedy_of_unknown(node: Node) -> str:
  """What to do about a kind without a record."""
  kind = node.kind.split(":")[0]
  if issubclass(node.layer.cls, QuantizeActivation | QuantizeWeights):
    return "the model is quantized already: finalize it with kq.finalize, or give the float model"
  if "." in kind and not kind.startswith("tf."):
    return ("write its call with layers and TensorFlow functions, so that it can be traced, or give it its "
            "operators with tflite_export.register_lowering")
  known = [name for name, facts in LAYERS.items() if name.startswith("tf.") == kind.startswith("tf.")
           and (facts.taken_apart or facts.operator or facts.role not in ("input", "identity", "opaque"))]
  near = difflib.get_close_matches(kind, known, n=3, cutoff=0.0)
  return f"use what has one, such as {', '.join(near)}: docs/layers.md lists the layers"


def _part_read_states(graph: Graph) -> None:
  """Lets matrix products read a state that enters, and that is remembered as well, in their own bits."""
  looped = looped_layers(graph)
  for ref in carried_states(graph):
    readers = [node for node in graph.readers(ref) if node.layer in looped and not node.facts.carries]
    products = [node for node in readers if node.facts.weights]
    if products and products != readers:
      graph.redirect(ref, _requantized(graph, ref), only=products.__contains__)
      graph.edit(ref.node, "requantized: it is remembered, and read by matrix products")
  graph.normalize()


def _requantized(graph: Graph, ref: Ref) -> Ref:
  layer = graph.new_layer(keras.layers.Activation, _layer_name(ref, "requantize"), {"activation": "linear"})
  return graph.add_node(layer, (ref,), ref.shape)


def _part_colliding_grids(graph: Graph, limits: Target) -> None:
  """Puts a requantization behind each source whose grid cannot be that of its group.

  A softmax that is concatenated with a convolution has a grid of its own; so has a ReLU with a cap
  that no fused activation can hold.
  """
  for refs in grid_groups(graph):
    sources = _sources(refs)
    if len({ref.node.layer for ref in sources}) == 1 or _share_fixed_grid(sources):
      continue
    for ref in sources:
      facts, cap = ref.node.facts, ref.node.config.get("max_value")
      if facts.fixed_grid:
        reason = f"{ref.node.kind} has a fixed grid and shares a tensor with {sources[0].node.name!r}"
      elif facts.role == "relu" and cap not in limits.relu_caps:
        reason = f"no fused activation clamps at {cap}"
      else:
        continue
      movers = [node for node in graph.readers(ref)
                if node.facts.role in ("move", "average") and ref in node.moved]
      graph.redirect(ref, _requantized(graph, ref), only=movers.__contains__)
      graph.edit(ref.node, f"requantized: {reason}")
  graph.normalize()


def _share_fixed_grid(sources: list[Ref]) -> bool:
  """Whether all tensors lie on one grid that is fixed, such as masks that are joined."""
  names = {ref.node.facts.fixed_grid for ref in sources}
  return len(names) == 1 and "" not in names


def _layer_name(ref: Ref, suffix: str) -> str:
  """The name of a layer behind a tensor."""
  return scope_name(f"{ref.key}/{suffix}")


def _rule_subject(graph: Graph, ref: Ref) -> Node:
  """The call of the layer that rules look at: what is fused with a ReLU goes before the ReLU itself."""
  node = ref.node
  if node.facts.role == "relu" and fuses_into_reader(graph, node.inputs[0]):
    node = node.inputs[0].node
  return node
