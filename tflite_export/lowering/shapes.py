"""Lowering of layers that cut, join and rearrange tensors."""

from collections.abc import Sequence

import numpy as np

from kquant.graph.kinds.slicing import slice_parts
from kquant.graph.nodes import Node, Ref
from tflite_export.lowering.builder import Lower, ProgramBuilder


def _strided_slice(builder: ProgramBuilder, node: Node, source: str, output: str,
                   parts: Sequence[range]) -> None:
  """Takes a part of each axis of a tensor."""
  bounds = [builder.common_constant(f"{output}/begin", [part.start for part in parts]),
            builder.common_constant(f"{output}/end", [part.stop for part in parts]),
            builder.common_constant(f"{output}/strides", [part.step for part in parts])]
  builder.add(node, "STRIDED_SLICE", [source, *bounds], [output])


def _cropping(builder: ProgramBuilder, node: Node) -> None:
  (source,) = builder.inputs(node)
  crops = [(0, 0), *np.reshape(node.config["cropping"], (-1, 2)).tolist(), (0, 0)]
  parts = [range(first, size - last)
           for size, (first, last) in zip(builder.program.tensors[source].shape, crops)]
  _strided_slice(builder, node, source, builder.activation(Ref(node)), parts)


def _getitem(builder: ProgramBuilder, node: Node) -> None:
  """x[a:b:c, i, ..., None]: one STRIDED_SLICE, and a RESHAPE where an axis goes or comes."""
  (source,) = builder.inputs(node)
  shape = builder.program.tensors[source].shape
  parts = slice_parts(node, shape)
  output = builder.activation(Ref(node))
  cut = tuple(map(len, parts))
  if cut == builder.program.tensors[output].shape:
    _strided_slice(builder, node, source, output, parts)
    return
  middle = builder.reshaped(f"{node.name}/cut", cut, output)
  _strided_slice(builder, node, source, middle, parts)
  builder.reshape(node, middle, output)


def _split(builder: ProgramBuilder, node: Node) -> None:
  """tf.split: one STRIDED_SLICE an output."""
  (source,) = builder.inputs(node)
  shape = builder.program.tensors[source].shape
  axis = int(node.argument(2, "axis", 0)) % len(shape)
  start = 0
  for index in range(len(node.shapes)):
    output = builder.activation(Ref(node, index))
    size = builder.program.tensors[output].shape[axis]
    _strided_slice(builder, node, source, output, _along(shape, axis, range(start, start + size)))
    start += size


def _unstack(builder: ProgramBuilder, node: Node) -> None:
  """tf.unstack: a slice of one and a RESHAPE for each output."""
  (source,) = builder.inputs(node)
  shape = builder.program.tensors[source].shape
  axis = int(node.argument(2, "axis", 0)) % len(shape)
  for index in range(len(node.shapes)):
    output = builder.activation(Ref(node, index))
    cut = builder.reshaped(f"{output}/cut", (*shape[:axis], 1, *shape[axis + 1:]), output)
    _strided_slice(builder, node, source, cut, _along(shape, axis, range(index, index + 1)))
    builder.reshape(node, cut, output)


def _along(shape: Sequence[int], axis: int, part: range) -> list[range]:
  """A part of one axis, and the others whole."""
  return [part if place == axis else range(size) for place, size in enumerate(shape)]


def _stack(builder: ProgramBuilder, node: Node) -> None:
  """tf.stack: each tensor gets the new axis, then CONCATENATION."""
  output = builder.activation(Ref(node))
  rank = len(builder.program.tensors[output].shape)
  axis = int(node.argument(1, "axis", 0)) % rank
  parts = []
  for index, source in enumerate(builder.inputs(node)):
    shape = builder.program.tensors[source].shape
    part = builder.reshaped(f"{node.name}/part{index}", (*shape[:axis], 1, *shape[axis:]), output)
    parts.append(builder.reshape(node, source, part))
  builder.add(node, "CONCATENATION", parts, [output], axis=axis,
              fused_activation_function="NONE")


def _concatenate(builder: ProgramBuilder, node: Node) -> None:
  axis = node.config["axis"] % len(node.shapes[0])
  builder.add(node, "CONCATENATION", builder.inputs(node), [builder.activation(Ref(node))],
              axis=axis, fused_activation_function="NONE")


def _permute(builder: ProgramBuilder, node: Node) -> None:
  order = builder.constant(f"{node.name}/perm", [0, *node.config["dims"]])
  builder.add(node, "TRANSPOSE", [*builder.inputs(node), order], [builder.activation(Ref(node))])


def _blocks(kind: str) -> Lower:
  def lower_blocks(builder: ProgramBuilder, node: Node) -> None:
    (source,) = builder.inputs(node)
    if builder.program.tensors[source].dtype == "int16":
      block = int(node.argument(1, "block_size"))
      _move_blocks(builder, node, source, block, deepen=kind == "SPACE_TO_DEPTH")
      return
    builder.add(node, kind, builder.inputs(node), [builder.activation(Ref(node))],
                block_size=int(node.argument(1, "block_size")))
  return lower_blocks


def _move_blocks(builder: ProgramBuilder, node: Node, source: str, block: int, *, deepen: bool) -> None:
  """Depth to space, or back, by RESHAPE, TRANSPOSE and RESHAPE: their operators take no int16."""
  output = builder.activation(Ref(node))
  tensors = builder.program.tensors
  _, height, width, channels = tensors[output if deepen else source].shape
  depth = channels // block**2
  apart = (1, height, block, width, block, depth) if deepen else (1, height, width, block, block, depth)
  order = (0, 1, 3, 2, 4, 5)  # its own inverse
  parts = builder.reshape(node, source, builder.reshaped(f"{node.name}/parts", apart, output))
  moved = builder.reshaped(f"{node.name}/moved", [apart[axis] for axis in order], output)
  builder.add(node, "TRANSPOSE", [parts, builder.constant(f"{node.name}/perm", order)], [moved])
  builder.reshape(node, moved, output)


def _zero_padding(builder: ProgramBuilder, node: Node) -> None:
  spatial = np.reshape(node.config["padding"], (-1, 2))
  _pad(builder, node, [[0, 0], *spatial.tolist(), [0, 0]])


def _tf_pad(builder: ProgramBuilder, node: Node) -> None:
  """tf.pad with zeros, for which the zero point stands, or with the tensor mirrored."""
  mode = str(node.argument(2, "mode", "CONSTANT")).upper()
  paddings = np.asarray(node.argument(1, "paddings"))
  if mode in ("REFLECT", "SYMMETRIC"):
    amounts = builder.constant(f"{node.name}/paddings", paddings)
    builder.add(node, "MIRROR_PAD", [*builder.inputs(node), amounts], [builder.activation(Ref(node))],
                mode=mode)
  else:
    _pad(builder, node, paddings)


def _pad(builder: ProgramBuilder, node: Node, paddings) -> None:
  amounts = builder.constant(f"{node.name}/paddings", paddings)
  builder.add(node, "PAD", [*builder.inputs(node), amounts], [builder.activation(Ref(node))])


def _reshape(builder: ProgramBuilder, node: Node) -> None:
  (source,) = builder.inputs(node)
  builder.reshape(node, source, builder.activation(Ref(node)))


def _carry(builder: ProgramBuilder, node: Node) -> None:
  """A copy of the state under its own name."""
  builder.reshape(node, builder.inputs(node)[0], builder.activation(Ref(node)))


LOWERINGS: dict[str, Lower] = {
    "CarryState": _carry,
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
