"""Trains a small network on scikit-learn's digits, quantizes it and looks at what came out.

    python examples/01_quantize.py
"""

import numpy as np

import kquant as kq
from kquant.cli.demo import digits, train_digits
from tflite_export.proof.runtime import Runtime

model = train_digits()
(images, _), (test_images, test_labels) = digits()

result = kq.quantize(model, calibration=images[:128])
written = kq.export(result, "digits.tflite", verify=images[:2], io="float32")

scores = Runtime("digits.tflite").run_many([test_images])[0]
print(f"float   {np.mean(model.predict(test_images, verbose=0).argmax(-1) == test_labels):.4f}")
print(f"integer {np.mean(scores.argmax(-1) == test_labels):.4f}")
print(f"{written.bytes:,} bytes, operators {written.program.operator_counts()}")
for edit in result.report.edits:
  print(f"{edit.pass_name}: {edit.layer}: {edit.what}")
