"""QUANTIZE and DEQUANTIZE: onto a grid, from one to another, and off it."""

from tflite_export.kernels import borders
from tflite_export.operators import delegation
from tflite_export.operators.record import Operator, Simulated

_GRIDS = frozenset(("int8", "uint8", "int16"))

OPERATORS = (
    Operator("DEQUANTIZE", "DequantizeOptions", borders.dequantize, version=2, int16=2, converts=True,
             simulated=Simulated(operands=_GRIDS, results=frozenset(("float32",)))),
    # version 1 from float32
    Operator("QUANTIZE", "QuantizeOptions", borders.quantize, version=2, int16=1, converts=True,
             delegated=delegation.ratio_of_quantize, unary=True,
             simulated=Simulated(operands=_GRIDS | {"float32"}, results=_GRIDS)),
)
