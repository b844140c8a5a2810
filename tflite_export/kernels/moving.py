"""Operators that move integers: the same in every set of kernels."""

import numpy as np

from tflite_export.kernels.call import Call, output_like, with_rank, zero_point_of


def concatenation(call: Call, *arrays: np.ndarray) -> list:
  """Returns [the inputs one behind the other]."""
  n = max((len(a) for a, tensor in zip(arrays, call.inputs) if tensor.data is None), default=1)
  arrays = [np.broadcast_to(a, (n, *tensor.shape)) for a, tensor in zip(arrays, call.inputs)]
  axis = call.option("axis", 0) % len(call.outputs[0].shape)
  return [np.concatenate(arrays, axis=axis + 1)]


def pad(call: Call, x: np.ndarray, paddings: np.ndarray) -> list:
  """Returns [x with zero points around it]; paddings: [rank, 2]."""
  value = x.dtype.type(zero_point_of(call.outputs[0]))
  return [np.pad(x, ((0, 0), *paddings.tolist()), constant_values=value)]


def mirror_pad(call: Call, x: np.ndarray, paddings: np.ndarray) -> list:
  """Returns [x with its mirror image around it], the edge repeated (SYMMETRIC) or not (REFLECT)."""
  return [np.pad(x, ((0, 0), *paddings.tolist()), mode=call.option("mode", "REFLECT").lower())]


def reshape(call: Call, x: np.ndarray, *_: np.ndarray) -> list:
  """Returns [x in the output's shape]."""
  return [output_like(call, x, len(x))]


def transpose(call: Call, x: np.ndarray, permutation: np.ndarray) -> list:
  """Returns [x with its axes in another order]."""
  del call
  return [np.ascontiguousarray(x.transpose(0, *(permutation + 1)))]


def depth_to_space(call: Call, x: np.ndarray) -> list:
  """Returns [blocks of channels as blocks of pixels]."""
  block = call.option("block_size")
  *batch, height, width, channels = x.shape
  x = x.reshape(-1, height, width, block, block, channels // block**2).transpose(0, 1, 3, 2, 4, 5)
  return [output_like(call, x, batch[0])]


def space_to_depth(call: Call, x: np.ndarray) -> list:
  """Returns [blocks of pixels as blocks of channels]."""
  block = call.option("block_size")
  *batch, height, width, channels = x.shape
  x = x.reshape(-1, height // block, block, width // block, block, channels).transpose(0, 1, 3, 2, 4, 5)
  return [output_like(call, x, batch[0])]


def split(call: Call, axis: np.ndarray, x: np.ndarray) -> list:
  """Returns equal parts of x along one axis."""
  place = int(np.ravel(axis)[0]) % len(call.inputs[1].shape) + 1
  return np.split(x, len(call.outputs), axis=place)


def cast(call: Call, x: np.ndarray) -> list:
  """Returns [the integers as they are, in the output's type]."""
  return [x.astype(call.outputs[0].dtype)]


def fill(call: Call, shape: np.ndarray, value: np.ndarray) -> list:
  """Returns [the value all over the output], alike for all images."""
  del shape
  return [np.full(call.outputs[0].shape, value)]


def select(call: Call, *arrays: np.ndarray) -> list:
  """Returns [the second where the first is true, else the third]; the three broadcast."""
  rank = len(call.outputs[0].shape)
  return [np.where(*(with_rank(x, tensor, rank) for x, tensor in zip(arrays, call.inputs)))]


def gather(call: Call, table: np.ndarray, index: np.ndarray) -> list:
  """Returns [the entries of a constant table at computed indices], along its first axis."""
  del call
  return [table[index]]


def strided_slice(call: Call, x: np.ndarray, begin: np.ndarray, end: np.ndarray, strides: np.ndarray) -> list:
  """Returns [x[begin:end:strides]]; masks open an end, and drop axes."""
  open_begin, open_end, shrunk = (call.option(f"{name}_mask", 0) for name in ("begin", "end", "shrink_axis"))
  cuts = []
  for axis, (first, last, step) in enumerate(zip(begin.tolist(), end.tolist(), strides.tolist())):
    bit = 1 << axis
    cut = slice(None if open_begin & bit else first, None if open_end & bit else last, step)
    cuts.append(first if shrunk & bit else cut)
  return [output_like(call, x[(slice(None), *cuts)], len(x))]
