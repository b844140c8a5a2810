"""kquant: float Keras models to full-integer .tflite files at float accuracy, with proof.

    result = kquant.quantize(model, calibration=images)
    kquant.export(result, "model.tflite", verify=images[:2])

Public names are imported when they are first used, so that a script can set up TensorFlow first. Model files
with kquant's layers load with tf_keras' own `load_model` wherever kquant is imported.
"""

import importlib

from kquant import registration

__version__ = "0.1.0"

_HOMES = {
    "quantize": "kquant.api",
    "QuantizationResult": "kquant.api",
    "export": "tflite_export.exporter",
    "export_family": "tflite_export.family.exporter",
    "analyze": "kquant.analysis.layer_errors",
    "Analysis": "kquant.analysis.results",
    "AnalysisRow": "kquant.analysis.results",
    "report": "kquant.analysis.page.page",
    "diagnose": "kquant.doctor.diagnose",
    "Diagnosis": "kquant.doctor.results",
    "DiagnosisRow": "kquant.doctor.results",
    "DiagnosisSettings": "kquant.doctor.settings",
    "Finding": "kquant.doctor.results",
    "allocate_bits": "kquant.allocation.allocate",
    "Allocation": "kquant.allocation.results",
    "AllocationPoint": "kquant.allocation.results",
    "AllocationRow": "kquant.allocation.results",
    "Budget": "kquant.allocation.budget",
    "LatencyTable": "kquant.allocation.latency",
    "measure_latency": "kquant.allocation.latency",
    "describe": "kquant.qmodel.describe",
    "rewrite": "kquant.graph.passes",
    "standardize": "kquant.rewrites.standardize.standardize",
    "streaming": "kquant.rewrites.streaming",
    "stream_inputs": "kquant.rewrites.streaming",
    "fold_batch_norm": "kquant.rewrites.folding.batch_norm",
    "equalize": "kquant.rewrites.scaling.equalize",
    "prune_dead_channels": "kquant.rewrites.scaling.dead_channels",
    "absorb_bias": "kquant.rewrites.scaling.absorb_bias",
    "split_outlier_channels": "kquant.rewrites.scaling.outlier_channels",
    "describe_scale_groups": "kquant.rewrites.scaling.scale_groups",
    "tile_squeeze_excite": "kquant.rewrites.approximate.squeeze_excite",
    "pipeline_buffer": "kquant.analysis.pipeline",
    "PipelineBuffer": "kquant.analysis.pipeline",
    "BlockBuffer": "kquant.analysis.pipeline",
    "training_traffic": "kquant.analysis.traffic",
    "TrainingTraffic": "kquant.analysis.traffic",
    "LayerTraffic": "kquant.analysis.traffic",
    "choose_tiles": "kquant.search.tiles",
    "TileChoice": "kquant.search.tiles",
    "BlockTile": "kquant.search.tiles",
    "insert_quantizers": "kquant.qmodel.insert",
    "calibrate": "kquant.qmodel.calibrate",
    "round_weights": "kquant.ptq.layerwise.layer_rounding",
    "correct_bias": "kquant.ptq.layerwise.bias_correction",
    "finetune": "kquant.ptq.finetune.finetuning",
    "FinetuneSettings": "kquant.ptq.finetune.finetuning",
    "DistillationModel": "kquant.qmodel.distill",
    "AnyPrecisionModel": "kquant.anyprecision.model",
    "finalize": "kquant.qmodel.finalize",
    "TrackOscillations": "kquant.qat.oscillation_control",
    "FreezeOscillations": "kquant.qat.oscillation_control",
    "DampenOscillations": "kquant.qat.oscillation_control",
    "OscillatingFraction": "kquant.qat.metrics",
    "FrozenFraction": "kquant.qat.metrics",
    "ReestimateBatchNorm": "kquant.qat.bn_reestimate",
    "reestimate_batch_norm": "kquant.qat.bn_reestimate",
    "FreezeBatchNorm": "kquant.qat.schedules",
    "FreezeRanges": "kquant.qat.schedules",
    "QuantizedTraining": "kquant.qat.quantized_training",
    "ReportClipping": "kquant.qat.clipping",
    "DelayActivationQuantization": "kquant.qat.schedules",
    "from_keras3": "kquant.graph.readers.keras3",
    "from_tflite": "kquant.graph.readers.tflite.reader",
    "load_model": "kquant.graph.model_files",
    "QuantConfig": "kquant.core.quant_config",
    "Recipe": "kquant.core.recipe",
    "Rule": "kquant.core.rule",
    "TensorSpec": "kquant.core.tensor_spec",
    "InputRange": "kquant.core.input_range",
    "Encoding": "kquant.core.encodings",
    "Encodings": "kquant.core.encodings",
    "UnsupportedLayerError": "kquant.core.errors",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f"module 'kquant' has no attribute {name!r}")
  value = getattr(importlib.import_module(_HOMES[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return __all__


registration.extend_look_up()
