"""What the inputs and outputs of a file hold: integers of a grid, or real numbers."""

from collections.abc import Callable, Sequence

import numpy as np

from kquant.core.encodings import Encoding, Encodings
from tflite_export.program.program import IntProgram, IntTensor

ELEMENTS_AT_ONCE = 2**16
"""Elements that are worked on in one go: temporaries of eight bytes an element then stay in the cache."""


def border_inputs(program: IntProgram, encodings: Encodings,
                  images: Sequence[np.ndarray]) -> list[np.ndarray]:
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
      inputs.append(on_border(on_grid(grid, image), grid, tensor))
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
    return sliced(grid.dequantize, integers, np.float32)
  offset = 128 if tensor.dtype == "uint8" else 0
  return sliced(lambda q: q.astype(np.int64) + offset, integers, tensor.dtype)


def on_grid(grid: Encoding, values: np.ndarray) -> np.ndarray:
  """Real numbers as the integers of a grid for the whole tensor, in the smallest type that holds them."""
  return sliced(grid.quantize, values, np.int8 if grid.bits <= 8 else np.int16)


def sliced(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns what a function of each element makes of an array, worked out slice by slice."""
  flat, result = array.reshape(-1), np.empty(array.size, dtype)
  for start in range(0, flat.size, ELEMENTS_AT_ONCE):
    part = slice(start, start + ELEMENTS_AT_ONCE)
    result[part] = function(flat[part])
  return result.reshape(array.shape)
