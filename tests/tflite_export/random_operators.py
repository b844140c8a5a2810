"""Random programs of one operator, with the parameters that integer kernels are sensitive to.

Scales 1e-3..0.3 or powers of two (ties), zero points at both ends, extreme ratios, odd channel
counts, strides, dilations, groups, broadcasts, fused clamps, accumulators near 2^24 and 2^30.
"""

import dataclasses

import numpy as np

from tflite_export.program import IntOp, IntProgram, IntTensor

ACTIVATIONS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33)
SIGMOID_GRID, TANH_GRID = (1 / 256, -128), (1 / 128, 0)


@dataclasses.dataclass
class Case:
  """A program, and arrays [n, ...] for its inputs."""

  program: IntProgram
  inputs: list[np.ndarray]


class Draw:
  """A program under construction, and the random numbers that it is made of."""

  def __init__(self, rng: np.random.Generator):
    self.rng = rng
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
    return self.one_of((-128, 127, 0, self.whole(-128, 127), self.whole(-128, 127), self.whole(-128, 127)))

  def grid(self) -> tuple[np.float32, int]:
    return self.scale(), self.zero_point()

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

  def integers(self, shape, dtype: str = "int8") -> np.ndarray:
    """Uniform, or at the ends of the type."""
    limits = np.iinfo(dtype)
    values = self.rng.integers(limits.min, limits.max + 1, shape)
    if self.chance(0.1):
      values = np.where(self.rng.random(shape) < 0.5, limits.min, limits.max)
    return values.astype(dtype)

  def input(self, name: str, shape, grid, dtype: str = "int8") -> str:
    """Adds a graph input."""
    self.program.inputs.append(self.tensor(name, shape, grid, dtype=dtype))
    return name

  def tensor(self, name: str, shape, grid=None, dtype: str = "int8", data=None, axis=None) -> str:
    scale, zero_point = grid if grid is not None else (None, None)
    return self.program.add_tensor(IntTensor(name, shape, dtype, scale, zero_point, axis, data))

  def constant(self, name: str, values) -> str:
    values = np.asarray(values, np.int32)
    return self.tensor(name, values.shape, dtype="int32", data=values)

  def finish(self, kind: str, inputs: list[str], shape, grid, *, version: int = 1, dtype: str = "int8",
             outputs: int = 1, **options) -> Case:
    """Adds the operator and its outputs, all of one shape and grid, and draws the inputs."""
    names = [self.tensor(f"y{i}", shape, grid, dtype=dtype) for i in range(outputs)]
    self.program.outputs = names
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


# --- weighted operators ----------------------------------------------------------------------------


def _small_sums(draw: Draw, x_scale: np.float32, kernel_shape, channels: int):
  """(scales, weights, bias, output scale) whose products are often ties: small sums over a power of two."""
  s_w = np.full(channels, 2.0**-draw.whole(1, 8), np.float32)
  weights, offsets = draw.rng.integers(-2, 3, kernel_shape), draw.rng.integers(-200, 201, channels)
  return s_w, weights, offsets, np.float32(x_scale * s_w[0] * 2.0**draw.whole(1, 5))


def _weighted(draw: Draw, kind: str, kernel_shape, axis: int, x_shape, y_shape, *, version: int,
              activation: bool = True, options: dict, first: list[str] = ()) -> Case:
  """x, kernel and bias with a chosen size of accumulators, and an output scale that suits them or not."""
  channels = kernel_shape[axis]
  x_grid = draw.grid()
  per_channel = draw.chance(0.85)
  s_w = np.array([draw.scale(1e-3, 0.1) for _ in range(channels if per_channel else 1)], np.float32)
  weights = draw.rng.integers(-127, 128, kernel_shape)
  reach = np.abs(weights).sum(tuple(i for i in range(weights.ndim) if i != axis)).max() * 255
  size = draw.one_of((0, 1000, 2**20, 2**24, 2**24, 2**30, 2**30))
  offsets = draw.rng.integers(-size, size + 1, channels)
  if size >= 2**24:
    offsets = draw.rng.choice([-1, 1], channels) * (size + draw.rng.integers(-2048, 2048, channels))
  typical = max(size, 70 * 70 * np.sqrt(weights.size / channels))
  s_y = np.float32(x_grid[0] * np.median(s_w) * typical / draw.rng.uniform(20, 250))
  if draw.chance(0.3):
    s_y = draw.ratio_to(x_grid[0] * np.max(s_w), -20, 7)
  elif draw.ties:
    s_y = np.float32(2.0**np.rint(np.log2(s_y)))
  s_y = max(s_y, np.float32(x_grid[0] * np.max(s_w) / 255))
  if draw.ties and draw.chance(0.3):
    s_w, weights, offsets, s_y = _small_sums(draw, x_grid[0], kernel_shape, len(offsets))
  assert reach + size + 2048 < 2**31
  x = draw.input("x", x_shape, x_grid)
  kernel = draw.tensor("kernel", kernel_shape, (s_w, np.zeros(len(s_w))), data=weights, axis=axis)
  # A dense layer whose bias has no scale, 0, does not load unless s_x s_w is small beside s_y.
  lone = draw.chance(0.05) and (kind != "FULLY_CONNECTED" or x_grid[0] * np.max(s_w) < 0.01 * s_y)
  bias_grid = None if lone else (x_grid[0] * s_w, np.zeros(len(s_w)))
  bias = draw.tensor("bias", (channels,), bias_grid, "int32", offsets, axis=0)
  if activation:
    options = {**options, "fused_activation_function": draw.one_of(ACTIVATIONS)}
  inputs = [*first, kernel, x, bias] if first else [x, kernel, bias]
  return draw.finish(kind, inputs, y_shape, (s_y, draw.zero_point()), version=version, **options)


def _windows(draw: Draw, size, *, dilated: bool):
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


def conv_2d(draw: Draw) -> Case:
  size = [draw.whole(1, 5) for _ in range(2)]
  options, image, result = _windows(draw, size, dilated=True)
  groups = draw.one_of((1, 1, 1, 2, 3, 4))
  depth = draw.whole(1, 4) if groups > 1 else draw.one_of(CHANNELS)
  outputs = groups * draw.whole(1, 5) if groups > 1 else draw.one_of(CHANNELS)
  return _weighted(draw, "CONV_2D", (outputs, *size, depth), 0, (1, *image, groups * depth),
                   (1, *result, outputs), version=6 if groups > 1 else 3, options=options)


def depthwise_conv_2d(draw: Draw) -> Case:
  size = [draw.whole(1, 7 if draw.chance(0.2) else 5) for _ in range(2)]
  options, image, result = _windows(draw, size, dilated=True)
  depth, multiplier = draw.one_of(CHANNELS), draw.one_of((1, 1, 1, 2, 3))
  channels = depth * multiplier
  return _weighted(draw, "DEPTHWISE_CONV_2D", (1, *size, channels), 3, (1, *image, depth),
                   (1, *result, channels), version=3, options={**options, "depth_multiplier": multiplier})


def fully_connected(draw: Draw) -> Case:
  depth, outputs = draw.whole(1, 64), draw.one_of(CHANNELS)
  keep = draw.chance(0.5)
  shape = draw.image(channels=depth) if keep else (1, depth)
  return _weighted(draw, "FULLY_CONNECTED", (outputs, depth), 0, shape, (*shape[:-1], outputs), version=5,
                   options={"keep_num_dims": keep})


def batch_matmul(draw: Draw) -> Case:
  rows, depth, columns = draw.whole(1, 9), draw.whole(1, 20), draw.one_of(CHANNELS)
  batch = draw.one_of(((1,), (1, 1), (1, draw.whole(1, 4))))
  flips = draw.chance(0.3), draw.chance(0.3)
  first = (*batch, depth, rows) if flips[0] else (*batch, rows, depth)
  second = (*batch, columns, depth) if flips[1] else (*batch, depth, columns)
  grids = draw.grid(), (draw.scale(), draw.one_of((0, draw.zero_point())))
  scale = np.float32(grids[0][0] * grids[1][0] * 70 * 70 * np.sqrt(depth) / draw.rng.uniform(20, 250))
  if draw.ties:
    scale = np.float32(2.0**np.rint(np.log2(scale)))
  a = draw.input("a", first, grids[0])
  fixed = draw.integers(second) if draw.chance(0.4) else None
  b = draw.input("b", second, grids[1]) if fixed is None else draw.tensor("b", second, grids[1], data=fixed)
  return draw.finish("BATCH_MATMUL", [a, b], (*batch, rows, columns), (scale, draw.zero_point()), version=2,
                     adj_x=flips[0], adj_y=flips[1])


def transpose_conv(draw: Draw) -> Case:
  size = [draw.whole(1, 5) for _ in range(2)]
  strides = [draw.whole(1, 3) for _ in range(2)]
  padding = draw.one_of(("SAME", "VALID"))
  image = [draw.whole(1, 6) for _ in range(2)]
  result = [(n - 1) * s + k if padding == "VALID" else n * s for n, s, k in zip(image, strides, size)]
  if draw.chance(0.3):  # The other sizes whose convolution gives the same image.
    result = [n + draw.whole(0, s - 1) if padding == "VALID" else n - draw.whole(0, s - 1)
              for n, s in zip(result, strides)]
  depth, outputs = draw.one_of(CHANNELS), draw.one_of(CHANNELS)
  return _weighted(draw, "TRANSPOSE_CONV", (outputs, *size, depth), 0, (1, *image, depth),
                   (1, *result, outputs), version=3, activation=False,
                   first=[draw.constant("shape", (1, *result, outputs))],
                   options={"padding": padding, "stride_h": strides[0], "stride_w": strides[1]})


# --- two operands ----------------------------------------------------------------------------------


def _operands(draw: Draw, grids) -> tuple[list[str], tuple[int, ...]]:
  """Draws two operands that broadcast, either of which may be a constant; returns (names, result's shape)."""
  shape = draw.image(draw.one_of((1, 2, 3, 4, 4)), size=6)
  other = tuple(n if draw.chance(0.6) else 1 for n in shape)
  if draw.chance(0.3):
    shape, other = tuple(n if draw.chance(0.6) else 1 for n in shape), shape
  if draw.chance(0.3):
    other = shape
  fixed = draw.one_of((None, None, 0, 1))
  names = []
  for i, part in enumerate((shape, other)):
    if i == fixed:
      while len(part) > 1 and part[0] == 1 and draw.chance(0.5):
        part = part[1:]
      names.append(draw.tensor(f"c{i}", part, grids[i], data=draw.integers(part)))
    else:
      names.append(draw.input(f"x{i}", part, grids[i]))
  return names, np.broadcast_shapes(shape, other)


def _sum(kind: str):
  def sum_or_difference(draw: Draw) -> Case:
    first = draw.grid()
    second = first if draw.chance(0.2) else (draw.ratio_to(first[0], -14, 14), draw.zero_point())
    s_y = draw.ratio_to(draw.one_of((first, second))[0], -12, 8)
    s_y = max(s_y, np.float32(max(first[0], second[0]) / 2**17))  # From 2^19 on the kernels abort.
    y = (s_y, draw.zero_point())
    names, shape = _operands(draw, (first, second))
    return draw.finish(kind, names, shape, y, version=2, pot_scale_int16=False,
                       fused_activation_function=draw.one_of(ACTIVATIONS))
  return sum_or_difference


def mul(draw: Draw) -> Case:
  first, second = draw.grid(), draw.grid()
  typical = np.float32(first[0] * second[0] * draw.rng.uniform(30, 200))
  s_y = typical if draw.chance(0.4) else draw.ratio_to(np.float32(first[0] * second[0]), -18, 9)
  names, shape = _operands(draw, (first, second))
  return draw.finish("MUL", names, shape, (s_y, draw.zero_point()), version=2,
                     fused_activation_function=draw.one_of(ACTIVATIONS))


def _choice(kind: str):
  def larger_or_smaller(draw: Draw) -> Case:
    grid = draw.grid()
    names, shape = _operands(draw, (grid, grid))
    return draw.finish(kind, names, shape, grid, version=2)
  return larger_or_smaller


def prelu(draw: Draw) -> Case:
  shape, grid = draw.image(4), draw.grid()
  alpha = draw.one_of(((1, 1, shape[3]), shape[1:], (1, shape[2], 1), (1, 1, 1, shape[3])))
  x = draw.input("x", shape, grid)
  slope = draw.tensor("alpha", alpha, (draw.scale(1e-3, 0.1), 0), data=draw.rng.integers(-127, 128, alpha))
  return draw.finish("PRELU", [x, slope], shape, (draw.ratio_to(grid[0]), draw.zero_point()))


# --- one operand -----------------------------------------------------------------------------------


def _unary(kind: str, version: int, y_grid=None, *, low: int = -12, high: int = 9):
  def unary(draw: Draw) -> Case:
    grid = draw.grid()
    shape = draw.one_of(((1, 256), draw.image(), draw.image()))
    x = draw.input("x", shape, grid)
    options = {"alpha": float(np.float32(_alpha(draw)))} if kind == "LEAKY_RELU" else {}
    y = y_grid or (draw.ratio_to(grid[0], low, high), draw.zero_point())
    case = draw.finish(kind, [x], shape, y, version=version, **options)
    if shape == (1, 256):
      case.inputs[0][0] = np.arange(256) - 128
    return case
  return unary


def _alpha(draw: Draw) -> float:
  return draw.one_of((0.0, 1.0, 0.1, 0.25, draw.rng.uniform(), draw.rng.uniform(-2, 2),
                      2.0**-draw.whole(1, 10)))


def softmax(draw: Draw) -> Case:
  shape = draw.image(size=4, channels=draw.one_of((*CHANNELS, 100, 257, 500)))
  beta = 1.0 if draw.chance(0.7) else float(np.float32(draw.rng.uniform(0.1, 3)))
  x = draw.input("x", shape, draw.grid())
  return draw.finish("SOFTMAX", [x], shape, SIGMOID_GRID, version=2, beta=beta)


def quantize(draw: Draw) -> Case:
  before, after = draw.one_of((("float32", "int8"), ("float32", "int8"), ("int8", "int8"), ("int8", "int8"),
                               ("int8", "uint8"), ("uint8", "int8"), ("float32", "uint8")))
  grid = draw.grid()
  same = {before, after} == {"int8", "uint8"} and draw.chance(0.7)
  y = grid if same else (draw.ratio_to(grid[0], -11, 9), draw.zero_point())
  offsets = {"int8": 0, "uint8": 128, "float32": 0}
  shape = draw.image()
  x = draw.input("x", shape, None if before == "float32" else (grid[0], grid[1] + offsets[before]), before)
  return draw.finish("QUANTIZE", [x], shape, (y[0], y[1] + offsets[after]),
                     version=1 if before == "float32" else 2, dtype=after)


def dequantize(draw: Draw) -> Case:
  dtype, (scale, zero_point) = draw.one_of(("int8", "uint8")), draw.grid()
  shape = draw.image()
  x = draw.input("x", shape, (scale, zero_point + (128 if dtype == "uint8" else 0)), dtype)
  return draw.finish("DEQUANTIZE", [x], shape, None, version=2, dtype="float32")


def _pool(kind: str):
  def pool(draw: Draw) -> Case:
    size = [draw.whole(1, 5) for _ in range(2)]
    options, image, result = _windows(draw, size, dilated=False)
    if draw.chance(0.1):
      size, image, result = image, image, [1, 1]
      options["padding"] = "VALID"
    channels, grid = draw.one_of(CHANNELS), draw.grid()
    x = draw.input("x", (1, *image, channels), grid)
    return draw.finish(kind, [x], (1, *result, channels), grid, version=2, **options, filter_height=size[0],
                       filter_width=size[1], fused_activation_function=draw.one_of(ACTIVATIONS[:3]))
  return pool


def mean(draw: Draw) -> Case:
  shape, grid = draw.image(size=draw.one_of((4, 9, 40))), draw.grid()
  rank = len(shape)
  axes = draw.one_of(((1, 2), (1, 2), (1, 2), (1,), (2,), (2, 1), (rank - 1,), (-1,), tuple(range(1, rank))))
  axes = tuple(axis for axis in axes if axis < rank) or (1,)
  keep = draw.chance(0.5)
  reduced = {axis % rank for axis in axes}
  result = [1 if i in reduced else n for i, n in enumerate(shape) if keep or i not in reduced]
  y = grid if draw.chance(0.2) else (draw.ratio_to(grid[0], -10, 7), draw.zero_point())
  x = draw.input("x", shape, grid)
  return draw.finish("MEAN", [x, draw.constant("axes", axes)], result, y, version=2, keep_dims=keep)


def _extreme(kind: str):
  def extreme(draw: Draw) -> Case:
    shape, grid, keep = draw.image(), draw.grid(), draw.chance(0.5)
    axes = sorted(draw.rng.permutation(np.arange(1, len(shape)))[:draw.whole(1, len(shape) - 1)].tolist())
    result = [1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes]
    x = draw.input("x", shape, grid)
    return draw.finish(kind, [x, draw.constant("axes", axes)], result, grid, version=2, keep_dims=keep)
  return extreme


def _resize(kind: str):
  def resize(draw: Draw) -> Case:
    _, height, width, channels = draw.image(4)
    size, grid = [draw.one_of((draw.whole(1, 20), 2 * n, 3 * n, n)) for n in (height, width)], draw.grid()
    if draw.chance(0.3):  # Sizes at which the rounding of the places shows.
      height, channels, size[0] = draw.whole(1, 400), 1, draw.whole(1, 400)
    x = draw.input("x", (1, height, width, channels), grid)
    return draw.finish(kind, [x, draw.constant("size", size)], (1, *size, channels), grid, version=3,
                       align_corners=False, half_pixel_centers=True)
  return resize


# --- operators that move integers ------------------------------------------------------------------


def concatenation(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  axis = draw.whole(1, len(shape) - 1)
  names, total = [], 0
  for i in range(draw.whole(1, 5)):
    part = (*shape[:axis], draw.whole(1, 6), *shape[axis + 1:])
    total += part[axis]
    names.append(draw.tensor(f"c{i}", part, grid, data=draw.integers(part)) if i and draw.chance(0.2)
                 else draw.input(f"x{i}", part, grid))
  return draw.finish("CONCATENATION", names, (*shape[:axis], total, *shape[axis + 1:]), grid, version=2,
                     axis=draw.one_of((axis, axis - len(shape))), fused_activation_function="NONE")


def pad(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  amounts = [[0, 0], *[[draw.whole(0, 3), draw.whole(0, 3)] for _ in shape[1:]]]
  names = [draw.input("x", shape, grid), draw.constant("paddings", amounts)]
  return draw.finish("PAD", names, np.sum(amounts, 1) + shape, grid, version=2)


def reshape(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  result = draw.one_of(((1, int(np.prod(shape))), (1, *shape), (1, *shape[:0:-1])))
  x = draw.input("x", shape, grid)
  return draw.finish("RESHAPE", [x, draw.constant("shape", result)], result, grid, new_shape=list(result))


def transpose(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  order = [0, *(1 + draw.rng.permutation(len(shape) - 1)).tolist()]
  names = [draw.input("x", shape, grid), draw.constant("order", order)]
  return draw.finish("TRANSPOSE", names, [shape[i] for i in order], grid, version=2)


def _blocks(kind: str):
  def blocks(draw: Draw) -> Case:
    block, grid = draw.whole(1, 3), draw.grid()
    small = (draw.whole(1, 4), draw.whole(1, 4), draw.whole(1, 9))
    deep = (1, *small[:2], small[2] * block**2)
    wide = (1, small[0] * block, small[1] * block, small[2])
    x, y = (deep, wide) if kind == "DEPTH_TO_SPACE" else (wide, deep)
    return draw.finish(kind, [draw.input("x", x, grid)], y, grid, block_size=block)
  return blocks


def split(draw: Draw) -> Case:
  shape, grid, parts = draw.image(), draw.grid(), draw.whole(1, 4)
  axis = draw.whole(1, len(shape) - 1)
  whole = (*shape[:axis], shape[axis] * parts, *shape[axis + 1:])
  names = [draw.constant("axis", draw.one_of((axis, axis - len(shape)))), draw.input("x", whole, grid)]
  return draw.finish("SPLIT", names, shape, grid, outputs=parts, num_splits=parts)


def cast(draw: Draw) -> Case:
  shape = draw.image()
  return draw.finish("CAST", [draw.input("x", shape, draw.grid())], shape, None, dtype="int32")


def gather(draw: Draw) -> Case:
  shape, grid, size = draw.image(), draw.grid(), draw.whole(1, 256)
  table = draw.tensor("table", (size,), grid, data=draw.integers((size,)))
  case = draw.finish("GATHER", [table, draw.input("x", shape, None, "int32")], shape, grid, axis=0)
  case.inputs[0] = np.abs(case.inputs[0]) % np.int32(size)
  return case


def strided_slice(draw: Draw) -> Case:
  shape, grid = draw.image(), draw.grid()
  cuts = [(0, 1, 1)]
  for n in shape[1:]:
    first, last = sorted((draw.whole(0, n - 1), draw.whole(0, n - 1)))
    cuts.append((first, last + 1, draw.whole(1, 3)) if draw.chance(0.8) or first == 0
                else (last, first - 1, -draw.whole(1, 3)))
  masks = [draw.whole(0, 2**len(shape) - 1) & 2**len(shape) - 2 if draw.chance(0.2) else 0 for _ in range(2)]
  views = [slice(None if masks[0] >> i & 1 else a, None if masks[1] >> i & 1 else b, step)
           for i, (a, b, step) in enumerate(cuts)]
  result = np.empty(shape)[tuple(views)].shape
  parts = zip(("begin", "end", "step"), np.array(cuts).T)
  names = [draw.input("x", shape, grid), *[draw.constant(name, part) for name, part in parts]]
  return draw.finish("STRIDED_SLICE", names, result, grid, begin_mask=masks[0], end_mask=masks[1],
                     ellipsis_mask=0, new_axis_mask=0, shrink_axis_mask=0)


DRAWS = {
    "ADD": _sum("ADD"),
    "AVERAGE_POOL_2D": _pool("AVERAGE_POOL_2D"),
    "BATCH_MATMUL": batch_matmul,
    "CAST": cast,
    "CONCATENATION": concatenation,
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "DEPTH_TO_SPACE": _blocks("DEPTH_TO_SPACE"),
    "DEQUANTIZE": dequantize,
    "FULLY_CONNECTED": fully_connected,
    "GATHER": gather,
    "HARD_SWISH": _unary("HARD_SWISH", 1, low=-6, high=6),
    "LEAKY_RELU": _unary("LEAKY_RELU", 2),
    "LOGISTIC": _unary("LOGISTIC", 2, SIGMOID_GRID),
    "MAXIMUM": _choice("MAXIMUM"),
    "MAX_POOL_2D": _pool("MAX_POOL_2D"),
    "MEAN": mean,
    "MINIMUM": _choice("MINIMUM"),
    "MUL": mul,
    "PAD": pad,
    "PRELU": prelu,
    "QUANTIZE": quantize,
    "REDUCE_MAX": _extreme("REDUCE_MAX"),
    "REDUCE_MIN": _extreme("REDUCE_MIN"),
    "RELU": _unary("RELU", 2),
    "RELU6": _unary("RELU6", 2),
    "RESHAPE": reshape,
    "RESIZE_BILINEAR": _resize("RESIZE_BILINEAR"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("RESIZE_NEAREST_NEIGHBOR"),
    "SOFTMAX": softmax,
    "SPACE_TO_DEPTH": _blocks("SPACE_TO_DEPTH"),
    "SPLIT": split,
    "STRIDED_SLICE": strided_slice,
    "SUB": _sum("SUB"),
    "TANH": _unary("TANH", 2, TANH_GRID),
    "TRANSPOSE": transpose,
    "TRANSPOSE_CONV": transpose_conv,
}


def random_case(kind: str, rng: np.random.Generator) -> Case:
  """Returns a random program of one operator of a kind, and random inputs."""
  return DRAWS[kind](Draw(rng))
