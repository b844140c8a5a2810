"""A program of batch 1 -> the same program for any fixed batch, or for a batch that is resized.

Every activation holds the images one behind the other along its first axis, and no operator looks
across it; what holds the batch beside the shapes are constants and options, which `Operator.batch` names.
"""

import dataclasses

import numpy as np

from kquant.core.errors import UnsupportedLayerError
from tflite_export.operators.table import operator_of
from tflite_export.program.batch import DYNAMIC, is_dynamic
from tflite_export.program.program import IntOp, IntProgram, IntTensor


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


def _resized(tensor: IntTensor, batch: int, is_open: bool) -> IntTensor:
  if tensor.data is not None:
    return tensor
  return dataclasses.replace(tensor, shape=(tensor.shape[0] * batch, *tensor.shape[1:]), open_batch=is_open)


def _with_constants(program: IntProgram, op: IntOp, is_open: bool) -> IntOp:
  """Puts the batch into the constants and options that hold it; changes the program's tensors."""
  batch = operator_of(op.kind).batch
  if batch is None:
    return op
  if is_open and not batch.may_be_open:
    raise UnsupportedLayerError(f"Layer {op.source!r}: its operator {op.kind} holds the batch in a "
                                "constant; export with a fixed batch.")
  result = program.tensors[op.outputs[0]].shape
  first = -1 if is_open else result[0]
  _set_first(program, op.inputs[batch.place],
             program.tensors[op.inputs[0]].shape[0] if batch.masks else first)
  options = {name: op.options.get(name, 0) & ~1 | int(is_open) for name in batch.masks}
  if batch.option:
    options[batch.option] = [first, *result[1:]]
  return dataclasses.replace(op, options={**op.options, **options})


def _set_first(program: IntProgram, name: str, value: int) -> None:
  tensor = program.tensors[name]
  program.tensors[name] = dataclasses.replace(tensor, data=np.array([value, *tensor.data[1:]]))


def _check_axes(program: IntProgram, op: IntOp) -> None:
  """Asserts that no operator joins, cuts, moves, pads or reduces along the first axis."""
  crosses = operator_of(op.kind).crosses_batch
  if crosses is not None and crosses(op, *program.operands(op)):
    raise UnsupportedLayerError(f"Layer {op.source!r}: {op.kind} works across the images of a batch; export "
                                "with batch=1.")
