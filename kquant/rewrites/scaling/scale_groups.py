"""Scale groups: which channels of which tensors may be scaled together without changing the network.

relu(s x) = s relu(x) for s > 0: where a convolution's output channel is multiplied by s and every
kernel that reads the channel is divided by it, the network computes the same function (Meller et al.
2019; Nagel et al. 2019). A group is a class of (tensor, channel) that must share one s: both sides of
a pool, all members of a residual sum, every call of a shared layer. It is fixed, s = 1, where a member
meets what is not homogeneous: an input or output of the model, a sigmoid, a table.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tf_keras as keras
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kquant.core import numerics
from kquant.core.text import text_table
from kquant.graph.capped_relu import CappedReLU
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref


@dataclasses.dataclass
class ScaleGroups:
  """The groups of a graph.

  Attributes:
    index: {tensor: group of each channel}, int64 [channels]; tensors without channels are left out.
    free: whether a group may be scaled, bool [groups].
    obstacles: {tensor: why its channels are fixed}, where a tensor itself is what fixes them.
  """

  index: dict[Ref, np.ndarray]
  free: np.ndarray
  obstacles: dict[Ref, str]

  @property
  def count(self) -> int:
    """Number of groups."""
    return len(self.free)


class _Builder:
  """Numbers channels, and notes which of them are tied and which are fixed."""

  def __init__(self):
    self.index: dict[Ref, np.ndarray] = {}
    self.obstacles: dict[Ref, str] = {}
    self._count = 0
    self._ties: list[tuple[np.ndarray, np.ndarray]] = []
    self._fixed: list[np.ndarray] = []

  def add(self, ref: Ref) -> None:
    """Gives a tensor channels of its own."""
    channels = ref.shape[-1] if len(ref.shape) > 1 and ref.shape[-1] is not None else 0
    self.index[ref] = np.arange(self._count, self._count + channels)
    self._count += channels

  def tie(self, first: np.ndarray, second: np.ndarray) -> None:
    """Demands one scale for each pair."""
    self._ties.append((first, second))

  def fix(self, ref: Ref, reason: str) -> None:
    """Demands s = 1 for all channels of a tensor."""
    self.obstacles.setdefault(ref, reason)
    self._fixed.append(self.index[ref])

  def groups(self) -> ScaleGroups:
    """Joins what is tied."""
    first, second = (np.concatenate([np.zeros(0, int), *side]) for side in zip(([], []), *self._ties))
    first, second = first.astype(int), second.astype(int)
    links = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(self._count, self._count))
    count, label = connected_components(links, directed=False)
    free = np.ones(count, bool)
    for ids in self._fixed:
      free[label[ids]] = False
    return ScaleGroups({ref: label[ids] for ref, ids in self.index.items()}, free, self.obstacles)


def scale_groups(graph: Graph) -> ScaleGroups:
  """Returns the scale groups of a standardized graph whose batch norms are folded."""
  builder = _Builder()
  for node in graph.nodes:
    for index in range(len(node.shapes)):
      builder.add(Ref(node, index))
    _rule_of(node)(builder, node)
  for layer in {node.layer: None for node in graph.nodes if node.facts.role == "linear"}:
    first, *others = graph.calls(layer)
    for call in others:
      builder.tie(builder.index[first.inputs[0]], builder.index[call.inputs[0]])
      builder.tie(builder.index[Ref(first)], builder.index[Ref(call)])
  for ref in graph.output_refs:
    builder.fix(ref, "output of the model")
  return builder.groups()


# --- one rule a kind of layer ----------------------------------------------------------------------

Rule = Callable[[_Builder, Node], None]


def _stop(builder: _Builder, node: Node) -> None:
  """Nothing is known to pass: the tensors on both sides are fixed."""
  reason = f"{node.name!r} ({node.kind}) is not homogeneous in its channels"
  for ref in (*node.inputs, *_outputs(node)):
    builder.fix(ref, reason)


def _begin(builder: _Builder, node: Node) -> None:
  """The output has scales of its own."""


def _input(builder: _Builder, node: Node) -> None:
  builder.fix(Ref(node), "input of the model")


def _pass(builder: _Builder, node: Node) -> None:
  """Each output channel is the input channel of that number; behind a Flatten the channel is fastest."""
  (source,) = node.inputs
  channels = builder.index[source]
  for ref in _outputs(node):
    result = builder.index[ref]
    if not len(channels) or len(result) % len(channels):
      _stop(builder, node)
      return
    builder.tie(np.tile(channels, len(result) // len(channels)), result)


def _capped(builder: _Builder, node: Node) -> None:
  """A ReLU; a threshold or a capped negative slope stops."""
  if node.config.get("threshold") or (node.config.get("negative_slope") and node.config.get("max_value")):
    _stop(builder, node)
  else:
    _pass(builder, node)


def _spatial(builder: _Builder, node: Node) -> None:
  """A reduction: passes where it leaves the channels alone."""
  rank = len(node.inputs[0].shape)
  axes = node.argument(1, "axis")
  passes = axes is not None and not {rank - 1, 0} & {int(axis) % rank for axis in np.atleast_1d(axes)}
  (_pass if passes else _stop)(builder, node)


def _permute(builder: _Builder, node: Node) -> None:
  last = len(node.shapes[0]) - 1
  (_pass if node.config["dims"][-1] == last else _stop)(builder, node)


def _sum(builder: _Builder, node: Node) -> None:
  """Sums, maxima: all operands and the result share their scales; a constant operand is not scaled."""
  (result,) = _outputs(node)
  channels = len(builder.index[result])
  if len(node.inputs) < 2 or any(len(builder.index[ref]) != channels for ref in node.inputs):
    _stop(builder, node)
    return
  for ref in node.inputs:
    builder.tie(builder.index[ref], builder.index[result])


def _product(builder: _Builder, node: Node) -> None:
  """The largest factor passes its scales on, the others (a gate) are fixed."""
  (result,) = _outputs(node)
  sizes = [np.prod([n or 1 for n in ref.shape[1:]]) for ref in node.inputs]
  main = node.inputs[int(np.argmax(sizes))]
  for ref in node.inputs:
    if ref is not main:
      builder.fix(ref, f"gate of {node.name!r}")
  if len(builder.index[main]) != len(builder.index[result]):
    _stop(builder, node)
    return
  builder.tie(builder.index[main], builder.index[result])


def _concatenate(builder: _Builder, node: Node) -> None:
  """Along the channels: slices; along another axis: one scale a channel."""
  result = builder.index[Ref(node)]
  if node.config["axis"] not in (-1, len(node.shapes[0]) - 1):
    _sum(builder, node)
    return
  builder.tie(np.concatenate([builder.index[ref] for ref in node.inputs]), result)


def _split(builder: _Builder, node: Node) -> None:
  rank = len(node.inputs[0].shape)
  if int(node.argument(2, "axis", 0)) % rank != rank - 1:
    _pass(builder, node)
    return
  builder.tie(builder.index[node.inputs[0]], np.concatenate([builder.index[r] for r in _outputs(node)]))


def _outputs(node: Node) -> list[Ref]:
  return [Ref(node, index) for index in range(len(node.shapes))]


_PASSING = (
    "LeakyReLU", "PReLU", "Requantize", "MaxPooling1D", "MaxPooling2D", "AveragePooling1D",
    "AveragePooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D", "UpSampling1D",
    "UpSampling2D", "UpSampling2DBilinear", "Resizing:nearest", "Resizing:bilinear", "Flatten", "Reshape")

_RULES: dict[str, Rule] = {
    "InputLayer": _input,
    "ReLU": _capped,
    "CappedReLU": _pass,
    **dict.fromkeys(_PASSING, _pass),
    **dict.fromkeys(("Add", "Subtract", "Maximum", "Minimum", "tf.math.add", "tf.math.subtract"), _sum),
    **dict.fromkeys(("Multiply", "tf.math.multiply"), _product),
    "Concatenate": _concatenate,
    "Permute": _permute,
    "tf.split": _split,
    **dict.fromkeys(("tf.math.reduce_mean", "tf.math.reduce_max", "tf.math.reduce_min"), _spatial),
}


def _rule_of(node: Node) -> Rule:
  return _begin if node.facts.role == "linear" else _RULES.get(node.kind, _stop)


# --- scaling -----------------------------------------------------------------------------------------


def scale_channels(graph: Graph, groups: ScaleGroups, scale: np.ndarray, *, move_caps: bool = True) -> None:
  """Multiplies every channel by its group's scale, [groups] > 0; the outputs of the model stay.

  Kernels and biases are changed, and with `move_caps` the caps of ReLUs: caps that differ by channel
  make a ReLU a CappedReLU.
  """
  if (scale[~groups.free] != 1).any():
    raise ValueError("scale_channels: expected a scale of 1 for every group that is not free.")
  for layer in {node.layer: None for node in graph.nodes if node.facts.role == "linear"}:
    call = graph.calls(layer)[0]
    _scale_linear(layer, scale[groups.index[call.inputs[0]]], scale[groups.index[Ref(call)]])
  for layer, ids in {node.layer: groups.index[Ref(node)] for node in graph.nodes}.items():
    if layer.output_moments is not None:
      layer.output_moments = tuple(scale[ids] * values for values in layer.output_moments)
  for node in graph.find("ReLU", "CappedReLU") if move_caps else ():
    _scale_cap(graph, node, scale[groups.index[Ref(node)]])
  graph.normalize()


def _scale_linear(layer: LayerDef, before: np.ndarray, behind: np.ndarray) -> None:
  kernel, facts = layer.params[layer.facts.kernel.name].astype(np.float64), layer.facts
  kernel = kernel * numerics.along(behind, kernel.shape, facts.kernel.out_axes)
  kernel = kernel / numerics.along_inputs(before, kernel.shape, facts.kernel.in_axes[0])
  layer.params = {**layer.params, facts.kernel.name: kernel.astype(np.float32),
                  "bias": (layer.params["bias"] * behind).astype(np.float32)}


def cap_of(node: Node) -> np.ndarray | float | None:
  """Returns where a ReLU or CappedReLU ends, for all channels or [channels]; None where it does not."""
  return node.layer.params["caps"] if node.kind == "CappedReLU" else node.config.get("max_value")


def _scale_cap(graph: Graph, node: Node, scale: np.ndarray) -> None:
  cap = cap_of(node)
  if cap is None or (scale == 1).all():
    return
  layer = graph.new_layer(CappedReLU, node.layer_name, params={"caps": np.float32(cap * scale)})
  if np.ptp(cap * scale) == 0:
    layer = graph.new_layer(keras.layers.ReLU, node.layer_name, {"max_value": float(cap * scale[0])})
  layer.output_moments = node.layer.output_moments
  graph.recall(node, layer, (node.inputs[0],))


def describe_scale_groups(model: keras.Model) -> str:
  """Returns a table of the scale groups of a float model: tensors, channels, what makes and reads them.

  Raises:
    TypeError, ValueError: see `kquant.graph.graph.Graph.from_model`.
  """
  graph = Graph.from_model(model)
  return text_table(("tensors scaled together", "channels", "made by", "read by", "fixed by"),
                    _described(graph, scale_groups(graph)))


def _described(graph: Graph, groups: ScaleGroups) -> list[tuple]:
  """One row a set of tensors that share a group."""
  first_of: dict[int, Ref] = {}
  bundles: dict[Ref, list[Ref]] = {}
  for ref, ids in groups.index.items():
    if len(ids):
      bundles.setdefault(first_of.setdefault(int(ids[0]), ref), []).append(ref)
  rows = []
  for refs in bundles.values():
    makers = [ref.node.name for ref in refs if ref.node.facts.role == "linear"]
    readers = {node.name: None for ref in refs for node in graph.readers(ref) if node.facts.role == "linear"}
    ids = np.concatenate([groups.index[ref] for ref in refs])
    fixed = next((groups.obstacles[ref] for ref in refs if ref in groups.obstacles), "")
    if not fixed and not groups.free[ids].all():
      fixed = "channels of another row"
    rows.append((_few([ref.key for ref in refs]), len(np.unique(ids)), _few(makers), _few(list(readers)),
                 fixed))
  return rows


def _few(names: list[str]) -> str:
  return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "-"
