"""RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR with half-pixel centres."""

import numpy as np

from tflite_export.kernels.call import Call, clamp, merge_images, output_like
from tflite_export.kernels.multipliers import shift_away, shift_up

_REFERENCE_BITS = 10
_DELEGATE_BITS = 11


def resize_nearest_neighbor(call: Call, x: np.ndarray, _: np.ndarray) -> list:
  """Returns [the nearest pixels]."""
  sizes = zip(call.inputs[0].shape[1:3], call.outputs[0].shape[1:3])
  rows, columns = (_nearest(old, new) for old, new in sizes)
  return [output_like(call, merge_images(x)[:, rows][:, :, columns], len(x))]


def resize_bilinear(call: Call, x: np.ndarray, _: np.ndarray) -> list:
  """Returns [weighted means of the four pixels around each centre]."""
  bits = _DELEGATE_BITS if call.arithmetic == "xnnpack" else _REFERENCE_BITS
  places = _delegate_places if call.arithmetic == "xnnpack" else _reference_places
  image, result = call.inputs[0].shape[1:3], call.outputs[0].shape[1:3]
  top, bottom, down = places(image[0], result[0])
  left, right, across = places(image[1], result[1])
  n, x = len(x), merge_images(x).astype(np.int64)
  across = across[:, None]
  x = (x[:, :, left] << bits) + (x[:, :, right] - x[:, :, left]) * across
  down = down[:, None, None]
  total = (x[:, top] << bits) + (x[:, bottom] - x[:, top]) * down
  shift = shift_up if call.arithmetic == "xnnpack" else shift_away
  return [output_like(call, clamp(call, shift(total, 2 * bits)), n)]


def _nearest(old: int, new: int) -> np.ndarray:
  """Returns the pixel of each centre, [new]; float32, which past sizes of 200 shows."""
  place = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (np.float32(old) / np.float32(new))
  return np.minimum(np.floor(place).astype(np.int64), old - 1)


def _reference_places(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (pixel before, pixel after, weight of the one after in 1/1024), each [new]."""
  one = 1 << _REFERENCE_BITS
  step = (one * old + new // 2) // new
  place = np.arange(new, dtype=np.int64) * step + step // 2 - one // 2
  before = np.maximum(place >> _REFERENCE_BITS, 0)
  after = np.minimum((place + one - 1) >> _REFERENCE_BITS, old - 1)
  return before, after, place - (before << _REFERENCE_BITS)


def _delegate_places(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (pixel before, pixel after, weight of the one after in 1/2048), each [new]; float32."""
  half, step = np.float32(0.5), np.float32(old) / np.float32(new)
  place = np.arange(new, dtype=np.float32) * step + (half * step - half)
  place = np.clip(place, np.float32(0), np.float32(old - 1))
  before = np.floor(place).astype(np.int64)
  after = np.minimum(before + 1, old - 1)
  weight = np.rint((place - before.astype(np.float32)) * np.float32(1 << _DELEGATE_BITS))
  return before, after, weight.astype(np.int64)
