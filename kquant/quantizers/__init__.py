"""Quantizers, one method in each file. QUANTIZERS holds those that a TensorSpec can name."""

from kquant.quantizers.base import Quantizer
from kquant.quantizers.current_minmax import CurrentMinMaxQuantizer
from kquant.quantizers.dorefa import DoReFaQuantizer
from kquant.quantizers.in_hindsight import InHindsightQuantizer
from kquant.quantizers.lsq import LSQQuantizer
from kquant.quantizers.lsq_plus import LSQPlusQuantizer
from kquant.quantizers.minmax import MinMaxQuantizer
from kquant.quantizers.moving_average import MovingAverageQuantizer
from kquant.quantizers.nested import NestedQuantizer
from kquant.quantizers.pact import PACTQuantizer
from kquant.quantizers.xnor import XnorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "minmax": MinMaxQuantizer, "moving_average": MovingAverageQuantizer, "in_hindsight": InHindsightQuantizer,
    "current_minmax": CurrentMinMaxQuantizer, "lsq": LSQQuantizer, "lsq_plus": LSQPlusQuantizer,
    "pact": PACTQuantizer, "dorefa": DoReFaQuantizer, "nested": NestedQuantizer, "xnor": XnorQuantizer}

__all__ = ["QUANTIZERS", "CurrentMinMaxQuantizer", "DoReFaQuantizer", "InHindsightQuantizer",
           "LSQPlusQuantizer", "LSQQuantizer", "MinMaxQuantizer", "MovingAverageQuantizer", "NestedQuantizer",
           "PACTQuantizer", "Quantizer", "XnorQuantizer"]
