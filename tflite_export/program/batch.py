"""The batch of a program: the images of one run, along the first axis of every activation."""

import numpy as np

from tflite_export.program.program import IntProgram

DYNAMIC = "dynamic"
RESIZED = 3
"""What a file of open batch is resized to where it is verified and certified."""


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
