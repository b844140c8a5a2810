"""Scale groups: which channels of which tensors may be scaled together without changing the network.

relu(s x) = s relu(x) for s > 0: where a convolution's output channel is multiplied by s and every
kernel that reads the channel is divided by it, the network computes the same function (Meller et al.
2019; Nagel et al. 2019). A group is a class of (tensor, channel) that must share one s: both sides of
a pool, all members of a residual sum, every call of a shared layer. It is fixed, s = 1, where a member
meets what is not homogeneous: an input or output of the model, a sigmoid, a table.
"""

import dataclasses

import numpy as np
import tf_keras as keras

from kquant.core import numerics
from kquant.core.text import text_table
from kquant.graph.capped_relu import CappedReLU
from kquant.graph.graph import Graph
from kquant.graph.kinds.calls import cap_of
from kquant.graph.kinds.channel_ties import ChannelTies
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


def scale_groups(graph: Graph) -> ScaleGroups:
  """Returns the scale groups of a standardized graph whose batch norms are folded."""
  ties = ChannelTies()
  for node in graph.nodes:
    for ref in node.outputs:
      ties.add(ref)
    node.facts.scale_rule(ties, node)
  for layer in {node.layer: None for node in graph.nodes if node.facts.role == "linear"}:
    first, *others = graph.calls(layer)
    for call in others:
      ties.tie(ties.index[first.inputs[0]], ties.index[call.inputs[0]])
      ties.tie(ties.index[Ref(first)], ties.index[Ref(call)])
  for ref in graph.output_refs:
    ties.fix(ref, "output of the model")
  return ScaleGroups(*ties.joined(), ties.obstacles)


# --- scaling -----------------------------------------------------------------------------------------


def scale_channels(graph: Graph, groups: ScaleGroups, scale: np.ndarray, *, move_caps: bool = True) -> None:
  """Multiplies every channel by its group's scale, [groups] > 0; the outputs of the model stay.

  Kernels, biases and `output_moments` are changed.

  Args:
    graph: standardized, batch norms folded.
    groups: its scale groups.
    scale: [groups], positive; 1 for a group that is not free.
    move_caps: scale the caps of ReLUs along; caps that differ by channel make a ReLU a CappedReLU.

  Raises:
    ValueError: another scale than 1 for a group that is not free.
  """
  if (scale[~groups.free] != 1).any():
    raise ValueError("scale_channels: expected a scale of 1 for every group that is not free.")
  for layer in {node.layer: None for node in graph.nodes if node.facts.role == "linear"}:
    call = graph.calls(layer)[0]
    _scale_linear(layer, scale[groups.index[call.inputs[0]]], scale[groups.index[Ref(call)]])
  for layer, ids in {node.layer: groups.index[Ref(node)] for node in graph.nodes}.items():
    if layer.output_moments is not None:
      layer.output_moments = tuple(scale[ids] * values for values in layer.output_moments)
  for node in graph.of_role("relu") if move_caps else ():
    _scale_cap(graph, node, scale[groups.index[Ref(node)]])
  graph.normalize()


def _scale_linear(layer: LayerDef, before: np.ndarray, behind: np.ndarray) -> None:
  kernel, facts = layer.params[layer.facts.kernel.name].astype(np.float64), layer.facts
  kernel = kernel * numerics.along(behind, kernel.shape, facts.kernel.out_axes)
  kernel = kernel / numerics.along_inputs(before, kernel.shape, facts.kernel.in_axes[0])
  layer.params = {**layer.params, facts.kernel.name: kernel.astype(np.float32),
                  "bias": (layer.params["bias"] * behind).astype(np.float32)}


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
  """Shows which tensors of a float model can only be scaled together.

  Args:
    model: standardized, batch norms folded.

  Returns:
    A table of the scale groups: tensors, channels, what makes and reads them, and what fixes them.

  Raises:
    TypeError: not a tf_keras functional model.
    ValueError: the model is not built, or a weight is not finite.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> print(kq.describe_scale_groups(model))
    tensors scaled together  channels  made by  read by  fixed by
    -----------------------  --------  -------  -------  -------------------
    dense_input                     3  -        dense    input of the model
    dense                           2  dense    -        output of the model
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
