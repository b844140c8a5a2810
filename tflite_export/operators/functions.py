"""Functions of one element, and SOFTMAX."""

from tflite_export.kernels import softmax, tables
from tflite_export.operators import delegation
from tflite_export.operators.record import Operator

_OF_ONE = {"int8": (1 / 256, -128), "int16": (1 / 32768, 0)}
"""Grids of outputs from 0 to 1."""

OPERATORS = (
    Operator("HARD_SWISH", "HardSwishOptions", tables.hard_swish, delegated=delegation.never, unary=True),
    Operator("LEAKY_RELU", "LeakyReluOptions", tables.leaky_relu, version=2, int16=2,
             delegated=delegation.ratios_of_leaky_relu, unary=True),
    Operator("LOGISTIC", version=2, int16=3, output_grids=_OF_ONE, delegated=delegation.always, unary=True),
    Operator("RELU", None, tables.rectify, version=2, int16=2, delegated=delegation.never, unary=True),
    Operator("RELU6", None, tables.rectify, version=2, int16=2, delegated=delegation.never, unary=True),
    Operator("SOFTMAX", "SoftmaxOptions", softmax.softmax, version=2, int16=3, output_grids=_OF_ONE,
             delegated=delegation.never, tolerance=1, ends_process=True),
    Operator("TANH", version=2, int16=3, output_grids={"int8": (1 / 128, 0), "int16": (1 / 32768, 0)},
             delegated=delegation.always, unary=True),
)
