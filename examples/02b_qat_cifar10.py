"""Trains a network with its quantizers on CIFAR-10 images, at 4 bits a weight, and writes the file.

    python examples/02b_qat_cifar10.py MODEL.h5 CIFAR10.npz [EPOCHS]

MODEL takes raw images, 0..255, as MLPerf Tiny's ResNet-8 does; CIFAR10.npz holds x_train, y_train, x_test
and y_test.
"""

import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras

import kquant as kq
from kquant.graph.model_files import load_model
from tflite_export.proof.runtime import Runtime


def main(model_path: str, data_path: str, epochs: str = "10") -> None:
  """Trains, exports, judges."""
  keras.utils.set_random_seed(0)
  model = load_model(model_path)
  with np.load(data_path) as data:
    x, y, x_test, y_test = (data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
  x, x_test = x.astype(np.float32), x_test.astype(np.float32)

  config = kq.QuantConfig.preset("w4a8").with_quantizers(weights="lsq", activations="lsq")
  qmodel = kq.calibrate(kq.insert_quantizers(model, config, batch_norm="absorb"), x[:256])

  steps = len(x) // 32
  train = (tf.data.Dataset.from_tensor_slices((x, y.reshape(-1))).shuffle(len(x), seed=0).map(augment)
           .batch(32, drop_remainder=True).prefetch(2))
  schedule = keras.optimizers.schedules.CosineDecay(1e-3, int(epochs) * steps)
  qmodel.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
  qmodel.fit(train, epochs=int(epochs), verbose=2, validation_data=(x_test, y_test.reshape(-1)),
             callbacks=[kq.FreezeOscillations(), kq.ReestimateBatchNorm(x[:1600])])

  written = kq.export(kq.finalize(qmodel), "w4a8.tflite", verify=x[:2], io="float32")
  for name, scores in (("float  ", model.predict(x_test, verbose=0)),
                       ("integer", Runtime(written.path).run_many([x_test])[0])):
    print(f"{name} {np.mean(scores.argmax(-1) == y_test.reshape(-1)):.4f}")
  print(f"{written.bytes:,} bytes")


def augment(image, label):
  """Mirrored by chance, and moved by up to 4 pixels."""
  padded = tf.pad(image, [[4, 4], [4, 4], [0, 0]], "REFLECT")
  return tf.image.random_flip_left_right(tf.image.random_crop(padded, (32, 32, 3))), label


if __name__ == "__main__":
  if not 3 <= len(sys.argv) <= 4:
    sys.exit(__doc__)
  main(*sys.argv[1:])
