"""Peak memory and seconds of quantize and of a verified export, beside those of the float model alone.

    python benchmarks/memory.py [--cases="super_resolution 128 32 32;EfficientNetB4 380 32 32"] [--write]

A case is a network, its pixels, images to calibrate with and images to verify with. Each runs in a process of
its own (Linux). `super_resolution` doubles the pixels; it and the keras.applications have random weights. A
peak is what a stage adds to the process as it was with the model and the images at hand. The float model
predicts image by image: no stage may add more than that and 1.5 GB.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

LIMIT_GB = 1.5
CASES = (
    "super_resolution 64 16 16", "super_resolution 64 128 128", "super_resolution 64 2048 512",
    "super_resolution 128 32 32", "super_resolution 256 16 16", "super_resolution 512 16 4",
    "super_resolution 1024 16 2", "ResNet50 224 16 16", "ResNet50 224 128 32", "EfficientNetB4 380 32 32",
)
STAGES = ("float", "quantize", "verify")


def super_resolution(pixels: int):
  """Returns a residual network of 2.5 MB that doubles the pixels of an image."""
  import tf_keras as keras
  from tf_keras import layers
  image = keras.Input((pixels, pixels, 3))
  x = first = layers.Conv2D(64, 3, padding="same", activation="relu")(image)
  for _ in range(8):
    y = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
    x = layers.Add()([x, layers.Conv2D(64, 3, padding="same")(y)])
  x = layers.Add()([x, first])
  x = layers.Conv2DTranspose(32, 4, strides=2, padding="same", activation="relu")(x)
  return keras.Model(image, layers.Conv2D(3, 3, padding="same")(x))


def build(network: str, pixels: int, count: int):
  """Returns (model, images)."""
  import numpy as np
  import tf_keras as keras
  keras.utils.set_random_seed(0)
  images = np.random.default_rng(0).random((count, pixels, pixels, 3), np.float32)
  if network == "super_resolution":
    return super_resolution(pixels), images
  return getattr(keras.applications, network)(weights=None, input_shape=(pixels, pixels, 3)), images


def status(field: str) -> float:
  """Returns a field of the memory of this process, in GB."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def measured(run: Callable[[], object], base: float) -> tuple[dict[str, float], object]:
  """Returns ({GB over `base` at the peak, seconds}, what `run` returns)."""
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
  start = time.perf_counter()
  result = run()
  return {"gb": status("VmHWM") - base, "seconds": time.perf_counter() - start}, result


def measure(case: str) -> dict[str, dict[str, float]]:
  """Returns {stage: {gb, seconds}} of a case, in this process."""
  network, *numbers = case.split()
  pixels, count, verified = map(int, numbers)
  model, images = build(network, pixels, count)
  import kquant as kq
  base = status("VmRSS")
  found = {}
  found["float"], _ = measured(lambda: [model.predict(image[None], verbose=0) for image in images[:2]], base)
  found["quantize"], result = measured(lambda: kq.quantize(model, images, effort=None), base)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model.tflite"
    found["verify"], _ = measured(lambda: kq.export(result, path, verify=images[:verified]), base)
  return found


def measure_apart(case: str) -> dict[str, dict[str, float]]:
  """Returns `measure` of a case in a process of its own."""
  command = [sys.executable, __file__, f"--only={case}"]
  printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
  return json.loads(printed.splitlines()[-1])


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
  """The results as Markdown."""
  names = ("network", "pixels", "images", "verified", "float GB", "quantize GB", "seconds", "verify GB",
           "seconds", "over float")
  lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
  for case, row in found.items():
    own, quantize, verify = (row[stage] for stage in STAGES)
    over = max(quantize["gb"], verify["gb"]) - own["gb"]
    cells = [*case.split(), f"{own['gb']:.2f}", f"{quantize['gb']:.2f}", f"{quantize['seconds']:.1f}",
             f"{verify['gb']:.2f}", f"{verify['seconds']:.1f}",
             f"{over:.2f}" + (" (too much)" if over > LIMIT_GB else "")]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--cases", default=";".join(CASES))
  parser.add_argument("--only", help="one case, in this process, as JSON")
  parser.add_argument("--write", action="store_true")
  flags = parser.parse_args()
  if flags.only:
    import kquant.cli  # noqa: F401  quiet start
    print(json.dumps(measure(flags.only)))
    return
  from ptq import describe, write_section
  found = {}
  for case in flags.cases.split(";"):
    found[case] = measure_apart(case)
    print(table({case: found[case]}).splitlines()[-1], flush=True)
  chosen = "" if flags.cases == ";".join(CASES) else f' --cases="{flags.cases}"'
  head = describe(f"python benchmarks/memory.py{chosen}")
  note = ("GB that a stage adds at its peak; int8 default. \"Over float\" is the larger of both less that of "
          f"the float model on one image: at most {LIMIT_GB}.")
  body = f"{head}\n\n{note}\n\n{table(found)}"
  print(body)
  if flags.write:
    write_section("Memory", body)


if __name__ == "__main__":
  main()
