"""Which models of Keras 3 come in, and how equal they are: keras.applications, keras.layers, keras.ops.

    python benchmarks/door.py [--write] [--models=MobileNetV2,ResNet50]

Random weights, realistic batch norm statistics. The difference is the largest one at the logits, on random
images, over the largest logit. Each family is also quantized to int8 and verified. Functions and layers are
called in the usual ways, one model each. `--write` makes docs/keras3.md.
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
    "EfficientNetV2B0": 64, "NASNetMobile": 64, "ResNet50": 64, "ResNet50V2": 64, "DenseNet121": 64,
    "InceptionV3": 96, "InceptionResNetV2": 96, "Xception": 96, "VGG16": 32, "VGG19": 32, "ConvNeXtTiny": 64}


def measure(name: str, folder: str) -> tuple:
  """Returns the row of one family: layers, difference, seconds to convert, what was verified."""
  import keras

  import kquant as kq
  from tests.models import randomized
  keras.backend.clear_session()
  shape = (SIZES[name], SIZES[name], 3)
  family = getattr(keras.applications, name)
  model = randomized(family(weights=None, input_shape=shape, classifier_activation=None))
  images = np.random.default_rng(0).uniform(0, 255, (8, *shape)).astype(np.float32)
  start = time.perf_counter()
  made = kq.from_keras3(model)
  seconds = time.perf_counter() - start
  theirs = np.asarray(keras.ops.convert_to_numpy(model(images, training=False)))
  off = np.abs(made(images).numpy() - theirs).max() / np.abs(theirs).max()
  written = kq.export(kq.quantize(made, images, effort=None), f"{folder}/m.tflite", verify=images[:2])
  found = written.verification
  exact = f"within {found.max_lsb} LSB, {written.bytes:,} bytes"
  return name, len(model.layers), f"{off:.1e}", f"{seconds:.1f}", exact


def described(what: str, equal: list[str], refused: list[tuple[str, str]]) -> str:
  """The result of `come_in` as text."""
  names = ", ".join(f"`{name}`" for name, _ in refused)
  return (f"Of {len(equal) + len(refused)} {what}, {len(equal)} come in equal. One line names each of the "
          f"others: {names}.")


def main() -> None:
  """Prints the page, and writes it where asked."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--write", action="store_true")
  parser.add_argument("--models", default=",".join(SIZES), help="families of keras.applications")
  flags = parser.parse_args()
  from ptq import describe

  import kquant.cli  # noqa: F401  quiet start
  from tests import keras3_cases
  with tempfile.TemporaryDirectory() as folder:
    rows = [measure(name, folder) for name in flags.models.split(",")]
  header = ("model", "layers", "difference", "seconds", "int8 file")
  table = "\n".join("| " + " | ".join(map(str, row)) + " |"
                    for row in [header, ("---",) * len(header), *rows])
  functions, layers = (keras3_cases.come_in(cases())
                       for cases in (keras3_cases.functions, keras3_cases.layers))
  text = f"""# Coverage: Keras 3

{describe("python benchmarks/door.py --write")}

Keras 3 models become equal tf_keras models first (`kq.from_keras3`). Both are run on the same random images;
"difference" is the largest one at the logits over the largest logit, "seconds" the time to convert. The int8
file is verified on two images. Random weights, realistic batch norm statistics, inputs of 32 to 96 pixels.

{table}

{described("functions of `keras.ops` that can be called on tensors of a model", *functions)}

{described("classes of `keras.layers`", *layers)}

Each is called once, in one of the usual ways (tests/keras3_cases.py).
"""
  print(text)
  if flags.write:
    (ROOT / "docs" / "keras3.md").write_text(text)


if __name__ == "__main__":
  main()
