"""The proof that a file holds the chosen integers and computes with them.

The file is read back with the reader, which shares no code with the writer. Its constants are
compared with the Encodings in layouts of `file.layout`, its operators run in LiteRT, and each
operator's output is compared with the Keras layer given the same inputs.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import tf_keras as keras
from tqdm import tqdm

from kquant.core.data import batches
from kquant.core.encodings import Encodings
from kquant.graph import keras_calls
from tflite_export.file.layout import COARSE, INPUTS, KERNEL_PLACES, KERNELS, MAY_BE_ABSENT, STEP_ERRORS
from tflite_export.file.reader import float_operators, from_bytes
from tflite_export.program.program import IntOp, IntProgram
from tflite_export.proof.runs import Runs

LARGEST_LAYER_LSB = {8: 1, 16: 4}
"""By bits of the grid: kernels over int16 multiply with 15 bits, and look sigmoid and tanh up in tables."""
LARGEST_COARSE_LSB = {8: 1, 16: 256}
"""Of operators whose inner numbers are coarser than int16: 256 steps are one step of 8 bits."""
LEAST_POWER_16 = 2
"""SOFTMAX over int16 looks exp up in a table of steps of 2^-15 that ends at e^-10, 1.5 steps: no class counts
for less than this, however small its score."""
_STEPS_A_PIXEL = 1024
"""Of the centres of RESIZE_BILINEAR without the delegate."""
_NOT_RUN = "cannot be run beside the Keras model: "


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
  if images is not None and model is None:
    raise ValueError("verify: images are compared with the model; give it, or leave them out.")
  try:
    stored = from_bytes(data)
  except ValueError as error:
    result.problems.append(str(error))
    return result
  _compare_constants(stored, encodings, result)
  _compare_grids(stored, encodings, result)
  _look_for_floats(stored, result)
  _count_inputs(stored, result)
  if program is not None:
    _compare_program(stored, program, result)
  else:
    _compare_names(stored, encodings, result)
  if images is not None and result.ok:
    try:
      runs = Runs(data, stored, model, encodings)
    except ValueError as error:  # a file that no runtime loads
      result.problems.append(f"{_NOT_RUN}{error}")
      return result
    specs = keras_calls.input_specs(model)
    _run(runs, batches(images, specs, batch_size=runs.images, where="verify"), result)
    _compare_runs(stored, encodings, runs, result)
  return result


def _compare_constants(stored: IntProgram, encodings: Encodings, result: Verification) -> None:
  """Every integer of every kernel, bias and constant, each in the file under its key."""
  kinds = {name: op.kind for op in stored.ops if op.kind in KERNELS
           for place, name in enumerate(op.inputs) if place in KERNEL_PLACES.get(op.kind, (1,))}
  for key, integers in encodings.integers.items():
    tensor = stored.tensors.get(key)
    if tensor is None or tensor.data is None or not _is_laid_out(tensor.data, integers, kinds.get(key)):
      result.problems.append(f"{key}: the file's integers differ from the chosen ones")
      if integers.dtype in (np.int32, np.int64):  # those of biases; a user's layer names them as it likes
        result.biases_equal = False
      else:
        result.weights_equal = False


def _is_laid_out(data: np.ndarray, integers: np.ndarray, kind: str | None) -> bool:
  """Whether a constant of a file, the kernel of an operator of this kind, holds the integers of a layer."""
  try:
    return np.array_equal(data, KERNELS[kind](integers) if kind else integers)
  except ValueError:  # they are of another rank
    return False


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


def _count_inputs(stored: IntProgram, result: Verification) -> None:
  """Notes operators that lack an input: without one the runtime may end the process where it runs them."""
  for op in stored.ops:
    given = [name for name in op.inputs if name or op.kind in MAY_BE_ABSENT]
    expected = INPUTS.get(op.kind, len(op.inputs))
    if len(given) != expected:
      result.problems.append(f"{op.kind} of {', '.join(op.outputs)}: {len(given)} inputs, expected "
                             f"{expected}")


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
  for field in ("kind", "version", "inputs", "outputs", "intermediates"):
    if getattr(mine, field) != getattr(theirs, field):
      return f"{field} {getattr(theirs, field)!r} in the file, {getattr(mine, field)!r} in the program"
  for name, value in mine.options.items():
    if not np.array_equal(theirs.options.get(name), value):
      return f"option {name} is {theirs.options.get(name)!r}, expected {value!r}"
  return None


# --- running ---------------------------------------------------------------------------------------


def _run(runs: Runs, batches: Iterable[list[np.ndarray]], result: Verification) -> None:
  """Runs the file beside the model, batch by batch."""
  with tqdm(desc="verify", unit=" layers", delay=2.0, disable=None) as bar:
    for batch in batches:
      try:
        runs.compare(batch, bar.update)
      except ValueError as error:  # a file that cannot be run, tensors of other shapes
        result.problems.append(f"{_NOT_RUN}{error}")
        return
      result.images += len(batch[0])


def _compare_runs(stored: IntProgram, encodings: Encodings, runs: Runs, result: Verification) -> None:
  """Compares what was found on the images with what is allowed."""
  limits = {name: _coarse_lsb(stored, op) for op in stored.ops if op.kind in COARSE for name in op.outputs}
  limits |= {op.outputs[0]: _lsb_of_steps(stored, op) for op in stored.ops if op.kind in STEP_ERRORS}
  result.layers, result.max_lsb = runs.layers, max(runs.layers.values(), default=0)
  result.output_max_lsb = max(runs.outputs.values(), default=0)
  result.problems += [f"{key}: {difference} LSB from the Keras layer on the same inputs"
                      for key, difference in runs.layers.items()
                      if difference > limits.get(key, LARGEST_LAYER_LSB[encodings[key].bits])]
  result.problems += [f"output {name}: the file's values are not those of the watched {key!r}"
                      for name, key in runs.differing.items()]


def _coarse_lsb(program: IntProgram, op: IntOp) -> int:
  """Returns how far an output of a coarse operator may be from its layer.

  Over int16 each of n classes adds up to LEAST_POWER_16 steps too much to the sum of a SOFTMAX, which is at
  least 1: every probability may be off by as many steps, beside the coarseness of the tables. The
  centres of a RESIZE_BILINEAR are summed up in steps of 1/1024 pixel: they drift, by up to `_drift` pixels.
  """
  output = program.tensors[op.outputs[0]]
  if output.dtype != "int16":
    return LARGEST_COARSE_LSB[8]
  if COARSE[op.kind]:
    return LARGEST_COARSE_LSB[16] + output.shape[-1] * LEAST_POWER_16
  old, new = program.tensors[op.inputs[0]].shape[1:3], output.shape[1:3]
  return LARGEST_COARSE_LSB[16] + math.ceil(sum(map(_drift, old, new)) * np.iinfo(np.uint16).max)


def _lsb_of_steps(program: IntProgram, op: IntOp) -> int:
  """Returns how far an operator with a state may be from its layer, which is given the same states."""
  output = program.tensors[op.outputs[0]]
  error = STEP_ERRORS[op.kind] * math.sqrt(output.shape[1]) / float(output.scale[0])
  return LARGEST_LAYER_LSB[8] + math.ceil(error)


def _drift(old: int, new: int) -> float:
  """Pixels by which the last centre of `new` along an axis of `old` pixels is off where steps are rounded."""
  step = (_STEPS_A_PIXEL * old + new // 2) // new
  return abs(step - _STEPS_A_PIXEL * old / new) * new / _STEPS_A_PIXEL
