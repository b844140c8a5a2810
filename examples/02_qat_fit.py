"""Rounding after training, then training with rounding, at 4 and 2 bits a weight, on scikit-learn's digits.

    python examples/02_qat_fit.py [EPOCHS]
"""

import sys
import tempfile

import numpy as np
import tf_keras as keras

import kquant as kq
from kquant.cli.demo import digits, train_digits
from tflite_export.proof.runtime import Runtime

EPOCHS = int(sys.argv[1]) if sys.argv[1:] else 12

model = train_digits()
(images, labels), (test_images, test_labels) = digits()
print(f"float                {np.mean(model.predict(test_images, verbose=0).argmax(-1) == test_labels):.4f}")


def report(what: str, found) -> None:
  """Writes a certified file and judges it by LiteRT."""
  with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/m.tflite"
    written = kq.export(found, path, verify=images[:2], io="float32", certify=True)
    scores = Runtime(written.path).run_many([test_images])[0]
  results = written.certificate["kernel_sets"].values()
  rows = [row for result in results for row in result["operators"].values()]
  print(f"{what}  integer {np.mean(scores.argmax(-1) == test_labels):.4f}, {written.bytes:,} bytes, "
        f"{sum(row['elements'] for row in rows):,} elements compared, "
        f"{sum(row['mismatching'] for row in rows)} differ")


for preset in ("w4a8", "w2a8"):
  config = kq.QuantConfig.preset(preset)
  report(f"{preset} after training", kq.quantize(model, images[:128], config=config))

  keras.utils.set_random_seed(0)
  config = config.with_quantizers(weights="lsq", activations="lsq")
  qmodel = kq.calibrate(kq.insert_quantizers(model, config, batch_norm="absorb"), images[:128])
  schedule = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * (len(images) // 32))
  qmodel.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
  qmodel.fit(images, labels, batch_size=32, epochs=EPOCHS, verbose=0,
             callbacks=[kq.ReestimateBatchNorm(images[:512])])
  report(f"{preset} trained       ", kq.finalize(qmodel))
