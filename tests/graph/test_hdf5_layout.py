"""Damaged HDF5 files that the library would read for ever. It reads none here; only the check does."""

import io
import struct

import h5py
import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from kquant.graph.readers import hdf5_layout
from kquant.graph.readers.hdf5_layout import check_layout

FREE = 0


def item(number, size, content=b""):
  return struct.pack("<H6xQ", number, size) + content


def heap(*items, size=None, reserved=b"\0\0\0"):
  content = b"".join(items)
  return b"GCOL\x01" + reserved + struct.pack("<Q", 16 + len(content) if size is None else size) + content


def check(content):
  check_layout(io.BytesIO(content))


def keras_file():
  model = keras.Sequential([layers.Dense(4, input_shape=(3,)), layers.Dense(2)])
  model.compile("adam", "mse")
  buffer = io.BytesIO()
  with h5py.File(buffer, "w") as file:
    model.save(file)
  return buffer.getvalue()


GOOD = {"texts": heap(item(1, 5, bytes(8)), item(2, 8, bytes(8)), item(FREE, 32, bytes(16))),
        "text without content": heap(item(1, 0), item(FREE, 16)),
        "rest shorter than a header": heap(item(1, 8, bytes(8)), bytes(8)),
        "full": heap(item(3, 16, bytes(16))),
        "longer than the file, so that the library refuses it": heap(item(FREE, 0), size=1 << 20),
        "cut off in its header": b"GCOL\x01\0\0\0\1",
        "empty": b""}


@pytest.mark.parametrize("name", GOOD)
def test_good_heaps_pass(name):
  check(GOOD[name])


BAD = {"free space of no size": item(FREE, 0), "object of size -16": item(1, 2**64 - 16),
       "object of size -1 between others": item(1, 8, bytes(8)) + item(2, 2**64 - 1) + item(FREE, 0),
       "free space of size -16": item(1, 0) + item(FREE, 2**64 - 16),
       "free space of 8 bytes": item(FREE, 8, bytes(8)),
       "object of size -17": item(1, 2**64 - 17), "object beyond the heap": item(1, 17, bytes(16))}


@pytest.mark.parametrize("reserved", [b"\0\0\0", b"\1\0\0"])
@pytest.mark.parametrize("name", BAD)
def test_bad_objects_are_refused(name, reserved):
  with pytest.raises(OSError, match=r"heap at byte 24 has an object of \d+ bytes, expected 16 to \d+"):
    check(bytes(24) + heap(BAD[name], reserved=reserved))


@pytest.mark.parametrize("outer, inner, guilty", [(80, 32, 0), (64, 48, 32), (80, 48, 0), (64, 32, None)])
def test_heaps_that_meet_are_checked_to_the_farthest_end(outer, inner, guilty):
  """The first object holds the header of a heap whose objects are those behind it; the last has no size."""
  ways = heap(size=outer) + item(1, 16, heap(size=inner)) + item(1, 0) + item(FREE, 0)
  if guilty is None:
    check(ways)
  else:
    with pytest.raises(OSError, match=f"heap at byte {guilty} has an object of 0 bytes"):
      check(ways)


def test_the_time_grows_with_the_file_alone(monkeypatch):
  steps, step = [], hdf5_layout._step
  monkeypatch.setattr(hdf5_layout, "_step", lambda *where: steps.append(where) or step(*where))
  heads, tail = 200, 300
  ways = [heap(item(1, 32 * before), size=32 * (before + 1) + 16 * tail) for before in reversed(range(heads))]
  check(b"".join(ways) + item(1, 0) * tail)
  assert len(steps) == heads + tail


@pytest.mark.parametrize("version, place", [(0, 13), (1, 13), (2, 9), (3, 9)])
@pytest.mark.parametrize("start", [0, 512, 2048])
def test_only_files_that_count_in_8_bytes_pass(version, place, start):
  block = bytearray(b"\x89HDF\r\n\x1a\n" + bytes([version]) + bytes(15))
  block[place:place + 2] = b"\x08\x08"
  check(bytes(start) + block)
  for byte, got in ((place, "[4, 8]"), (place + 1, "[8, 4]")):
    damaged = bytearray(block)
    damaged[byte] = 4
    with pytest.raises(OSError) as error:
      check(bytes(start) + damaged)
    assert str(error.value) == f"expected offsets and lengths of 8 bytes, got {got}"


def test_files_of_keras_pass():
  content = keras_file()
  assert b"GCOL\x01" in content
  check(content)


@pytest.mark.parametrize("name", ["resnet8_cifar10", "mobilenet_v2_1.0_224"])
def test_real_files_pass(name, shared_data):
  check_layout(shared_data / "models" / f"{name}.h5")


def test_files_whose_texts_were_changed_pass():
  buffer = io.BytesIO(keras_file())
  rng = np.random.default_rng(0)
  with h5py.File(buffer, "a") as file:
    for round_ in range(40):
      name = f"a{rng.integers(6)}"
      if name in file.attrs and rng.random() < 0.5:
        del file.attrs[name]
      else:
        file.attrs[name] = "x" * int(rng.integers(9000))
      if round_ % 8 == 0:
        file[f"d{round_}"] = rng.integers(0, 256, 5000, np.uint8)
  check(buffer.getvalue())
