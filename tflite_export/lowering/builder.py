"""ProgramBuilder: an integer program under construction, and what every operator needs of it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kquant.core.encodings import Encoding, Encodings
from kquant.core.errors import UnsupportedLayerError
from kquant.graph.graph import Graph
from kquant.graph.nodes import LayerDef, Node, Ref
from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntOp, IntProgram, IntTensor

_DTYPES = {8: "int8", 16: "int16"}


class ProgramBuilder:
  """The program under construction.

  Attributes:
    graph: the finalised model.
    encodings: its grids and integers.
    program: what has been lowered so far.
    fused: ReLU calls that an operator before them has taken in.
  """

  def __init__(self, graph: Graph, encodings: Encodings):
    self.graph = graph
    self.encodings = encodings
    self.program = IntProgram()
    self.fused: set[Node] = set()
    self._biases: dict[tuple[LayerDef, str, float, int], str] = {}
    self._common: dict[tuple[str, bytes], str] = {}

  def activation(self, ref: Ref) -> str:
    """Adds the tensor of a Keras tensor and returns its name."""
    grid = self.encodings[ref.key]
    if grid.bits not in _DTYPES:
      raise ValueError(f"Tensor {ref.key!r} has a {grid.bits}-bit grid, which is for simulation only: a file "
                       "holds activations of 8 or 16 bits. Quantize with 8-bit activations, such as the "
                       "preset w4a8.")
    return self.program.add_tensor(IntTensor(ref.key, _fixed_shape(ref), _DTYPES[grid.bits],
                                             grid.scale, grid.zero_point))

  def indices(self, ref: Ref) -> str:
    """Adds the tensor of an integer input and returns its name."""
    return self.program.add_tensor(IntTensor(ref.key, _fixed_shape(ref), "int32"))

  def reshaped(self, name: str, shape: Sequence[int], like: str) -> str:
    """Adds a tensor on the grid of another one, with another shape."""
    base = self.program.tensors[like]
    return self.program.add_tensor(IntTensor(name, shape, base.dtype, base.scale, base.zero_point))

  def constant(self, name: str, values: Any) -> str:
    """Adds an int32 constant (a shape, axes, paddings)."""
    values = np.asarray(values, np.int32)
    return self.program.add_tensor(IntTensor(name, values.shape, "int32", data=values))

  def integers(self, key: str, *, layout: Callable[[np.ndarray], np.ndarray] = lambda q: q,
               axis: int | None = None) -> str:
    """Adds the integers of a kernel, bias or constant in the layout of the file, once."""
    if key not in self.program.tensors:
      grid, values = self.encodings[key], layout(self.encodings.integers[key])
      dtype = "int4" if grid.packed else self.encodings.integers[key].dtype.name
      self.program.add_tensor(IntTensor(key, values.shape, dtype, grid.scale, grid.zero_point,
                                        None if grid.axis is None else axis, values))
    return key

  def bias(self, node: Node, name: str = "bias") -> str:
    """Adds the bias of one call of a layer with weights: its own, or that of the first call on its grid."""
    key, grid = f"{node.name}/{name}", self.encodings[node.inputs[0].key]
    place = node.layer, name, float(grid.scale[0]), grid.bits
    if key in self.encodings:
      self._biases.setdefault(place, key)
    else:
      key = self._biases[place]
    return self.integers(key, axis=0)

  def common_constant(self, name: str, values: Any) -> str:
    """Adds an int32 constant that operators of many calls may read, once for each last part of the name.

    The bounds of slices are apart so: another batch changes their ends.
    """
    what = name.split("/")[-1], np.asarray(values, np.int32).tobytes()
    if what not in self._common:
      self._common[what] = self.constant(name, values)
    return self._common[what]

  def inputs(self, node: Node) -> list[str]:
    """The names of the tensors that a call reads."""
    return [ref.key for ref in node.inputs]

  def output(self, node: Node) -> tuple[str, str]:
    """Adds the output tensor of a call, behind the ReLU fused with it; returns (name, activation).

    The activation is "NONE" where the end of the grid is the clamp already.
    """
    ref = Ref(node)
    if ref.key in self.encodings:
      return self.activation(ref), "NONE"
    (relu,) = self.graph.readers(ref)
    activation = clamp(relu, self.encodings[Ref(relu).key])
    if self.needs_caps(relu):
      return self.uncapped(relu), activation
    self.fused.add(relu)
    return self.activation(Ref(relu)), activation

  def needs_caps(self, relu: Node) -> bool:
    """Whether some channel of a CappedReLU is clamped below the end of its grid."""
    return f"{relu.name}/caps" in self.encodings.integers

  def uncapped(self, relu: Node) -> str:
    """Adds the tensor between the operator that clamps at 0 and the MINIMUM of the caps."""
    grid = self.encodings[Ref(relu).key]
    return self.program.add_tensor(IntTensor(f"{relu.name}/uncapped", _fixed_shape(Ref(relu)),
                                             _DTYPES[grid.bits], grid.scale, grid.zero_point))

  def saturating_output(self, node: Node) -> str:
    """Adds the output tensor of a call whose operator has no activation; returns its name.

    A ReLU behind it is the ends of its grid, where integers saturate; on a grid that reaches further
    (shared with other tensors) the ReLU stays an operator of its own.
    """
    ref = Ref(node)
    if ref.key in self.encodings:
      return self.activation(ref)
    (relu,) = self.graph.readers(ref)
    grid = self.encodings[Ref(relu).key]
    if clamp(relu, grid) == "NONE":
      if self.needs_caps(relu):
        return self.uncapped(relu)
      self.fused.add(relu)
      return self.activation(Ref(relu))
    return self.program.add_tensor(IntTensor(ref.key, _fixed_shape(ref), _DTYPES[grid.bits], grid.scale,
                                             grid.zero_point))

  def add(self, node: Node, kind: str, inputs: list[str], outputs: list[str], *,
          version: int | None = None, **options: Any) -> IntOp:
    """Appends an operator, and returns it; `version` is that over int8 tensors, where not its record's."""
    dtypes = {self.program.tensors[name].dtype for name in (*inputs, *outputs) if name}
    version = operator_of(kind).version_over(dtypes, version)
    self.program.ops.append(IntOp(kind, inputs, outputs, options, version, node.name))
    return self.program.ops[-1]

  def state(self, node: Node, name: str, grid: Encoding) -> str:
    """Adds a state [1, units] of a recurrent operator, and what sets it to 0; returns its name."""
    shape, key, dtype = (1, Ref(node).shape[-1]), f"{node.layer.name}/{name}", _DTYPES[grid.bits]
    zeros = self.program.add_tensor(IntTensor(f"{key}/zero", (), dtype, grid.scale, grid.zero_point,
                                              data=grid.zero_point[0]))
    state = IntTensor(key, shape, dtype, grid.scale, grid.zero_point, variable=True)
    self.add(node, "FILL", [self.common_constant(f"{key}/shape", shape), zeros],
             [self.program.add_tensor(state)])
    return key

  def reshape(self, node: Node, source: str, result: str) -> str:
    """Appends a RESHAPE of a tensor to another one's shape; returns the result."""
    shape = self.program.tensors[result].shape
    self.add(node, "RESHAPE", [source, self.constant(f"{result}/shape", shape)], [result],
             new_shape=list(shape))
    return result

  def row_shape(self, name: str) -> tuple[int, ...]:
    """The shape of a sequence [1, length, channels] as an image of one row."""
    _, length, channels = self.program.tensors[name].shape
    return 1, 1, length, channels

  def as_row(self, node: Node, source: str) -> str:
    """Reshapes a sequence to an image of one row; returns its name."""
    return self.reshape(node, source, self.reshaped(f"{node.name}/row", self.row_shape(source), source))


def _fixed_shape(ref: Ref) -> tuple[int, ...]:
  shape = (1, *ref.shape[1:])
  if None in shape:
    raise UnsupportedLayerError(
        f"Tensor {ref.key!r} has the open shape {ref.shape}; a file needs a fixed one. Build the model "
        "with a fixed input shape (--input_shape=H,W,C).")
  return shape


def clamp(relu: Node, grid: Encoding) -> str:
  """The fused activation that a ReLU needs on a grid: none where the grid ends where it clamps."""
  (low,), (high,) = grid.range
  half_step = float(grid.scale[0]) / 2
  cap = relu.config.get("max_value")
  if cap is not None and high > cap + half_step:
    if cap != 6.0:
      raise ValueError(f"Layer {relu.name!r}: its grid ends at {high:.6g}, above its cap {cap}.")
    return "RELU6"
  return "RELU" if low < -half_step else "NONE"


Lower = Callable[[ProgramBuilder, Node], None]
