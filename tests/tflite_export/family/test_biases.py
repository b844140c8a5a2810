"""Biases of narrower widths as differences from what those of the widest let expect."""

import numpy as np
import pytest

from tflite_export.family import biases
from tflite_export.program.program import IntTensor


def bias(values, scale):
  return IntTensor("b", (len(values),), "int32", np.float32(scale), np.zeros(len(values), np.int64), axis=0,
                   data=np.int32(values))


def test_differences_by_hand():
  widest, narrow = bias([100, -7, 3], [0.5, 0.5, 1]), bias([26, -3, 3], [2, 1, 1])
  # 100 / 4 = 25, -7 / 2 = -3.5, to the even -4, 3.
  assert biases.expected(widest, narrow.scale).tolist() == [25, -4, 3]
  assert biases.differences(narrow, widest).tolist() == [1, 1, 0]
  assert biases.differences(widest, None).tolist() == [100, -7, 3]


@pytest.mark.parametrize("scale", [1.0, 2.0**-60, 2.0**60, 0.0])
def test_whatever_the_scales_what_is_restored_is_the_bias(scale):
  ends = [-2**31, -1, 0, 2**31 - 1]
  widest, narrow = bias(ends, [1.0] * 4), bias(ends[::-1], [scale] * 4)
  stored = biases.unpack(memoryview(biases.pack(biases.differences(narrow, widest))))
  np.testing.assert_array_equal(biases.restored(stored, widest, narrow.scale), narrow.data)


def test_bytes_of_numbers_lie_one_plane_behind_the_other():
  assert biases.container.expand(memoryview(biases.pack(np.int32([1, -2])))) == b"\1\xfe\0\xff\0\xff\0\xff"


def test_another_number_of_channels_is_damage():
  with pytest.raises(ValueError, match="not as many channels as that of the widest"):
    biases.restored(np.int32([1]), bias([1, 2], [1, 1]), np.float32([1, 1]))
