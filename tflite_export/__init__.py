"""tflite_export: does the file hold and compute exactly the chosen integers?"""

from tflite_export.certificate import certify
from tflite_export.exporter import Exported, export
from tflite_export.lower import register_lowering
from tflite_export.program import IntOp, IntProgram, IntTensor
from tflite_export.verifier import Verification, VerificationError, verify

__all__ = ["Exported", "IntOp", "IntProgram", "IntTensor", "Verification", "VerificationError", "certify",
           "export", "register_lowering", "verify"]
