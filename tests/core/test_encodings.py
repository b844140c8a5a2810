"""Encoding and Encodings: ranges by hand, files bit for bit, whole or not at all."""

import json
import os

import numpy as np
import pytest

from kquant.core.encodings import Encoding, Encodings


def random_encodings(seed):
  """Grids whose float32 scales have no short decimal form, and integers of every width."""
  rng = np.random.default_rng(seed)
  scales = (rng.uniform(size=64) * 10.0 ** rng.integers(-30, 20, 64)).astype(np.float32)
  scales[:3] = [np.finfo(np.float32).tiny, np.finfo(np.float32).max, np.float32(1) / 3]
  grids = {
      "image": Encoding(np.float32(0.1), rng.integers(-128, 128)),
      "block/conv": Encoding(scales[3], 5, bits=4),
      "block/conv@1": Encoding(scales[4], -5),
      "lstm:1": Encoding(scales[5], 0),
      "block/conv/kernel": Encoding(scales, np.zeros(64), axis=(2, 3), narrow=True),
      "block/conv/bias": Encoding(scales, np.zeros(64), bits=32, axis=(0,))}
  integers = {
      "block/conv/kernel": rng.integers(-127, 128, (3, 3, 8, 8)).astype(np.int8),
      "block/conv/bias": rng.integers(-2**31, 2**31, 64).astype(np.int32),
      "x/constant": rng.integers(-2**62, 2**62, ()).astype(np.int64)}
  return Encodings(grids, integers)


# --- one grid --------------------------------------------------------------------------------------


def test_range_by_hand():
  low, high = Encoding(0.5, -28).range
  assert (low.tolist(), high.tolist()) == ([-50.0], [77.5])
  low, high = Encoding([0.5, 2.0], [0, 0], bits=4, axis=(1,), narrow=True).range
  assert (low.tolist(), high.tolist()) == ([-3.5, -14.0], [3.5, 14.0])


def test_limits_follow_bits_and_narrow():
  assert Encoding(1.0, 0).limits == (-128, 127)
  assert Encoding(1.0, 0, bits=4, narrow=True).limits == (-7, 7)


def test_scalars_become_one_channel_of_float32_and_int64():
  grid = Encoding(0.1, np.int8(3), axis=[2, 3])
  assert (grid.scale.shape, grid.zero_point.shape) == ((1,), (1,))
  assert (grid.scale.dtype, grid.zero_point.dtype) == (np.float32, np.int64)
  assert grid.axis == (2, 3)


@pytest.mark.parametrize("scale, zero_point", [([1.0, 2.0], [0]), ([[1.0]], [[0]]), (1.0, [0, 0])])
def test_scale_and_zero_point_must_be_alike(scale, zero_point):
  with pytest.raises(ValueError, match="scale .* and zero_point .* must be 1-D and alike"):
    Encoding(scale, zero_point)


def test_both_ends_of_the_range_are_the_end_integers():
  for seed in range(5):
    rng = np.random.default_rng(seed)
    grid = Encoding(rng.uniform(1e-9, 1e3, 16), rng.integers(-128, 128, 16), axis=(0,))
    low, high = grid.range
    assert (grid.quantize(low) == -128).all() and (grid.quantize(high) == 127).all()
    assert (grid.quantize(2 * low - high) == -128).all() and (grid.quantize(2 * high - low) == 127).all()


def test_integers_survive_dequantize_and_quantize():
  grid = random_encodings(0)["block/conv/kernel"]
  grid = Encoding(np.maximum(grid.scale, 1e-30) % 1e30, grid.zero_point, axis=(2, 3), narrow=True)
  q = np.random.default_rng(1).integers(-127, 128, (3, 3, 8, 8))
  np.testing.assert_array_equal(grid.quantize(grid.dequantize(q)), q)


@pytest.mark.parametrize("other", [
    Encoding([0.1, 0.2], [0, 1], axis=(0,)), Encoding([0.1, 0.3], [0, 0], axis=(0,)),
    Encoding([0.1, 0.2], [0, 0], axis=(1,)), Encoding([0.1, 0.2], [0, 0], axis=(0,), bits=4),
    Encoding([0.1, 0.2], [0, 0], axis=(0,), narrow=True), Encoding(0.1, 0), None, "grid"])
def test_grids_differ_in_each_field(other):
  grid = Encoding([0.1, 0.2], [0, 0], axis=(0,))
  assert grid != other and grid == Encoding([0.1, 0.2], [0, 0], axis=(0,))


def test_neighbouring_float32_scales_differ():
  scale = np.float32(0.1)
  assert Encoding(scale, 0) != Encoding(np.nextafter(scale, np.float32(1)), 0)


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_save_and_load_keep_every_bit(seed, tmp_path):
  mine = random_encodings(seed)
  mine.save(tmp_path / "model.json")
  theirs = Encodings.load(tmp_path / "model.json")
  assert list(theirs.grids) == list(mine.grids) and mine.diff(theirs) == [] and mine == theirs
  for key, grid in mine.grids.items():
    other = theirs[key]
    assert grid.scale.tobytes() == other.scale.tobytes() and other.scale.dtype == np.float32
    assert grid.zero_point.tobytes() == other.zero_point.tobytes()
    assert (grid.bits, grid.axis, grid.narrow) == (other.bits, other.axis, other.narrow)
  assert set(theirs.integers) == set(mine.integers)
  for key, integers in mine.integers.items():
    assert theirs.integers[key].dtype == integers.dtype and theirs.integers[key].shape == integers.shape
    np.testing.assert_array_equal(theirs.integers[key], integers)


def test_saved_twice_the_file_is_the_same(tmp_path):
  for name in ("a", "b"):
    os.mkdir(tmp_path / name)
    random_encodings(3).save(tmp_path / name / "m.json")
  assert (tmp_path / "a/m.json").read_bytes() == (tmp_path / "b/m.json").read_bytes()


def test_no_temporary_file_is_left(tmp_path):
  random_encodings(0).save(str(tmp_path / "model.int8.json"))
  assert sorted(os.listdir(tmp_path)) == ["model.int8.json", "model.int8.npz"]


def test_empty_encodings_are_saved_too(tmp_path):
  Encodings().save(tmp_path / "m.json")
  assert len(Encodings.load(tmp_path / "m.json")) == 0


def test_two_files_of_one_folder_moved_together_still_load(tmp_path):
  random_encodings(0).save(tmp_path / "m.json")
  (tmp_path / "there").mkdir()
  for name in ("m.json", "m.npz"):
    (tmp_path / name).rename(tmp_path / "there" / name)
  assert Encodings.load(tmp_path / "there/m.json") == random_encodings(0)


@pytest.mark.parametrize("module, function", [(np, "savez_compressed"), (json, "dumps")])
def test_a_save_that_fails_leaves_the_old_files_and_nothing_else(module, function, tmp_path, monkeypatch):
  random_encodings(0).save(tmp_path / "m.json")

  def fail(*_, **__):
    raise OSError("disk full")

  with monkeypatch.context() as patch:
    patch.setattr(module, function, fail)
    with pytest.raises(OSError, match="disk full"):
      random_encodings(1).save(tmp_path / "m.json")
  assert sorted(os.listdir(tmp_path)) == ["m.json", "m.npz"]
  assert Encodings.load(tmp_path / "m.json") == random_encodings(0)


@pytest.mark.parametrize("text", [
    "{}", "[]", "3", "not json", '{"format": "kquant encodings", "version": 99}',
    '{"format": "aimet", "version": 1}'])
def test_a_file_of_another_kind_is_refused_by_name(text, tmp_path):
  (tmp_path / "other.json").write_text(text)
  expected = r"other\.json: expected a kquant encodings file of version 1"
  with pytest.raises(ValueError, match=expected) as error:
    Encodings.load(tmp_path / "other.json")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("contents, reason", [
    (None, r"there is no file .*m\.npz"), (b"garbage", r".*m\.npz is no \.npz"),
    (b"PK\3\4", r".*m\.npz is damaged"), ("array", r".*m\.npz is no file of named arrays")])
def test_integers_that_are_not_there_are_told_with_both_files(contents, reason, tmp_path):
  random_encodings(0).save(tmp_path / "m.json")
  (tmp_path / "m.npz").unlink()
  if contents == "array":
    np.save(tmp_path / "m.npy", np.zeros(3))
    (tmp_path / "m.npy").rename(tmp_path / "m.npz")
  elif contents is not None:
    (tmp_path / "m.npz").write_bytes(contents)
  expected = f"m\\.json: {reason}.*with its integers; .*beside"
  with pytest.raises(ValueError if contents else FileNotFoundError, match=expected) as caught:
    Encodings.load(tmp_path / "m.json")
  assert "pickle" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"integers": 3}, {"grids": {"x": {"scale": [1.0]}}}, {"grids": []},
                                    {"grids": {"x": {"scale": "a", "zero_point": [0]}}}])
def test_a_damaged_file_is_refused_by_name(change, tmp_path):
  random_encodings(0).save(tmp_path / "m.json")
  body = json.loads((tmp_path / "m.json").read_text())
  (tmp_path / "m.json").write_text(json.dumps({**body, **change}))
  with pytest.raises(ValueError, match=r"m\.json: is damaged"):
    Encodings.load(tmp_path / "m.json")


def test_a_missing_file_is_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    Encodings.load(tmp_path / "m.json")


# --- differences -----------------------------------------------------------------------------------


def test_equal_encodings_have_no_diff():
  assert random_encodings(2).diff(random_encodings(2)) == []
  assert random_encodings(2) == random_encodings(2) and random_encodings(2) != random_encodings(3)
  assert random_encodings(2) != "encodings"


def test_diff_has_one_line_a_key_on_either_side():
  mine = Encodings({"a": Encoding(1.0, 0), "b": Encoding(1.0, 0), "c": Encoding(1.0, 0)},
                   {"a/kernel": np.int8([1, 2]), "b/kernel": np.int8([1])})
  theirs = Encodings({"a": Encoding(1.0, 0), "b": Encoding(2.0, 0), "d": Encoding(1.0, 0)},
                     {"a/kernel": np.int8([1, 3]), "b/kernel": np.int8([1]), "e/bias": np.int32([0])})
  lines = mine.diff(theirs)
  assert [line.split(":")[0] for line in lines] == ["b", "c", "d", "a/kernel", "e/bias"]
  assert "1." in lines[0] and "2." in lines[0]
  assert lines[3] == "a/kernel: integers differ"
  assert [line.split(":")[0] for line in theirs.diff(mine)] == ["b", "c", "d", "a/kernel", "e/bias"]


def test_a_diff_of_many_channels_is_still_one_line():
  mine, theirs = (Encodings({"k": Encoding(np.full(64, scale), np.zeros(64), axis=(3,))})
                  for scale in (0.1, 0.2))
  (line,) = mine.diff(theirs)
  assert "\n" not in line


def test_integers_of_another_shape_differ():
  mine, theirs = (Encodings({}, {"k": np.zeros(shape, np.int8)}) for shape in ((2, 3), (3, 2)))
  assert mine.diff(theirs) == ["k: integers differ"]


def test_lookup():
  encodings = random_encodings(0)
  assert "image" in encodings and "picture" not in encodings and len(encodings) == 6
  assert encodings["block/conv"].bits == 4
  with pytest.raises(KeyError):
    encodings["picture"]
