"""The public names are pinned; none is also a module."""

import importlib
import os
import pathlib
import subprocess
import sys

import kquant
import tflite_export

ROOT = pathlib.Path(__file__).parents[1]


def test_names_of_kquant():
  assert sorted(kquant.__all__) == [
      "Allocation",
      "AllocationPoint",
      "AllocationRow",
      "Analysis",
      "AnalysisRow",
      "AnyPrecisionModel",
      "BlockBuffer",
      "BlockTile",
      "Budget",
      "DampenOscillations",
      "DelayActivationQuantization",
      "Diagnosis",
      "DiagnosisRow",
      "DiagnosisSettings",
      "DistillationModel",
      "Encoding",
      "Encodings",
      "Finding",
      "FinetuneSettings",
      "FreezeBatchNorm",
      "FreezeOscillations",
      "FreezeRanges",
      "FrozenFraction",
      "InputRange",
      "LatencyTable",
      "LayerTraffic",
      "OscillatingFraction",
      "PipelineBuffer",
      "QuantConfig",
      "QuantizationResult",
      "QuantizedTraining",
      "Recipe",
      "ReestimateBatchNorm",
      "ReportClipping",
      "Rule",
      "TensorSpec",
      "TileChoice",
      "TrackOscillations",
      "TrainingTraffic",
      "UnsupportedLayerError",
      "__version__",
      "absorb_bias",
      "allocate_bits",
      "analyze",
      "calibrate",
      "choose_tiles",
      "correct_bias",
      "describe",
      "describe_scale_groups",
      "diagnose",
      "equalize",
      "export",
      "export_family",
      "finalize",
      "finetune",
      "fold_batch_norm",
      "from_keras3",
      "from_tflite",
      "insert_quantizers",
      "load_model",
      "measure_latency",
      "pipeline_buffer",
      "prune_dead_channels",
      "quantize",
      "reestimate_batch_norm",
      "report",
      "rewrite",
      "round_weights",
      "split_outlier_channels",
      "standardize",
      "stream_inputs",
      "streaming",
      "tile_squeeze_excite",
      "training_traffic",
  ]
  for name in kquant.__all__:
    assert getattr(kquant, name) is not None


def test_export_is_that_of_tflite_export():
  assert kquant.export is tflite_export.export


def test_names_of_tflite_export():
  assert tflite_export.__all__ == [
      "Exported", "ExportedFamily", "IntOp", "IntProgram", "IntTensor", "Verification", "VerificationError",
      "WeightFacts", "certify", "export", "export_family", "register_lowering", "verify"]
  for name in tflite_export.__all__:
    assert getattr(tflite_export, name) is not None


def test_no_public_name_is_a_module_beside_it():
  for package in (kquant, tflite_export):
    folder = pathlib.Path(package.__file__).parent
    modules = {path.stem for path in folder.iterdir()}
    assert not (set(package.__all__) - {"__version__"}) & modules, package


def test_every_public_object_has_a_docstring():
  for package in (kquant, tflite_export):
    for name in package.__all__:
      if name != "__version__":
        assert getattr(package, name).__doc__, name


def test_importing_kquant_does_not_import_tensorflow():
  code = "import sys, kquant; sys.exit('tensorflow' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_folder_of_its_name_does_not_hide_the_package(tmp_path):
  """Python is started where the clone lies, too."""
  (tmp_path / "kquant").mkdir()
  code = "import importlib.util; print(importlib.util.find_spec('kquant').origin)"
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True,
                        text=True)
  assert done.stdout.strip().endswith("__init__.py"), done.stdout + done.stderr


def test_importing_the_scripts_changes_nothing_of_the_process():
  code = """
import os, sys
before = os.environ.copy(), [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
import kquant.cli.benchmark, kquant.cli.export, kquant.cli.family, kquant.cli.ptq, kquant.cli.qat
import kquant.cli.verify
after = os.environ.copy(), [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
sys.exit(before != after or "tensorflow" in sys.modules)
"""
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_unknown_name_is_an_attribute_error():
  try:
    kquant.no_such_name  # noqa: B018
  except AttributeError as error:
    assert "no_such_name" in str(error)
  else:
    raise AssertionError("expected an AttributeError")


def test_homes_exist():
  for name, home in kquant._HOMES.items():
    assert hasattr(importlib.import_module(home), name)
