"""Random programs of one operator, with the parameters that integer kernels are sensitive to.

Scales 1e-3..0.3 or ties, zero points at both ends, extreme ratios, odd channel counts, strides,
dilations, groups, broadcasts, fused clamps, accumulators near 2^24 and 2^30.
"""

import numpy as np

from tests.tflite_export import random_moves, random_recurrent
from tests.tflite_export.random_draws import (
  ACTIVATIONS,
  CHANNELS,
  SIGMOID_GRID,
  TANH_GRID,
  Case,
  Draw,
  draw_windows,
)
from tflite_export.operators.table import OPERATORS

# --- weighted operators ----------------------------------------------------------------------------


def _small_sums(draw: Draw, x_scale: np.float32, kernel_shape, channels: int):
  """(scales, weights, bias, output scale) whose products are often ties: small sums over a power of two."""
  s_w = np.full(channels if draw.chance(0.5) else 1, np.exp(draw.rng.uniform(-7, -2)), np.float32)
  weights, offsets = draw.rng.integers(-2, 3, kernel_shape), draw.rng.integers(-200, 201, channels)
  return s_w, weights, offsets, np.float32(x_scale * s_w[0]) * np.float32(2.0**draw.whole(1, 5))


def _weighted(draw: Draw, kind: str, kernel_shape, axis: int, x_shape, y_shape, *, version: int,
              activation: bool = True, options: dict, first: list[str] = ()) -> Case:
  """x, kernel and bias with a chosen size of accumulators, and an output scale that suits them or not."""
  channels = kernel_shape[axis]
  x_grid = draw.grid()
  per_channel = draw.chance(0.85)
  s_w = np.array([draw.scale(1e-3, 0.1) for _ in range(channels if per_channel else 1)], np.float32)
  largest = 7 if draw.kernel_dtype == "int4" else 127
  weights = draw.rng.integers(-largest, largest + 1, kernel_shape)
  reach = np.abs(weights).sum(tuple(i for i in range(weights.ndim) if i != axis)).max() * 255
  wide = draw.dtype == "int16"
  size = draw.one_of((0, 1000, 2**20, 2**24, 2**24, 2**30, 2**38 if wide else 2**30))
  offsets = draw.rng.integers(-size, size + 1, channels)
  if size >= 2**24:
    offsets = draw.rng.choice([-1, 1], channels) * (size + draw.rng.integers(-2048, 2048, channels))
  typical = max(size, draw.steps / 2 * largest / 2 * np.sqrt(weights.size / channels))
  s_y = np.float32(x_grid[0] * np.median(s_w) * typical / draw.rng.uniform(20, 250) * 127 / draw.steps)
  if draw.chance(0.3):
    s_y = draw.ratio_to(x_grid[0] * np.max(s_w), -20, 7)
  elif draw.ties:
    s_y = np.float32(2.0**np.rint(np.log2(s_y)))
  s_y = max(s_y, np.float32(x_grid[0] * np.max(s_w) / 255), np.float32(1e-8))
  if draw.ties and draw.chance(0.3):
    s_w, weights, offsets, s_y = _small_sums(draw, x_grid[0], kernel_shape, len(offsets))
  assert wide or reach + size + 2048 < 2**31
  x = draw.input("x", x_shape, x_grid)
  kernel = draw.tensor("kernel", kernel_shape, (s_w, np.zeros(len(s_w))), draw.kernel_dtype, weights, axis)
  # A dense layer whose bias has no scale, 0, does not load unless s_x s_w is small beside s_y.
  lone = draw.chance(0.05) and (kind != "FULLY_CONNECTED" or x_grid[0] * np.max(s_w) < 0.01 * s_y)
  bias_grid = None if lone else (x_grid[0] * s_w, np.zeros(len(s_w)))
  bias = draw.tensor("bias", (channels,), bias_grid, "int64" if wide else "int32", offsets, axis=0)
  if activation:
    options = {**options, "fused_activation_function": draw.one_of(ACTIVATIONS)}
  inputs = [*first, kernel, x, bias] if first else [x, kernel, bias]
  return draw.finish(kind, inputs, y_shape, (s_y, draw.zero_point()), version=version, **options)


def conv_2d(draw: Draw) -> Case:
  size = [draw.whole(1, 5) for _ in range(2)]
  options, image, result = draw_windows(draw, size, dilated=True)
  groups = draw.one_of((1, 1, 1, 2, 3, 4))
  depth = draw.whole(1, 4) if groups > 1 else draw.one_of(CHANNELS)
  outputs = groups * draw.whole(1, 5) if groups > 1 else draw.one_of(CHANNELS)
  return _weighted(draw, "CONV_2D", (outputs, *size, depth), 0, (1, *image, groups * depth),
                   (1, *result, outputs), version=6 if groups > 1 else 3, options=options)


def depthwise_conv_2d(draw: Draw) -> Case:
  size = [draw.whole(1, 7 if draw.chance(0.2) else 5) for _ in range(2)]
  options, image, result = draw_windows(draw, size, dilated=True)
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
  scale = np.float32(grids[0][0] * grids[1][0] * 70 * 70 * np.sqrt(depth) / draw.rng.uniform(20, 250)
                     * draw.steps / 127)
  if draw.chance(0.4):
    scale = np.float32(grids[0][0] * grids[1][0]) * np.float32(2.0**draw.whole(2, 10))
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
    room = 2**(12 if draw.dtype == "int16" else 17)  # From 2^14 or 2^19 on the kernels abort.
    s_y = max(s_y, np.float32(max(first[0], second[0]) / room), np.float32(1e-8))
    y = (s_y, draw.zero_point())
    names, shape = _operands(draw, (first, second))
    return draw.finish(kind, names, shape, y, version=2, pot_scale_int16=False,
                       fused_activation_function=draw.one_of(ACTIVATIONS))
  return sum_or_difference


def mul(draw: Draw) -> Case:
  first, second = draw.grid(), draw.grid()
  typical = np.float32(first[0] * second[0] * draw.rng.uniform(30, 200) * draw.steps / 127)
  s_y = typical if draw.chance(0.4) else draw.ratio_to(np.float32(first[0] * second[0]), -18, 9)
  if draw.chance(0.2):
    s_y = np.float32(first[0] * second[0]) * np.float32(2.0**draw.whole(2, 10))
  s_y = max(s_y, np.float32(1e-8))  # A clamp, 6 / s_y, must fit int32.
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
  slopes = draw.rng.integers(-127, 128, alpha)
  slope = draw.tensor("alpha", alpha, (draw.scale(1e-3, 0.1), 0), "int8", slopes)
  return draw.finish("PRELU", [x, slope], shape, (draw.ratio_to(grid[0]), draw.zero_point()))


# --- one operand -----------------------------------------------------------------------------------


def _unary(kind: str, version: int, y_grid=None, *, low: int = -12, high: int = 9):
  def unary(draw: Draw) -> Case:
    grid = draw.grid()
    shape = draw.one_of(((1, 256), draw.image(), draw.image()))
    x = draw.input("x", shape, grid)
    options = {"alpha": float(np.float32(_alpha(draw)))} if kind == "LEAKY_RELU" else {}
    y = draw.fixed_grid(y_grid) if y_grid else (draw.ratio_to(grid[0], low, high), draw.zero_point())
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
  return draw.finish("SOFTMAX", [x], shape, draw.fixed_grid(SIGMOID_GRID), version=2, beta=beta)


def quantize(draw: Draw) -> Case:
  if draw.dtype == "int16":
    return _quantize_16(draw)
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


def _quantize_16(draw: Draw) -> Case:
  """To int16, or from it to int8; int8 becomes int16 exactly, as in files, or by any ratio."""
  before, after = draw.one_of((("float32", "int16"), ("int16", "int16"), ("int16", "int8"),
                               ("int8", "int16")))
  (scale, _), shape = draw.grid(), draw.image()
  zero_points = {"int8": draw.whole(-128, 127)}
  x = draw.input("x", shape, None if before == "float32" else (scale, zero_points.get(before, 0)), before)
  ratio = draw.ratio_to(scale, *((-17, 1) if after == "int8" else (-11, 9)))
  y = scale / np.float32(128) if before == "int8" and draw.chance(0.5) else ratio
  return draw.finish("QUANTIZE", [x], shape, (y, zero_points.get(after, 0)),
                     version=1 if before == "float32" else 2, dtype=after)


def dequantize(draw: Draw) -> Case:
  if draw.dtype == "int16":
    shape = draw.image()
    return draw.finish("DEQUANTIZE", [draw.input("x", shape, draw.grid())], shape, None, version=2,
                       dtype="float32")
  dtype, (scale, zero_point) = draw.one_of(("int8", "uint8")), draw.grid()
  shape = draw.image()
  x = draw.input("x", shape, (scale, zero_point + (128 if dtype == "uint8" else 0)), dtype)
  return draw.finish("DEQUANTIZE", [x], shape, None, version=2, dtype="float32")


DRAWS = {
    "ADD": _sum("ADD"),
    "AVERAGE_POOL_2D": random_moves.draw_pool("AVERAGE_POOL_2D"),
    "BATCH_MATMUL": batch_matmul,
    "CAST": random_moves.cast,
    "CONCATENATION": random_moves.concatenation,
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "DEPTH_TO_SPACE": random_moves.draw_blocks("DEPTH_TO_SPACE"),
    "DEQUANTIZE": dequantize,
    "FILL": random_recurrent.fill,
    "FULLY_CONNECTED": fully_connected,
    "GATHER": random_moves.gather,
    "HARD_SWISH": _unary("HARD_SWISH", 1, low=-6, high=6),
    "LEAKY_RELU": _unary("LEAKY_RELU", 2),
    "LOGISTIC": _unary("LOGISTIC", 2, SIGMOID_GRID),
    "MAXIMUM": _choice("MAXIMUM"),
    "MAX_POOL_2D": random_moves.draw_pool("MAX_POOL_2D"),
    "MEAN": random_moves.mean,
    "MINIMUM": _choice("MINIMUM"),
    "MIRROR_PAD": random_moves.mirror_pad,
    "MUL": mul,
    "PAD": random_moves.pad,
    "PRELU": prelu,
    "QUANTIZE": quantize,
    "REDUCE_MAX": random_moves.draw_extreme("REDUCE_MAX"),
    "REDUCE_MIN": random_moves.draw_extreme("REDUCE_MIN"),
    "RELU": _unary("RELU", 2),
    "RELU6": _unary("RELU6", 2),
    "RESHAPE": random_moves.reshape,
    "RESIZE_BILINEAR": random_moves.draw_resize("RESIZE_BILINEAR"),
    "RESIZE_NEAREST_NEIGHBOR": random_moves.draw_resize("RESIZE_NEAREST_NEIGHBOR"),
    "SELECT_V2": random_moves.select,
    "SOFTMAX": softmax,
    "SPACE_TO_DEPTH": random_moves.draw_blocks("SPACE_TO_DEPTH"),
    "SPLIT": random_moves.split,
    "STRIDED_SLICE": random_moves.strided_slice,
    "SUB": _sum("SUB"),
    "TANH": _unary("TANH", 2, TANH_GRID),
    "TRANSPOSE": random_moves.transpose,
    "TRANSPOSE_CONV": transpose_conv,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": random_recurrent.recurrent,
}


BITS = {"int4": {"kernel_dtype": "int4"}, "int16": {"dtype": "int16"}}
_SORTED = sorted(OPERATORS.items())
KINDS = (*DRAWS, *(f"{kind}/int4" for kind, record in _SORTED if record.weighted and record.weighted.int4),
         *(f"{kind}/int16" for kind, record in _SORTED if record.int16))
"""What can be drawn: a kind of operator over int8, and with other widths behind a slash."""


def random_case(kind: str, rng: np.random.Generator) -> Case:
  """Returns a random program of one operator of KINDS, and random inputs."""
  kind, _, bits = kind.partition("/")
  return DRAWS[kind](Draw(rng, **BITS.get(bits, {})))
