"""Lowering of elementwise layers."""

from typing import Any

import numpy as np

from kquant.core.errors import UnsupportedLayerError
from kquant.graph.kinds.table import LAYERS
from kquant.graph.nodes import Node, Ref
from tflite_export.lowering.lowering import Lower, Lowering, clamp
from tflite_export.program.program import IntTensor


def _binary(kind: str) -> Lower:
  """Two tensors, or a tensor and a constant in the order of the call."""
  def lower_binary(lowering: Lowering, node: Node) -> None:
    operands = lowering.inputs(node)
    if len(operands) == 1:
      constant = lowering.integers(f"{node.name}/constant")
      operands = [operand.key if isinstance(operand, Ref) else constant
                  for operand in (*node.args, *node.kwargs.values())]
    output, activation = lowering.output(node)
    pot = {} if kind == "MUL" else {"pot_scale_int16": False}
    lowering.add(node, kind, operands, [output], **pot, fused_activation_function=activation)
  return lower_binary


def _unary(kind: str, **options: Any) -> Lower:
  def lower_unary(lowering: Lowering, node: Node) -> None:
    lowering.add(node, kind, lowering.inputs(node), [lowering.activation(Ref(node))], **options)
  return lower_unary


def _relu(lowering: Lowering, node: Node) -> None:
  """A ReLU that no operator before it takes in; its cap is the end of its grid, or 6."""
  output = lowering.activation(Ref(node))
  activation = clamp(node, lowering.encodings[Ref(node).key])
  lowering.add(node, "RELU6" if activation == "RELU6" else "RELU", lowering.inputs(node), [output])


def _capped_relu(lowering: Lowering, node: Node) -> None:
  """One MINIMUM with a cap a channel, behind the operator that took the ReLU in, or a RELU of its own."""
  uncapped, capped = f"{node.name}/uncapped", lowering.needs_caps(node)
  if uncapped not in lowering.program.tensors:
    result = lowering.uncapped(node) if capped else lowering.activation(Ref(node))
    lowering.add(node, "RELU", lowering.inputs(node), [result])
  if capped:
    caps = lowering.integers(f"{node.name}/caps")
    lowering.add(node, "MINIMUM", [uncapped, caps], [lowering.activation(Ref(node))])


def _leaky_relu(lowering: Lowering, node: Node) -> None:
  lowering.add(node, "LEAKY_RELU", lowering.inputs(node), [lowering.activation(Ref(node))],
               alpha=float(np.float32(node.config["alpha"])))


def _prelu(lowering: Lowering, node: Node) -> None:
  alpha = lowering.integers(f"{node.layer.name}/alpha")
  lowering.add(node, "PRELU", [*lowering.inputs(node), alpha], [lowering.activation(Ref(node))])


def lower_table(lowering: Lowering, node: Node) -> None:
  """Any function of one element: its 256 integers are gathered by the input's, which count from 0.

  CAST to int32, ADD 128, GATHER: integer moves, the same in every kernel set. With 16-bit activations
  the table has 65,536 integers. `finalize` has made the table.

  Raises:
    UnsupportedLayerError: the encodings hold no table of the layer.
  """
  (source,) = lowering.inputs(node)
  output = lowering.saturating_output(node)
  shape = lowering.program.tensors[output].shape
  table = _table(lowering, node)
  signed, counted = (lowering.program.add_tensor(IntTensor(f"{node.name}/{name}", shape, "int32"))
                     for name in ("signed", "index"))
  first, _ = lowering.encodings[source].limits
  offset = lowering.constant(f"{node.name}/offset", [-first])
  lowering.add(node, "CAST", [source], [signed])
  lowering.add(node, "ADD", [signed, offset], [counted], version=1, fused_activation_function="NONE")
  lowering.add(node, "GATHER", [table, counted], [output], axis=0)


def _embedding(lowering: Lowering, node: Node) -> None:
  """GATHER of rows of the table, whose integers lie on the output's grid."""
  output = lowering.activation(Ref(node))
  lowering.add(node, "GATHER", [_table(lowering, node), *lowering.inputs(node)], [output], axis=0)


def _table(lowering: Lowering, node: Node) -> str:
  key = f"{node.name}/table"
  if key not in lowering.encodings:
    raise UnsupportedLayerError(
        f"Layer {node.name!r} ({node.kind}) has no table in the encodings; finalize the quantized model "
        "again, and register a layer of your own that a table computes with register_lowering(..., "
        "elementwise=True) before it is quantized.")
  return lowering.integers(key)


def _matmul(lowering: Lowering, node: Node) -> None:
  lowering.add(node, "BATCH_MATMUL", lowering.inputs(node), [lowering.saturating_output(node)],
               adj_x=bool(node.argument(2, "transpose_a", False)),
               adj_y=bool(node.argument(3, "transpose_b", False)))


def _extreme(kind: str) -> Lower:
  """Maximum or Minimum of two or more tensors on one grid."""
  def lower_extreme(lowering: Lowering, node: Node) -> None:
    first, *others = lowering.inputs(node)
    output = lowering.activation(Ref(node))
    for index, other in enumerate(others, start=1):
      shape = np.broadcast_shapes(*(lowering.program.tensors[name].shape for name in (first, other)))
      result = output if index == len(others) else lowering.reshaped(f"{node.name}/{index}", shape, output)
      lowering.add(node, kind, [first, other], [result])
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
    "tf.linalg.matmul": _matmul,
    **{kind: lower_table for kind, facts in LAYERS.items() if facts.unary},
}
