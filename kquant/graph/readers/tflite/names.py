"""Layer names out of the tensor names of a file: "net/conv/Relu;net/conv/Conv2D" is the layer "conv"."""

import re
from collections.abc import Sequence

_WRAPPERS = re.compile(r"^(Stateful)?PartitionedCall(_\d+)?$|^serving_default_?|^jax2tf.*|^XlaCallModule$")
_FUNCTIONS = re.compile(
    r"^(Conv[123]D|conv[123]d_transpose|depthwise|DepthwiseConv2dNative|MatMul|BatchMatMulV2|Tensordot|"
    r"convolution|BiasAdd|Relu6?|FusedBatchNormV3|MaxPool|AvgPool|Mean|Reshape|Squeeze|Softmax|Sigmoid|Tanh|"
    r"Elu|LeakyRelu|Pad(V2)?|add|AddV2|mul|Mul|sub|Sub|concat|transpose|ReadVariableOp|strided_slice)(_\d+)?\d*$")
_LINEAR = re.compile(r"^(Conv[123]D|conv[123]d_transpose|depthwise|DepthwiseConv2dNative|MatMul|Tensordot|"
                     r"convolution)(_\d+)?\d*$")
_INNER = re.compile(r"^(Tensordot|Conv1D|einsum)(_\d+)?$")
"""What stands between a layer's name and its function."""


def layer_names(tensors: Sequence[str]) -> list[str]:
  """Returns a layer name for each tensor that an operator makes, without what all of them share in front.

  A fused operator bears the names of all it was made of; that of the convolution or product stands for it.
  """
  paths = [_path(tensor) for tensor in tensors]
  full = [path for path in paths if len(path) > 1]
  while full and len(full) > 1 and all(path[0] == full[0][0] and len(path) > 1 for path in full):
    shared = full[0][0]
    paths = [path[1:] if path and path[0] == shared and len(path) > 1 else path for path in paths]
    full = [path[1:] for path in full]
  return [_clean("/".join(path)) for path in paths]


def _path(tensor: str) -> list[str]:
  candidates = [part.split(":")[0].split("/") for part in tensor.split(";") if part]
  candidates = [[item for item in path if item and not _WRAPPERS.match(item)] for path in candidates]
  chosen = next((path for path in candidates if path and _LINEAR.match(path[-1])),
                next((path for path in candidates if path), []))
  if len(chosen) > 1 and _FUNCTIONS.match(chosen[-1]):
    chosen = chosen[:-1]
  return chosen[:-1] if len(chosen) > 1 and _INNER.match(chosen[-1]) else chosen


def _clean(name: str) -> str:
  """The name with the characters that Keras takes: it becomes a scope of TensorFlow."""
  name = re.sub(r"[^A-Za-z0-9_.\\/-]", "_", name).strip("/")
  return name if re.match(r"[A-Za-z0-9.]", name) else f"t{name}" if name else ""


def input_name(name: str) -> str:
  """Returns the name of an input without what the converter puts around it."""
  return _clean(name.split(":")[0].removeprefix("serving_default_")) or "input"


class Names:
  """Gives each layer a name of its own; those that are kept go to the operator they are kept for."""

  def __init__(self):
    self._taken: set[str] = set()
    self._kept: dict[int, str] = {}

  def keep(self, name: str, operator: int) -> None:
    """Keeps a name, if it is free, for the first layer of that name of an operator."""
    if name.lower() not in self._taken:
      self._taken.add(name.lower())
      self._kept[operator] = name

  def unique(self, name: str, operator: int = -1) -> str:
    """Returns the name, with a number behind it if it is taken."""
    if self._kept.get(operator) == name:
      return self._kept.pop(operator)
    chosen, count = name, 0
    while chosen.lower() in self._taken:
      count += 1
      chosen = f"{name}_{count}"
    self._taken.add(chosen.lower())
    return chosen
