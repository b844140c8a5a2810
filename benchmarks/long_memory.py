"""8 and 16 bits of memory over 200 steps: networks that recall the first step (see sequences.py)."""

import time

STEPS = 200
LENGTHS = (10, 25, 50, 100, STEPS)
"""Of the sequences that a network is trained on, one after the other."""
SYMBOLS = 8
COUNTS = {"train": 2000, "calibrate": 128, "judge": 500}
CELLS = ("LSTM", "GRU")
SHOWN = (1, 50, 100, 150, 200)
"""Steps whose drift is told."""


def sequences(count: int, steps: int, seed: int):
  """Returns (x [count, steps, 4], y [count]): the bits of y in the first step, noise in all others."""
  import numpy as np
  rng = np.random.default_rng(seed)
  y = rng.integers(0, SYMBOLS, count)
  x = rng.normal(0, 0.5, (count, steps, 4)).astype(np.float32)
  x[..., 3] = 0
  x[:, 0] = np.stack([*(2 * (y >> bit & 1) - 1 for bit in range(3)), np.ones(count)], axis=1)
  return x, y


def trained(cell: str, seed: int):
  """Trains a network of 32 units on longer and longer sequences; its second output is its state."""
  import tf_keras as keras
  keras.backend.clear_session()
  keras.utils.set_random_seed(seed)
  recurrent = getattr(keras.layers, cell)(32, return_sequences=True, name="memory")
  answer = keras.layers.Dense(SYMBOLS, activation="softmax", name="answer")
  x = keras.Input((None, 4))
  model = keras.Model(x, answer(recurrent(x)[:, -1]))
  model.compile(keras.optimizers.Adam(3e-3, clipnorm=1.0), "sparse_categorical_crossentropy", ["accuracy"])
  for steps in LENGTHS:
    for epoch in range(20):
      data = sequences(COUNTS["train"], steps, 1000 * steps + epoch)
      reached = model.fit(*data, batch_size=50, verbose=0).history
      if reached["accuracy"][0] > 0.999 and reached["loss"][0] < 0.02:
        break
  x = keras.Input((STEPS, 4), name="x")
  sequence = recurrent(x)
  return keras.Model(x, [answer(sequence[:, -1]), sequence])


def memories(cell: str) -> dict:
  """Returns {label: config} of the forms of a network's memory."""
  import kquant
  found = {f"{bits} bits": kquant.QuantConfig(memory_bits=bits) for bits in (8, 16)}
  return found | ({"fused, 16 bits": kquant.QuantConfig(recurrent="fused")} if cell == "LSTM" else {})


def run_file(result, x) -> tuple[list, bool]:
  """Returns the outputs of a result's file, run by LiteRT, and whether the file is exact on two sequences."""
  import tempfile

  import kquant
  from tflite_export.proof.runtime import Runtime
  with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/m.tflite"
    written = kquant.export(result, path, io="float32", verify=x[:2], certify=True)
    return Runtime(path).run_many([x]), written.certificate["exact"]


def measure(cell: str) -> list[dict]:
  """Returns what a network answers in float and as files with each memory, and how its state drifts."""
  import numpy as np

  import kquant
  model = trained(cell, 0)
  calibration, (x, y) = sequences(COUNTS["calibrate"], STEPS, 1)[0], sequences(COUNTS["judge"], STEPS, 2)
  answers, states = model.predict(x, verbose=0)
  rows = [{"network": cell, "memory": "float", "top1": (answers.argmax(-1) == y).mean(), "drift": {},
           "exact": ""}]
  for label, config in memories(cell).items():
    result = kquant.quantize(model, calibration, config=config, effort=None)
    (found, moved), exact = run_file(result, x)
    error = np.sqrt(((moved - states) ** 2).mean(axis=(0, 2)) / (states ** 2).mean())
    rows.append({"network": cell, "memory": label, "top1": (found.argmax(-1) == y).mean(),
                 "drift": {step: error[step - 1] for step in SHOWN}, "exact": "yes" if exact else "NO"})
    print(rows[-1], flush=True)
  return rows


def table(rows: list[dict]) -> str:
  """One row a network and width."""
  lines = [f"| network | memory | top-1 | {' | '.join(f'drift at {step}' for step in SHOWN)} | "
           "exact |", "|---|---|---|---|" + "---|" * len(SHOWN)]
  for row in rows:
    drift = [f"{100 * row['drift'][step]:.1f} %" if row["drift"] else "" for step in SHOWN]
    lines.append(f"| {row['network']}(32) | {row['memory']} | {row['top1']:.4f} | {' | '.join(drift)} | "
                 f"{row['exact']} |")
  return "\n".join(lines)


def lengths() -> str:
  """Returns the table of what an LSTM costs at 25, 100 and 200 steps."""
  import tempfile

  import numpy as np
  import tf_keras as keras

  import kquant
  from tflite_export.proof.runtime import Runtime
  columns = {}
  for steps in (25, 100, 200):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.LSTM(32, input_shape=(steps, 12)), keras.layers.Dense(9)])
    data = np.random.default_rng(0).normal(size=(128, steps, 12)).astype(np.float32)
    start = time.process_time()
    result = kquant.quantize(model, data, effort=None)
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
      written = kquant.export(result, f"{folder}/m.tflite", io="float32")
      runtime = Runtime(f"{folder}/m.tflite")
      start = time.perf_counter()
      runtime.run_many([data])
      milliseconds = 1000 * (time.perf_counter() - start) / len(data)
    columns[steps] = (f"{written.bytes:,}", f"{len(written.program.ops):,}", f"{milliseconds:.2f}",
                      f"{seconds:.0f}")
  labels = ("bytes", "operators", "ms, one thread",
            "processor seconds of `quantize(effort=None)`, 128 sequences")
  lines = ["| LSTM(32) and Dense(9), 12 features, int8, float inputs and outputs | "
           f"{' | '.join(f'{n} steps' for n in columns)} |",
           "|---|---|---|---|"]
  return "\n".join([*lines, *(f"| {label} | {' | '.join(values)} |"
                              for label, values in zip(labels, zip(*columns.values())))])
