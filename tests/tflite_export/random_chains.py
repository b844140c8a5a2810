"""Random programs of several operators, each fed by the one before it."""

import numpy as np

from tests.tflite_export.random_draws import SIGMOID_GRID, TANH_GRID, Case, Draw
from tflite_export.program.program import IntOp


class Chain(Draw):
  """A chain under construction.

  Attributes:
    last: name of the newest activation, [1, h, w, c].
  """

  def __init__(self, rng: np.random.Generator):
    super().__init__(rng)
    shape = (1, self.whole(2, 8), self.whole(2, 8), self.one_of((1, 3, 8, 13)))
    self.last = self.input("x", shape, self.grid())

  @property
  def tensor_now(self):
    return self.program.tensors[self.last]

  @property
  def grid_now(self):
    return self.tensor_now.scale[0], int(self.tensor_now.zero_point[0])

  def wider(self, factor: float = 1.0):
    """A grid whose scale is near `factor` times the newest tensor's, ReLU-like at times."""
    scale = np.float32(self.tensor_now.scale[0] * factor * self.rng.uniform(0.5, 2))
    return scale, self.one_of((-128, self.zero_point()))

  def then(self, kind: str, inputs: list[str], shape, grid, *, version: int = 2, **options) -> None:
    """Appends an operator whose output becomes the newest tensor."""
    name = self.tensor(f"y{len(self.program.ops)}", shape, grid)
    self.program.ops.append(IntOp(kind, inputs, [name], options, version, source=name))
    self.last = name

  def number(self, label: str, values) -> str:
    """A shape, axes ... of the operator that comes next."""
    return self.constant(f"{label}{len(self.program.ops)}", values)

  def weights(self, shape, axis: int, terms: int):
    """Kernel and bias of the operator that comes next, and an output grid that suits them."""
    channels, place = shape[axis], len(self.program.ops)
    scale = self.rng.uniform(1e-3, 1e-2, channels).astype(np.float32)
    zeros = np.zeros(channels)
    weights, offsets = self.rng.integers(-127, 128, shape), self.rng.integers(-5000, 5000, channels)
    kernel = self.tensor(f"w{place}", shape, (scale, zeros), data=weights, axis=axis)
    bias = self.tensor(f"b{place}", (channels,), (self.tensor_now.scale[0] * scale, zeros), "int32", offsets,
                       axis=0)
    return kernel, bias, self.wider(5e-3 * 70 * 70 * np.sqrt(terms) / 60)


def _conv(chain: Chain) -> None:
  _, height, width, depth = chain.tensor_now.shape
  size, stride, outputs = chain.one_of((1, 3)), chain.whole(1, 2), chain.one_of((2, 8, 13, 16))
  kernel, bias, grid = chain.weights((outputs, size, size, depth), 0, size * size * depth)
  result = (1, -(-height // stride), -(-width // stride), outputs)
  chain.then("CONV_2D", [chain.last, kernel, bias], result, grid, version=3, padding="SAME", stride_h=stride,
             stride_w=stride, fused_activation_function=chain.one_of(("NONE", "RELU", "RELU6")))


def _depthwise(chain: Chain) -> None:
  shape = chain.tensor_now.shape
  kernel, bias, grid = chain.weights((1, 3, 3, shape[3]), 3, 9)
  chain.then("DEPTHWISE_CONV_2D", [chain.last, kernel, bias], shape, grid, version=3, padding="SAME",
             stride_h=1, stride_w=1, depth_multiplier=1,
             fused_activation_function=chain.one_of(("NONE", "RELU6")))


def _sum_with_earlier(chain: Chain) -> None:
  shape = chain.tensor_now.shape
  fitting = [t.name for t in chain.program.tensors.values() if t.data is None and t.shape == shape]
  chain.then(chain.one_of(("ADD", "SUB")), [chain.last, chain.one_of(fitting)], shape, chain.wider(2.0))


def _gate(chain: Chain) -> None:
  """x * sigmoid(x), or x * tanh(x)."""
  x, shape, wide = chain.last, chain.tensor_now.shape, chain.wider()
  kind, grid = chain.one_of((("LOGISTIC", SIGMOID_GRID), ("TANH", TANH_GRID)))
  chain.then(kind, [x], shape, grid)
  chain.then("MUL", [x, chain.last], shape, wide)


def _pool(chain: Chain) -> None:
  _, height, width, channels = chain.tensor_now.shape
  result = (1, -(-height // 2), -(-width // 2), channels)
  chain.then(chain.one_of(("MAX_POOL_2D", "AVERAGE_POOL_2D")), [chain.last], result, chain.grid_now,
             padding="SAME", stride_h=2, stride_w=2, filter_height=chain.whole(2, 3),
             filter_width=chain.whole(2, 3))


def _function(chain: Chain) -> None:
  kind = chain.one_of(("RELU", "RELU6", "LEAKY_RELU", "HARD_SWISH", "QUANTIZE"))
  options = {"alpha": 0.25} if kind == "LEAKY_RELU" else {}
  chain.then(kind, [chain.last], chain.tensor_now.shape, chain.wider(),
             version=1 if kind == "HARD_SWISH" else 2, **options)


def _resize(chain: Chain) -> None:
  _, height, width, channels = chain.tensor_now.shape
  size = (chain.whole(1, 2 * height), chain.whole(1, 2 * width))
  kind = chain.one_of(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"))
  chain.then(kind, [chain.last, chain.number("s", size)], (1, *size, channels), chain.grid_now, version=3,
             align_corners=False, half_pixel_centers=True)


def _pad(chain: Chain) -> None:
  amounts = [[0, 0], [1, 0], [1, 2], [0, 0]]
  result = np.add(chain.tensor_now.shape, np.sum(amounts, 1))
  chain.then("PAD", [chain.last, chain.number("p", amounts)], result, chain.grid_now)


def _twice(chain: Chain) -> None:
  *shape, channels = chain.tensor_now.shape
  chain.then("CONCATENATION", [chain.last, chain.last], (*shape, 2 * channels), chain.grid_now, axis=-1,
             fused_activation_function="NONE")


def _mean(chain: Chain) -> None:
  channels = chain.tensor_now.shape[3]
  chain.then("MEAN", [chain.last, chain.number("a", [1, 2])], (1, 1, 1, channels), chain.wider(0.5),
             keep_dims=True)


def _head(chain: Chain) -> None:
  """RESHAPE, FULLY_CONNECTED and SOFTMAX; back to an image of one pixel."""
  flat = (1, int(np.prod(chain.tensor_now.shape)))
  chain.then("RESHAPE", [chain.last, chain.number("s", flat)], flat, chain.grid_now, version=1,
             new_shape=list(flat))
  kernel, bias, grid = chain.weights((5, flat[1]), 0, flat[1])
  chain.then("FULLY_CONNECTED", [chain.last, kernel, bias], (1, 5), grid, version=5)
  chain.then("SOFTMAX", [chain.last], (1, 5), SIGMOID_GRID, beta=1.0)
  chain.then("RESHAPE", [chain.last, chain.number("s", [1, 1, 1, 5])], (1, 1, 1, 5), SIGMOID_GRID, version=1,
             new_shape=[1, 1, 1, 5])


STEPS = (_conv, _conv, _depthwise, _sum_with_earlier, _gate, _pool, _function, _function, _resize, _pad,
         _twice, _mean, _head)


def random_chain(rng: np.random.Generator) -> Case:
  """Returns a program of 3 to 6 steps, all of whose activations are outputs, and inputs for it."""
  chain = Chain(rng)
  for _ in range(chain.whole(3, 6)):
    chain.one_of(STEPS)(chain)
  program = chain.program.with_outputs([name for op in chain.program.ops for name in op.outputs])
  return Case(program, [chain.values(program.tensors["x"])])
