"""Masks, which Keras passes beside the tensors, become tensors: 1 where an element counts, else 0.

Embedding(mask_zero=True) and Masking make them, other layers pass them on, and those whose results depend on
them get them as the argument "mask": one tensor, or one for each input. In the file a mask is integers.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.masks import MOST_EXACT, DiffersFrom, IndexMask, MaskShare, PassMask, ShareFactor
from kquant.graph.nodes import Node, Ref, map_refs
from kquant.graph.policies import float32_policy
from kquant.rewrites.standardize.building import (
  add_matmul,
  add_merge,
  add_operator,
  add_reshape,
  add_select,
  is_fixed,
  replace,
)
from kquant.rewrites.standardize.shape_operators import RESHAPES

Masks = dict[Ref, Ref]
"""{tensor: its mask}; none for a tensor all of which counts."""

_OF_ROWS = {"tf.math.reduce_any": "math.reduce_max", "tf.math.reduce_all": "math.reduce_min"}


def take_masks(graph: Graph, *, keep_training: bool = False) -> None:
  """Computes every mask by layers of the graph, and gives it to the calls that take one.

  With `keep_training` the outputs of the model have their masks as Keras knows them: losses look at them.
  """
  masks: Masks = {}
  for node in list(graph.nodes):
    with graph.in_place_of(node):
      _take_given(graph, node)
      given = _masks_read(node, masks)
      if node.facts.takes_mask and any(given) and node.kwargs.get("mask") is None:
        graph.give(node, mask=given if given[1:] else given[0])
      if node.facts.mask == "made":
        masks.update(_made_mask(graph, node))
        continue
      mask = _mask_of_output(graph, node, given)
      if mask is not None:
        masks.update(dict.fromkeys(_masked_outputs(node), mask))
  for ref in [ref for ref in dict.fromkeys(graph.output_refs) if keep_training and ref in masks]:
    passes = graph.new_layer(PassMask, f"{ref.node.layer_name}/with_mask")
    result = graph.add_node(passes, ([masks[ref], ref],), ref.shape)
    graph.outputs = map_refs(lambda each, old=ref, new=result: new if each == old else each, graph.outputs)
  for layer in graph.layers:
    if layer.facts.table:
      layer.config = {**layer.config, "mask_zero": False}
  graph.normalize()


def masked_inputs(node: Node) -> list[Ref]:
  """The tensors of a call whose masks Keras looks at: not those that are masks."""
  leaves = tf.nest.flatten([value for key, value in node.kwargs.items() if "mask" not in key])
  return [leaf for leaf in (*tf.nest.flatten(node.args), *leaves) if isinstance(leaf, Ref)]


def _masks_read(node: Node, masks: Masks) -> list[Ref | None]:
  """The masks that a call looks at: those that it is given, else those of its inputs."""
  given = node.kwargs.get("mask") if node.facts.takes_mask else None
  if given is None:
    return [masks.get(ref) for ref in masked_inputs(node)]
  return [mask if isinstance(mask, Ref) else None for mask in tf.nest.flatten(given)]


def _masked_outputs(node: Node) -> list[Ref]:
  """The outputs of a call that have its mask: both sequences of a Bidirectional that merges them not."""
  apart = "merge_mode" in node.config and node.config["merge_mode"] is None
  return node.outputs[:2] if apart else node.outputs[:1]


def _mask_of_output(graph: Graph, node: Node, given: list[Ref | None]) -> Ref | None:
  rule, known = node.facts.mask, [mask for mask in given if mask is not None]
  if not known or rule == "none" or rule == "sequence" and not _returns_sequence(node):
    return None
  if rule == "joined" and node.config["axis"] % len(node.shapes[0]) < len(known[0].shape):
    return _joined(graph, node, given)
  if rule in ("all", "joined"):
    return _all_of(graph, f"{node.layer_name}/mask", known)
  return given[0] if rule == "sequence" or _supports_masking(node) else None


def _returns_sequence(node: Node) -> bool:
  wrapped = node.config.get("layer") or {"config": node.config}
  return wrapped["config"]["return_sequences"]


@float32_policy()
def _supports_masking(node: Node) -> bool:
  return node.layer.cls.from_config(dict(node.config)).supports_masking


def _made_mask(graph: Graph, node: Node) -> Masks:
  """The mask that an Embedding or Masking makes; a Masking becomes a choice between its input and 0."""
  (source,), name = node.inputs, node.layer_name
  if node.facts.table:
    if not node.config["mask_zero"]:
      return {}
    return {Ref(node): graph.add_node(graph.new_layer(IndexMask, f"{name}/mask"), (source,), source.shape)}
  if len(source.shape) < 3 or not is_fixed(source):
    return {}
  differs = graph.new_layer(DiffersFrom, f"{name}/differs", {"value": float(node.config["mask_value"])})
  elements = graph.add_node(differs, (source,), source.shape)
  *lead, _ = source.shape
  rows = add_operator(graph, f"{name}/rows", "math.reduce_max", (elements,), (*lead, 1), axis=-1,
                      keepdims=True)
  kept = add_select(graph, f"{name}/kept", rows, [source])
  replace(graph, node, kept, "written as a choice by a mask")
  return {kept: add_reshape(graph, f"{name}/mask", rows, lead[1:])}


def _all_of(graph: Graph, name: str, masks: list[Ref]) -> Ref:
  """1 where all masks are 1."""
  masks = list(dict.fromkeys(masks))
  return add_merge(graph, keras.layers.Minimum, name, masks) if masks[1:] else masks[0]


def _joined(graph: Graph, node: Node, masks: list[Ref | None]) -> Ref:
  """The masks one behind the other, along the axis of a Concatenate."""
  axis = node.config["axis"] % len(node.shapes[0])
  if None in masks:
    raise UnsupportedLayerError(f"Layer {node.name!r} ({node.kind}) joins steps with a mask and steps "
                                "without; give all of its inputs masks, or none.")
  shape = list(masks[0].shape)
  shape[axis] = sum(mask.shape[axis] for mask in masks)
  join = graph.new_layer(node.layer.cls, f"{node.layer_name}/mask", {"axis": axis})
  return graph.add_node(join, (masks,), tuple(shape))


# --- masks that the user computes or gives -----------------------------------------------------------


def _take_given(graph: Graph, node: Node) -> None:
  """Lets the mask that the user gives a call be a tensor of 0 and 1, or a list of them."""
  if node.facts.takes_mask and node.kwargs.get("mask") is not None:
    if any(not isinstance(mask, Ref) for mask in tf.nest.flatten(node.kwargs["mask"]) if mask is not None):
      raise UnsupportedLayerError(f"Layer {node.name!r} ({node.kind}) is called with a mask of constants; "
                                  "make it an input of the model, or leave out the steps that never count.")
    graph.give(node, mask=map_refs(lambda ref: as_mask(graph, ref), node.kwargs["mask"]))


def mask_of(node: Node, ref: Ref) -> Ref | None:
  """Returns the mask of a tensor that a call reads, as `take_masks` left it; None where all of it counts."""
  masks = tf.nest.flatten(node.kwargs.get("mask"))
  return dict(zip(masked_inputs(node), masks)).get(ref)


def as_mask(graph: Graph, ref: Ref) -> Ref:
  """Returns a tensor of 0 and 1 that is 1 where another one, an input or computed of masks, is not 0."""
  node = ref.node
  if node.facts.fixed_grid == "mask":
    return ref
  if node.facts.casts:
    return as_mask(graph, node.inputs[0])
  if len(node.inputs) == 1 and (node.facts.role == "move" or node.kind in RESHAPES):
    graph.set_input(node, 0, as_mask(graph, node.inputs[0]))
    return ref
  if node.kind in _OF_ROWS:
    return add_operator(graph, f"{node.layer_name}/mask", _OF_ROWS[node.kind],
                        (as_mask(graph, node.inputs[0]),), node.shapes[0], axis=node.argument(1, "axis"),
                        keepdims=bool(node.argument(2, "keepdims", False)))
  if node.kind == "tf.math.logical_and":
    return _all_of(graph, f"{node.layer_name}/all", [as_mask(graph, source) for source in node.inputs])
  if node.kind == "tf.math.not_equal" and len(node.inputs) == 1 and np.size(node.operands[1]) == 1:
    return _differing(graph, node.inputs[0], float(node.operands[1]))
  return _differing(graph, ref, 0.0)


def _differing(graph: Graph, source: Ref, value: float) -> Ref:
  """1 where a tensor is not a number; an input of truth values becomes one of int32."""
  node = source.node
  if node.facts.role == "input" and node.config["dtype"] == "bool":
    node.layer.config = {**node.config, "dtype": "int32"}
  cls, config = (IndexMask, {}) if source.is_integer and value == 0 else (DiffersFrom, {"value": value})
  for reader in graph.readers(source):
    if reader.layer.cls is cls and reader.config.get("value", value) == value:
      return Ref(reader)
  return graph.add_node(graph.new_layer(cls, f"{node.layer_name}/mask", config), (source,), source.shape)


# --- means of what counts ----------------------------------------------------------------------------


def split_masked_mean(graph: Graph, node: Node) -> None:
  """Writes the mean over the steps that count as a product of a row of equal weights with the steps.

  Where no step counts it is 0, for which Keras has no number.
  """
  mask = node.kwargs.get("mask")
  if not node.facts.pools or not isinstance(mask, Ref) or not is_fixed(node.inputs[0], mask):
    return
  source, name = node.inputs[0], node.layer_name
  batch, steps, channels = source.shape
  share = _share(graph, f"{name}/share", mask, exact=True)
  weight = _factor(graph, f"{name}/weight", share, steps, "weight")
  weights = add_select(graph, f"{name}/weights", mask, [weight])
  row = add_reshape(graph, f"{name}/row", weights, (1, steps))
  result = add_matmul(graph, f"{name}/sum", row, source)
  factors = [_factor(graph, f"{name}/correction", share, steps, "correction")]
  if steps > MOST_EXACT:
    whole = _share(graph, f"{name}/whole_share", mask, exact=False)
    factors.append(_factor(graph, f"{name}/rest", whole, steps, "rest"))
  for index, factor in enumerate(factors):
    factor = add_reshape(graph, f"{name}/factor{index}", factor, (1, 1))
    result = add_merge(graph, keras.layers.Multiply, f"{name}/scaled{index}", [result, factor])
  if not node.config["keepdims"]:
    result = add_reshape(graph, f"{name}/mean", result, (channels,))
  replace(graph, node, result, "written as a product with the mask")


def _share(graph: Graph, name: str, mask: Ref, *, exact: bool) -> Ref:
  layer = graph.new_layer(MaskShare, name, {"exact": exact})
  return graph.add_node(layer, (mask,), (mask.shape[0], 1))


def _factor(graph: Graph, name: str, share: Ref, length: int, part: str) -> Ref:
  layer = graph.new_layer(ShareFactor, name, {"length": length, "part": part})
  return graph.add_node(layer, (share,), share.shape)
