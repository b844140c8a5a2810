"""Lowering of masks, which are integers 0 and 1, and of what is chosen by them."""

from kquant.graph.nodes import Node, Ref
from tflite_export.lowering.builder import Lower, ProgramBuilder
from tflite_export.program.program import IntTensor


def _index_mask(builder: ProgramBuilder, node: Node) -> None:
  """The smaller of an index and 1."""
  (source,) = builder.inputs(node)
  output = builder.activation(Ref(node))
  shape = builder.program.tensors[output].shape
  counted = builder.program.add_tensor(IntTensor(f"{node.name}/int32", shape, "int32"))
  builder.add(node, "MINIMUM", [source, builder.constant(f"{node.name}/one", [1])], [counted])
  builder.add(node, "CAST", [counted], [output])


def _select(builder: ProgramBuilder, node: Node) -> None:
  """SELECT_V2 by the mask as booleans, which what else chooses by it shares."""
  output = builder.activation(Ref(node))
  places = [ref.key for ref in node.moved]
  if len(places) == 1:
    places.append(builder.integers(f"{node.name}/otherwise"))
  builder.add(node, "SELECT_V2", [_condition(builder, node), *places], [output])


def _condition(builder: ProgramBuilder, node: Node) -> str:
  tensors = builder.program.tensors
  if node.config["condition_shape"] is not None:
    name = f"{node.name}/condition"
    data = builder.encodings.integers[name]
    return builder.program.add_tensor(IntTensor(name, data.shape, "bool", data=data))
  mask = builder.inputs(node)[0]
  name = f"{mask}/bool"
  if name not in tensors:
    builder.program.add_tensor(IntTensor(name, tensors[mask].shape, "bool"))
    builder.add(node, "CAST", [mask], [name])
  return name


LOWERINGS: dict[str, Lower] = {
    "IndexMask": _index_mask,
    "Select": _select,
}
