"""Operators that move integers, or look them up."""

import numpy as np

from tflite_export.kernels import moving
from tflite_export.operators.record import Batch, Operator, Simulated
from tflite_export.program.program import IntOp, Tensors


def _joins_images(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del inputs
  return op.options["axis"] % len(outputs[0].shape) == 0


def _pads_images(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del op, outputs
  return bool(np.any(inputs[1].data[0]))


def _splits_images(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del op
  return inputs[0].data.ravel()[0] % len(outputs[0].shape) == 0


def _cuts_images(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del outputs
  return bool(inputs[1].data[0] != 0 or inputs[3].data[0] != 1 or op.options.get("shrink_axis_mask", 0) & 1)


def _moves_images(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del op, outputs
  return inputs[1].data[0] != 0


_INTEGERS = frozenset(("int8", "int16", "int32"))

OPERATORS = (
    Operator("CAST", "CastOptions", moving.cast, int16=1, simulated=Simulated(
        operands=_INTEGERS, results=_INTEGERS | {"bool"})),
    Operator("CONCATENATION", "ConcatenationOptions", moving.concatenation, version=2, int16=3,
             same_scale=True, crosses_batch=_joins_images,
             simulated=Simulated(options={"fused_activation_function": "NONE"})),
    Operator("DEPTH_TO_SPACE", "DepthToSpaceOptions", moving.depth_to_space, same_scale=True),
    Operator("GATHER", "GatherOptions", moving.gather, int16=4, same_scale=True, simulated=Simulated(
        options={"axis": 0, "batch_dims": 0}, constants={0: "table"},
        operands=_INTEGERS, results=frozenset(("int8", "int16")))),
    Operator("MIRROR_PAD", "MirrorPadOptions", moving.mirror_pad, version=2, same_scale=True),
    Operator("PAD", "PadOptions", moving.pad, version=2, int16=2, same_scale=True,
             crosses_batch=_pads_images),
    Operator("RESHAPE", "ReshapeOptions", moving.reshape, int16=1, same_scale=True,
             batch=Batch(place=1, option="new_shape")),
    Operator("SELECT_V2", "SelectV2Options", moving.select, int16=1, same_scale=True, simulated=Simulated(
        operands=frozenset(("bool", "int8", "int16")), results=frozenset(("int8", "int16")))),
    Operator("SPACE_TO_DEPTH", "SpaceToDepthOptions", moving.space_to_depth, same_scale=True),
    Operator("SPLIT", "SplitOptions", moving.split, int16=4, same_scale=True, crosses_batch=_splits_images),
    Operator("STRIDED_SLICE", "StridedSliceOptions", moving.strided_slice, int16=4, same_scale=True,
             crosses_batch=_cuts_images, batch=Batch(place=2, masks=("begin_mask", "end_mask")),
             simulated=Simulated(options={"ellipsis_mask": 0, "new_axis_mask": 0, "offset": False})),
    Operator("TRANSPOSE", "TransposeOptions", moving.transpose, version=2, int16=2, same_scale=True,
             crosses_batch=_moves_images),
)
