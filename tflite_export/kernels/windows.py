"""Where the windows of convolutions and pools lie, and the views that show them."""

import dataclasses

import numpy as np

from tflite_export.kernels.call import Call


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows over the two spatial axes; each field is (height, width).

  Attributes:
    size: taps of one window.
    stride: steps between windows.
    dilation: steps between taps.
    before: rows and columns of padding in front of the image.
    count: windows, that is the size of the output.
  """

  size: tuple[int, int]
  stride: tuple[int, int]
  dilation: tuple[int, int]
  before: tuple[int, int]
  count: tuple[int, int]

  def padded(self, x: np.ndarray, value: float) -> np.ndarray:
    """Returns x [n, h, w, c] with padding of `value`, as far as the windows reach."""
    ends = [(count - 1) * stride + (size - 1) * dilation + 1
            for count, stride, size, dilation in zip(self.count, self.stride, self.size, self.dilation)]
    amounts = [(before, max(0, end - before - length))
               for before, end, length in zip(self.before, ends, x.shape[1:3])]
    if not np.any(amounts):
      return x
    return np.pad(x, ((0, 0), *amounts, (0, 0)), constant_values=x.dtype.type(value))

  def tap(self, padded: np.ndarray, row: int, column: int) -> np.ndarray:
    """Returns what tap (row, column) of every window sees: a view [n, *count, c] of padded."""
    cuts = [slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
            for at, dilation, count, stride in zip((row, column), self.dilation, self.count, self.stride)]
    return padded[:, cuts[0], cuts[1]]

  def patches(self, padded: np.ndarray) -> np.ndarray:
    """Returns all windows: a view [n, *count, *size, c] of padded."""
    reach = tuple((size - 1) * dilation + 1 for size, dilation in zip(self.size, self.dilation))
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    views = views[:, ::self.stride[0], ::self.stride[1], :, ::self.dilation[0], ::self.dilation[1]]
    return views[:, :self.count[0], :self.count[1]].transpose(0, 1, 2, 4, 5, 3)


def windows_of(call: Call, image: tuple[int, ...], size: tuple[int, int]) -> Windows:
  """Returns the windows of a convolution or pool.

  Args:
    call: the operator; its output's shape gives the number of windows.
    image: (height, width) of the input.
    size: (height, width) of the window.
  """
  stride = (call.option("stride_h", 0), call.option("stride_w", 0))
  dilation = (call.option("dilation_h_factor", 1), call.option("dilation_w_factor", 1))
  count = call.outputs[0].shape[1:3]
  before = (0, 0)
  if call.option("padding", "SAME") == "SAME":
    before = tuple(padding_before(length, n, step, (taps - 1) * apart + 1)
                   for length, n, step, taps, apart in zip(image, count, stride, size, dilation))
  return Windows(tuple(size), stride, dilation, before, tuple(count))


def padding_before(length: int, count: int, stride: int, reach: int) -> int:
  """Returns the padding in front for SAME: the smaller half of what the windows miss."""
  return max((count - 1) * stride + reach - length, 0) // 2
