"""Every class of ours that a model file may name is found where kquant alone was imported."""

import pathlib
import subprocess
import sys

import numpy as np
import tf_keras as keras
from tf_keras import layers

import kquant as kq

ROOT = pathlib.Path(__file__).parents[1]
WITHIN_A_RUN = {"kquant.ptq.finetune.tuned_layers"}
"""Modules whose classes are in no file that a user keeps."""


def test_each_module_that_registers_classes_is_imported_by_the_look_up():
  registering = {".".join(path.relative_to(ROOT).with_suffix("").parts)
                 for path in (ROOT / "kquant").rglob("*.py")
                 if "@keras.saving.register_keras_serializable" in path.read_text()}
  assert len(registering) > 10
  code = ("import kquant, sys, tf_keras\n"
          "tf_keras.saving.get_registered_object('kquant>none')\n"
          "print(*sys.modules)")
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert registering - set(done.stdout.split()) == WITHIN_A_RUN


def test_a_final_model_with_masks_is_exported_by_another_process(tmp_path):
  words = keras.Input((6,), name="words")
  series = keras.Input((6, 3), name="series")
  x = layers.LSTM(4)(layers.Embedding(9, 3, mask_zero=True)(words))
  y = layers.GlobalAveragePooling1D()(layers.Masking()(series))
  model = keras.Model([words, series], layers.Dense(2)(layers.Concatenate()([x, y])))
  rng = np.random.default_rng(0)
  data = {"words": rng.integers(0, 9, (16, 6)).astype(np.int32),
          "series": rng.normal(size=(16, 6, 3)).astype(np.float32)}
  result = kq.quantize(model, data, effort=None)
  result.model.save(tmp_path / "m.keras")
  result.encodings.save(tmp_path / "m.json")
  written = kq.export(result, tmp_path / "m.tflite")
  np.savez(tmp_path / "data.npz", **data)
  done = subprocess.run(
      [sys.executable, "-m", "kquant.cli.export", f"--model={tmp_path / 'm.keras'}",
       f"--encodings={tmp_path / 'm.json'}", f"--output={tmp_path / 'again.tflite'}",
       f"--data={tmp_path / 'data.npz'}"],
      cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-500:]
  assert (tmp_path / "again.tflite").stat().st_size == written.bytes
