"""tflite_export: does the file hold and compute exactly the chosen integers?"""

from kquant.graph.weights import WeightFacts
from tflite_export.exporter import Exported, export
from tflite_export.lowering.lower import register_lowering
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.certificate import certify
from tflite_export.proof.verifier import Verification, VerificationError, verify

__all__ = ["Exported", "IntOp", "IntProgram", "IntTensor", "Verification", "VerificationError", "WeightFacts",
           "certify", "export", "register_lowering", "verify"]
