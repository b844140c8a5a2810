"""IntProgram: the integer network. What lowering makes, the writer writes and the reader reads back.

Tensors lie in the layout of the file: convolution kernels are [out, h, w, in], depthwise kernels
[1, h, w, out], dense kernels [out, in]; the channel axis of a grid is an axis of that layout.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

ACTIVATIONS = {"NONE": (None, None), "RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}
"""{activation fused with an operator: where it clamps, real values}."""
RECURRENT_ACTIVATION = "TANH"
"""That of the candidate and of the cell inside of a recurrent operator."""


@dataclasses.dataclass(eq=False)
class IntTensor:
  """One tensor of the program.

  Attributes:
    name: unique in the program.
    shape: batch included.
    dtype: "int4" (weights only), "int8", "uint8", "int16", "int32", "int64", "bool" or "float32" (border
      only).
    scale: float32 [channels] or [1]; None where the tensor is not quantized (shapes, axes, border).
    zero_point: int64, same shape as scale; None where scale is None.
    axis: channel axis of the file layout; None for one grid.
    data: the constant's values in the file layout; None for an activation. Those of an int4 tensor are
      int8 numbers here; the file holds two in a byte.
    open_batch: the first dimension may be resized; `shape` says 1, the file's shape_signature -1.
    variable: an operator that reads it writes to it as well: the state of a fused recurrent layer.

  Example:
    >>> tensor = tflite_export.IntTensor("x", (1, 4), "int8", scale=0.5, zero_point=3)
    >>> tensor.difference(tflite_export.IntTensor("x", (1, 4), "int8", scale=0.25, zero_point=3))
    'scale differs'
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  scale: np.ndarray | None = None
  zero_point: np.ndarray | None = None
  axis: int | None = None
  data: np.ndarray | None = None
  open_batch: bool = False
  variable: bool = False

  def __post_init__(self):
    self.shape = tuple(int(n) for n in self.shape)
    if self.scale is not None:
      self.scale = np.atleast_1d(np.asarray(self.scale, np.float32))
      self.zero_point = np.atleast_1d(np.asarray(self.zero_point, np.int64))
    if self.scale is None or self.scale.size == 1:
      self.axis = None  # a file cannot tell one scale along an axis from one scale
    if self.data is not None:
      self.data = np.asarray(self.data, array_type(self.dtype)).reshape(self.shape)

  def difference(self, other: "IntTensor") -> str | None:
    """Compares every field.

    Args:
      other: the tensor to compare with.

    Returns:
      The first field that differs, in a few words; None where the two are equal.
    """
    for field in ("name", "shape", "dtype", "axis", "open_batch", "variable"):
      if getattr(self, field) != getattr(other, field):
        return f"{field} {getattr(self, field)!r} != {getattr(other, field)!r}"
    for field in ("scale", "zero_point", "data"):
      mine, theirs = getattr(self, field), getattr(other, field)
      if (mine is None) != (theirs is None) or (mine is not None and not np.array_equal(mine, theirs)):
        return f"{field} differs"
    return None


def array_type(dtype: str) -> np.dtype:
  """Returns the type of an array that holds a tensor's values: NumPy has no int4."""
  return np.dtype("int8" if dtype == "int4" else dtype)

Tensors = Sequence[IntTensor | None]
"""The inputs of an operator, None for an absent one, or its outputs."""


@dataclasses.dataclass
class IntOp:
  """One operator: `kind` is the name of the TFLite builtin ("CONV_2D"), `version` its version.

  Attributes:
    inputs, outputs: tensor names in the order of the TFLite operator; "" is an absent input.
    options: fields of the builtin's options table in snake case, for example
      {"padding": "SAME", "stride_h": 2, "stride_w": 2, "fused_activation_function": "RELU6"};
      enums by name, vectors as lists, floats exact in float32.
    source: name of the Keras node it computes, for messages.
    reason: why it is there, where that is not plain (a planned QUANTIZE).
    intermediates: names of tensors whose grids the operator computes on inside.
  """

  kind: str
  inputs: list[str]
  outputs: list[str]
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  version: int = 1
  source: str = ""
  reason: str = ""
  intermediates: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class IntProgram:
  """Operators in execution order over named tensors.

  Attributes:
    tensors: {name: tensor}.
    ops: in execution order.
    inputs, outputs: names of the graph's tensors.
    description: of the file.
    input_names, output_names: how the signature calls each of `inputs` and `outputs`; [] for the names
      of the tensors.
    metadata: {name: content} of the file's metadata entries.
  """

  tensors: dict[str, IntTensor] = dataclasses.field(default_factory=dict)
  ops: list[IntOp] = dataclasses.field(default_factory=list)
  inputs: list[str] = dataclasses.field(default_factory=list)
  outputs: list[str] = dataclasses.field(default_factory=list)
  description: str = ""
  input_names: list[str] = dataclasses.field(default_factory=list)
  output_names: list[str] = dataclasses.field(default_factory=list)
  metadata: dict[str, bytes] = dataclasses.field(default_factory=dict)

  @property
  def signature(self) -> tuple[dict[str, str], dict[str, str]]:
    """({name in the signature: tensor} of the inputs, the same of the outputs)."""
    return (dict(zip(self.input_names or self.inputs, self.inputs)),
            dict(zip(self.output_names or self.outputs, self.outputs)))

  def add_tensor(self, tensor: IntTensor) -> str:
    """Adds a tensor.

    Args:
      tensor: of a new name.

    Returns:
      Its name.

    Raises:
      ValueError: the program has a tensor of that name.
    """
    if tensor.name in self.tensors:
      raise ValueError(f"IntProgram: expected a new tensor, got {tensor.name!r}, which it has; rename it.")
    self.tensors[tensor.name] = tensor
    return tensor.name

  def operands(self, op: IntOp) -> tuple[tuple[IntTensor | None, ...], tuple[IntTensor, ...]]:
    """Looks the tensors of an operator up.

    Args:
      op: an operator of the program.

    Returns:
      (its inputs, None for an absent one; its outputs).
    """
    return (tuple(self.tensors[name] if name else None for name in op.inputs),
            tuple(self.tensors[name] for name in op.outputs))

  def operator_counts(self) -> dict[str, int]:
    """Counts the operators.

    Returns:
      {operator kind: how many}, most frequent first.
    """
    counts: dict[str, int] = {}
    for op in self.ops:
      counts[op.kind] = counts.get(op.kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

  def with_outputs(self, names: list[str]) -> "IntProgram":
    """Makes other tensors the outputs, so that each can be looked at.

    Args:
      names: of the tensors.

    Returns:
      A program of the same tensors and operators.
    """
    return dataclasses.replace(self, outputs=list(names), output_names=[])

  def between(self, given: Collection[str], wanted: Sequence[str]) -> "IntProgram":
    """Takes the operators that make some tensors, from others that are known.

    Args:
      given: tensors whose values are known, beside those of the inputs.
      wanted: names of the tensors to make, none of them given.

    Returns:
      A program of these operators and their tensors; its inputs are what they read of `given` and of the
      inputs, its outputs `wanted`.

    Raises:
      ValueError: no operator makes one of `wanted`, or what they are made of.

    Example:
      >>> tensors = {name: tflite_export.IntTensor(name, (1, 4), "int8") for name in "abcd"}
      >>> ops = [tflite_export.IntOp("RELU", [x], [y]) for x, y in ("ab", "bc", "cd")]
      >>> part = tflite_export.IntProgram(tensors, ops, ["a"], ["d"]).between(["b"], ["c"])
      >>> part.inputs, len(part.ops), sorted(part.tensors)
      (['b'], 1, ['b', 'c'])
    """
    needed, ops = set(wanted), []
    for op in reversed(self.ops):
      if needed.intersection(op.outputs):
        ops.append(op)
        needed.update(name for name in op.inputs if name and name not in given)
    made = {name for op in ops for name in op.outputs}
    read = {name for op in ops for name in op.inputs}
    used = [name for name in self.tensors if name in made or name in read]
    inputs = [name for name in used if name not in made and self.tensors[name].data is None]
    known = {*given, *self.inputs}
    if lost := [name for name in (*inputs, *wanted) if name not in made and name not in known]:
      raise ValueError(f"no operator makes {lost[0]!r}")
    return dataclasses.replace(self, ops=ops[::-1], tensors={name: self.tensors[name] for name in used},
                               inputs=inputs, outputs=list(wanted), input_names=[], output_names=[],
                               metadata={})
