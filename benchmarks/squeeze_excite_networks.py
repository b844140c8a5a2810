"""Tiles of squeeze-and-excite in the networks of tf_keras.applications, and in one trained on CIFAR-10.

    python benchmarks/squeeze_excite_networks.py [--parts=applications,cifar] [--epochs=10] [--write]
                                                 [--shared=../shared]

applications  random weights, realistic batch norm statistics, 128 pixels: blocks that are found of those that
              the names of the layers count, whole-image tiles against the model, and the int8 file with tiles
              of 7 rows, certified on both kernel sets
cifar         resnet8 with a block behind each stage, trained from its start on 5,000 images of 64 pixels
              (32, enlarged): tiles as a drop-in, and trained on for 5 epochs as the whole image is
"""

import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TITLES = {"applications": "Tiled squeeze-and-excite in the networks of keras.applications",
          "cifar": "Tiled squeeze-and-excite, trained on CIFAR-10"}
PIXELS, ROWS = 128, 7
GATES = {"EfficientNetB0": "se_expand", "EfficientNetB1": "se_expand", "EfficientNetB2": "se_expand",
         "EfficientNetV2B0": "se_expand", "MobileNetV3Small": "squeeze_excite/Conv_1",
         "MobileNetV3Large": "squeeze_excite/Conv_1", "RegNetY002": "squeeze_and_excite_ex",
         "RegNetY016": "squeeze_and_excite_ex"}
"""Families, and what the names of the layers that end their gates have in common."""
CIFAR_PIXELS, TUNED_EPOCHS = 64, 5
CIFAR_ROWS = (2, 4, 8, 16)


def application_row(name: str, part: str) -> str:
  """Returns the row of one family."""
  import tf_keras as keras

  import kquant as kq
  from kquant.graph.graph import Graph
  from kquant.rewrites.approximate.gates import find_blocks
  from tests.models import randomized
  shape = (PIXELS, PIXELS, 3)
  family = getattr(keras.applications, name, None) or getattr(keras.applications.regnet, name)
  model = randomized(family(weights=None, input_shape=shape, include_top=False, pooling="avg"))
  images = np.random.default_rng(0).uniform(0, 255, (8, *shape)).astype(np.float32)
  blocks = find_blocks(Graph.from_model(model))[0]
  wanted = sum(part in layer.name for layer in model.layers)
  whole, tiled = (kq.tile_squeeze_excite(model, rows=rows) for rows in (PIXELS, ROWS))
  same = np.array_equal(whole(images[:2]), model(images[:2]))
  result = kq.quantize(tiled, images, effort=None)
  with tempfile.TemporaryDirectory() as folder:
    written = kq.export(result, f"{folder}/m.tflite", verify=images[:1], certify=True)
  floats = len(written.verification.float_operators)
  exact = "yes" if written.certificate["exact"] and not floats else "NO"
  return (f"| {name} | {len(blocks)} of {wanted} | {sum(block.size[0] > ROWS for block in blocks)} | "
          f"{'yes' if same else 'NO'} | {exact} |")


def applications(_: object) -> str:
  """Measures all families."""
  lines = ["| network | blocks found | with tiles of 7 rows | whole-image tiles: equal to the bit | "
           "int8 file exact |", "|---|---|---|---|---|"]
  for name, part in GATES.items():
    lines.append(application_row(name, part))
    print(lines[-1], flush=True)
  return "\n".join(lines)


def cifar_network():
  """Returns resnet8 for images of 64 pixels, a squeeze-and-excite block at the end of each residual."""
  import tf_keras as keras
  from tf_keras import layers

  def conv(x, channels, strides=1, relu=True):
    x = layers.Conv2D(channels, 3, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if relu else x

  image = keras.Input((CIFAR_PIXELS, CIFAR_PIXELS, 3))
  x = conv(layers.Rescaling(1 / 255)(image), 16, 2)
  for channels, strides in ((16, 1), (32, 2), (64, 2)):
    y = conv(conv(x, channels, strides), channels, relu=False)
    gate = layers.Dense(channels // 4, "relu")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    y = layers.Multiply()([y, layers.Dense(channels, "sigmoid")(gate)])
    x = x if strides == 1 else layers.Conv2D(channels, 1, strides)(x)
    x = layers.ReLU()(layers.Add()([x, y]))
  return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def cifar(flags) -> str:
  """Trains the network once, then measures each tile size as it is and trained on."""
  import tensorflow as tf
  import tf_keras as keras
  from ptq import data_of
  from qat import BATCH, augmented, compiled, fit, scores
  from qat import cifar as images_of

  import kquant as kq
  from kquant.core import metrics
  x, y, x_test, y_test = images_of(data_of(flags))
  x, x_test = (tf.image.resize(part, (CIFAR_PIXELS, CIFAR_PIXELS)).numpy() for part in (x, x_test))
  steps = len(x) // BATCH
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

  def train(model, epochs, learning_rate):
    compiled(model, epochs=epochs, steps=steps, learning_rate=learning_rate, loss=loss)
    fit(model, augmented(x, y, pad=8, size=CIFAR_PIXELS), epochs=epochs, steps=steps)
    return metrics.top1(scores(model, x_test), y_test)

  keras.utils.set_random_seed(0)
  model = cifar_network()
  train(model, flags.epochs, 3e-3)
  wanted, weights = scores(model, x_test), model.get_weights()
  lines = ["| tiles | elements held by the blocks | top-1, drop-in | agreement | top-1, trained on |",
           "|---|---|---|---|---|"]
  for rows in (*CIFAR_ROWS, CIFAR_PIXELS):
    keras.utils.set_random_seed(1)
    model.set_weights(weights)
    tiled = kq.tile_squeeze_excite(model, rows=rows)
    found = scores(tiled, x_test)
    top1, agreement = metrics.top1(found, y_test), metrics.agreement(found, wanted)
    label = "whole" if rows == CIFAR_PIXELS else f"{rows} rows"
    elements = kq.pipeline_buffer(tiled).squeeze_excite
    lines.append(f"| {label} | {elements:,} | {top1:.4f} | {agreement:.4f} | "
                 f"{train(tiled, TUNED_EPOCHS, 3e-4):.4f} |")
    print(lines[-1], flush=True)
  return "\n".join(lines)


def main() -> None:
  """Measures what the flags say."""
  from ptq import arguments, describe, write_section
  parser = arguments(__doc__)
  parser.add_argument("--parts", default=",".join(TITLES))
  parser.add_argument("--epochs", type=int, default=10)
  flags = parser.parse_args()
  import kquant.cli  # noqa: F401  quiet start
  for part in flags.parts.split(","):
    table = {"applications": applications, "cifar": cifar}[part](flags)
    command = f"python benchmarks/squeeze_excite_networks.py --parts={part}" + (
        f" --epochs={flags.epochs}" if part == "cifar" else "")
    if flags.write:
      write_section(TITLES[part], f"{describe(command)}\n\n{table}")


if __name__ == "__main__":
  main()
