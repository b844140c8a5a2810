"""Which models of tf_keras.applications become full-integer files, and how exactly.

    python benchmarks/coverage.py [--write]

Random weights, realistic batch norm statistics, small inputs. `--write` makes docs/coverage.md.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

SIZES = {
    "MobileNet": 64, "MobileNetV2": 64, "MobileNetV3Small": 64, "MobileNetV3Large": 64, "EfficientNetB0": 64,
    "EfficientNetV2B0": 64, "NASNetMobile": 64, "RegNetX002": 64, "RegNetY002": 64, "ResNet50": 64,
    "ResNet50V2": 64, "ResNetRS50": 64, "DenseNet121": 64, "InceptionV3": 96, "InceptionResNetV2": 96,
    "Xception": 96, "VGG16": 32, "VGG19": 32, "ConvNeXtTiny": 64}


def measure(name: str, folder: str) -> tuple:
  """Returns the row of one model."""
  from tf_keras import applications, backend

  import kquant
  import tflite_export
  from kquant.core.errors import UnsupportedLayerError
  from tests.models import randomized
  backend.clear_session()
  shape = (SIZES[name], SIZES[name], 3)
  model = randomized(getattr(applications, name)(weights=None, input_shape=shape))
  images = np.random.default_rng(0).uniform(0, 255, (8, *shape)).astype(np.float32)
  start = time.perf_counter()
  try:
    result = kquant.quantize(model, images, effort=None)
    written = tflite_export.export(result, f"{folder}/m.tflite", verify=images[:2], certify=True)
  except UnsupportedLayerError as error:
    return name, len(model.layers), *"------", f"refused: {str(error).split(';')[0]}"
  found = written.verification
  kinds = ", ".join(f"{kind} {count}" for kind, count in written.program.operator_counts().items())
  counted = [row for kernels in written.certificate["kernel_sets"].values()
             for rows in (kernels["operators"], kernels["ties"]["operators"]) for row in rows.values()]
  elements, mismatching = (sum(row[key] for row in counted) for key in ("elements", "mismatching"))
  return (name, len(model.layers), len(written.program.ops), len(found.float_operators), found.max_lsb,
          f"{mismatching} of {elements:,}", left_out(written.certificate),
          f"{time.perf_counter() - start:.1f}", kinds)


def left_out(certificate: dict) -> str:
  """The kinds of operators that the certificate did not compare, with their set of kernels."""
  found = {f"{kernels} {line.split()[0]}" for kernels, result in certificate["kernel_sets"].items()
           for line in result["not_simulated"]}
  return ", ".join(sorted(found)) or "none"


def main() -> None:
  """Prints the table, and writes it where asked."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--write", action="store_true")
  flags = parser.parse_args()
  from ptq import describe

  import kquant.cli  # noqa: F401  quiet start
  header = ("model", "Keras layers", "operators", "float operators", "max LSB per operator",
            "mismatching elements", "not compared", "seconds", "kinds")
  with tempfile.TemporaryDirectory() as folder:
    rows = [measure(name, folder) for name in SIZES]
  table = "\n".join("| " + " | ".join(map(str, row)) + " |"
                    for row in [header, ("---",) * len(header), *rows])
  text = f"""# Coverage: tf_keras.applications

{describe("python benchmarks/coverage.py --write")}

Random weights with realistic batch norm statistics, inputs of 32 to 96 pixels. The figures measure
exactness only; with random weights there is no accuracy to compare. Terms: [glossary.md](glossary.md).

- "max LSB per operator": the largest difference between an operator's output in LiteRT (default kernels)
  and the Keras layer on the same inputs, over every tensor and two images.
- "mismatching elements": kquant's own integer simulator, which computes the whole network from its inputs,
  against LiteRT. Compared are every tensor, on the default (XNNPACK) and the reference kernels, for two
  images and two random inputs, and single operators on inputs whose results are rounding ties.
- "not compared": operators that are left out. The reference SOFTMAX ends the process if the exponentials of
  a row sum to 512 or more, as those of 1000 nearly equal classes do.
- "seconds": quantization, export and all comparisons.

{table}
"""
  print(text)
  if flags.write:
    (ROOT / "docs" / "coverage.md").write_text(text)


if __name__ == "__main__":
  main()
