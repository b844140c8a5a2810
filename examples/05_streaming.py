"""Trains a keyword-like network on whole sequences, and runs its file one frame at a time.

    python examples/05_streaming.py

A word is an order of three tones in noise. The answers behind the last frame are compared with those of the
file that reads the whole sequence at once, and of the float network.
"""

import numpy as np
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

import kquant as kq
from tflite_export.proof.runtime import Runtime

FRAMES, BANDS, WORDS = 20, 6, 4
ORDERS = np.array([[0, 1, 2], [2, 1, 0], [1, 3, 5], [5, 3, 1]])


def words(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (frames [count, FRAMES, BANDS], the word in each)."""
  rng = np.random.default_rng(seed)
  y, x = rng.integers(0, WORDS, count), rng.normal(0, 0.4, (count, FRAMES, BANDS))
  for sound, word, start in zip(x, y, rng.integers(0, FRAMES - 9, count)):
    for place, band in enumerate(ORDERS[word]):
      sound[start + 3 * place:start + 3 * place + 3, band] += 1.5
  return x.astype(np.float32), y


def network(frames: int, **given) -> keras.Model:
  """A Dense layer, a GRU and the scores of the words behind each frame."""
  x = sound = keras.Input(batch_shape=(1 if given else None, frames, BANDS), name="frame")
  x = keras.layers.Dense(16, activation="relu")(x)
  x = keras.layers.GRU(24, return_sequences=True, name="gru", **given)(x)
  return keras.Model(sound, keras.layers.Dense(WORDS, name="word")(x))


keras.utils.set_random_seed(0)
(train, labels), (test, test_labels) = words(1500, 0), words(200, 1)
whole = network(FRAMES)
last = keras.Model(whole.input, whole.output[:, -1])
last.compile(keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
last.fit(train, labels, batch_size=50, epochs=8, verbose=0)

kq.export(kq.quantize(whole, train[:64], effort="fast"), "whole.tflite", io="float32")
one = network(1, stateful=True)
one.set_weights(whole.get_weights())
stream = kq.streaming(one)
runs = kq.stream_inputs(stream, train[:64])
written = kq.export(kq.quantize(stream, runs, effort="fast"), "stream.tflite", certify=True,
                    verify={name: values[:4] for name, values in runs.items()})

run = Interpreter("stream.tflite", num_threads=1).get_signature_runner()
details = run.get_input_details()
scale, zero = details["frame"]["quantization"]
answers = []
for sound in np.clip(np.round(test / scale) + zero, -128, 127).astype(np.int8):
  state = np.full(details["gru_h"]["shape"], details["gru_h"]["quantization"][1], details["gru_h"]["dtype"])
  for frame in sound:
    result = run(frame=frame[None, None], gru_h=state)
    state = result["gru_h"]
  answers.append(result["word"][0, 0].argmax())

chosen = last.predict(test, verbose=0).argmax(-1)
at_once = Runtime("whole.tflite").run_many([test])[0][:, -1].argmax(-1)
print(f"float   {np.mean(chosen == test_labels):.4f}")
print(f"whole   {np.mean(at_once == test_labels):.4f}")
print(f"stream  {np.mean(answers == test_labels):.4f}")
print(f"agreement {np.mean(answers == at_once):.4f}, exact {written.certificate['exact']}")
