"""A recurrent layer as one operator, and what sets its state."""

import numpy as np

from tests.tflite_export.random_draws import Case, Draw
from tflite_export.kernels import lstm
from tflite_export.operators.recurrent import PLAIN
from tflite_export.program.program import IntOp


def fill(draw: Draw) -> Case:
  """One number everywhere, whatever the input is."""
  shape, grid = draw.image(), draw.grid()
  draw.input("x", (1, 2), draw.grid())
  names = [draw.constant("shape", shape), draw.tensor("value", (), grid, data=draw.integers(()))]
  return draw.finish("FILL", names, shape, grid, version=3)


def recurrent(draw: Draw) -> Case:
  """Kernels from nearly nothing to saturated gates, a state that starts anywhere."""
  features, units, steps = (draw.whole(1, most) for most in (20, 20, 12))
  x, grid = draw.grid(), draw.grid()
  cell = (np.float32(2.0**draw.whole(-15, -9)), 0)
  names = [""] * lstm.INPUTS
  names[lstm.SOURCE] = draw.input("x", (1, steps, features), x)
  for place, (kernel, own, bias) in enumerate(zip(lstm.KERNELS, lstm.RECURRENT_KERNELS, lstm.BIASES)):
    scales = [_kernel_scale(draw, *of) for of in ((x[0], features), (grid[0], units))]
    names[kernel] = _kernel(draw, f"kernel{place}", (units, features), scales[0])
    names[own] = _kernel(draw, f"recurrent{place}", (units, units), scales[1])
    step = x[0] * scales[0]
    most = draw.one_of((0, 1, 4)) / float(step)
    names[bias] = draw.tensor(f"bias{place}", (units,), (step, 0), "int32",
                              np.rint(draw.rng.uniform(-most, most, units)))
  setters = [_state(draw, names, place, of) for place, of in (
      (lstm.STATE, (*grid, "int8")), (lstm.CELL, (*cell, "int16")))]
  case = draw.finish("UNIDIRECTIONAL_SEQUENCE_LSTM", names, (1, steps, units), grid, **PLAIN)
  case.program.ops[0].intermediates = [names[lstm.STATE]] * 5
  case.program.ops[:0] = setters
  return case


def _kernel_scale(draw: Draw, step: np.float32, terms: int) -> np.float32:
  """So that sums are about 2 at most, mostly: sigmoid and tanh are flat beyond 8."""
  size = draw.one_of((0.1, 1, 2, 2, 20))
  return np.float32(max(size / (float(step) * 70 * 70 * np.sqrt(terms)), 1e-7))


def _kernel(draw: Draw, name: str, shape: tuple[int, int], scale: np.float32) -> str:
  return draw.tensor(name, shape, (scale, 0), "int8", draw.rng.integers(-127, 128, shape))


def _state(draw: Draw, names: list[str], place: int, of: tuple[np.float32, int, str]) -> IntOp:
  """Adds a state [1, units], its number at the start, and returns what sets it."""
  scale, zero_point, dtype = of
  units, name = draw.program.tensors[names[lstm.KERNELS[0]]].shape[0], f"state{place}"
  value = draw.tensor(f"start{place}", (), (scale, zero_point), dtype, draw.integers((), dtype))
  names[place] = draw.tensor(name, (1, units), (scale, zero_point), dtype)
  draw.program.tensors[name].variable = True
  return IntOp("FILL", [draw.constant(f"shape{place}", (1, units)), value], [name], {}, 3, source="state")
