"""One training, one bundle, a certified file at 8, 4 and 2 bits a weight, on scikit-learn's digits.

    python examples/03_any_precision.py
"""

import tempfile

import numpy as np
import tf_keras as keras

import kquant as kq
from kquant.cli.demo import digits, train_digits
from tflite_export.family.bundle import Bundle
from tflite_export.proof.runtime import Runtime

EPOCHS = 8

model = train_digits()
(images, labels), (test_images, test_labels) = digits()

keras.utils.set_random_seed(0)
anymodel = kq.AnyPrecisionModel(model, widths=(2, 4, 8, 32)).calibrate(images[:128])
schedule = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * (len(images) // 32))
anymodel.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
anymodel.fit(images, labels, batch_size=32, epochs=EPOCHS, verbose=0)
anymodel.reestimate_batch_norms(images[:512])
anymodel.add_width(3, images[:512])  # not trained: its batch norms are estimated
print(anymodel.evaluate_widths(test_images, test_labels))

with tempfile.TemporaryDirectory() as folder:
  family = kq.export_family(anymodel, folder, widths=(2, 4, 8), verify=images[:2], io="float32")
  bundle = Bundle(family.bundle)
  print(f"bundle {family.bytes:,} bytes")
  for bits, file in family.files.items():
    scores = Runtime(bundle.tflite(bits)).run_many([test_images])[0]
    print(f"{bits} bits  integer {np.mean(scores.argmax(-1) == test_labels):.4f}, {file.bytes:,} bytes, "
          f"{'certified' if file.certificate['exact'] else 'NOT EXACT'}")
