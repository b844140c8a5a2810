"""Recurrent networks on JapaneseVowels: float, integer files, and TensorFlow's converter.

    python benchmarks/sequences.py [--networks=LSTM,GRU] [--seeds=3] [--presets="int8,fused int8,w4a8"]
        [--parts=networks,memory,lengths] [--write]

Trains each network on 270 sequences of 25 steps, quantizes it with `effort="balanced"`, calibrated on the
training sequences, and judges the file on the 370 of the test. TensorFlow's converter quantizes the LSTM and
the GRU in the same run. "fused" in front of a preset: each LSTM is one operator; of the networks of LSTM
alone. "memory" and "lengths": see long_memory.py. `--write` adds the tables, as far as they go, to
benchmarks/results.md and docs/sequences.md.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

TITLE = "Recurrent networks"
CONVERTED = ("LSTM", "GRU")
FUSED = ("LSTM", "BiLSTM")
EPOCHS = 40
STEPS = 25
MASKED = "masked attention"
DOCUMENT = ROOT / "docs" / "sequences.md"


def networks() -> dict:
  """{name: a function that returns the layers of a network}."""
  from tf_keras import layers
  return {"LSTM": lambda: [layers.LSTM(32)], "GRU": lambda: [layers.GRU(32)],
          "BiLSTM": lambda: [layers.Bidirectional(layers.LSTM(32))],
          "Conv1D + GRU": lambda: [layers.Conv1D(32, 3, padding="same", activation="relu"), layers.GRU(32)],
          "ConvLSTM1D": lambda: [layers.Reshape((STEPS, 12, 1)), layers.ConvLSTM1D(8, 3, padding="same"),
                                 layers.Flatten()],
          MASKED: lambda: [layers.Masking(), layers.Dense(32, activation="relu"), _self_attention(),
                           layers.GlobalAveragePooling1D()],
          "SimpleRNN": lambda: [layers.SimpleRNN(32)]}


def _self_attention():
  from tf_keras import layers
  attention = layers.MultiHeadAttention(2, 16)
  return lambda x: layers.Add()([x, attention(x, x)])


def cut(data: dict) -> dict:
  """Returns the sequences with zeros behind a random length of 7 to 25 steps."""
  import numpy as np
  rng = np.random.default_rng(0)
  lengths = {key: rng.integers(7, STEPS + 1, (len(data[key]), 1)) for key in ("x_train", "x_test")}
  return {**data, **{key: data[key] * (np.arange(STEPS) < length)[..., None]
                     for key, length in lengths.items()}}


def trained(name: str, data, seed: int):
  """Trains a network; returns it."""
  import tf_keras as keras
  keras.backend.clear_session()
  keras.utils.set_random_seed(seed)
  x = image = keras.Input(data["x_train"].shape[1:], name="sequence")
  for layer in networks()[name]():
    x = layer(x)
  model = keras.Model(image, keras.layers.Dense(9, activation="softmax")(keras.layers.Dropout(0.3)(x)))
  model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
  model.fit(data["x_train"], data["y_train"], batch_size=16, epochs=EPOCHS, verbose=0)
  return model


def converted(model, data) -> bytes:
  """Returns the file that TensorFlow's converter makes of a model, with int8 borders."""
  import tensorflow as tf
  model = _with_unrolled_gru(model)
  fixed = tf.function(model).get_concrete_function(tf.TensorSpec((1, *model.input_shape[1:]), tf.float32))
  converter = tf.lite.TFLiteConverter.from_concrete_functions([fixed], model)
  converter.optimizations = [tf.lite.Optimize.DEFAULT]
  converter.representative_dataset = lambda: ([x[None]] for x in data["x_train"])
  converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
  return converter.convert()


def _with_unrolled_gru(model):
  """The same network; the converter crashes on the loop of a GRU."""
  import tf_keras as keras

  def unrolled(layer):
    given = {"unroll": True} if isinstance(layer, keras.layers.GRU) else {}
    return type(layer).from_config({**layer.get_config(), **given})

  twin = keras.models.clone_model(model, clone_function=unrolled)
  twin.set_weights(model.get_weights())
  return twin


def judged(path: str, data, reference) -> dict:
  """Runs a file on one sequence after the other: top-1, agreement with float, bytes, ms a sequence."""
  from ai_edge_litert.interpreter import Interpreter
  interpreter = Interpreter(model_path=path, num_threads=1)
  interpreter.allocate_tensors()
  source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
  chosen, start = [], time.perf_counter()
  for x in data["x_test"]:
    interpreter.reset_all_variables()  # the converter's LSTM holds its state in variables
    interpreter.set_tensor(source, x[None])
    interpreter.invoke()
    chosen.append(interpreter.get_tensor(result)[0].argmax())
  seconds = time.perf_counter() - start
  return {"top1": (chosen == data["y_test"]).mean(), "agreement": (chosen == reference).mean(),
          "bytes": os.path.getsize(path), "ms": 1000 * seconds / len(chosen)}


def measure(name: str, seed: int, presets: list[str], data) -> list[dict]:
  """Returns the rows of one trained network: kquant's files, and the converter's."""
  import kquant
  model = trained(name, data, seed)
  reference = model.predict(data["x_test"], verbose=0).argmax(-1)
  common = {"network": name, "float": (reference == data["y_test"]).mean()}
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/m.tflite"
    for preset in presets:
      config = kquant.QuantConfig.preset(preset.removeprefix("fused "))
      if preset.startswith("fused "):
        if name not in FUSED:
          continue
        config = dataclasses.replace(config, recurrent="fused")
      result = kquant.quantize(model, data["x_train"], config=config, effort="balanced")
      written = kquant.export(result, path, io="float32", verify=data["x_test"][:4], certify=seed == 0)
      rows.append({**common, "made": f"kquant {preset}", **judged(path, data, reference),
                   "exact": written.certificate["exact"] if seed == 0 else True})
    if name in CONVERTED:
      pathlib.Path(path).write_bytes(converted(model, data))
      rows.append({**common, "made": "converter int8", **judged(path, data, reference), "exact": None})
  return rows


def table(rows: list[dict]) -> str:
  """Means over the seeds."""
  import numpy as np
  lines = ["| network | file | float top-1 | top-1 | agreement | kB | ms a sequence | exact |",
           "|---|---|---|---|---|---|---|---|"]
  for key in dict.fromkeys((row["network"], row["made"]) for row in rows):
    own = [row for row in rows if (row["network"], row["made"]) == key]
    mean = {column: np.mean([row[column] for row in own])
            for column in ("float", "top1", "agreement", "bytes", "ms")}
    exact = "" if own[0]["exact"] is None else "yes" if all(row["exact"] for row in own) else "no"
    shares = " | ".join(f"{mean[column]:.4f}" for column in ("float", "top1", "agreement"))
    cells = (*key, shares, f"{mean['bytes'] / 1000:.1f}", f"{mean['ms']:.2f}", exact)
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def write(title: str, mark: str, note: str, body: str) -> None:
  """Writes a table to benchmarks/results.md and to docs/sequences.md."""
  from ptq import describe, write_marked, write_section
  write_section(title, f"{describe('python benchmarks/sequences.py --write')}\n\n{note}\n\n{body}")
  write_marked(DOCUMENT, mark, body)


def main() -> None:
  """Measures, prints, and writes the tables where asked."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--networks", default=",".join(networks()))
  parser.add_argument("--presets", default="int8,fused int8,w4a8")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--parts", default="networks,memory,lengths")
  parser.add_argument("--shared", default=os.environ.get("KQUANT_SHARED", "../shared"))
  parser.add_argument("--write", action="store_true")
  flags = parser.parse_args()
  import long_memory
  import numpy as np

  import kquant.cli  # noqa: F401  quiet start
  parts = flags.parts.split(",")
  data = dict(np.load(pathlib.Path(flags.shared) / "data" / "japanesevowels.npz"))

  def show(*section: str) -> None:
    print(section[-1], flush=True)
    if flags.write:
      write(*section)

  rows = []
  for seed in range(flags.seeds if "networks" in parts else 0):
    for name in flags.networks.split(","):
      rows += measure(name, seed, flags.presets.split(","), cut(data) if name == MASKED else data)
      show(TITLE, "networks", f"Means over {seed + 1} seeds.", table(rows))
  rows = []
  for cell in long_memory.CELLS if "memory" in parts else ():
    rows += long_memory.measure(cell)
    show("Memory over 200 steps", "memory", "The symbol of the first step is recalled; files run by LiteRT. "
         "Drift: rms error of the state against float, of its rms.", long_memory.table(rows))
  if "lengths" in parts:
    show("Steps of a recurrent layer", "lengths", "Weights as they are at first.", long_memory.lengths())


if __name__ == "__main__":
  main()
