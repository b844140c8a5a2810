"""What the reader and the verifier know of TFLite operators, written apart from writer and records.

It must not import them: a proof that asked what it checks would prove nothing.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

FROM_FLOAT, TO_FLOAT = "QUANTIZE", "DEQUANTIZE"
"""What converts at the border of a file."""

_PADDINGS = ("SAME", "VALID")
_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
_MIRRORS = ("REFLECT", "SYMMETRIC")
ENUMS = {"mode": _MIRRORS, "padding": _PADDINGS, "fused_activation_function": _ACTIVATIONS}
"""{option: names of its values in the order of the schema}."""
LISTS = ("new_shape",)
"""Options that are vectors."""

_ACTIVATION = "fused_activation_function"
_WINDOW = ("padding", "stride_w", "stride_h", _ACTIVATION)
_POOL = (schema.Pool2DOptions, (*_WINDOW, "filter_width", "filter_height"))
_DILATION = ("dilation_w_factor", "dilation_h_factor")
_ARITHMETIC = (_ACTIVATION, "pot_scale_int16")
_CORNERS = ("align_corners", "half_pixel_centers")
_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask", "offset")

OPTIONS = {
    "ADD": (schema.AddOptions, _ARITHMETIC),
    "AVERAGE_POOL_2D": _POOL,
    "BATCH_MATMUL": (schema.BatchMatMulOptions, ("adj_x", "adj_y", "asymmetric_quantize_inputs")),
    "CONCATENATION": (schema.ConcatenationOptions, ("axis", _ACTIVATION)),
    "CONV_2D": (schema.Conv2DOptions, (*_WINDOW, *_DILATION, "quantized_bias_type")),
    "DEPTHWISE_CONV_2D": (
        schema.DepthwiseConv2DOptions, (*_WINDOW, *_DILATION, "depth_multiplier")),
    "DEPTH_TO_SPACE": (schema.DepthToSpaceOptions, ("block_size",)),
    "FILL": (schema.FillOptions, ()),
    "FULLY_CONNECTED": (
        schema.FullyConnectedOptions, (
            _ACTIVATION, "weights_format", "keep_num_dims", "asymmetric_quantize_inputs",
            "quantized_bias_type")),
    "GATHER": (schema.GatherOptions, ("axis", "batch_dims")),
    "LEAKY_RELU": (schema.LeakyReluOptions, ("alpha",)),
    "MAX_POOL_2D": _POOL,
    "MEAN": (schema.ReducerOptions, ("keep_dims",)),
    "MIRROR_PAD": (schema.MirrorPadOptions, ("mode",)),
    "MUL": (schema.MulOptions, (_ACTIVATION,)),
    "REDUCE_MAX": (schema.ReducerOptions, ("keep_dims",)),
    "REDUCE_MIN": (schema.ReducerOptions, ("keep_dims",)),
    "RESHAPE": (schema.ReshapeOptions, ("new_shape",)),
    "RESIZE_BILINEAR": (schema.ResizeBilinearOptions, _CORNERS),
    "RESIZE_NEAREST_NEIGHBOR": (schema.ResizeNearestNeighborOptions, _CORNERS),
    "SELECT_V2": (schema.SelectV2Options, ()),
    "SOFTMAX": (schema.SoftmaxOptions, ("beta",)),
    "SPACE_TO_DEPTH": (schema.SpaceToDepthOptions, ("block_size",)),
    "SPLIT": (schema.SplitOptions, ("num_splits",)),
    "STRIDED_SLICE": (schema.StridedSliceOptions, _MASKS),
    "SUB": (schema.SubOptions, _ARITHMETIC),
    "TRANSPOSE_CONV": (schema.TransposeConvOptions, (*_WINDOW, "quantized_bias_type")),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (schema.UnidirectionalSequenceLSTMOptions, (
        _ACTIVATION, "cell_clip", "proj_clip", "time_major", "asymmetric_quantize_inputs",
        "diagonal_recurrent_tensors")),
}
"""{kind: (accessor of the options table, its fields)}; options of other kinds are read as {}."""

KERNELS = {
    "CONV_2D": lambda q: np.moveaxis(q if q.ndim == 4 else q[None], -1, 0),
    "DEPTHWISE_CONV_2D": lambda q: q.reshape(1, *q.shape[:2], -1),
    "TRANSPOSE_CONV": lambda q: np.moveaxis(q, 2, 0),
    "FULLY_CONNECTED": lambda q: np.swapaxes(q, 0, 1),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": lambda q: np.swapaxes(q, 0, 1),
}
"""{kind: how the integers of a Keras kernel lie in the file}."""
KERNEL_PLACES = {"UNIDIRECTIONAL_SEQUENCE_LSTM": range(1, 9)}
"""{kind: positions of its kernels among its inputs}; the second of others."""

INPUTS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 4, "FULLY_CONNECTED": 3,
          "UNIDIRECTIONAL_SEQUENCE_LSTM": 24}
"""{kind with a kernel: how many inputs it has, bias included}."""
MAY_BE_ABSENT = ("UNIDIRECTIONAL_SEQUENCE_LSTM",)
"""Kinds of which some inputs are absent."""

COARSE = {"RESIZE_BILINEAR": False, "SOFTMAX": True}
"""{kind whose inner numbers are coarser than int16: whether every class adds to the difference}."""
STEP_ERRORS = {"UNIDIRECTIONAL_SEQUENCE_LSTM": 2.0**-10}
"""{kind with a state: how far its tables bring a cell off in a step}; over n steps sqrt(n) times as far."""
