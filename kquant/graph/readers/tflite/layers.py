"""Operators with kernels, pools and activations: layers of Keras."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

from kquant.graph.readers.tflite.call import FUSED, Call, Convert, product
from kquant.graph.readers.tflite.views import Merged, Spread, as_in_file, reshape

_PADDINGS = {0: "same", 1: "valid"}


def _padding(call: Call) -> str:
  number = call.option("padding", 0)
  if number not in _PADDINGS:
    raise call.error(f"has the padding {number}; expected SAME or VALID")
  return _PADDINGS[number]


def _strides(call: Call) -> tuple[int, int]:
  strides = int(call.option("strideH")), int(call.option("strideW"))
  if min(strides) < 1:
    raise call.error(f"has the strides {strides}; expected at least 1")
  return strides


def _kernel(call: Call, place: int, rank: int) -> np.ndarray:
  kernel = call.constant(place, "kernel")
  if kernel.ndim != rank or kernel.dtype != np.float32:
    raise call.error(f"has a kernel of shape {kernel.shape} and type {kernel.dtype}; expected float32 of "
                     f"{rank} axes")
  return kernel


def _weighted(call: Call, x: Any, cls: type, kernel: np.ndarray, **config: Any) -> Any:
  """A layer with a kernel, its bias and activation; `bias` is the place of the bias among the inputs."""
  bias_place = config.pop("bias")
  bias = None if call.input(bias_place) is None else call.constant(bias_place, "bias")
  config["use_bias"] = bias is not None
  if call.activation in FUSED:
    config["activation"] = call.activation
  try:
    result = call.layer(cls, x, weights=[kernel] if bias is None else [kernel, bias.reshape(-1)], **config)
  except (ValueError, TypeError) as error:
    raise call.damaged(f"a kernel of shape {kernel.shape} that does not fit its input {tuple(x.shape)} and "
                       "options") from error
  return result if call.activation in FUSED else call.activated(result)


# --- convolutions ----------------------------------------------------------------------------------


def _spatial(call: Call) -> tuple[Any, Callable[[Any], Any], dict[str, Any]]:
  """The input of a convolution, what sees its result as the file does, and strides, padding, dilation."""
  x, see = call.input(0), lambda result: result
  common = {"strides": _strides(call), "padding": _padding(call),
            "dilation_rate": (int(call.option("dilationHFactor", 1)), int(call.option("dilationWFactor", 1)))}
  if isinstance(x, Spread):
    if common["strides"] != (1, 1) or common["dilation_rate"] != (1, 1) or common["padding"] != "valid":
      raise call.error("is strided or padded between a space-to-batch and its batch-to-space; write one "
                       "dilated convolution")
    common["dilation_rate"] = tuple(x.blocks.get(axis, 1) for axis in (1, 2))
    x, see = x.tensor, x.of
  x = as_in_file(call, x)
  if len(x.shape) != 4 or x.shape[-1] is None:
    raise call.error(f"reads {tuple(x.shape)}; expected [batch, height, width, channels]")
  return x, see, common


def _conv_2d(call: Call) -> Any:
  """Kernel [out, h, w, in / groups] of the file as [h, w, in / groups, out]."""
  kernel = _kernel(call, 1, 4)
  x, see, common = _spatial(call)
  outputs, height, width, inputs = kernel.shape
  groups = x.shape[-1] // max(inputs, 1)
  return see(_weighted(call, x, keras.layers.Conv2D, kernel.transpose(1, 2, 3, 0), bias=2, filters=outputs,
                       kernel_size=(height, width), groups=groups, **common))


def _depthwise(call: Call) -> Any:
  """Kernel [1, h, w, in * multiplier] as [h, w, in, multiplier]; a Conv2D of groups for unequal strides."""
  kernel = _kernel(call, 1, 4)
  x, see, common = _spatial(call)
  _, height, width, outputs = kernel.shape
  inputs = int(x.shape[-1])
  if outputs % inputs or kernel.shape[0] != 1:
    raise call.damaged(f"a kernel of shape {kernel.shape} for {inputs} channels")
  if common["strides"][0] != common["strides"][1]:
    return see(_weighted(call, x, keras.layers.Conv2D, kernel[0][:, :, None], bias=2, filters=outputs,
                         kernel_size=(height, width), groups=inputs, **common))
  return see(_weighted(call, x, keras.layers.DepthwiseConv2D, kernel.reshape(height, width, inputs, -1),
                       bias=2, kernel_size=(height, width), depth_multiplier=outputs // inputs, **common))


def _transpose_conv(call: Call) -> Any:
  """Kernel [out, h, w, in] as [h, w, out, in]; a size that Keras does not make is cut out of the largest."""
  kernel, x = _kernel(call, 1, 4), as_in_file(call, call.input(2))
  outputs, height, width, _ = kernel.shape
  made, strides, padding = call.integers(0, "output shape")[1:3], _strides(call), _padding(call)
  sizes = [(size, out, taps, stride) for size, out, taps, stride in
           zip(x.shape[1:3], made, (height, width), strides) if size is not None]
  usual = all(out == (size * stride if padding == "same" else (size - 1) * stride + taps)
              for size, out, taps, stride in sizes)
  spare = [(size - 1) * stride + taps - out for size, out, taps, stride in sizes]
  if not usual and (padding == "valid" or len(spare) < 2 or min(spare) < 0):
    raise call.error(f"makes {made} of {tuple(x.shape)}, which Keras' transposed convolution does not; "
                     "choose another size or padding")
  result = _weighted(call, x, keras.layers.Conv2DTranspose, kernel.transpose(1, 2, 0, 3), bias=3,
                     filters=outputs, kernel_size=(height, width), strides=strides,
                     padding=padding if usual else "valid")
  if usual:
    return result
  crops = tuple((amount // 2, amount - amount // 2) for amount in spare)
  return call.layer(keras.layers.Cropping2D, result, cropping=crops, part="cut")


def _conv_3d(call: Call) -> Any:
  kernel, x = _kernel(call, 1, 5), as_in_file(call, call.input(0))
  names = ("D", "H", "W")
  return _weighted(call, x, keras.layers.Conv3D, kernel, bias=2, filters=kernel.shape[-1],
                   kernel_size=kernel.shape[:3], padding=_padding(call),
                   groups=x.shape[-1] // max(kernel.shape[3], 1),
                   strides=tuple(int(call.option(f"stride{name}")) for name in names),
                   dilation_rate=tuple(int(call.option(f"dilation{name}Factor", 1)) for name in names))


def _fully_connected(call: Call) -> Any:
  """Kernel [out, in] as [in, out]; a computed one makes it a product of matrices."""
  x = call.input(0)
  if not isinstance(call.input(1), np.ndarray):
    x, other = (as_in_file(call, value) for value in call.inputs[:2])
    if call.input(2) is not None or call.activation is not None or len(x.shape) != 2 or len(other.shape) != 2:
      raise call.error("has a computed kernel with a bias or an activation; write it as BATCH_MATMUL and ADD")
    return call.function("linalg.matmul", x, other, transpose_b=True)
  kernel = _kernel(call, 1, 2)
  outputs, inputs = kernel.shape
  if not isinstance(x, np.ndarray) and not call.option("keepNumDims", False):
    x = reshape(call, x, [-1, inputs], part="flat")
  see = x.of if isinstance(x, Merged) else lambda result: result
  x = x.tensor if isinstance(x, Merged) else as_in_file(call, x)
  return see(_weighted(call, x, keras.layers.Dense, kernel.T, bias=2, units=outputs))


# --- pools and activations -------------------------------------------------------------------------


def _pool(cls: type) -> Convert:
  def convert(call: Call) -> Any:
    x = as_in_file(call, call.input(0))
    size = int(call.option("filterHeight")), int(call.option("filterWidth"))
    if min(size) < 1 or len(x.shape) != 4:
      raise call.damaged(f"a pool of {size} for {tuple(x.shape)}")
    return call.activated(call.layer(cls, x, pool_size=size, strides=_strides(call), padding=_padding(call)))
  return convert


def _relu(maximum: float | None) -> Convert:
  return lambda call: call.layer(keras.layers.ReLU, call.input(0), max_value=maximum)


def _activation(name: str) -> Convert:
  return lambda call: call.layer(keras.layers.Activation, call.input(0), activation=name)


def _softmax(call: Call) -> Any:
  x, beta = call.input(0), float(call.option("beta", 1.0))
  if beta != 1.0:
    x = call.function("math.multiply", x, beta, part="scaled")
  return call.layer(keras.layers.Softmax, x)


def _prelu(call: Call) -> Any:
  """One slope a channel, or one an element."""
  x, slopes = as_in_file(call, call.input(0)), call.constant(1, "slopes")
  rank = len(x.shape)
  slopes = slopes.reshape((1,) * (rank - 1 - slopes.ndim) + slopes.shape[max(slopes.ndim - rank + 1, 0):])
  shared = [axis for axis in range(1, rank) if slopes.shape[axis - 1] == 1 and x.shape[axis] != 1]
  if rank - 1 in shared:
    if product(slopes.shape) > 1:
      raise call.error(f"has slopes of shape {slopes.shape}; expected one a channel")
    slopes = np.broadcast_to(slopes, (*slopes.shape[:-1], x.shape[-1]))
    shared.remove(rank - 1)
  return call.layer(keras.layers.PReLU, x, weights=[slopes], shared_axes=shared or None)


def _hard_swish(call: Call) -> Any:
  """x * relu6(x + 3) / 6, as Keras' own MobileNetV3 writes it."""
  x = call.input(0)
  gate = call.layer(keras.layers.ReLU, call.function("math.add", x, 3.0, part="shifted"), max_value=6.0,
                    part="relu6")
  return call.layer(keras.layers.Multiply, [x, call.function("math.multiply", gate, 1.0 / 6.0, part="gate")])


def _gelu(call: Call) -> Any:
  return call.function("nn.gelu", call.input(0), approximate=bool(call.option("approximate", False)))


LINEAR: dict[str, Convert] = {
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "CONV_3D": _conv_3d,
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _pool(keras.layers.AveragePooling2D),
    "MAX_POOL_2D": _pool(keras.layers.MaxPooling2D),
    "PRELU": _prelu,
}
"""They take views apart by themselves."""

ACTIVATIONS: dict[str, Convert] = {
    "RELU": _relu(None),
    "RELU6": _relu(6.0),
    "RELU_0_TO_1": _relu(1.0),
    "RELU_N1_TO_1": lambda call: call.function("clip_by_value", call.input(0), -1.0, 1.0),
    "LEAKY_RELU": lambda call: call.layer(keras.layers.LeakyReLU, call.input(0),
                                          alpha=float(call.option("alpha", 0.0))),
    "ELU": lambda call: call.layer(keras.layers.ELU, call.input(0)),
    "LOGISTIC": _activation("sigmoid"),
    "TANH": _activation("tanh"),
    "GELU": _gelu,
    "HARD_SWISH": _hard_swish,
    "SOFTMAX": _softmax,
    "LOG_SOFTMAX": lambda call: call.function("nn.log_softmax", call.input(0)),
    "L2_NORMALIZATION": lambda call: call.activated(
        call.layer(keras.layers.UnitNormalization, call.input(0))),
}
"""Functions of one element, or along the last axis."""
