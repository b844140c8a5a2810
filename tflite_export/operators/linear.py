"""Operators with a constant kernel and a bias."""

from tflite_export.kernels import linear
from tflite_export.operators import delegation, sums
from tflite_export.operators.record import Batch, Operator, Simulated

OPERATORS = (
    # version 6 of grouped convolutions
    Operator("CONV_2D", "Conv2DOptions", linear.CONVOLUTION.run, version=3, int16=4,
             weighted=linear.CONVOLUTION, delegated=delegation.has_int8_kernel, sums=sums.convolution),
    Operator("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", linear.DEPTHWISE.run, version=3, int16=5,
             weighted=linear.DEPTHWISE, delegated=delegation.has_int8_kernel, sums=sums.depthwise),
    Operator("FULLY_CONNECTED", "FullyConnectedOptions", linear.DENSE.run, version=5, int16=7,
             weighted=linear.DENSE, delegated=delegation.has_whole_bytes, sums=sums.dense),
    Operator("TRANSPOSE_CONV", "TransposeConvOptions", linear.TRANSPOSED.run, version=3, int16=3,
             weighted=linear.TRANSPOSED, delegated=delegation.has_sound_windows, sums=sums.transposed,
             batch=Batch(place=0, may_be_open=False),
             simulated=Simulated(options={"fused_activation_function": "NONE"})),
)
