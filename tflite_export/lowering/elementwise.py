"""Lowering of elementwise layers."""

from typing import Any

import numpy as np

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.kinds.table import LAYERS
from kquant.graph.nodes import Node, Ref
from tflite_export.lowering.builder import Lower, ProgramBuilder, clamp
from tflite_export.program.program import IntTensor


def _binary(kind: str) -> Lower:
  """Two tensors, or a tensor and a constant in the order of the call."""
  def lower_binary(builder: ProgramBuilder, node: Node) -> None:
    operands = builder.inputs(node)
    if len(operands) == 1:
      constant = builder.integers(f"{node.name}/constant")
      operands = [operand.key if isinstance(operand, Ref) else constant
                  for operand in (*node.args, *node.kwargs.values())]
    output, activation = builder.output(node)
    pot = {} if kind == "MUL" else {"pot_scale_int16": False}
    builder.add(node, kind, operands, [output], **pot, fused_activation_function=activation)
  return lower_binary


def _unary(kind: str, **options: Any) -> Lower:
  def lower_unary(builder: ProgramBuilder, node: Node) -> None:
    builder.add(node, kind, builder.inputs(node), [builder.activation(Ref(node))], **options)
  return lower_unary


def _relu(builder: ProgramBuilder, node: Node) -> None:
  """A ReLU that no operator before it takes in; its cap is the end of its grid, or 6."""
  output = builder.activation(Ref(node))
  activation = clamp(node, builder.encodings[Ref(node).key])
  builder.add(node, "RELU6" if activation == "RELU6" else "RELU", builder.inputs(node), [output])


def _capped_relu(builder: ProgramBuilder, node: Node) -> None:
  """One MINIMUM with a cap a channel, behind the operator that took the ReLU in, or a RELU of its own."""
  uncapped, capped = f"{node.name}/uncapped", builder.needs_caps(node)
  if uncapped not in builder.program.tensors:
    result = builder.uncapped(node) if capped else builder.activation(Ref(node))
    builder.add(node, "RELU", builder.inputs(node), [result])
  if capped:
    caps = builder.integers(f"{node.name}/caps")
    builder.add(node, "MINIMUM", [uncapped, caps], [builder.activation(Ref(node))])


def _leaky_relu(builder: ProgramBuilder, node: Node) -> None:
  builder.add(node, "LEAKY_RELU", builder.inputs(node), [builder.activation(Ref(node))],
              alpha=float(np.float32(node.config["alpha"])))


def _prelu(builder: ProgramBuilder, node: Node) -> None:
  alpha = builder.integers(f"{node.layer.name}/alpha")
  builder.add(node, "PRELU", [*builder.inputs(node), alpha], [builder.activation(Ref(node))])


def lower_table(builder: ProgramBuilder, node: Node) -> None:
  """Any function of one element: its 256 integers are gathered by the input's, which count from 0.

  CAST to int32, ADD 128, GATHER: integer moves, the same in every kernel set. With 16-bit activations
  the table has 65,536 integers. `finalize` has made the table.

  Raises:
    UnsupportedLayerError: the encodings hold no table of the layer.
  """
  (source,) = builder.inputs(node)
  output = builder.saturating_output(node)
  shape = builder.program.tensors[output].shape
  table = _table(builder, node)
  signed, counted = (builder.program.add_tensor(IntTensor(f"{node.name}/{name}", shape, "int32"))
                     for name in ("signed", "index"))
  first, _ = builder.encodings[source].limits
  offset = builder.constant(f"{node.name}/offset", [-first])
  builder.add(node, "CAST", [source], [signed])
  builder.add(node, "ADD", [signed, offset], [counted], version=1, fused_activation_function="NONE")
  builder.add(node, "GATHER", [table, counted], [output], axis=0)


def _embedding(builder: ProgramBuilder, node: Node) -> None:
  """GATHER of rows of the table, whose integers lie on the output's grid."""
  output = builder.activation(Ref(node))
  builder.add(node, "GATHER", [_table(builder, node), *builder.inputs(node)], [output], axis=0)


def _row_lookup(builder: ProgramBuilder, node: Node) -> None:
  """The same, of numbers clamped to those of the table and counted from its first."""
  (numbers,), first, name = builder.inputs(node), node.config["first"], node.name
  shape = builder.program.tensors[numbers].shape
  last = first + node.config["input_dim"] - 1
  for kind, number in (("MAXIMUM", first), ("MINIMUM", last), ("ADD", -first)):
    result = builder.program.add_tensor(IntTensor(f"{name}/{kind.lower()}", shape, "int32"))
    sum_of = {"version": 1, "fused_activation_function": "NONE"} if kind == "ADD" else {}
    builder.add(node, kind, [numbers, builder.constant(f"{result}/number", [number])], [result], **sum_of)
    numbers = result
  builder.add(node, "GATHER", [_table(builder, node), numbers], [builder.activation(Ref(node))], axis=0)


def _table(builder: ProgramBuilder, node: Node) -> str:
  key = f"{node.name}/table"
  if key not in builder.encodings:
    raise UnsupportedLayerError(
        f"Layer {node.name!r} ({node.kind}) has no table in the encodings; finalize the quantized model "
        "again, and register a layer of your own that a table computes with register_lowering(..., "
        "elementwise=True) before it is quantized.")
  return builder.integers(key)


def _matmul(builder: ProgramBuilder, node: Node) -> None:
  builder.add(node, "BATCH_MATMUL", builder.inputs(node), [builder.saturating_output(node)],
              adj_x=bool(node.argument(2, "transpose_a", False)),
              adj_y=bool(node.argument(3, "transpose_b", False)))


def _extreme(kind: str) -> Lower:
  """Maximum or Minimum of two or more tensors on one grid."""
  def lower_extreme(builder: ProgramBuilder, node: Node) -> None:
    first, *others = builder.inputs(node)
    output = builder.activation(Ref(node))
    for index, other in enumerate(others, start=1):
      shape = np.broadcast_shapes(*(builder.program.tensors[name].shape for name in (first, other)))
      result = output if index == len(others) else builder.reshaped(f"{node.name}/{index}", shape, output)
      builder.add(node, kind, [first, other], [result])
      first = result
  return lower_extreme


LOWERINGS: dict[str, Lower] = {
    "ReLU": _relu,
    "CappedReLU": _capped_relu,
    "LeakyReLU": _leaky_relu,
    "Softmax": _unary("SOFTMAX", beta=1.0),
    "Sigmoid": _unary("LOGISTIC"),
    "Tanh": _unary("TANH"),
    "Add": _binary("ADD"),
    "Subtract": _binary("SUB"),
    "Multiply": _binary("MUL"),
    "tf.math.add": _binary("ADD"),
    "tf.math.subtract": _binary("SUB"),
    "tf.math.multiply": _binary("MUL"),
    "Maximum": _extreme("MAXIMUM"),
    "Minimum": _extreme("MINIMUM"),
    "PReLU": _prelu,
    "Embedding": _embedding,
    "RowLookup": _row_lookup,
    "tf.linalg.matmul": _matmul,
    **{kind: lower_table for kind, facts in LAYERS.items() if facts.unary},
}
