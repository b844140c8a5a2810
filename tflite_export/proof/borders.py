"""What the inputs and outputs of a file hold: integers of a grid, or real numbers."""

import numpy as np

from kquant.core.encodings import Encoding, Encodings
from tflite_export.program.program import IntProgram, IntTensor


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
