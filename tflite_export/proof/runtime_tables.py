"""Functions of one integer whose values are read from the runtime: LOGISTIC and TANH.

They come out of float code whose last bits cannot be known from outside: a file of this one operator runs
on every integer, in the same set of kernels. Exact, but no second opinion on the runtime.
"""

import functools

import numpy as np

from tflite_export.file.writer import to_bytes
from tflite_export.kernels.call import Call, all_codes, by_code, scale_of, zero_point_of
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.runtime import Runtime


def read_from_runtime(call: Call, x: np.ndarray) -> list:
  """Returns [what the runtime makes of each integer of x]."""
  grids = tuple((float(scale_of(tensor)), zero_point_of(tensor))
                for tensor in (call.inputs[0], call.outputs[0]))
  operator = call.op.kind, call.op.version, tuple(sorted(call.op.options.items()))
  return [by_code(x, lambda _: _read_table(operator, call.inputs[0].dtype, grids, call.arithmetic))]


@functools.lru_cache(maxsize=4096)
def _read_table(operator: tuple[str, int, tuple], dtype: str, grids: tuple[tuple[float, int], ...],
                kernels: str) -> np.ndarray:
  """Returns [256] or [65,536]: the operator's output for each code, in the order of its bits.

  Args:
    operator: its kind, version and options as pairs.
    dtype: of x and y.
    grids: (scale, zero point) of x and of y.
    kernels: the set that runs it.
  """
  kind, version, options = operator
  codes = all_codes(np.dtype(dtype))
  program = IntProgram(inputs=["x"], outputs=["y"])
  for name, (scale, zero_point) in zip("xy", grids):
    program.add_tensor(IntTensor(name, (1, codes.size), dtype, [scale], [zero_point]))
  program.ops.append(IntOp(kind, ["x"], ["y"], dict(options), version, source="table"))
  return Runtime(to_bytes(program), kernels=kernels).run([codes[None]])[0][0]
