"""What the random programs are drawn with: shapes, scales, zero points, integers, windows."""

import dataclasses

import numpy as np

from tflite_export.operators.table import OPERATORS
from tflite_export.program.program import IntOp, IntProgram, IntTensor

ACTIVATIONS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33)
SIGMOID_GRID, TANH_GRID, INT16_GRID = (1 / 256, -128), (1 / 128, 0), (1 / 32768, 0)
"""Output grids that the kernels of SOFTMAX, LOGISTIC and TANH compute for."""


@dataclasses.dataclass
class Case:
  """A program, and arrays [n, ...] for its inputs."""

  program: IntProgram
  inputs: list[np.ndarray]


class Draw:
  """A program under construction, and the random numbers that it is made of.

  Attributes:
    dtype: type of its activations, "int8" or "int16" (smaller scales, zero points 0).
    kernel_dtype: type of its kernels, "int8" or "int4".
  """

  def __init__(self, rng: np.random.Generator, *, dtype: str = "int8", kernel_dtype: str = "int8"):
    self.rng, self.dtype, self.kernel_dtype = rng, dtype, kernel_dtype
    self.program = IntProgram()
    self.images = self.whole(1, 3)
    self.ties = self.chance(0.4)

  def whole(self, low: int, high: int) -> int:
    """An integer of [low, high]."""
    return int(self.rng.integers(low, high + 1))

  def chance(self, probability: float) -> bool:
    return bool(self.rng.random() < probability)

  def one_of(self, choices):
    return choices[self.whole(0, len(choices) - 1)]

  def scale(self, low: float = 1e-3, high: float = 0.3) -> np.float32:
    """Log-uniform; where ties are wanted a small multiple of a power of two, off by at most one bit.

    Among these are scales for which 6 / scale is half an integer, the tie of a RELU6 clamp.
    """
    scale = np.float32(np.exp(self.rng.uniform(np.log(low), np.log(high))))
    if self.ties:
      scale = np.float32(2.0**np.rint(np.log2(scale)) * self.one_of((1, 1, 1, 1.5, 1.25, 0.75, 0.875, 0.9)))
      clamp = np.float32(6 / (self.whole(20, 250) + 0.5))
      scale = clamp if low <= clamp <= high and self.chance(0.3) else scale
      if self.chance(0.25):
        scale = np.nextafter(scale, np.float32(self.one_of((0, 1))))
    return scale

  def zero_point(self) -> int:
    if self.dtype == "int16":
      return 0
    return self.one_of((-128, 127, 0, self.whole(-128, 127), self.whole(-128, 127), self.whole(-128, 127)))

  def grid(self) -> tuple[np.float32, int]:
    return self.scale() / np.float32(256 if self.dtype == "int16" else 1), self.zero_point()

  def fixed_grid(self, grid: tuple[float, int]) -> tuple[float, int]:
    """The output grid of a kernel that computes for one: of the given one for int8, or int16's."""
    return INT16_GRID if self.dtype == "int16" else grid

  @property
  def steps(self) -> int:
    """The largest integer of an activation."""
    return np.iinfo(self.dtype).max

  def ratio_to(self, scale: np.float32, low: int = -12, high: int = 7) -> np.float32:
    """A scale whose ratio scale / result is often near 1, and at times in 2^low..2^high."""
    if self.chance(0.5):
      return self.scale(float(scale) / 3, float(scale) * 3)
    exponent = self.whole(low, high) if self.ties else self.rng.uniform(low, high)
    return np.float32(float(scale) / 2.0**exponent)

  def image(self, rank: int | None = None, *, size: int = 9, channels: int | None = None) -> tuple[int, ...]:
    """A shape of batch 1; rank 2..4 unless given."""
    rank = rank or self.one_of((2, 3, 4, 4, 4))
    return (1, *[self.whole(1, size) for _ in range(rank - 2)], channels or self.one_of(CHANNELS))

  def integers(self, shape, dtype: str | None = None) -> np.ndarray:
    """Uniform, or at the ends of the type; of 16 bits at times small."""
    if dtype == "bool":
      return self.rng.random(shape) < 0.5
    limits = np.iinfo(dtype or self.dtype)
    values = self.rng.integers(limits.min, limits.max + 1, shape)
    if limits.bits == 16 and self.chance(0.3):
      values = values >> self.whole(1, 12)
    if self.chance(0.1):
      values = np.where(self.rng.random(shape) < 0.5, limits.min, limits.max)
    return values.astype(dtype or self.dtype)

  def input(self, name: str, shape, grid, dtype: str | None = None) -> str:
    """Adds a graph input."""
    self.program.inputs.append(self.tensor(name, shape, grid, dtype=dtype))
    return name

  def tensor(self, name: str, shape, grid=None, dtype: str | None = None, data=None, axis=None) -> str:
    scale, zero_point = grid if grid is not None else (None, None)
    return self.program.add_tensor(IntTensor(name, shape, dtype or self.dtype, scale, zero_point, axis, data))

  def constant(self, name: str, values) -> str:
    values = np.asarray(values, np.int32)
    return self.tensor(name, values.shape, dtype="int32", data=values)

  def finish(self, kind: str, inputs: list[str], shape, grid, *, version: int = 1,
             dtype: str | None = None, outputs: int = 1, **options) -> Case:
    """Adds the operator and its outputs, all of one shape and grid, and draws the inputs."""
    names = [self.tensor(f"y{i}", shape, grid, dtype=dtype) for i in range(outputs)]
    self.program.outputs = names
    version = OPERATORS[kind].version_over({self.dtype}, version)
    self.program.ops = [IntOp(kind, inputs, names, options, version, source=kind.lower())]
    return Case(self.program, [self.values(self.program.tensors[name]) for name in self.program.inputs])

  def values(self, tensor: IntTensor) -> np.ndarray:
    """Images of an input tensor, [n, ...]."""
    shape = (self.images, *tensor.shape[1:])
    return self.floats(shape) if tensor.dtype == "float32" else self.integers(shape, tensor.dtype)

  def floats(self, shape) -> np.ndarray:
    """Floats on and beside the ties of the output's grid, and far outside of it."""
    scale = float(self.program.tensors["y0"].scale[0])
    steps = self.rng.uniform(-300, 300, shape)
    halves = np.floor(steps) + self.one_of((0, 0.5))
    values = np.where(self.rng.random(shape) < 0.5, halves, steps) * scale
    huge = np.where(self.rng.random(shape) < 0.02, 10.0**self.whole(0, 30), 1.0)
    return (values * huge).astype(np.float32)


def draw_windows(draw: Draw, size, *, dilated: bool):
  """Draws (options, (height, width) of the input, of the output) for windows of `size`."""
  padding = draw.one_of(("SAME", "VALID"))
  strides = [draw.whole(1, 3) for _ in range(2)]
  dilations = [draw.whole(1, 3) if dilated and draw.chance(0.3) else 1 for _ in range(2)]
  reach = [(n - 1) * d + 1 for n, d in zip(size, dilations)]
  image = [draw.whole(1 if padding == "SAME" else n, n + 8) for n in reach]
  result = [-(-n // s) if padding == "SAME" else (n - r) // s + 1 for n, s, r in zip(image, strides, reach)]
  options = {"padding": padding, "stride_h": strides[0], "stride_w": strides[1]}
  if dilated:
    options |= {"dilation_h_factor": dilations[0], "dilation_w_factor": dilations[1]}
  return options, image, result
