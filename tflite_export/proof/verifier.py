"""The proof that a file holds the chosen integers and computes with them.

The file is read back with the reader, which shares no code with the writer. Its constants are
compared with the Encodings in layouts of `file.layout`, its operators run in LiteRT, and each
operator's output is compared with the Keras layer given the same inputs.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.encodings import Encoding, Encodings
from kquant.graph.execution import call_layer, live_layers, run_nodes
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from tflite_export.file.layout import COARSE, KERNELS
from tflite_export.file.reader import float_operators, from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.program.batch import RESIZED, is_dynamic
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.runtime import Runtime

LARGEST_LAYER_LSB = {8: 1, 16: 4}
"""By bits of the grid: kernels over int16 multiply with 15 bits, and look sigmoid and tanh up in tables."""
LARGEST_COARSE_LSB = {8: 1, 16: 256}
"""Of operators whose inner numbers are coarser than int16: 256 steps are one step of 8 bits."""
LEAST_POWER_16 = 2
"""SOFTMAX over int16 looks exp up in a table of steps of 2^-15 that ends at e^-10, 1.5 steps: no class counts
for less than this, however small its score."""


class VerificationError(Exception):
  """The file does not hold or compute what was chosen; the message says where."""


@dataclasses.dataclass
class Verification:
  """What was found.

  Attributes:
    weights_equal, biases_equal, encodings_equal: the file's constants and grids against Encodings.
    max_lsb: largest difference of one operator's output from the Keras layer given the same inputs.
    output_max_lsb: largest difference of a network output from the free-running Keras simulation;
      differences within the network add up, so this one has no bound.
    layers: {tensor: its largest difference in LSB, same inputs}.
    images: how many images the operators were run on.
    float_operators: kinds of operators that touch a float tensor inside the file.
    problems: one line for each thing that is wrong; empty means verified.
  """

  weights_equal: bool = True
  biases_equal: bool = True
  encodings_equal: bool = True
  max_lsb: int = 0
  output_max_lsb: int = 0
  layers: dict[str, int] = dataclasses.field(default_factory=dict)
  images: int = 0
  float_operators: list[str] = dataclasses.field(default_factory=list)
  problems: list[str] = dataclasses.field(default_factory=list)

  @property
  def ok(self) -> bool:
    """Whether nothing is wrong."""
    return not self.problems

  def to_json(self) -> dict[str, Any]:
    """Returns a JSON-ready dict."""
    return dataclasses.asdict(self)


def verify(data: bytes, model: keras.Model | None, encodings: Encodings, *,
           program: IntProgram | None = None, images: list[np.ndarray] | None = None) -> Verification:
  """Compares a file with the finalised model and the encodings that it was made of.

  Args:
    data: the bytes of the .tflite file.
    model: finalised model; needed for `images` alone.
    encodings: its encodings.
    program: what the file was written from; every tensor and operator of it is compared too.
    images: float inputs, [n, ...] for each model input, to run; None leaves the running out.
  """
  found = Verification()
  try:
    stored = from_bytes(data)
  except ValueError as error:
    found.problems.append(str(error))
    return found
  _compare_constants(stored, encodings, found)
  _compare_grids(stored, encodings, found)
  _look_for_floats(stored, found)
  if program is not None:
    _compare_program(stored, program, found)
  if images is not None and found.ok:
    try:
      _compare_runs(data, stored, model, encodings, images, found)
    except ValueError as error:  # a file that no runtime loads, tensors of other shapes
      found.problems.append(f"cannot be run beside the Keras model: {error}")
  return found


def _compare_constants(stored: IntProgram, encodings: Encodings, found: Verification) -> None:
  """Every integer of every kernel, bias and constant, each in the file under its key."""
  layout = {name: KERNELS[op.kind] for op in stored.ops if op.kind in KERNELS
            for name in op.inputs[1:2]}
  for key, integers in encodings.integers.items():
    tensor = stored.tensors.get(key)
    expected = layout.get(key, lambda q: q)(integers)
    if tensor is None or tensor.data is None or not np.array_equal(tensor.data, expected):
      found.problems.append(f"{key}: the file's integers differ from the chosen ones")
      if integers.dtype in (np.int32, np.int64):  # those of biases; a user's layer names them as it likes
        found.biases_equal = False
      else:
        found.weights_equal = False


def _compare_grids(stored: IntProgram, encodings: Encodings, found: Verification) -> None:
  """Every scale and zero point, bit by bit."""
  for key, grid in encodings.grids.items():
    tensor = stored.tensors.get(key)
    if (tensor is None or tensor.scale is None or not np.array_equal(tensor.scale, grid.scale)
        or not np.array_equal(tensor.zero_point, grid.zero_point)):
      found.encodings_equal = False
      found.problems.append(f"{key}: the file's scale or zero point differs from the chosen one")


def _look_for_floats(stored: IntProgram, found: Verification) -> None:
  found.float_operators = float_operators(stored)
  if found.float_operators:
    found.problems.append(f"operators on float tensors: {', '.join(found.float_operators)}")


def _compare_program(stored: IntProgram, program: IntProgram, found: Verification) -> None:
  """Tensors, operators, inputs and outputs, field by field."""
  for name in sorted(set(stored.tensors) | set(program.tensors)):
    mine, theirs = program.tensors.get(name), stored.tensors.get(name)
    difference = "missing on one side" if mine is None or theirs is None else mine.difference(theirs)
    if difference:
      found.encodings_equal = False
      found.problems.append(f"{name}: {difference}")
  if (stored.inputs, stored.outputs) != (program.inputs, program.outputs):
    found.problems.append("inputs or outputs differ from the program's")
  for field in ("signature", "description", "metadata"):
    if getattr(stored, field) != getattr(program, field):
      found.problems.append(f"{field} {_brief(getattr(stored, field))} in the file, "
                            f"{_brief(getattr(program, field))} in the program")
  if len(stored.ops) != len(program.ops):
    found.problems.append(f"{len(stored.ops)} operators in the file, {len(program.ops)} in the program")
  for mine, theirs in zip(program.ops, stored.ops):
    if difference := _operator_difference(mine, theirs):
      found.problems.append(f"operator of {mine.source!r}: {difference}")


def _brief(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 200 else f"{text[:200]}..."


def _operator_difference(mine: IntOp, theirs: IntOp) -> str | None:
  for field in ("kind", "version", "inputs", "outputs"):
    if getattr(mine, field) != getattr(theirs, field):
      return f"{field} {getattr(theirs, field)!r} in the file, {getattr(mine, field)!r} in the program"
  for name, value in mine.options.items():
    if not np.array_equal(theirs.options.get(name), value):
      return f"option {name} is {theirs.options.get(name)!r}, expected {value!r}"
  return None


# --- running ---------------------------------------------------------------------------------------


def _compare_runs(data: bytes, stored: IntProgram, model: keras.Model, encodings: Encodings,
                  images: list[np.ndarray], found: Verification) -> None:
  """LiteRT's integers of every tensor against the Keras layers; then the file's own output."""
  graph = Graph.from_model(model)
  inputs = border_inputs(stored, encodings, images)
  watched = [ref for node in graph.nodes for ref in _refs(node) if ref.key in encodings
             and node.facts.role != "input"]
  names = [ref.key for ref in watched]
  probe = Runtime(to_bytes(stored.with_outputs([*names, *stored.outputs])))
  results = probe.run_many(inputs)
  integers = dict(zip(names, results))
  for ref, image in zip(graph.input_refs, images):
    integers[ref.key] = image if ref.is_integer else encodings[ref.key].quantize(image)
  coarse = {name: _coarse_lsb(stored, op) for op in stored.ops if op.kind in COARSE for name in op.outputs}
  _compare_layers(graph, model, encodings, integers, coarse, found)
  for batch in (None, RESIZED) if is_dynamic(stored) else (None,):
    outputs = Runtime(data, batch=batch).run_many(inputs)
    _compare_outputs(graph, stored, encodings, integers, outputs, found)
  found.images = len(images[0])


def _coarse_lsb(program: IntProgram, op: IntOp) -> int:
  """Returns how far an output of a coarse operator may be from its layer.

  Over int16 each of n classes adds up to LEAST_POWER_16 steps too much to the sum of a SOFTMAX, which is at
  least 1: every probability may be off by as many steps, beside the coarseness of the tables.
  """
  output = program.tensors[op.outputs[0]]
  wide = output.dtype == "int16"
  classes = output.shape[-1] if wide and COARSE[op.kind] else 0
  return LARGEST_COARSE_LSB[16 if wide else 8] + classes * LEAST_POWER_16


def _compare_outputs(graph: Graph, stored: IntProgram, encodings: Encodings,
                     integers: dict[str, np.ndarray], outputs: list[np.ndarray], found: Verification) -> None:
  """What the file itself gives, against the watched tensors that are the model's outputs."""
  if len(outputs) != len(graph.output_refs):
    found.problems.append(f"{len(outputs)} outputs in the file, {len(graph.output_refs)} in the model")
  for ref, name, output in zip(graph.output_refs, stored.outputs, outputs):
    expected = on_border(integers[ref.key], encodings[ref.key], stored.tensors[name])
    if not np.array_equal(output, expected):
      found.problems.append(f"output {name}: the file's values are not those of the watched {ref.key!r}")


def _refs(node: Node) -> list[Ref]:
  return [Ref(node, index) for index in range(len(node.shapes))]


def border_inputs(program: IntProgram, encodings: Encodings, images: list[np.ndarray]) -> list[np.ndarray]:
  """Real values, or indices, as the inputs of a file take them.

  Raises:
    ValueError: the encodings have no grid for an input.
  """
  inputs = []
  for name, image in zip(program.inputs, images):
    tensor = program.tensors[name]
    if tensor.dtype == "int32":
      inputs.append(image.astype(np.int32))
    else:
      grid = input_grid(program, encodings, name)
      inputs.append(on_border(grid.quantize(image), grid, tensor))
  return inputs


def input_grid(program: IntProgram, encodings: Encodings, name: str) -> Encoding:
  """The grid of a file's input, which bears its type behind its key where it is not int8.

  Raises:
    ValueError: the encodings have none.
  """
  key = name.removesuffix(f"/{program.tensors[name].dtype}")
  if key not in encodings:
    raise ValueError(f"Encodings have no grid for input {key!r}; they belong to another model.")
  return encodings[key]


def on_border(integers: np.ndarray, grid: Encoding, tensor: IntTensor) -> np.ndarray:
  """Integers of a grid as the file's input or output tensor holds them."""
  if tensor.dtype == "float32":
    return grid.dequantize(integers)
  return (integers.astype(np.int64) + (128 if tensor.dtype == "uint8" else 0)).astype(tensor.dtype)


def _compare_layers(graph: Graph, model: keras.Model, encodings: Encodings,
                    integers: dict[str, np.ndarray], coarse: dict[str, int], found: Verification) -> None:
  """Runs each Keras layer twice: on the runtime's integers, and on the simulation's own."""
  given, free = _OnGrids(encodings, integers), _OnGrids(encodings)
  for simulation in (given, free):
    run_nodes(graph.nodes, live_layers(model), simulation.inputs(graph, integers), call=simulation.call)
  for ref, computed in given.integers.items():
    difference = int(np.abs(computed - integers[ref.key].astype(np.int64)).max(initial=0))
    found.layers[ref.key] = difference
    if difference > coarse.get(ref.key, LARGEST_LAYER_LSB[encodings[ref.key].bits]):
      found.problems.append(f"{ref.key}: {difference} LSB from the Keras layer on the same inputs")
  found.max_lsb = max(found.layers.values(), default=0)
  ends = [(free.integers[ref], integers[ref.key].astype(np.int64)) for ref in graph.output_refs
          if ref in free.integers]
  found.output_max_lsb = max((int(np.abs(mine - theirs).max(initial=0)) for mine, theirs in ends), default=0)


class _OnGrids:
  """Calls Keras layers on grids: every output that has an encoding is rounded to it.

  Args:
    given: {key: integers} that the layers behind are given in the place of the computed ones.

  Attributes:
    integers: of the outputs, as the layers computed them.
  """

  def __init__(self, encodings: Encodings, given: dict[str, np.ndarray] | None = None):
    self.integers: dict[Ref, np.ndarray] = {}
    self._encodings, self._given = encodings, given

  def inputs(self, graph: Graph, integers: dict[str, np.ndarray]) -> dict[Ref, tf.Tensor]:
    """Returns the values of the model's inputs, from their integers."""
    values = {ref: integers[ref.key] for ref in graph.input_refs}
    return {ref: tf.constant(value if ref.is_integer else self._encodings[ref.key].dequantize(value))
            for ref, value in values.items()}

  def call(self, layer: keras.layers.Layer, node: Node, values: dict[Ref, tf.Tensor]) -> list[tf.Tensor]:
    """Calls a layer as a node says."""
    return [self._rounded(ref, output) for ref, output in zip(node.outputs, call_layer(layer, node, values))]

  def _rounded(self, ref: Ref, output: tf.Tensor) -> tf.Tensor:
    if ref.key not in self._encodings:
      return output
    grid = self._encodings[ref.key]
    self.integers[ref] = grid.quantize(output.numpy())
    return tf.constant(grid.dequantize(self.integers[ref] if self._given is None else self._given[ref.key]))
