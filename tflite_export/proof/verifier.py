"""The proof that a file holds the chosen integers and computes with them.

The file is read back with the reader, which shares no code with the writer. Its constants are
compared with the Encodings in layouts of `file.layout`, its operators run in LiteRT, and each
operator's output is compared with the Keras layer given the same inputs.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kquant.core.data import gather
from kquant.core.encodings import Encodings
from kquant.graph import keras_calls
from kquant.graph.execution import call_layer, live_layers, run_nodes
from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref
from tflite_export.file.layout import COARSE, KERNELS
from tflite_export.file.reader import float_operators, from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.program.batch import RESIZED, is_dynamic
from tflite_export.program.program import IntOp, IntProgram
from tflite_export.proof.borders import border_inputs, on_border
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
    """Makes what a report holds.

    Returns:
      A JSON-ready dict of the attributes.
    """
    return dataclasses.asdict(self)


def verify(data: bytes | str | os.PathLike, model: keras.Model | None, encodings: Encodings, *,
           program: IntProgram | None = None, images: Any = None) -> Verification:
  """Compares a file with the finalised model and the encodings that it was made of.

  Args:
    data: the bytes of the .tflite file, or its path.
    model: finalised model; needed for `images` alone.
    encodings: its encodings.
    program: what the file was written from; every tensor and operator of it is compared too.
    images: float inputs to run, as `kquant.calibrate` takes them; None leaves the running out.

  Returns:
    What was found. A file that is wrong, or is none, raises no error: its `problems` say what is wrong.

  Raises:
    OSError: there is no file of that path.
    TypeError: images that are no data.
    ValueError: images that do not fit the model, or images without a model.

  Example:
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> result = kq.quantize(keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]), images)
    >>> data = kq.export(result, "model.tflite").path.read_bytes()
    >>> tflite_export.verify(data, result.model, result.encodings, images=images).problems
    []
    >>> tflite_export.verify(data[:-40], result.model, result.encodings).ok
    False
  """
  result = Verification()
  data = data if isinstance(data, bytes) else pathlib.Path(data).read_bytes()
  if images is not None:
    if model is None:
      raise ValueError("verify: images are compared with the model; give it, or leave them out.")
    images = gather(images, keras_calls.input_specs(model), where="images")
  try:
    stored = from_bytes(data)
  except ValueError as error:
    result.problems.append(str(error))
    return result
  _compare_constants(stored, encodings, result)
  _compare_grids(stored, encodings, result)
  _compare_names(stored, encodings, result)
  _look_for_floats(stored, result)
  if program is not None:
    _compare_program(stored, program, result)
  if images is not None and result.ok:
    try:
      runs = _Runs(stored, model, encodings, images)
      runs.compare_layers(result)
      runs.compare_outputs(data, result)
      result.images = len(images[0])
    except ValueError as error:  # a file that no runtime loads, tensors of other shapes
      result.problems.append(f"cannot be run beside the Keras model: {error}")
  return result


def _compare_constants(stored: IntProgram, encodings: Encodings, result: Verification) -> None:
  """Every integer of every kernel, bias and constant, each in the file under its key."""
  layout = {name: KERNELS[op.kind] for op in stored.ops if op.kind in KERNELS
            for name in op.inputs[1:2]}
  for key, integers in encodings.integers.items():
    tensor = stored.tensors.get(key)
    expected = layout.get(key, lambda q: q)(integers)
    if tensor is None or tensor.data is None or not np.array_equal(tensor.data, expected):
      result.problems.append(f"{key}: the file's integers differ from the chosen ones")
      if integers.dtype in (np.int32, np.int64):  # those of biases; a user's layer names them as it likes
        result.biases_equal = False
      else:
        result.weights_equal = False


def _compare_grids(stored: IntProgram, encodings: Encodings, result: Verification) -> None:
  """Every scale and zero point, bit by bit."""
  for key, grid in encodings.grids.items():
    tensor = stored.tensors.get(key)
    if (tensor is None or tensor.scale is None or not np.array_equal(tensor.scale, grid.scale)
        or not np.array_equal(tensor.zero_point, grid.zero_point)):
      result.encodings_equal = False
      result.problems.append(f"{key}: the file's scale or zero point differs from the chosen one")


def _compare_names(stored: IntProgram, encodings: Encodings, result: Verification) -> None:
  """The names by which the signature calls inputs and outputs, in their order."""
  for side, names, chosen in (("inputs", stored.input_names, encodings.input_names),
                              ("outputs", stored.output_names, encodings.output_names)):
    if chosen and names != chosen:
      result.problems.append(f"the signature calls its {side} {names}, expected {chosen}")


def _look_for_floats(stored: IntProgram, result: Verification) -> None:
  result.float_operators = float_operators(stored)
  if result.float_operators:
    result.problems.append(f"operators on float tensors: {', '.join(result.float_operators)}")


def _compare_program(stored: IntProgram, program: IntProgram, result: Verification) -> None:
  """Tensors, operators, inputs and outputs, field by field."""
  for name in sorted(set(stored.tensors) | set(program.tensors)):
    mine, theirs = program.tensors.get(name), stored.tensors.get(name)
    difference = "missing on one side" if mine is None or theirs is None else mine.difference(theirs)
    if difference:
      result.encodings_equal = False
      result.problems.append(f"{name}: {difference}")
  if (stored.inputs, stored.outputs) != (program.inputs, program.outputs):
    result.problems.append("inputs or outputs differ from the program's")
  for field in ("signature", "description", "metadata"):
    if getattr(stored, field) != getattr(program, field):
      result.problems.append(f"{field} {_brief(getattr(stored, field))} in the file, "
                            f"{_brief(getattr(program, field))} in the program")
  if len(stored.ops) != len(program.ops):
    result.problems.append(f"{len(stored.ops)} operators in the file, {len(program.ops)} in the program")
  for mine, theirs in zip(program.ops, stored.ops):
    if difference := _operator_difference(mine, theirs):
      result.problems.append(f"operator of {mine.source!r}: {difference}")


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


class _Runs:
  """A file and its Keras model, run on the same inputs."""

  def __init__(self, stored: IntProgram, model: keras.Model, encodings: Encodings, images: list[np.ndarray]):
    self._stored, self._encodings = stored, encodings
    self._graph, self._layers = Graph.from_model(model), live_layers(model)
    self._inputs = border_inputs(stored, encodings, images)
    self._integers = self._watched(images)

  def _watched(self, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """LiteRT's integers of every tensor that has an encoding."""
    names = [ref.key for node in self._graph.nodes for ref in node.outputs
             if ref.key in self._encodings and node.facts.role != "input"]
    probe = Runtime(to_bytes(self._stored.with_outputs([*names, *self._stored.outputs])))
    integers = dict(zip(names, probe.run_many(self._inputs)))
    for ref, image in zip(self._graph.input_refs, images):
      integers[ref.key] = image if ref.is_integer else self._encodings[ref.key].quantize(image)
    return integers

  def compare_layers(self, result: Verification) -> None:
    """Runs each Keras layer twice: on the runtime's integers, and on the simulation's own."""
    given, free = _OnGrids(self._encodings, self._integers), _OnGrids(self._encodings)
    for simulation in (given, free):
      run_nodes(self._graph.nodes, self._layers, simulation.inputs(self._graph, self._integers),
                call=simulation.call)
    limits = {name: _coarse_lsb(self._stored, op) for op in self._stored.ops if op.kind in COARSE
              for name in op.outputs}
    for ref, computed in given.integers.items():
      difference = self._distance(ref, computed)
      result.layers[ref.key] = difference
      if difference > limits.get(ref.key, LARGEST_LAYER_LSB[self._encodings[ref.key].bits]):
        result.problems.append(f"{ref.key}: {difference} LSB from the Keras layer on the same inputs")
    result.max_lsb = max(result.layers.values(), default=0)
    result.output_max_lsb = max((self._distance(ref, free.integers[ref]) for ref in self._graph.output_refs
                                 if ref in free.integers), default=0)

  def _distance(self, ref: Ref, computed: np.ndarray) -> int:
    """The largest difference of integers from the runtime's, in LSB."""
    return int(np.abs(computed - self._integers[ref.key].astype(np.int64)).max(initial=0))

  def compare_outputs(self, data: bytes, result: Verification) -> None:
    """What the file itself gives, against the watched tensors that are the model's outputs."""
    expected = self._graph.output_refs
    for batch in (None, RESIZED) if is_dynamic(self._stored) else (None,):
      outputs = Runtime(data, batch=batch).run_many(self._inputs)
      if len(outputs) != len(expected):
        result.problems.append(f"{len(outputs)} outputs in the file, {len(expected)} in the model")
      for ref, name, output in zip(expected, self._stored.outputs, outputs):
        watched = on_border(self._integers[ref.key], self._encodings[ref.key], self._stored.tensors[name])
        if not np.array_equal(output, watched):
          result.problems.append(f"output {name}: the file's values are not those of the watched {ref.key!r}")


def _coarse_lsb(program: IntProgram, op: IntOp) -> int:
  """Returns how far an output of a coarse operator may be from its layer.

  Over int16 each of n classes adds up to LEAST_POWER_16 steps too much to the sum of a SOFTMAX, which is at
  least 1: every probability may be off by as many steps, beside the coarseness of the tables.
  """
  output = program.tensors[op.outputs[0]]
  wide = output.dtype == "int16"
  classes = output.shape[-1] if wide and COARSE[op.kind] else 0
  return LARGEST_COARSE_LSB[16 if wide else 8] + classes * LEAST_POWER_16


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
