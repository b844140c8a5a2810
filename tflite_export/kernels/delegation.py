"""Which set of kernels runs an operator of a file, in a mode of the interpreter.

Mode "reference": the reference kernels run every operator. Mode "xnnpack", the default interpreter:
the XNNPACK delegate takes the operators that it can hold, and the optimised built-in kernels run
the rest. What the delegate takes was measured (LiteRT 2.3); the fuzz asserts it case by case.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tflite_export.program.program import IntOp, IntTensor

MODES = ("xnnpack", "reference")
"""What a simulation can follow; `Runtime(kernels=mode)` runs the same."""

Tensors = Sequence[IntTensor | None]


def arithmetic_of(op: IntOp, inputs: Tensors, outputs: Tensors, mode: str) -> str:
  """Returns "reference", "xnnpack" (delegated) or "builtin": what runs the operator in `mode`.

  Raises:
    ValueError: unknown mode.
  """
  if mode not in MODES:
    raise ValueError(f"Expected a mode of {', '.join(MODES)}, got {mode!r}.")
  if mode == "reference":
    return "reference"
  if any(tensor.dtype == "int16" for tensor in (*inputs, *outputs) if tensor is not None):
    return "builtin"
  return "xnnpack" if is_delegated(op, inputs, outputs) else "builtin"


def is_delegated(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """Whether the delegate takes the operator; True for kinds that compute the same everywhere."""
  return op.kind not in RULES or RULES[op.kind](op, inputs, outputs)


def _always(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del op, inputs, outputs
  return True


def _never(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del op, inputs, outputs
  return False


def _has_bias_grid(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """The bias has scales."""
  del outputs
  return inputs[3 if op.kind == "TRANSPOSE_CONV" else 2].scale is not None


def _has_int8_kernel(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A bias with scales and no packed kernel."""
  return _has_bias_grid(op, inputs, outputs) and inputs[1].dtype == "int8"


def _has_whole_bytes(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A bias with scales; the rows of a packed kernel fill their bytes."""
  return _has_bias_grid(op, inputs, outputs) and (inputs[1].dtype == "int8" or inputs[1].shape[1] % 2 == 0)


def _has_sound_windows(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A bias with scales; VALID windows fit into the output, SAME windows leave no gaps."""
  if not _has_bias_grid(op, inputs, outputs):
    return False
  size, image, result = inputs[1].shape[1:3], inputs[2].shape[1:3], outputs[0].shape[1:3]
  strides = (op.options["stride_h"], op.options["stride_w"])
  if op.options.get("padding", "SAME") == "VALID":
    return all(taps <= whole for taps, whole in zip(size, result))
  return all(taps >= step and -(-whole // step) == n
             for taps, step, whole, n in zip(size, strides, result, image))


def _has_dense_pool(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A pool of more than one pixel whose windows leave no gaps, or one that changes nothing."""
  del inputs, outputs
  return all(op.options[f"stride_{axis}"] <= op.options[f"filter_{name}"]
             for axis, name in (("h", "height"), ("w", "width")))


def _has_symmetric_right_side(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A product whose right operand has zero point 0."""
  del op, outputs
  return int(inputs[1].zero_point[0]) == 0


def _ratios_of_sum(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """Both of 8 bits, and neither scale far from the output's."""
  del op
  if outputs[0].scale is None:
    return False
  return all(2.0**-10 <= x.scale[0] / outputs[0].scale[0] < 2.0**8 for x in inputs)


def _ratio_of_product(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del op
  return 2.0**-16 <= inputs[0].scale[0] * inputs[1].scale[0] / outputs[0].scale[0] < 2.0**8


def _ratios_of_leaky_relu(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  ratio = inputs[0].scale[0] / outputs[0].scale[0]
  slope = ratio * np.float32(op.options.get("alpha", 0.0))
  return all(2.0**-8 <= abs(part) <= 2.0**7 for part in (ratio, slope))


def _ratio_of_quantize(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """From float; between grids of one type if the ratio fits 8 fractional bits."""
  del op
  if inputs[0].dtype == "float32":
    return True
  same = inputs[0].dtype == outputs[0].dtype
  return same and 2.0**-8 <= inputs[0].scale[0] / outputs[0].scale[0] <= 2.0**7


RULES: dict[str, Callable[[IntOp, Tensors, Tensors], bool]] = {
    "ADD": _ratios_of_sum,
    "AVERAGE_POOL_2D": _never,
    "BATCH_MATMUL": _has_symmetric_right_side,
    "CONV_2D": _has_int8_kernel,
    "DEPTHWISE_CONV_2D": _has_int8_kernel,
    "FULLY_CONNECTED": _has_whole_bytes,
    "HARD_SWISH": _never,
    "LEAKY_RELU": _ratios_of_leaky_relu,
    "LOGISTIC": _always,
    "MAX_POOL_2D": _has_dense_pool,
    "MEAN": _always,
    "MUL": _ratio_of_product,
    "PRELU": _never,
    "QUANTIZE": _ratio_of_quantize,
    "RELU": _never,
    "RELU6": _never,
    "RESIZE_BILINEAR": _always,
    "SOFTMAX": _never,
    "SUB": _ratios_of_sum,
    "TANH": _always,
    "TRANSPOSE_CONV": _has_sound_windows,
}
"""Kinds whose integers depend on who runs them."""
