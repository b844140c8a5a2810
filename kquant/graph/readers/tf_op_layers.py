"""TensorFlowOpLayer, as TensorFlow 2.0 to 2.3 wrote `x + 1`, as the calls of functions of today."""

from typing import Any

from google.protobuf import json_format
from tensorflow.core.framework.node_def_pb2 import NodeDef

_BINARY = {"Add": "math.add", "AddV2": "math.add", "Sub": "math.subtract", "Mul": "math.multiply",
           "RealDiv": "math.divide", "Maximum": "math.maximum", "Minimum": "math.minimum", "Pow": "math.pow",
           "SquaredDifference": "math.squared_difference"}
_UNARY = {"Relu": "nn.relu", "Relu6": "nn.relu6", "Elu": "nn.elu", "Softplus": "nn.softplus",
          "Softmax": "nn.softmax", "Sigmoid": "math.sigmoid", "Tanh": "math.tanh", "Neg": "math.negative",
          "Square": "math.square", "Sqrt": "math.sqrt", "Rsqrt": "math.rsqrt", "Exp": "math.exp",
          "Abs": "math.abs", "Identity": "identity"}
_WITH_A_CONSTANT = {"Mean": ("math.reduce_mean", "axis"), "Sum": ("math.reduce_sum", "axis"),
                    "Max": ("math.reduce_max", "axis"), "Min": ("math.reduce_min", "axis"),
                    "Reshape": ("reshape", "shape"), "Transpose": ("transpose", "perm")}
"""{operation: (function, the argument that its constant is)}."""
_CONSTANT = "_CONSTANT_VALUE"


def as_call(layer: dict[str, Any]) -> dict[str, Any]:
  """Returns the entry of a TensorFlowOpLayer in a functional config as that of a TFOpLambda.

  Raises:
    ValueError: its operation has no function here, or it does not read what that takes.
  """
  config = layer["config"]
  node = _node_def(config.get("node_def"))
  constants = {int(index): value for index, value in (config.get("constants") or {}).items()}
  calls = [_call(node, constants, refs) for refs in layer.get("inbound_nodes", [])]
  if None in calls:
    raise ValueError(f"layer {layer.get('name')!r} holds the operation {node.op!r} of TensorFlow, as version "
                     "2.3 and earlier wrote it; build the model with TensorFlow 2.4 or later, and save it")
  name = layer.get("name", config.get("name"))
  return {**layer, "class_name": "TFOpLambda", "inbound_nodes": [call for _, call in calls], "config": {
      "name": name, "trainable": True, "dtype": config.get("dtype", "float32"),
      "function": calls[0][0] if calls else "identity"}}


def _node_def(stored: Any) -> NodeDef:
  """A NodeDef, which is a message of data, of its JSON or its bytes."""
  if isinstance(stored, dict):
    return json_format.ParseDict(stored, NodeDef(), ignore_unknown_fields=True)
  return NodeDef.FromString(str(stored).encode())


def _call(node: NodeDef, constants: dict[int, Any], refs: list[Any]) -> tuple[str, list[Any]] | None:
  """(function, [layer, node, tensor, keywords]) of one call; None: there is no function for it."""
  operands: list[Any] = [list(ref[:3]) for ref in refs]
  for index, value in sorted(constants.items()):
    operands.insert(index, value)
  if node.op in _BINARY and len(operands) == 2:
    first, second = operands
    head = [_CONSTANT, -1, first] if 0 in constants else first
    return _BINARY[node.op], [*head, {"y": second}]
  if node.op in _UNARY and len(operands) == 1:
    return _UNARY[node.op], [*operands[0], {}]
  if node.op in _WITH_A_CONSTANT and list(constants) == [1] and len(operands) == 2:
    function, argument = _WITH_A_CONSTANT[node.op]
    keep = {"keepdims": node.attr["keep_dims"].b} if argument == "axis" else {}
    return function, [*operands[0], {argument: operands[1], **keep}]
  return None
