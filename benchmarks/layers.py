"""Every layer class of tf_keras.layers: the integer operators it becomes, or why it is refused.

    python benchmarks/layers.py [--write]

Runs the tiny models of tests/layer_cases.py. `--write` makes docs/layers.md.
"""

import argparse
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def measure(name: str, folder: str) -> tuple[str, str, str]:
  """Returns the row of one class: its name, mismatching elements, operators or the refusal."""
  import numpy as np
  from tf_keras import backend

  import kquant
  import tflite_export
  from kquant.core.errors import UnsupportedLayerError
  from tests import layer_cases
  from tests.models import randomized
  backend.clear_session()
  if name in layer_cases.NOT_IN_GRAPHS:
    return name, "-", f"no layer of a functional model: {layer_cases.NOT_IN_GRAPHS[name]}"
  handled, refused = (layer_cases.HANDLED | layer_cases.HANDLED_FORMS,
                      layer_cases.REFUSED | layer_cases.REFUSED_FORMS)
  model = (handled | refused)[name]()
  if name in refused:
    data = [np.zeros((4, *(n or 1 for n in tensor.shape[1:])), np.float32) for tensor in model.inputs]
    try:
      kquant.quantize(model, data, effort=None)
    except UnsupportedLayerError as error:
      return name, "refused", str(error).split(") ", 1)[1]
    raise AssertionError(f"{name} was expected to be refused and was not.")
  inputs = layer_cases.inputs_of(randomized(model))
  result = kquant.quantize(model, inputs, effort=None)
  written = tflite_export.export(result, f"{folder}/m.tflite", verify=[x[:3] for x in inputs], certify=True)
  rows = [row for kernels in written.certificate["kernel_sets"].values()
          for row in kernels["operators"].values()]
  mismatching, elements = (sum(row[key] for row in rows) for key in ("mismatching", "elements"))
  kinds = ", ".join(f"{kind} {count}" for kind, count in written.program.operator_counts().items())
  return name, f"{mismatching} of {elements:,}", kinds or "none"


def main() -> None:
  """Prints the table, and writes it where asked."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--write", action="store_true")
  flags = parser.parse_args()
  from ptq import describe

  import kquant.cli  # noqa: F401  quiet start
  from tests import layer_cases
  with tempfile.TemporaryDirectory() as folder:
    names = (*layer_cases.layer_classes(), *layer_cases.HANDLED_FORMS, *layer_cases.REFUSED_FORMS)
    rows = [measure(name, folder) for name in names]
  header = ("layer", "mismatching elements", "operators of a small model with it, or why it is refused")
  table = "\n".join("| " + " | ".join(row) + " |" for row in [header, ("---",) * len(header), *rows])
  text = f"""# Coverage: the layers of tf_keras

{describe("python benchmarks/layers.py --write")}

Each class is quantized in a small model with random weights (tests/layer_cases.py). "mismatching elements"
compares the integer simulator, which computes the whole model from its inputs, with LiteRT: every tensor, on
the default (XNNPACK) and the reference kernels, for three given and two random inputs. Some models contain a
Dense layer beside the layer. Terms: [glossary.md](glossary.md).

{table}
"""
  print(text)
  if flags.write:
    (ROOT / "docs" / "layers.md").write_text(text)


if __name__ == "__main__":
  main()
