"""What one window of an operator sums (convolutions, dense layers, means, pools), window by window.

Each function is called with the program, the operator and a generator that draws its windows.
"""

import dataclasses

import numpy as np

from tflite_export.program.program import IntOp, IntProgram, IntTensor

_WINDOWS = 48
"""Windows of one operator; of a depthwise one, whose channels are all solved for, a few."""
_FEWEST_WINDOWS = 8
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


def convolution(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  """Outputs of a convolution, one window each, for every group of channels."""
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


def depthwise(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  """Outputs of a depthwise convolution, one window each, for every channel."""
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


def dense(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  """Outputs of a dense layer, one row each."""
  x, kernel, bias = op.inputs[:3]
  weights = program.tensors[kernel].data
  outputs, depth = weights.shape
  windows, chosen = _drawn(outputs, 1, rng)
  return Sums((1, depth), (1, outputs), weights[chosen].astype(np.int64),
               np.tile(np.arange(depth), (windows, 1)), program.tensors[bias].data.astype(np.int64)[chosen],
               _per_output(_reals(program, x, kernel, op), chosen, outputs), windows,
               options={"keep_num_dims": False})


def transposed(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
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


def mean(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  """Every mean over the axes."""
  x, y = program.tensors[op.inputs[0]], program.tensors[op.outputs[0]]
  axes = sorted(int(axis) % len(x.shape) for axis in program.tensors[op.inputs[1]].data.ravel())
  others = [axis for axis in range(len(x.shape)) if axis not in axes]
  places = np.arange(np.prod(x.shape)).reshape(x.shape).transpose(*others, *axes)
  places = places.reshape(int(np.prod(y.shape)), -1)
  return _averages(x.shape, y.shape, places, float(x.scale[0]) / float(y.scale[0]), {})


def average_pool(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Sums:
  """One window of every channel."""
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
