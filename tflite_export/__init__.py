"""tflite_export: does the file hold and compute exactly the chosen integers?

Public names are imported when they are first used: a bundle is read without TensorFlow.
"""

import importlib

_HOMES = {
    "Exported": "tflite_export.exporter",
    "ExportedFamily": "tflite_export.family.exporter",
    "IntOp": "tflite_export.program.program",
    "IntProgram": "tflite_export.program.program",
    "IntTensor": "tflite_export.program.program",
    "Verification": "tflite_export.proof.verifier",
    "VerificationError": "tflite_export.proof.errors",
    "WeightFacts": "kquant.graph.weights",
    "certify": "tflite_export.proof.certificate",
    "export": "tflite_export.exporter",
    "export_family": "tflite_export.family.exporter",
    "register_lowering": "tflite_export.lowering.lower",
    "verify": "tflite_export.proof.verifier",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f"module 'tflite_export' has no attribute {name!r}")
  value = getattr(importlib.import_module(_HOMES[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return __all__
