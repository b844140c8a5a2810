"""Sums of one window (convolutions, dense layers, means, pools), and input integers that put them on ties."""

import dataclasses
from collections.abc import Callable

import numpy as np

from tflite_export.program.program import IntOp, IntProgram, IntTensor

_WINDOWS = 48
"""Windows of one operator; of a depthwise one, whose channels are all solved for, a few."""
_FEWEST_WINDOWS = 8
_SOLVED_TAPS = 48
"""Taps of a window that are solved for, the largest and the smallest weights; the others are random."""
_NEAREST = 8
"""Of so many nearest ties one is drawn."""
_ATTEMPTS = 4
_MOST_ELEMENTS = 2**16


@dataclasses.dataclass
class Sums:
  """y = real * (bias + sum of weight * (x - z)) over one window, for outputs that read it.

  Attributes:
    image, result: shapes of x and y.
    weights, places: [windows * groups, taps], what multiplies x and where it lies in flat x; the groups of a
      window read different places.
    bias, real: int64 and float64, [windows * groups].
    windows: how many; n of the probe's inputs.
    constants, options: what the cut operator has in another way than the file's.
  """

  image: tuple[int, ...]
  result: tuple[int, ...]
  weights: np.ndarray
  places: np.ndarray
  bias: np.ndarray
  real: np.ndarray
  windows: int
  constants: dict[str, IntTensor] = dataclasses.field(default_factory=dict)
  options: dict = dataclasses.field(default_factory=dict)


def integers_on_ties(sums: Sums, centre: int, limits: tuple[int, int],
                     rng: np.random.Generator) -> np.ndarray:
  """Returns int8 values [windows, places of the image] that put a sum of every group next to a tie.

  Args:
    sums: what is summed.
    centre: z, the zero point of x.
    limits: ends of y without its zero point.
    rng: draws the ties, and what is not solved for.
  """
  values = rng.integers(-128, 128, (sums.windows, int(np.prod(sums.image))))
  rows = np.repeat(np.arange(sums.windows), len(sums.places) // sums.windows)[:, None]
  targets, unsolved = _targets(sums, centre, limits, rng), np.arange(len(rows))
  for _ in range(_ATTEMPTS):
    drawn = rng.integers(-128, 128, (len(unsolved), sums.places.shape[1]))
    solved, missing = _solve(drawn - centre, sums.weights[unsolved], centre, (targets - sums.bias)[unsolved])
    values[rows[unsolved], sums.places[unsolved]] = solved + centre
    unsolved = unsolved[missing != 0]
  return values


def _targets(sums: Sums, centre: int, limits: tuple[int, int],
             rng: np.random.Generator) -> np.ndarray:
  """Returns an accumulator for each window and group: one of those nearest to a tie in its reach."""
  halves = np.arange(limits[0], max(limits[1], limits[0] + 1)) + 0.5
  wanted = np.rint(halves / sums.real[:, None])
  ends = np.stack([(-128 - centre) * sums.weights, (127 - centre) * sums.weights])
  low, high = (bound.sum(1, keepdims=True) + sums.bias[:, None] for bound in (ends.min(0), ends.max(0)))
  apart = np.abs(wanted * sums.real[:, None] - halves) + np.where((wanted < low) | (wanted > high), np.inf, 0)
  nearest = np.argsort(apart, axis=1)[:, :_NEAREST]
  drawn = np.take_along_axis(nearest, rng.integers(0, nearest.shape[1], (len(nearest), 1)), 1)
  drawn = np.where(np.isinf(np.take_along_axis(apart, drawn, 1)), nearest[:, :1], drawn)
  return np.take_along_axis(wanted, drawn, 1)[:, 0].clip(low[:, 0], high[:, 0]).astype(np.int64)


def _solve(x: np.ndarray, weights: np.ndarray, centre: int,
           targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Changes x - z tap by tap, from the largest weight on, towards sum of weight * (x - z) = target.

  Args:
    x: x - z, int64 [rows, taps].
    weights: [rows, taps].
    centre: z.
    targets: [rows].

  Returns:
    x and what is missing to the targets.
  """
  order = np.argsort(-np.abs(weights), axis=1, kind="stable")
  if order.shape[1] > _SOLVED_TAPS:
    nonzero, half = np.count_nonzero(weights, axis=1)[:, None], _SOLVED_TAPS // 2
    last = np.minimum(np.maximum(nonzero - half, half) + np.arange(half), order.shape[1] - 1)
    order = np.concatenate([order[:, :half], np.take_along_axis(order, last, 1)], axis=1)
  missing, rows = targets - (x * weights).sum(1), np.arange(len(x))
  for column in order.T:
    weight, value = weights[rows, column], x[rows, column]
    steps = np.rint(missing / np.where(weight == 0, np.inf, weight)).astype(np.int64)
    changed = np.clip(value + steps, -128 - centre, 127 - centre)
    x[rows, column] = changed
    missing -= (changed - value) * weight
  return x, missing


# --- operators ---------------------------------------------------------------------------------------


def _reals(program: IntProgram, x: str, kernel: str, op: IntOp) -> np.ndarray:
  s_x, s_w, s_y = (program.tensors[name].scale.astype(np.float64) for name in (x, kernel, op.outputs[0]))
  return s_x * s_w / s_y


def _drawn(outputs: int, groups: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
  """Draws windows, and for each an output of every group: (windows, flat outputs [windows * groups])."""
  windows = max(_FEWEST_WINDOWS, _WINDOWS // groups)
  size = outputs // groups
  chosen = rng.integers(0, size, (windows, groups)) + size * np.arange(groups)
  return windows, chosen.reshape(-1)


def _per_output(values: np.ndarray, chosen: np.ndarray, outputs: int) -> np.ndarray:
  return np.broadcast_to(values, (outputs,))[chosen]


def _reach(op: IntOp, size: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
  """Returns (height, width) that a window covers, and the position of its taps in it, [h, w]."""
  dilation = [op.options.get(f"dilation_{axis}_factor", 1) for axis in "hw"]
  height, width = ((taps - 1) * apart + 1 for taps, apart in zip(size, dilation))
  return (height, width), (np.arange(size[0])[:, None] * dilation[0] * width
                           + np.arange(size[1]) * dilation[1])


def _convolution(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  x, kernel, bias = op.inputs[:3]
  channels, weights = program.tensors[x].shape[3], program.tensors[kernel].data.astype(np.int64)
  outputs, *size, depth = weights.shape
  windows, chosen = _drawn(outputs, channels // depth, rng)
  (height, width), taps = _reach(op, tuple(size))
  inputs = (chosen // (outputs * depth // channels) * depth)[:, None] + np.arange(depth)
  places = taps.reshape(1, -1, 1) * channels + inputs[:, None]
  return Sums((1, height, width, channels), (1, 1, 1, outputs), weights[chosen].reshape(len(chosen), -1),
               places.reshape(len(chosen), -1), program.tensors[bias].data.astype(np.int64)[chosen],
               _per_output(_reals(program, x, kernel, op), chosen, outputs), windows,
               options={"padding": "VALID"})


def _depthwise(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  x, kernel, bias = op.inputs[:3]
  channels, weights = program.tensors[x].shape[3], program.tensors[kernel].data[0].astype(np.int64)
  *size, outputs = weights.shape
  windows, chosen = _drawn(outputs, channels, rng)
  (height, width), taps = _reach(op, tuple(size))
  places = taps.reshape(1, -1) * channels + (chosen // (outputs // channels))[:, None]
  return Sums((1, height, width, channels), (1, 1, 1, outputs), weights.reshape(-1, outputs).T[chosen],
               places, program.tensors[bias].data.astype(np.int64)[chosen],
               _per_output(_reals(program, x, kernel, op), chosen, outputs), windows,
               options={"padding": "VALID"})


def _dense(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  x, kernel, bias = op.inputs[:3]
  weights = program.tensors[kernel].data
  outputs, depth = weights.shape
  windows, chosen = _drawn(outputs, 1, rng)
  return Sums((1, depth), (1, outputs), weights[chosen].astype(np.int64),
               np.tile(np.arange(depth), (windows, 1)), program.tensors[bias].data.astype(np.int64)[chosen],
               _per_output(_reals(program, x, kernel, op), chosen, outputs), windows,
               options={"keep_num_dims": False})


def _transposed(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  """One pixel, which a window of outputs reads."""
  shape, kernel, x, bias = op.inputs[:4]
  weights = program.tensors[kernel].data.astype(np.int64)
  outputs, height, width, depth = weights.shape
  windows, chosen = _drawn(outputs * height * width, 1, rng)
  channel, result = chosen % outputs, (1, height, width, outputs)
  rows = weights.transpose(1, 2, 0, 3).reshape(-1, depth)[chosen]
  constant = IntTensor(shape, (4,), "int32", data=np.array(result, np.int32))
  return Sums((1, 1, 1, depth), result, rows, np.tile(np.arange(depth), (windows, 1)),
               program.tensors[bias].data.astype(np.int64)[channel],
               _per_output(_reals(program, x, kernel, op), channel, outputs), windows,
               constants={shape: constant}, options={"padding": "VALID"})


def _mean(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  x, y = program.tensors[op.inputs[0]], program.tensors[op.outputs[0]]
  axes = sorted(int(axis) % len(x.shape) for axis in program.tensors[op.inputs[1]].data.ravel())
  kept = [axis for axis in range(len(x.shape)) if axis not in axes]
  places = np.arange(np.prod(x.shape)).reshape(x.shape).transpose(*kept, *axes)
  places = places.reshape(int(np.prod(y.shape)), -1)
  return _averages(x.shape, y.shape, places, float(x.scale[0]) / float(y.scale[0]), {})


def _average_pool(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  channels, size = program.tensors[op.inputs[0]].shape[3], (op.options["filter_height"],
                                                            op.options["filter_width"])
  places = np.arange(np.prod(size)) * channels + np.arange(channels)[:, None]
  return _averages((1, *size, channels), (1, 1, 1, channels), places, 1.0, {"padding": "VALID"})


def _averages(image: tuple, result: tuple, places: np.ndarray, real: float, options: dict) -> Sums:
  """Every output in every window: no two of them read the same place."""
  outputs, taps = places.shape
  windows = int(np.clip(_MOST_ELEMENTS // places.size, _FEWEST_WINDOWS, _WINDOWS))
  return Sums(image, result, np.ones((windows * outputs, taps), np.int64), np.tile(places, (windows, 1)),
               np.zeros(windows * outputs, np.int64), np.full(windows * outputs, real / taps), windows,
               options=options)


SUMS: dict[str, Callable[[IntProgram, IntOp, np.random.Generator], Sums]] = {
    "AVERAGE_POOL_2D": _average_pool, "CONV_2D": _convolution, "DEPTHWISE_CONV_2D": _depthwise,
         "FULLY_CONNECTED": _dense, "MEAN": _mean, "TRANSPOSE_CONV": _transposed}
