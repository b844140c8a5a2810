"""Quantizers: one method a file."""

from kquant.quantizers.base import Quantizer
from kquant.quantizers.minmax import MinMaxQuantizer

__all__ = ["MinMaxQuantizer", "Quantizer"]
