"""A program of batch 1 -> the same program for any fixed batch, or for a batch that is resized.

Every activation holds the images one behind the other along its first axis, and no operator looks
across it; what holds the batch beside the shapes are constants and options of three operators.
"""

import dataclasses

import numpy as np

from kquant.core.errors import UnsupportedLayerError
from tflite_export.program.program import IntOp, IntProgram, IntTensor

DYNAMIC = "dynamic"
RESIZED = 3
"""What a file of open batch is resized to where it is verified and certified."""


def with_batch(program: IntProgram, batch: int | str | None) -> IntProgram:
  """Returns a program of batch 1 with another batch.

  Args:
    program: of batch 1, fixed or open, border included.
    batch: images of one run; None or "dynamic" leaves their number open (-1 in the file).

  Raises:
    ValueError: another batch.
    UnsupportedLayerError: an operator that works across the batch, or one that names it in a constant
      where it is to be open, by layer.
  """
  is_open = batch is None or batch == DYNAMIC
  if not is_open and (isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 1):
    raise ValueError(f"batch must be a number of images from 1 on, None or {DYNAMIC!r}, got {batch!r}.")
  if batch == 1 and not is_dynamic(program):
    return program
  tensors = {name: _resized(tensor, 1 if is_open else batch, is_open)
             for name, tensor in program.tensors.items()}
  result = dataclasses.replace(program, tensors=tensors)
  for op in program.ops:
    _check_axes(program, op)
  result.ops = [_with_constants(result, op, is_open) for op in program.ops]
  return result


def is_dynamic(program: IntProgram) -> bool:
  """Whether the batch of a program is open."""
  return any(program.tensors[name].open_batch for name in program.inputs)


def whole_batches(array: np.ndarray, batch: int) -> np.ndarray:
  """Returns images [n, ...] with copies of the last one behind them, up to a multiple of the batch."""
  count = -(-len(array) // batch) * batch
  return array if count == len(array) else array[np.minimum(np.arange(count), len(array) - 1)]


def batch_of(program: IntProgram) -> int:
  """Returns the images of one run; 1 where that is open."""
  return program.tensors[program.inputs[0]].shape[0]


def _resized(tensor: IntTensor, batch: int, is_open: bool) -> IntTensor:
  if tensor.data is not None:
    return tensor
  return dataclasses.replace(tensor, shape=(tensor.shape[0] * batch, *tensor.shape[1:]), open_batch=is_open)


def _with_constants(program: IntProgram, op: IntOp, is_open: bool) -> IntOp:
  """Puts the batch into the constants and options that hold it; changes the program's tensors."""
  if op.kind not in ("RESHAPE", "STRIDED_SLICE", "TRANSPOSE_CONV"):
    return op
  result = program.tensors[op.outputs[0]].shape
  first = -1 if is_open else result[0]
  if op.kind == "RESHAPE":
    _set_first(program, op.inputs[1], first)
    return dataclasses.replace(op, options={**op.options, "new_shape": [first, *result[1:]]})
  if op.kind == "TRANSPOSE_CONV":
    if is_open:
      raise UnsupportedLayerError(f"Layer {op.source!r}: its operator TRANSPOSE_CONV holds the batch in a "
                                  "constant; export with a fixed batch.")
    _set_first(program, op.inputs[0], first)
    return op
  masks = {name: op.options.get(name, 0) & ~1 | int(is_open) for name in ("begin_mask", "end_mask")}
  _set_first(program, op.inputs[2], program.tensors[op.inputs[0]].shape[0])
  return dataclasses.replace(op, options={**op.options, **masks})


def _set_first(program: IntProgram, name: str, value: int) -> None:
  tensor = program.tensors[name]
  program.tensors[name] = dataclasses.replace(tensor, data=np.array([value, *tensor.data[1:]]))


def _check_axes(program: IntProgram, op: IntOp) -> None:
  """Asserts that no operator joins, cuts, moves, pads or reduces along the first axis."""
  constants = [program.tensors[name].data for name in op.inputs if name]
  rank = len(program.tensors[op.outputs[0]].shape)
  across = {
      "BATCH_MATMUL": lambda: rank < 3,
      "CONCATENATION": lambda: op.options["axis"] % rank == 0,
      "PAD": lambda: np.any(constants[1][0]),
      "SPLIT": lambda: constants[0].ravel()[0] % rank == 0,
      "STRIDED_SLICE": lambda: (constants[1][0] != 0 or constants[3][0] != 1
                                or op.options.get("shrink_axis_mask", 0) & 1),
      "TRANSPOSE": lambda: constants[1][0] != 0,
      **dict.fromkeys(("MEAN", "REDUCE_MAX", "REDUCE_MIN"), lambda: np.any(
          constants[1] % len(program.tensors[op.inputs[0]].shape) == 0)),
  }
  if across.get(op.kind, bool)():
    raise UnsupportedLayerError(f"Layer {op.source!r}: {op.kind} works across the images of a batch; export "
                                "with batch=1.")
