"""How far the three sets of kernels of LiteRT are apart on the same files.

    python benchmarks/kernel_sets.py [--shared=../shared] [--images=16] [--write]

Each file runs free from the same inputs in the default interpreter (XNNPACK), on the optimised kernels
without the delegate (builtin) and on the reference kernels; outputs and all intermediate tensors are
compared. `--write` puts the table into benchmarks/results.md.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

PAIRS = (("xnnpack", "reference"), ("xnnpack", "builtin"), ("builtin", "reference"))
TITLE = "The three sets of kernels on the same files"


def files(data: pathlib.Path, images: int, folder: str):
  """Yields (name, bytes of the file, int8 inputs) of the real models, where they are, and of the zoo."""
  from ptq import MODELS, images_of, load

  from tests import models
  if data.is_dir():
    for name in MODELS:
      calibration, judged, _ = images_of(name, data)
      yield MODELS[name], *exported(load(name, data), [calibration], [judged[:images]], folder)
  for name in models.ZOO:
    model = models.build(name)
    x = models.sample_inputs(model, images=32)
    yield f"tiny {name}", *exported(model, x, [array[:images] for array in x], folder)


def exported(model, calibration: list, x: list, folder: str) -> tuple[bytes, list[np.ndarray]]:
  """Quantizes and writes a model; returns the file and x as its integers."""
  import kquant
  import tflite_export
  result = kquant.quantize(model, calibration if calibration[1:] else calibration[0], effort=None)
  written = tflite_export.export(result, f"{folder}/m.tflite")
  return written.path.read_bytes(), [result.encodings[name].quantize(array).astype(np.int8)
                                     for array, name in zip(x, written.program.inputs)]


def measure(data: bytes, inputs: list[np.ndarray]) -> list[str]:
  """Returns the cells of one file: for each pair of sets the rate and the LSB, outputs and all tensors."""
  from tflite_export.file.reader import from_bytes
  from tflite_export.file.writer import to_bytes
  from tflite_export.proof.runtime import KERNELS, Runtime
  from tflite_export.proof.simulate import simulate
  program = from_bytes(data)
  simulate(program, inputs, mode="reference")  # a softmax that would end the process is an error here
  quantized = {name for name, tensor in program.tensors.items() if tensor.dtype == "int8"}
  names = [name for op in program.ops for name in op.outputs if name in quantized]
  places = [names.index(name) for name in program.outputs]
  watched = to_bytes(program.with_outputs(names))
  results = {kernels: Runtime(watched, kernels=kernels).run_many(inputs) for kernels in KERNELS}
  cells = []
  for first, second in PAIRS:
    apart = [np.abs(a.astype(int) - b).ravel() for a, b in zip(results[first], results[second])]
    cells += [rate([apart[place] for place in places]), rate(apart)]
  return [f"{sum(array.size for array in results['xnnpack']):,}", *cells]


def rate(apart: list[np.ndarray]) -> str:
  """The share of elements that differ, and by how much at most."""
  apart = np.concatenate(apart)
  return f"{100 * np.mean(apart > 0):.2f} % ({apart.max(initial=0)})"


def main() -> None:
  """Prints the table, and writes it where asked."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shared", default=os.environ.get("KQUANT_SHARED", ROOT.parent / "shared"))
  parser.add_argument("--images", type=int, default=16)
  parser.add_argument("--write", action="store_true")
  flags = parser.parse_args()
  from ptq import describe, write_section

  import kquant.cli  # noqa: F401  quiet start
  header = ["model", "elements", *(f"{first} / {second}, {what}" for first, second in PAIRS
                                   for what in ("outputs", "all tensors"))]
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for name, data, inputs in files(pathlib.Path(flags.shared) / "data", flags.images, folder):
      rows.append([name, *measure(data, inputs)])
      print(*rows[-1], sep="  ", flush=True)
  note = (f"The same int8 file on the same {flags.images} images, running free from the inputs: the share of "
          "elements of the outputs, and of all intermediate int8 tensors, in which two sets of kernels "
          "differ, and in parentheses by how many LSB at most: single roundings at first, which the layers "
          "behind add up. builtin is the interpreter without its default delegate. kquant's simulator gives "
          "the integers of xnnpack and of reference exactly; builtin as a whole is not simulated, only those "
          "of its operators that the delegate leaves to it.")
  table = "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])
  body = f"{describe(f'python benchmarks/kernel_sets.py --images={flags.images}')}\n\n{note}\n\n{table}"
  print(body)
  if flags.write:
    write_section(TITLE, body)


if __name__ == "__main__":
  main()
