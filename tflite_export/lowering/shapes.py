"""Lowering of layers that cut, join and rearrange tensors."""

from collections.abc import Sequence

import numpy as np

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.nodes import Node, Ref
from tflite_export.lowering.lowering import Lower, Lowering


def _strided_slice(lowering: Lowering, node: Node, source: str, output: str, begin: Sequence[int],
                   end: Sequence[int], strides: Sequence[int]) -> None:
  bounds = [lowering.constant(f"{output}/{name}", values)
            for name, values in (("begin", begin), ("end", end), ("strides", strides))]
  lowering.add(node, "STRIDED_SLICE", [source, *bounds], [output])


def _cropping(lowering: Lowering, node: Node) -> None:
  (source,) = lowering.inputs(node)
  crops = np.array([(0, 0), *np.reshape(node.config["cropping"], (-1, 2)).tolist(), (0, 0)])
  end = np.array(lowering.program.tensors[source].shape) - crops[:, 1]
  _strided_slice(lowering, node, source, lowering.activation(Ref(node)), crops[:, 0], end,
                 np.ones(len(crops)))


def _getitem(lowering: Lowering, node: Node) -> None:
  """x[a:b:c, i, ..., None]: one STRIDED_SLICE, and a RESHAPE where an axis goes or comes."""
  (source,) = lowering.inputs(node)
  shape = lowering.program.tensors[source].shape
  begin, end, strides = _bounds(node, shape)
  output = lowering.activation(Ref(node))
  cut = tuple(len(range(b, e, s)) for b, e, s in zip(begin, end, strides))
  if cut == lowering.program.tensors[output].shape:
    _strided_slice(lowering, node, source, output, begin, end, strides)
    return
  middle = lowering.reshaped(f"{node.name}/cut", cut, output)
  _strided_slice(lowering, node, source, middle, begin, end, strides)
  lowering.reshape(node, middle, output)


def _bounds(node: Node, shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
  """Returns begin, end and stride of every axis of the input; the batch is taken whole."""
  items = node.argument(1, "slice_spec")
  items = items if isinstance(items, (tuple, list)) else (items,)
  items = [item for item in items if item is not None]
  if Ellipsis in [item for item in items if not isinstance(item, (dict, slice))]:
    place = next(i for i, item in enumerate(items) if item is Ellipsis)
    items[place:place + 1] = [slice(None)] * (len(shape) - len(items) + 1)
  items += [slice(None)] * (len(shape) - len(items))
  ranges = []
  for axis, (item, size) in enumerate(zip(items, shape)):
    if isinstance(item, dict):
      item = slice(item["start"], item["stop"], item["step"])
    if not isinstance(item, slice):
      item = slice(int(item), int(item) + 1 or None)
    begin, end, stride = item.indices(size)
    if stride < 0 or (axis == 0 and (begin, end, stride) != (0, 1, 1)):
      raise UnsupportedLayerError(f"Layer {node.name!r} slices the batch or runs backwards; the file has "
                                  "batch 1 and forward slices.")
    ranges.append((begin, end, stride))
  return tuple(map(list, zip(*ranges)))


def _split(lowering: Lowering, node: Node) -> None:
  """tf.split: one STRIDED_SLICE an output."""
  (source,) = lowering.inputs(node)
  shape = lowering.program.tensors[source].shape
  axis = int(node.argument(2, "axis", 0)) % len(shape)
  start = 0
  for index in range(len(node.shapes)):
    output = lowering.activation(Ref(node, index))
    size = lowering.program.tensors[output].shape[axis]
    _cut_axis(lowering, node, source, output, axis, start, size)
    start += size


def _unstack(lowering: Lowering, node: Node) -> None:
  """tf.unstack: a slice of one and a RESHAPE for each output."""
  (source,) = lowering.inputs(node)
  shape = lowering.program.tensors[source].shape
  axis = int(node.argument(2, "axis", 0)) % len(shape)
  for index in range(len(node.shapes)):
    output = lowering.activation(Ref(node, index))
    cut = lowering.reshaped(f"{output}/cut", (*shape[:axis], 1, *shape[axis + 1:]), output)
    _cut_axis(lowering, node, source, cut, axis, index, 1)
    lowering.reshape(node, cut, output)


def _cut_axis(lowering: Lowering, node: Node, source: str, output: str, axis: int, start: int,
              size: int) -> None:
  shape = lowering.program.tensors[source].shape
  begin, end = [0] * len(shape), list(shape)
  begin[axis], end[axis] = start, start + size
  _strided_slice(lowering, node, source, output, begin, end, [1] * len(shape))


def _stack(lowering: Lowering, node: Node) -> None:
  """tf.stack: each tensor gets the new axis, then CONCATENATION."""
  output = lowering.activation(Ref(node))
  rank = len(lowering.program.tensors[output].shape)
  axis = int(node.argument(1, "axis", 0)) % rank
  parts = []
  for index, source in enumerate(lowering.inputs(node)):
    shape = lowering.program.tensors[source].shape
    part = lowering.reshaped(f"{node.name}/part{index}", (*shape[:axis], 1, *shape[axis:]), output)
    parts.append(lowering.reshape(node, source, part))
  lowering.add(node, "CONCATENATION", parts, [output], axis=axis,
               fused_activation_function="NONE")


def _concatenate(lowering: Lowering, node: Node) -> None:
  axis = node.config["axis"] % len(node.shapes[0])
  if axis == 0:
    raise UnsupportedLayerError(f"Layer {node.name!r} concatenates along the batch axis, which has size 1.")
  lowering.add(node, "CONCATENATION", lowering.inputs(node), [lowering.activation(Ref(node))],
               axis=axis, fused_activation_function="NONE")


def _permute(lowering: Lowering, node: Node) -> None:
  order = lowering.constant(f"{node.name}/perm", [0, *node.config["dims"]])
  lowering.add(node, "TRANSPOSE", [*lowering.inputs(node), order], [lowering.activation(Ref(node))])


def _blocks(kind: str) -> Lower:
  def lower_blocks(lowering: Lowering, node: Node) -> None:
    (source,) = lowering.inputs(node)
    if lowering.program.tensors[source].dtype == "int16":
      block = int(node.argument(1, "block_size"))
      _move_blocks(lowering, node, source, block, deepen=kind == "SPACE_TO_DEPTH")
      return
    lowering.add(node, kind, lowering.inputs(node), [lowering.activation(Ref(node))],
                 block_size=int(node.argument(1, "block_size")))
  return lower_blocks


def _move_blocks(lowering: Lowering, node: Node, source: str, block: int, *, deepen: bool) -> None:
  """Depth to space, or back, by RESHAPE, TRANSPOSE and RESHAPE: their operators take no int16."""
  output = lowering.activation(Ref(node))
  tensors = lowering.program.tensors
  _, height, width, channels = tensors[output if deepen else source].shape
  depth = channels // block**2
  apart = (1, height, block, width, block, depth) if deepen else (1, height, width, block, block, depth)
  order = (0, 1, 3, 2, 4, 5)  # its own inverse
  parts = lowering.reshape(node, source, lowering.reshaped(f"{node.name}/parts", apart, output))
  moved = lowering.reshaped(f"{node.name}/moved", [apart[axis] for axis in order], output)
  lowering.add(node, "TRANSPOSE", [parts, lowering.constant(f"{node.name}/perm", order)], [moved])
  lowering.reshape(node, moved, output)


def _zero_padding(lowering: Lowering, node: Node) -> None:
  spatial = np.reshape(node.config["padding"], (-1, 2))
  _pad(lowering, node, [[0, 0], *spatial.tolist(), [0, 0]])


def _tf_pad(lowering: Lowering, node: Node) -> None:
  """tf.pad with zeros, for which the zero point stands, or with the tensor mirrored."""
  mode, value = str(node.argument(2, "mode", "CONSTANT")).upper(), node.argument(4, "constant_values", 0)
  paddings = np.asarray(node.argument(1, "paddings"))
  if paddings[0].any():
    raise UnsupportedLayerError(f"Layer {node.name!r} pads the batch axis; pad the other axes.")
  if mode in ("REFLECT", "SYMMETRIC"):
    amounts = lowering.constant(f"{node.name}/paddings", paddings)
    lowering.add(node, "MIRROR_PAD", [*lowering.inputs(node), amounts], [lowering.activation(Ref(node))],
                 mode=mode)
  elif np.any(np.asarray(value) != 0):
    raise UnsupportedLayerError(f"Layer {node.name!r} pads with {value}; pad with zeros, or concatenate a "
                                "constant.")
  else:
    _pad(lowering, node, paddings)


def _pad(lowering: Lowering, node: Node, paddings) -> None:
  amounts = lowering.constant(f"{node.name}/paddings", paddings)
  lowering.add(node, "PAD", [*lowering.inputs(node), amounts], [lowering.activation(Ref(node))])


def _reshape(lowering: Lowering, node: Node) -> None:
  (source,) = lowering.inputs(node)
  lowering.reshape(node, source, lowering.activation(Ref(node)))


LOWERINGS: dict[str, Lower] = {
    "Concatenate": _concatenate,
    "Cropping1D": _cropping,
    "Cropping2D": _cropping,
    "Flatten": _reshape,
    "Permute": _permute,
    "Reshape": _reshape,
    "ZeroPadding1D": _zero_padding,
    "ZeroPadding2D": _zero_padding,
    "tf.__operators__.getitem": _getitem,
    "tf.compat.v1.pad": _tf_pad,
    "tf.nn.depth_to_space": _blocks("DEPTH_TO_SPACE"),
    "tf.nn.space_to_depth": _blocks("SPACE_TO_DEPTH"),
    "tf.split": _split,
    "tf.stack": _stack,
    "tf.unstack": _unstack,
}
