"""Every layer of tf_keras under every preset, border and batch: exact integers, or a refusal by name.

    python -m tests.tflite_export.layer_sweep [--only=Conv2D,Embedding] [--presets=int8,int16x8]

prints a line for each failure and a tally; exits with 1 where one failed. `make test` runs a part of it.
"""

import argparse
import collections
import sys
import tempfile

import tf_keras as keras

import kquant as kq
from tests import layer_cases
from tests.models import randomized

PRESETS = ("int8", "int8_per_tensor", "w4a8", "int16x8")
BORDERS = ({"io": "int8"}, {"io": "float32"}, {"io": "int8", "batch": "dynamic"},
           {"io": "float32", "batch": 3})


def check(name: str, preset: str, border: dict, folder: str) -> str:
  """Quantizes, writes and certifies one layer; returns "exact", or the refusal that names layer and remedy.

  Raises:
    AssertionError, VerificationError: a file that is not exact, or a refusal without a name.
  """
  keras.backend.clear_session()
  keras.utils.set_random_seed(0)
  model = randomized((layer_cases.HANDLED | layer_cases.HANDLED_FORMS)[name]())
  inputs = layer_cases.inputs_of(model)
  try:
    result = kq.quantize(model, inputs, config=preset, effort=None)
    written = kq.export(result, f"{folder}/m.tflite", verify=[x[:3] for x in inputs], certify=True, **border)
  except ValueError as error:  # UnsupportedLayerError is one
    assert str(error).startswith(("Layer '", "Tensor '", "MIRROR_PAD of layer '")), error
    return str(error)
  assert written.certificate["exact"] or _left_out(written.certificate), written.certificate["kernel_sets"]
  assert not written.verification.float_operators
  return "exact"


def _left_out(certificate: dict) -> bool:
  """Whether all that is missing are operators that are not simulated: nothing differs."""
  rows = [row for result in certificate["kernel_sets"].values()
          for row in (*result["operators"].values(), *result["ties"]["operators"].values())]
  return not any(row["mismatching"] for row in rows)


def main(arguments: list[str] | None = None) -> int:
  """Runs the sweep; returns 1 where a case failed."""
  parser = argparse.ArgumentParser(description="Every layer under every preset, border and batch.")
  everything = (*layer_cases.HANDLED, *layer_cases.HANDLED_FORMS)
  parser.add_argument("--only", default=",".join(everything), help="layer classes")
  parser.add_argument("--presets", default=",".join(PRESETS))
  flags = parser.parse_args(arguments)
  tally, failed = collections.Counter(), 0
  with tempfile.TemporaryDirectory() as folder:
    for name in flags.only.split(","):
      for preset in flags.presets.split(","):
        for border in BORDERS:
          try:
            found = check(name, preset, border, folder)
            tally["exact" if found == "exact" else f"refused: {name} {preset}: {found}"] += 1
          except Exception as error:  # a sweep goes on behind any failure, and prints it
            failed += 1
            print(f"FAILED {name} {preset} {border}: {type(error).__name__}: {str(error)[:300]}", flush=True)
  for what, count in sorted(tally.items()):
    print(f"{count:5} {what}")
  print(f"{sum(tally.values())} cases, {failed} failed")
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main())
