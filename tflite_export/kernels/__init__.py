"""Integer arithmetic of every operator kind that the writer writes, bit by bit that of LiteRT 2.3 on x86.

One file a family. `multipliers` holds the roundings, `call` what a kernel is given, `delegation` which
set of kernels (reference, xnnpack, builtin) runs an operator in a mode, `coverage` what is not
simulated: uint8 inside of a network, computed shapes, resizes without half-pixel
centres, sums and products at absurd ratios of scales. LOGISTIC and TANH are tables read from the
runtime: exact, but no second opinion on it. All else is computed here.
"""

from collections.abc import Callable

from tflite_export.kernels import borders, elementwise, linear, moving, pooling, resize, softmax, tables

KERNELS: dict[str, Callable[..., list]] = {
    "ADD": elementwise.add,
    "AVERAGE_POOL_2D": pooling.average_pool_2d,
    "BATCH_MATMUL": linear.batch_matmul,
    "CAST": moving.cast,
    "CONCATENATION": moving.concatenation,
    "CONV_2D": linear.weighted,
    "DEPTHWISE_CONV_2D": linear.weighted,
    "DEPTH_TO_SPACE": moving.depth_to_space,
    "DEQUANTIZE": borders.dequantize,
    "FULLY_CONNECTED": linear.weighted,
    "GATHER": moving.gather,
    "HARD_SWISH": tables.hard_swish,
    "LEAKY_RELU": tables.leaky_relu,
    "LOGISTIC": tables.read_from_runtime,
    "MAXIMUM": elementwise.maximum,
    "MAX_POOL_2D": pooling.max_pool_2d,
    "MEAN": pooling.mean,
    "MINIMUM": elementwise.minimum,
    "MIRROR_PAD": moving.mirror_pad,
    "MUL": elementwise.mul,
    "PAD": moving.pad,
    "PRELU": elementwise.prelu,
    "QUANTIZE": borders.quantize,
    "REDUCE_MAX": pooling.reduce_max,
    "REDUCE_MIN": pooling.reduce_min,
    "RELU": tables.relu,
    "RELU6": tables.relu6,
    "RESHAPE": moving.reshape,
    "RESIZE_BILINEAR": resize.resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize.resize_nearest_neighbor,
    "SOFTMAX": softmax.softmax,
    "SPACE_TO_DEPTH": moving.space_to_depth,
    "SPLIT": moving.split,
    "STRIDED_SLICE": moving.strided_slice,
    "SUB": elementwise.sub,
    "TANH": tables.read_from_runtime,
    "TRANSPOSE": moving.transpose,
    "TRANSPOSE_CONV": linear.weighted,
}
