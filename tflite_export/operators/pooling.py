"""Pools, reductions and resizing."""

import numpy as np

from tflite_export.kernels import pooling, resize
from tflite_export.operators import delegation, sums
from tflite_export.operators.record import Operator, Simulated
from tflite_export.program.program import IntOp, Tensors

_HALF_PIXELS = Simulated(options={"align_corners": False, "half_pixel_centers": True})


def _reduces_images(op: IntOp, inputs: Tensors, outputs: Tensors) -> bool:
  del op, outputs
  return bool(np.any(inputs[1].data % len(inputs[0].shape) == 0))


OPERATORS = (
    Operator("AVERAGE_POOL_2D", "Pool2DOptions", pooling.average_pool_2d, version=2, int16=3,
             same_scale=True, delegated=delegation.never, sums=sums.average_pool),
    Operator("MAX_POOL_2D", "Pool2DOptions", pooling.max_pool_2d, version=2, int16=3, same_scale=True,
             delegated=delegation.has_dense_pool),
    Operator("MEAN", "ReducerOptions", pooling.mean, version=2, int16=3, delegated=delegation.always,
             crosses_batch=_reduces_images, sums=sums.mean),
    Operator("REDUCE_MAX", "ReducerOptions", pooling.reduce_max, version=2, int16=2, same_scale=True,
             crosses_batch=_reduces_images),
    Operator("REDUCE_MIN", "ReducerOptions", pooling.reduce_min, version=2, int16=2, same_scale=True,
             crosses_batch=_reduces_images),
    Operator("RESIZE_BILINEAR", "ResizeBilinearOptions", resize.resize_bilinear, version=3, int16=3,
             same_scale=True, delegated=delegation.always, simulated=_HALF_PIXELS),
    Operator("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions", resize.resize_nearest_neighbor,
             version=3, int16=3, same_scale=True, simulated=_HALF_PIXELS),
)
