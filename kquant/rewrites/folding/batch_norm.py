"""Batch norm folding: y = s * x + t goes into the linear layer before it, or the one behind it.

s = gamma / sqrt(variance + epsilon), t = beta - mean * s. Backward, W' = s W and b' = s b + t, also
through layers that commute with a per-channel affine function (pools, Flatten, Concatenate); a
pure scale also into a factor of a product, and through a ReLU where it is positive.
Forward, W' = W s and b' = b + sum W t, where no padding of zeros comes between.
"""

from collections.abc import Collection

import numpy as np

from kquant.core import numerics
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from kquant.graph.passes import graph_pass
from kquant.rewrites.folding.affine import (
  affine_of,
  affine_to_depthwise,
  input_moments_of,
  moments_of,
  set_affine,
)

Moments = tuple[np.ndarray, np.ndarray]


@graph_pass
def fold_batch_norm(graph: Graph, *, keep: Collection[Node] = ()) -> None:
  """Folds every batch norm; one that cannot be folded becomes a 1x1 depthwise convolution.

  Jacob et al. 2018, section 3.2. Each one not folded is recorded with its reason; one that normalizes another
  axis than the last stays. The output is unchanged up to float rounding. What a batch norm knew of the mean
  and deviation of its channels stays with the layers it was folded into, as their `output_moments`.

  Args:
    graph: a Graph, which is edited; or a tf_keras model, which is not changed.
    keep: batch norms that stay, as nodes of the Graph.

  Returns:
    The Graph, or a new model. Called with keywords alone: the pass with these options, for `kq.rewrite`.

  Example:
    >>> layers = [keras.layers.Dense(2, input_shape=(3,)), keras.layers.BatchNormalization()]
    >>> [type(layer).__name__ for layer in kq.fold_batch_norm(keras.Sequential(layers)).layers]
    ['InputLayer', 'Dense']
  """
  for bn in graph.of_role("affine"):
    if bn in keep:
      continue
    if (axis := normalized_axes(bn)) != [len(bn.shapes[0]) - 1]:
      graph.skip(bn, f"normalizes axis {axis}, not the last one")
      continue
    if len(bn.inputs) > 1:
      graph.skip(bn, "is called with a mask")
      continue
    (source,) = bn.inputs
    scale, shift = affine_of(bn.layer)
    backward = _backward_obstacle(graph, source, scale, shift)
    if backward is None:
      _absorb_backward(graph, source, scale, shift, moments_of(bn.layer))
      graph.edit(bn, f"folded into {source.node.name!r}")
      graph.remove(bn)
      continue
    _remember(graph, source.node, input_moments_of(bn.layer) or source.node.layer.output_moments)
    forward = _forward_obstacle(graph, Ref(bn), scale)
    if forward is None:
      _absorb_forward(graph, Ref(bn), scale, shift)
      graph.edit(bn, "folded into the linear layer behind it")
      graph.remove(bn)
      continue
    graph.skip(bn, f"before it: {backward}; behind it: {forward}; kept as a 1x1 depthwise")
    with graph.in_place_of(bn):
      affine_to_depthwise(graph, bn)


def _backward_obstacle(graph: Graph, ref: Ref, scale: np.ndarray, shift: np.ndarray) -> str | None:
  """Returns why the producer of a tensor cannot take over an affine function, or None if it can."""
  node = ref.node
  if not graph.is_private(ref):
    return f"{node.name!r} has other readers"
  if node.facts.role == "linear":
    return _producer_obstacle(graph, node)
  if node.facts.joins and node.config["axis"] in (-1, len(ref.shape) - 1):
    return next(filter(None, (_backward_obstacle(graph, part, scale[where], shift[where])
                              for part, where in _slices(node))), None)
  if node.facts.arithmetic == "product" and not shift.any():
    return None if _scalable_factor(graph, node, scale) else f"no factor of {node.name!r} can be scaled"
  if node.facts.rectifier:
    return (_rectifier_obstacle(graph, node, scale, shift)
            or _backward_obstacle(graph, node.inputs[0], scale, shift))
  obstacle = _pass_obstacle(node, scale)
  if obstacle is None:
    inner = [_to_input_channels(node, values) for values in (scale, shift)]
    if any(values is None for values in inner):
      return f"its channels are not those of {node.inputs[0].node.name!r} behind {node.name!r}"
    return _backward_obstacle(graph, node.inputs[0], *inner)
  return obstacle


def _producer_obstacle(graph: Graph, node: Node) -> str | None:
  if len(graph.calls(node.layer)) > 1:
    return f"{node.name!r} is shared"
  if node.config.get("activation", "linear") != "linear":
    return f"{node.name!r} has an activation of its own, which standardize splits off"
  return None


def normalized_axes(bn: Node) -> list[int]:
  """Returns the axes of its input along which a batch norm has its statistics, counted from 0."""
  return (np.atleast_1d(bn.config["axis"]) % len(bn.shapes[0])).tolist()


def _absorb_backward(graph: Graph, ref: Ref, scale: np.ndarray, shift: np.ndarray,
                     moments: Moments | None) -> None:
  """Lets the producer of a tensor compute scale * x + shift, whose moments are given if they are known."""
  node = ref.node
  old = node.layer.output_moments
  _remember(graph, node, moments or old and (scale * old[0] + shift, np.abs(scale) * old[1]))
  if node.facts.role == "linear":
    kernel, facts = node.layer.params[node.facts.kernel.name], node.facts
    bias = node.layer.params.get("bias", np.zeros(len(scale)))
    _set_linear(node.layer, kernel * numerics.along(scale, kernel.shape, facts.kernel.out_axes),
                bias * scale + shift)
  elif node.facts.rectifier:
    if node.config.get("max_value") is not None:
      node.layer.config = {**node.config, "max_value": float(node.config["max_value"] * scale[0])}
    _absorb_backward(graph, node.inputs[0], scale, shift, None)
  elif node.facts.joins:
    for part, where in _slices(node):
      _absorb_backward(graph, part, scale[where], shift[where],
                       moments and (moments[0][where], moments[1][where]))
  elif node.facts.arithmetic == "product":
    _absorb_backward(graph, _scalable_factor(graph, node, scale), scale, shift, None)
  else:
    _absorb_backward(graph, node.inputs[0], _to_input_channels(node, scale), _to_input_channels(node, shift),
                     None)


def _remember(graph: Graph, node: Node, moments: Moments | None) -> None:
  """Notes the moments of a call's output at its layer; several calls or outputs have no common ones."""
  alone = len(graph.calls(node.layer)) == len(node.shapes) == 1
  node.layer.output_moments = moments if alone else None


def _scalable_factor(graph: Graph, node: Node, scale: np.ndarray) -> Ref | None:
  """Returns a factor of a product whose producer can take over a pure scale, or None."""
  for ref in node.inputs:
    if ref.shape[-1] == len(scale) and _backward_obstacle(graph, ref, scale, 0 * scale) is None:
      return ref
  return None


def _rectifier_obstacle(graph: Graph, node: Node, scale: np.ndarray, shift: np.ndarray) -> str | None:
  """Returns why k relu(x) is not relu(k x), its cap scaled along, or None: k > 0, one k for a cap."""
  config = node.config
  if shift.any() or (scale <= 0).any() or config.get("threshold") or config.get("negative_slope"):
    return f"{node.name!r} ({node.kind}) is not linear"
  if config.get("max_value") is not None and (np.ptp(scale) or len(graph.calls(node.layer)) > 1):
    return f"{node.name!r} ({node.kind}) has one cap for all channels"
  return None


def _pass_obstacle(node: Node, scale: np.ndarray) -> str | None:
  """Returns why an affine function of the channels does not commute with a layer, or None."""
  if node.config.get("padding") == "same":
    return f"{node.name!r} pads"
  if node.facts.takes_maximum:
    return None if (scale > 0).all() else f"{node.name!r} takes a maximum and a scale is not positive"
  if not node.facts.pointwise:
    return f"{node.name!r} ({node.kind}) is not linear"
  return None


def _to_input_channels(node: Node, values: np.ndarray) -> np.ndarray | None:
  """Maps per-channel values of a layer's output to its input; None where they differ by position."""
  channels = node.inputs[0].shape[-1]
  if channels is None or len(values) % channels:
    return None
  rows = values.reshape(-1, channels)
  return rows[0] if (rows == rows[0]).all() else None


def _slices(concatenate: Node) -> list[tuple[Ref, slice]]:
  stops = np.cumsum([part.shape[-1] for part in concatenate.inputs])
  return [(part, slice(stop - part.shape[-1], stop))
          for part, stop in zip(concatenate.inputs, stops)]


def _forward_obstacle(graph: Graph, ref: Ref, scale: np.ndarray) -> str | None:
  """Returns why the reader of a tensor cannot take over an affine function, or None if it can."""
  if not graph.is_private(ref):
    return f"{ref.node.name!r} has several readers or is an output"
  (node,) = graph.readers(ref)
  if node.facts.role == "linear":
    if len(graph.calls(node.layer)) > 1:
      return f"{node.name!r} is shared"
    if node.facts.transposed:
      return f"{node.name!r} is transposed: a shift is not uniform behind it"
    if node.config.get("padding", "valid") != "valid" and max(node.config["kernel_size"]) > 1:
      return f"{node.name!r} pads"
    return None
  if node.facts.role == "affine":
    if len(graph.calls(node.layer)) > 1:
      return f"{node.name!r} is shared"
    last = [len(node.shapes[0]) - 1]
    return None if normalized_axes(node) == last else f"{node.name!r} normalizes another axis"
  obstacle = _pass_obstacle(node, scale)
  if obstacle is None:
    outer = _to_output_channels(node, scale)
    if outer is None:
      return f"the channels behind {node.name!r} are not those before it"
    return _forward_obstacle(graph, Ref(node), outer)
  return obstacle


def _absorb_forward(graph: Graph, ref: Ref, scale: np.ndarray, shift: np.ndarray) -> None:
  (node,) = graph.readers(ref)
  if node.facts.role == "affine":
    outer_scale, outer_shift = affine_of(node.layer)
    set_affine(node.layer, outer_scale * scale, outer_scale * shift + outer_shift)
    return
  if node.facts.role != "linear":
    _absorb_forward(graph, Ref(node), _to_output_channels(node, scale), _to_output_channels(node, shift))
    return
  kernel = node.layer.params[node.facts.kernel.name].astype(np.float64)
  spread_scale, spread_shift = (numerics.along_inputs(values, kernel.shape, node.facts.kernel.in_axes[0])
                                for values in (scale, shift))
  taps = tuple(i for i in range(kernel.ndim) if i not in node.facts.kernel.out_axes)
  moved = (kernel * spread_shift).sum(axis=taps).reshape(-1)
  _set_linear(node.layer, kernel * spread_scale, node.layer.params.get("bias", 0.0) + moved)


def _to_output_channels(node: Node, values: np.ndarray) -> np.ndarray | None:
  """Per-channel values behind a layer, the channel being fastest; None where its rows cut them up."""
  channels = node.shapes[0][-1]
  if channels is None or channels % len(values):
    return None
  return np.tile(values, channels // len(values))


def _set_linear(layer: LayerDef, kernel: np.ndarray, bias: np.ndarray) -> None:
  layer.config = {**layer.config, "use_bias": True}
  layer.params = {**layer.params, layer.facts.kernel.name: kernel.astype(np.float32),
                  "bias": np.asarray(bias).astype(np.float32)}
