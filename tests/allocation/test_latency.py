"""Latency tables: which operators they name, how they are kept, what a file adds up to."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant.allocation import latency as latency_module
from kquant.allocation.latency import FileLatency, LatencyTable, measure_latency


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """A file with a convolution, an addition and a dense layer of 4 bits."""
  keras.utils.set_random_seed(0)
  x = keras.Input((8, 8, 3))
  y = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(x)
  y = layers.Dense(2, name="dense")(layers.Flatten()(layers.Add(name="add")([y, y])))
  images = np.random.default_rng(0).random((8, 8, 8, 3), np.float32)
  config = kq.QuantConfig((kq.Rule(match="dense", weights=kq.TensorSpec(bits=4)), kq.Rule()))
  path = tmp_path_factory.mktemp("latency") / "model.tflite"
  kq.export(kq.quantize(keras.Model(x, y), images, config=config, effort=None), path)
  return path


def test_every_operator_has_a_line_by_shape_and_width(file):
  found = measure_latency(file, runs=2)
  assert list(found.milliseconds) == [
      "CONV_2D padding=SAME stride_h=2 stride_w=2 int8[1,8,8,3] int8[4,3,3,3] int32[4] -> int8[1,4,4,4]",
      "ADD int8[1,4,4,4] int8[1,4,4,4] -> int8[1,4,4,4]", "RESHAPE int8[1,4,4,4] int32[2] -> int8[1,64]",
      "FULLY_CONNECTED int8[1,64] int4[2,64] int32[2] -> int8[1,2]"]
  assert all(value >= 0 for value in found.milliseconds.values()) and found.milliseconds[
      next(iter(found.milliseconds))] > 0


def test_known_operators_are_not_timed_again(file):
  known = LatencyTable(dict.fromkeys(measure_latency(file, runs=1).milliseconds, 7.0))
  assert measure_latency([file, file.read_bytes()], table=known, runs=1) == known


def test_a_file_is_the_sum_of_its_operators(file):
  keys = list(measure_latency(file, runs=1).milliseconds)
  latency = FileLatency(file.read_bytes(), LatencyTable(dict(zip(keys, (1.0, 2.0, 4.0, 8.0)))))
  assert latency.total == 15.0 and latency.of_weights == {"conv/kernel": 1.0, "dense/kernel": 8.0}
  assert latency.of_others["add"] == 2.0
  with pytest.raises(ValueError, match="expected the milliseconds of 'CONV_2D"):
    FileLatency(file.read_bytes(), LatencyTable({}))


def test_a_file_has_one_call_and_its_operators_have_one_each(file, monkeypatch):
  """Alone they take 1, 2, 3 and 4 ms, the file 8.5: three calls fewer are 1.5 ms."""
  monkeypatch.setattr(latency_module, "milliseconds",
                      lambda files, runs: (1.0, 2.0, 3.0, 4.0, 8.5)[:len(files)])
  table = measure_latency(file)
  assert table.call_ms == pytest.approx(0.5)
  assert list(table.milliseconds.values()) == pytest.approx([0.5, 1.5, 2.5, 3.5])
  assert FileLatency(file.read_bytes(), table).total == pytest.approx(8.5)
  more = measure_latency(file, table=LatencyTable({}, 0.25))  # which says what a call takes
  assert more.call_ms == 0.25 and list(more.milliseconds.values()) == pytest.approx([0.75, 1.75, 2.75, 3.75])


def test_a_call_takes_no_less_than_nothing(file, monkeypatch):
  monkeypatch.setattr(latency_module, "milliseconds", lambda files, runs: (1.0, 2.0, 3.0, 4.0, 11.5))
  assert measure_latency(file).call_ms == 0.0


def test_a_table_survives_its_file(tmp_path):
  table = LatencyTable({"ADD": 0.25}, call_ms=0.125)
  table.save(tmp_path / "table.json")
  assert LatencyTable.load(tmp_path / "table.json") == table
  (tmp_path / "older.json").write_text('{"format": "kquant latencies", "milliseconds": {"ADD": 0.25}}')
  assert LatencyTable.load(tmp_path / "older.json") == LatencyTable({"ADD": 0.25})
  (tmp_path / "other.json").write_text("[]")
  with pytest.raises(ValueError, match="expected a JSON file of latencies"):
    LatencyTable.load(tmp_path / "other.json")
