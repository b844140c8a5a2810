"""Quantizers: one method a file. QUANTIZERS holds those that a TensorSpec names."""

from kquant.quantizers.base import Quantizer
from kquant.quantizers.lsq import LSQQuantizer
from kquant.quantizers.lsq_plus import LSQPlusQuantizer
from kquant.quantizers.minmax import MinMaxQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "minmax": MinMaxQuantizer, "lsq": LSQQuantizer, "lsq_plus": LSQPlusQuantizer}

__all__ = ["QUANTIZERS", "LSQPlusQuantizer", "LSQQuantizer", "MinMaxQuantizer", "Quantizer"]
