"""Runs a .tflite file on inputs, in a process of its own: a damaged file can crash the runtime.

`python running.py FOLDER` reads FOLDER/m.tflite and FOLDER/inputs.npz, and writes FOLDER/outputs.npz.
"""

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np


def run(data: bytes, batches: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
  """Returns the outputs of a file for each batch of inputs; the first batch sets the shapes.

  Raises:
    ValueError: LiteRT cannot run it. The message continues "FILE ".
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / "m.tflite").write_bytes(data)
    np.savez(folder / "inputs.npz", **{f"{i}_{j}": values for i, batch in enumerate(batches)
                                       for j, values in enumerate(batch)})
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
    if done.returncode:
      reason = [line for line in done.stderr.strip().splitlines() if line.startswith("error: ")]
      what = reason[-1].removeprefix("error: ") if reason else "it crashes the runtime"
      raise ValueError(f"cannot be run by LiteRT: {what}; copy or convert it again")
    with np.load(folder / "outputs.npz") as stored:
      outputs: list[list[np.ndarray]] = [[] for _ in batches]
      for key in sorted(stored.files, key=lambda key: [int(part) for part in key.split("_")]):
        outputs[int(key.split("_")[0])].append(stored[key])
  return outputs


def _serve(folder: pathlib.Path) -> None:
  """The work of the other process."""
  from ai_edge_litert.interpreter import Interpreter
  with np.load(folder / "inputs.npz") as stored:
    inputs = dict(stored)
  interpreter = Interpreter(model_path=str(folder / "m.tflite"))
  details, outputs = interpreter.get_input_details(), {}
  for place, detail in enumerate(details):
    if tuple(detail["shape"]) != inputs[f"0_{place}"].shape:
      interpreter.resize_tensor_input(detail["index"], inputs[f"0_{place}"].shape)
  interpreter.allocate_tensors()
  for batch in range(len(inputs) // len(details)):
    for place, detail in enumerate(details):
      interpreter.set_tensor(detail["index"], inputs[f"{batch}_{place}"].astype(detail["dtype"]))
    interpreter.invoke()
    for place, detail in enumerate(interpreter.get_output_details()):
      outputs[f"{batch}_{place}"] = interpreter.get_tensor(detail["index"])
  np.savez(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
  try:
    _serve(pathlib.Path(sys.argv[1]))
  except Exception as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
