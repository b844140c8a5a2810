"""Which operators the XNNPACK delegate takes, asked of an operator with its inputs and outputs.

What the delegate takes was measured (LiteRT 2.3); the fuzz asserts it case by case. Each rule returns
whether it takes the operator.
"""

import numpy as np

from tflite_export.program.program import IntOp, Tensors


def always(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """Whatever its tensors and options are."""
  del op, inputs, outputs
  return True


def never(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """The built-in kernels run it."""
  del op, inputs, outputs
  return False


def has_bias_grid(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """The bias, the last input, has scales."""
  del op, outputs
  return inputs[-1].scale is not None


def has_int8_kernel(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A bias with scales and no packed kernel."""
  return has_bias_grid(op, inputs, outputs) and inputs[1].dtype == "int8"


def has_whole_bytes(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A bias with scales; the rows of a packed kernel fill their bytes."""
  return has_bias_grid(op, inputs, outputs) and (inputs[1].dtype == "int8" or inputs[1].shape[1] % 2 == 0)


def has_sound_windows(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A bias with scales; VALID windows fit into the output, SAME windows leave no gaps."""
  if not has_bias_grid(op, inputs, outputs):
    return False
  size, image, result = inputs[1].shape[1:3], inputs[2].shape[1:3], outputs[0].shape[1:3]
  strides = (op.options["stride_h"], op.options["stride_w"])
  if op.options.get("padding", "SAME") == "VALID":
    return all(taps <= whole for taps, whole in zip(size, result))
  return all(taps >= step and -(-whole // step) == n
             for taps, step, whole, n in zip(size, strides, result, image))


def has_dense_pool(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A pool of more than one pixel whose windows leave no gaps, or one that changes nothing."""
  del inputs, outputs
  return all(op.options[f"stride_{axis}"] <= op.options[f"filter_{name}"]
             for axis, name in (("h", "height"), ("w", "width")))


def has_symmetric_right_side(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """A product whose right operand has zero point 0."""
  del op, outputs
  return int(inputs[1].zero_point[0]) == 0


def ratios_of_sum(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """Both of 8 bits, and neither scale far from the output's."""
  del op
  if outputs[0].scale is None:
    return False
  return all(2.0**-10 <= x.scale[0] / outputs[0].scale[0] < 2.0**8 for x in inputs)


def ratio_of_product(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """The product of the scales is not far from the output's."""
  del op
  return 2.0**-16 <= inputs[0].scale[0] * inputs[1].scale[0] / outputs[0].scale[0] < 2.0**8


def ratios_of_leaky_relu(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """Neither the ratio of the scales nor its product with the slope is far from 1."""
  ratio = inputs[0].scale[0] / outputs[0].scale[0]
  slope = ratio * np.float32(op.options.get("alpha", 0.0))
  return all(2.0**-8 <= abs(part) <= 2.0**7 for part in (ratio, slope))


def ratio_of_quantize(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  """From float; between grids of one type if the ratio fits 8 fractional bits."""
  del op
  if inputs[0].dtype == "float32":
    return True
  same = inputs[0].dtype == outputs[0].dtype
  return same and 2.0**-8 <= inputs[0].scale[0] / outputs[0].scale[0] <= 2.0**7
