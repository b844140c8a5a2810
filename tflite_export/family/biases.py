"""Biases of a family: those of the widest file, and how those of each other width differ from them.

All widths have nearly the same biases in the units of their outputs. What is expected of a narrower width is
therefore that of the widest one on the scale of the width, rounded; the section BIAS of the bundle holds
differences from that, int32 modulo 2^32, of all widths one behind the other: first the first byte of each of
them, then the second and so on, compressed.
"""

import numpy as np

from tflite_export.family import container
from tflite_export.program.program import IntProgram, IntTensor


def of(program: IntProgram) -> dict[str, IntTensor]:
  """Returns {name: tensor} of the int32 tensors with a grid of a program, its biases among them."""
  return {name: tensor for name, tensor in program.tensors.items()
          if tensor.dtype == "int32" and tensor.scale is not None}


def expected(widest: IntTensor | None, scale: np.ndarray) -> np.ndarray:
  """Returns what the bias of a width is expected to be, int64 [channels].

  Args:
    widest: that of the same name in the widest file; None: there is none, and 0 is expected.
    scale: float32 [channels] or [1], of the bias of the width.
  """
  if widest is None:
    return np.zeros(1, np.int64)
  with np.errstate(all="ignore"):  # a bundle that is read is not trusted
    values = widest.data * (widest.scale.astype(np.float64) / scale)
  return np.rint(np.clip(np.nan_to_num(values), -2.0**31, 2.0**31 - 1)).astype(np.int64)


def differences(bias: IntTensor, widest: IntTensor | None) -> np.ndarray:
  """Returns what BIAS holds of a bias, int32 [channels].

  Args:
    bias: of a width.
    widest: as in `expected`.
  """
  return (bias.data - expected(widest, bias.scale)).astype(np.int32)


def restored(stored: np.ndarray, widest: IntTensor | None, scale: np.ndarray) -> np.ndarray:
  """Returns the bias whose `differences` are stored, int32 [channels].

  Raises:
    ValueError: the widths have different numbers of channels.
  """
  values = stored + expected(widest, scale)
  if values.shape != stored.shape:
    raise ValueError("is damaged: a bias has not as many channels as that of the widest file")
  return values.astype(np.int32)


def pack(stored: np.ndarray) -> bytes:
  """Returns the section of the differences of all widths, int32."""
  return container.compress(stored.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes())


def unpack(content: memoryview) -> np.ndarray:
  """Returns what `pack` was given.

  Raises:
    ValueError: the section is damaged.
  """
  planes = np.frombuffer(container.expand(content), np.uint8).reshape(4, -1)
  return np.ascontiguousarray(planes.T).view("<i4").reshape(-1)
