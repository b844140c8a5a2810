"""IntProgram refuses what no file can hold."""

import pytest

from tflite_export.program.program import IntProgram, IntTensor


def test_a_name_is_new():
  program = IntProgram()
  assert program.add_tensor(IntTensor("x", (1, 4), "int8", 0.5, 3)) == "x"
  with pytest.raises(ValueError, match="expected a new tensor, got 'x'"):
    program.add_tensor(IntTensor("x", (1, 2), "int8", 0.5, 3))
  assert program.tensors["x"].shape == (1, 4)
