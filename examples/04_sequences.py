"""Trains an LSTM on sequences, quantizes it and certifies the file.

    python examples/04_sequences.py [japanesevowels.npz]

Without the file the rows of scikit-learn's digits, from top to bottom, are the sequence.
"""

import sys

import numpy as np
import tf_keras as keras

import kquant as kq
from kquant.cli.demo import digits
from tflite_export.proof.runtime import Runtime

if sys.argv[1:]:
  data = np.load(sys.argv[1])
  train, labels, test, test_labels = (data[name] for name in ("x_train", "y_train", "x_test", "y_test"))
else:
  (train, labels), (test, test_labels) = digits()
  train, test = train.reshape(-1, 8, 8), test.reshape(-1, 8, 8)  # 8 steps of 8 features

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.layers.LSTM(32, input_shape=train.shape[1:]),
                          keras.layers.Dropout(0.3),
                          keras.layers.Dense(labels.max() + 1, activation="softmax")])
model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
model.fit(train, labels, batch_size=16, epochs=12 if len(train) > 500 else 40, verbose=0)

result = kq.quantize(model, calibration=train[:256])
written = kq.export(result, "sequences.tflite", verify=test[:2], io="float32", certify=True)

chosen = model.predict(test, verbose=0).argmax(-1)
integer = Runtime("sequences.tflite").run_many([test])[0].argmax(-1)
print(f"float     {np.mean(chosen == test_labels):.4f}")
print(f"integer   {np.mean(integer == test_labels):.4f}")
print(f"agreement {np.mean(integer == chosen):.4f}")
print(f"{written.bytes:,} bytes, operators {written.program.operator_counts()}")
